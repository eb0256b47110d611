//! Channels on disk: terms and keys before a coin moves, totals now and then.

use std::path::Path;

use cocoon_p2p::core::PeerKey;
use cocoon_payments::{
    Address, NanoTon,
    store::{PayerChannel, PayerStatus, PayerStore, StoreError},
};
use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

use super::book::Channel;

#[derive(Debug)]
pub(super) struct Vault {
    store: PayerStore,
}

impl Vault {
    /// Opens the store in the peer's state directory.
    pub(super) fn open(state: &Path) -> Result<Self, StoreError> {
        Ok(Self { store: PayerStore::open(&state.join("channels.redb"))? })
    }

    /// The channels that are not over. One that cannot be used is skipped and stays on disk.
    pub(super) fn channels(&self, global_id: i32) -> Result<Vec<Channel>, StoreError> {
        let mut channels = Vec::new();
        for (address, stored) in self.store.list()? {
            if stored.status == PayerStatus::Closed {
                continue;
            }
            let key = SigningKey::from_bytes(&stored.key_seed);
            match Channel::new(PeerKey(stored.peer), stored.params, global_id, key, stored.cumulative) {
                Ok(channel) => {
                    match stored.status {
                        PayerStatus::Closing => channel.begin_closing(),
                        PayerStatus::Open => channel.was_open(),
                        PayerStatus::Created | PayerStatus::Closed => {}
                    }
                    channels.push(channel);
                }
                Err(error) => tracing::warn!(channel = %address, %error, "a stored channel is unusable"),
            }
        }
        Ok(channels)
    }

    /// Durably, before the deposit leaves the wallet.
    pub(super) fn add(&self, channel: &Channel) -> Result<(), StoreError> {
        self.store.put(&PayerChannel {
            params: channel.params,
            key_seed: Zeroizing::new(channel.key_seed()),
            cumulative: channel.paid(),
            deposit: NanoTon::ZERO,
            status: PayerStatus::Created,
            peer: channel.worker.0.clone(),
        })
    }

    /// Notes what was promised in total.
    pub(super) fn paid(&self, channel: &Address, paid: NanoTon) -> Result<(), StoreError> {
        self.store.raise(channel, paid)
    }

    /// The chain showed it open: from now on it is not forgotten for not being found.
    pub(super) fn opened(&self, channel: &Address) -> Result<(), StoreError> {
        self.store.set_status(channel, PayerStatus::Open)
    }

    /// Notes that the deposit was asked back.
    pub(super) fn closing(&self, channel: &Address) -> Result<(), StoreError> {
        self.store.set_status(channel, PayerStatus::Closing)
    }

    /// The channel is over; its record stays.
    pub(super) fn over(&self, channel: &Address) -> Result<(), StoreError> {
        self.store.set_status(channel, PayerStatus::Closed)
    }
}
