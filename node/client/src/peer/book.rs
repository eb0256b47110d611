//! The channels this peer pays through, and the sessions on them.
//!
//! One entry per worker. Its [`Channel`] knows the terms, the key that signs vouchers, what the
//! chain last said and how much was promised; it also holds the worker's one session, which every
//! request shares. The amount promised is published by the session's task after every payment and
//! written to disk now and then: should this process die, the worker presents our newest voucher.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use cocoon_p2p::core::PeerKey;
use cocoon_payments::{
    Address, NanoTon,
    channel::{ChannelParams, OnChain, Stage},
    lane::{Payer, PayerError},
};
use ed25519_dalek::SigningKey;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    link::Link,
    sight::{Read, Sight},
};

/// Where a channel is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelStatus {
    /// Funded, not yet confirmed by the chain.
    Opening,
    /// Pays.
    Open,
    /// The close delay runs, or the refund is due.
    Closing,
}

/// One channel, for people and programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelView {
    /// The contract.
    pub address: Address,
    /// The worker's peer id.
    pub worker: String,
    /// What the contract can pay in total, as the chain last said.
    pub deposit: NanoTon,
    /// What our newest voucher promises in total.
    pub paid: NanoTon,
    /// What the worker has redeemed, as the chain last said.
    pub settled: NanoTon,
    /// Where it is in its life.
    pub status: ChannelStatus,
    /// Whether a session is open on it.
    pub session: bool,
}

/// A worker whose evidence or terms were refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedWorker {
    /// Its peer id.
    pub worker: String,
    /// Name of the check that refused.
    pub check: String,
    /// In words.
    pub error: String,
}

/// What the last attempt to fund a channel came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Funding {
    /// None failed.
    #[default]
    Fine,
    /// The wallet holds too little.
    Empty { balance: NanoTon, needed: NanoTon },
    /// The chain, in its words.
    Failed(String),
}

/// A channel with one worker. See the module page.
pub(crate) struct Channel {
    pub(crate) worker: PeerKey,
    pub(crate) params: ChannelParams,
    pub(crate) address: Address,
    global_id: i32,
    key: SigningKey,
    state: Mutex<State>,
    /// Shared with the session's task, which must not keep the channel alive.
    paid: Arc<AtomicU64>,
    persisted: AtomicU64,
    link: Mutex<Option<Arc<Link>>>,
    /// Held while a session is being opened, so that one is.
    pub(crate) connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    sight: Sight,
    /// Milliseconds of the peer's clock.
    connect_after: u64,
}

impl Channel {
    pub(crate) fn new(
        worker: PeerKey,
        params: ChannelParams,
        global_id: i32,
        key: SigningKey,
        paid: NanoTon,
    ) -> Result<Self, PayerError> {
        // A payer that can be made now can be made for every later session.
        let payer = Payer::new(params, global_id, key.clone(), NanoTon::ZERO)?;
        Ok(Self {
            worker,
            params,
            address: payer.address(),
            global_id,
            key,
            state: Mutex::new(State { sight: Sight::new(&params), connect_after: 0 }),
            paid: Arc::new(AtomicU64::new(paid.0)),
            persisted: AtomicU64::new(paid.0),
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The paying end for a new session, as far as we know it.
    pub(crate) fn payer(&self) -> Result<Payer, PayerError> {
        let mut payer = Payer::new(self.params, self.global_id, self.key.clone(), NanoTon::ZERO)?;
        if let Some(chain) = self.chain() {
            payer.observe(&chain);
        }
        payer.raise_to(self.paid());
        Ok(payer)
    }

    pub(crate) fn key_seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Total promised.
    pub(crate) fn paid(&self) -> NanoTon {
        NanoTon(self.paid.load(Ordering::Relaxed))
    }

    /// Where a session publishes what it promised.
    pub(crate) fn paid_total(&self) -> Arc<AtomicU64> {
        self.paid.clone()
    }

    /// The total to write to disk, if it changed since it was.
    pub(crate) fn unpersisted(&self) -> Option<NanoTon> {
        let paid = self.paid.load(Ordering::Relaxed);
        (self.persisted.swap(paid, Ordering::Relaxed) != paid).then_some(NanoTon(paid))
    }

    /// The chain was read; what that changed.
    pub(crate) fn observe(&self, chain: OnChain, now_ms: u64, now_unix: u64) -> Read {
        let read = self.state().sight.observe(chain, now_ms, now_unix);
        if !matches!(read, Read::Stale | Read::Impossible) {
            self.paid.fetch_max(chain.settled.0, Ordering::Relaxed);
            if let Some(link) = self.link() {
                link.observe(chain);
            }
        }
        read
    }

    pub(crate) fn chain(&self) -> Option<OnChain> {
        self.state().sight.chain()
    }

    /// When the chain was last asked, in milliseconds of the peer's clock.
    pub(crate) fn read_at(&self) -> u64 {
        self.state().sight.asked_at()
    }

    /// Whether the next read is likely to differ from the last: look often.
    pub(crate) fn is_changing(&self, now_ms: u64) -> bool {
        self.state().sight.is_changing(now_ms)
    }

    /// The asker wants its deposit back: no new session.
    pub(crate) fn begin_closing(&self) {
        self.state().sight.begin_closing();
    }

    /// It was open in an earlier life of the peer.
    pub(crate) fn was_open(&self) {
        self.state().sight.was_open();
    }

    /// A top-up was sent when the contract could pay `capacity` in total.
    pub(crate) fn expect_top_up(&self, capacity: NanoTon, now_ms: u64) {
        self.state().sight.expect_top_up(capacity, now_ms);
    }

    /// Whether a top-up is on its way.
    pub(crate) fn awaits_top_up(&self, now_ms: u64) -> bool {
        self.state().sight.awaits_top_up(now_ms)
    }

    /// What the contract can pay in total, as the chain last said.
    pub(crate) fn capacity(&self) -> NanoTon {
        self.chain().map_or(NanoTon::ZERO, |chain| chain.capacity())
    }

    pub(crate) fn status(&self) -> ChannelStatus {
        let sight = self.state().sight;
        match sight.chain() {
            _ if sight.closing() => ChannelStatus::Closing,
            Some(chain) if chain.stage == Stage::Open => ChannelStatus::Open,
            _ => ChannelStatus::Opening,
        }
    }

    /// What vouchers can still promise.
    pub(crate) fn available(&self) -> NanoTon {
        match self.chain() {
            Some(chain) if self.status() == ChannelStatus::Open => {
                let capacity = chain.capacity().saturating_sub(cocoon_payments::lane::HEADROOM);
                capacity.saturating_sub(self.paid())
            }
            _ => NanoTon::ZERO,
        }
    }

    /// Whether a request may count on it: open, funded for at least `least`, not about to expire.
    pub(crate) fn is_usable(&self, least: NanoTon, now_unix: u64) -> bool {
        let margin = 2 * u64::from(self.params.close_delay_s);
        let expires = self.chain().map_or(0, |chain| u64::from(chain.expire_at));
        self.available() >= least.max(NanoTon(1)) && expires > now_unix + margin
    }

    /// The session, if one is open.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().filter(|link| link.is_open()).cloned()
    }

    pub(crate) fn set_link(&self, link: Option<Arc<Link>>) -> Option<Arc<Link>> {
        std::mem::replace(&mut *self.link.lock().unwrap_or_else(PoisonError::into_inner), link)
    }

    /// Whether the keeper may try to open a session again.
    pub(crate) fn may_connect(&self, now_ms: u64) -> bool {
        self.state().connect_after <= now_ms
    }

    pub(crate) fn connect_after(&self, at_ms: u64) {
        self.state().connect_after = at_ms;
    }

    pub(crate) fn view(&self) -> ChannelView {
        let chain = self.chain();
        ChannelView {
            address: self.address,
            worker: self.worker.to_string(),
            deposit: self.capacity(),
            paid: self.paid(),
            settled: chain.map_or(NanoTon::ZERO, |chain| chain.settled),
            status: self.status(),
            session: self.link().is_some(),
        }
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("worker", &self.worker)
            .field("address", &self.address)
            .field("paid", &self.paid())
            .finish_non_exhaustive()
    }
}

/// Refused workers remembered; beyond this the oldest verdict goes.
const MAX_REFUSED: usize = 64;

/// All channels.
#[derive(Debug)]
pub(crate) struct Book {
    channels: Mutex<BTreeMap<PeerKey, Arc<Channel>>>,
    refused: Mutex<BTreeMap<PeerKey, Refusal>>,
    funding: Mutex<Funding>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
struct Refusal {
    evidence: [u8; 32],
    view: RefusedWorker,
    at_ms: u64,
}

impl Book {
    pub(crate) fn new(channels: Vec<Channel>) -> Self {
        let channels =
            channels.into_iter().map(|channel| (channel.worker.clone(), Arc::new(channel))).collect();
        Self {
            channels: Mutex::new(channels),
            refused: Mutex::default(),
            funding: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<PeerKey, Arc<Channel>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for a channel.
    pub(crate) fn touch(&self) {
        self.changed.send_modify(|revision| *revision += 1);
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn get(&self, worker: &PeerKey) -> Option<Arc<Channel>> {
        self.table().get(worker).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Channel>> {
        self.table().values().cloned().collect()
    }

    pub(crate) fn insert(&self, channel: Channel) -> Arc<Channel> {
        let channel = Arc::new(channel);
        self.table().insert(channel.worker.clone(), channel.clone());
        self.touch();
        channel
    }

    pub(crate) fn remove(&self, worker: &PeerKey) {
        self.table().remove(worker);
        self.touch();
    }

    pub(crate) fn funding(&self) -> Funding {
        self.funding.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_funding(&self, funding: Funding) {
        *self.funding.lock().unwrap_or_else(PoisonError::into_inner) = funding;
        self.touch();
    }

    /// Notes that a worker was refused for this evidence.
    pub(crate) fn refuse(
        &self,
        worker: &PeerKey,
        evidence: [u8; 32],
        check: &str,
        error: String,
        at_ms: u64,
    ) {
        let view = RefusedWorker { worker: worker.to_string(), check: check.to_owned(), error };
        tracing::warn!(worker = %view.worker, check, error = %view.error, "worker refused");
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.insert(worker.clone(), Refusal { evidence, view, at_ms });
        while refused.len() > MAX_REFUSED {
            let oldest = refused.iter().min_by_key(|(_, refusal)| refusal.at_ms).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            refused.remove(&oldest);
        }
        drop(refused);
        self.touch();
    }

    /// Whether a worker was refused for exactly this evidence.
    pub(crate) fn refusal(&self, worker: &PeerKey, evidence: &[u8; 32]) -> Option<RefusedWorker> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(worker).filter(|refusal| refusal.evidence == *evidence).map(|r| r.view.clone())
    }

    /// A worker convinced us after all.
    pub(crate) fn forgive(&self, worker: &PeerKey) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(worker);
    }

    pub(crate) fn refused(&self) -> Vec<RefusedWorker> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.values().map(|refusal| refusal.view.clone()).collect()
    }
}
