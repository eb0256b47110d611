//! Which provider records this peer keeps for others, and until when.
//!
//! libp2p's store of provider records has room for a number of keys and forgets an expired record only
//! when somebody looks up its very key. One peer that announces enough keys that nobody looks up would
//! fill it for good, and then this peer's own announcements fail as well, since they begin with the same
//! store. This index therefore decides what enters the store, and names what has to leave it: a provider
//! may have [`KEYS_PER_PROVIDER`] keys, strangers together [`STRANGERS_KEYS`], and every record goes when
//! its time is up. The store itself is made larger by [`OWN_KEYS`], so that strangers cannot take the
//! room of this peer's own records.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use libp2p::{PeerId, kad};
use tokio::time::Instant;

use crate::core::MAX_MODELS;

/// Provider records live this long, and are published again well before.
pub(crate) const PROVIDER_TTL: Duration = Duration::from_secs(600);
/// Keys whose records this peer keeps for others.
const STRANGERS_KEYS: usize = 4_096;
/// Keys of one provider. Twice what fits its ad: it may have exchanged all of its models a moment ago.
const KEYS_PER_PROVIDER: usize = 2 * MAX_MODELS;
/// Providers kept of one key; enough for a lookup, which asks several peers.
const PROVIDERS_PER_KEY: usize = kad::K_VALUE.get();
/// Room in the store for the models that this peer provides itself.
const OWN_KEYS: usize = 64;

/// A store with room for all that the index admits, and for this peer's own records on top of it.
pub(crate) fn store(local: PeerId) -> kad::store::MemoryStore {
    let config = kad::store::MemoryStoreConfig {
        // Value records are not used.
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: PROVIDERS_PER_KEY + 1,
        max_provided_keys: STRANGERS_KEYS + OWN_KEYS,
    };
    kad::store::MemoryStore::with_config(local, config)
}

/// The digest of a model.
type Key = [u8; 32];

/// Why a record is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The provider has as many keys as it may have.
    TooMany,
    /// There is no room, which is not this provider's fault.
    Full,
}

/// See the module page.
#[derive(Debug, Default)]
pub(super) struct Providers {
    kept: BTreeMap<PeerId, BTreeMap<Key, Instant>>,
    /// How many providers each key has.
    keys: BTreeMap<Key, usize>,
    /// Every record once, by when it goes.
    expiries: BTreeSet<(Instant, PeerId, Key)>,
}

impl Providers {
    /// Takes a record in, or renews it for another [`PROVIDER_TTL`].
    pub(super) fn admit(&mut self, key: Key, provider: PeerId, now: Instant) -> Result<(), Refused> {
        let expiry = now + PROVIDER_TTL;
        let own = self.kept.get(&provider);
        if let Some(before) = own.and_then(|own| own.get(&key)).copied() {
            self.expiries.remove(&(before, provider, key));
        } else {
            if own.is_some_and(|own| own.len() >= KEYS_PER_PROVIDER) {
                return Err(Refused::TooMany);
            }
            let room = match self.keys.get(&key) {
                Some(providers) => *providers < PROVIDERS_PER_KEY,
                None => self.keys.len() < STRANGERS_KEYS,
            };
            if !room {
                return Err(Refused::Full);
            }
            *self.keys.entry(key).or_default() += 1;
        }
        self.kept.entry(provider).or_default().insert(key, expiry);
        self.expiries.insert((expiry, provider, key));
        Ok(())
    }

    /// Forgets the records whose time is up, and names them.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(Key, PeerId)> {
        let mut gone = Vec::new();
        while let Some((expiry, provider, key)) = self.expiries.first().copied()
            && expiry <= now
        {
            self.remove(key, provider);
            gone.push((key, provider));
        }
        gone
    }

    /// Forgets all records of a provider, and names their keys.
    pub(super) fn forget(&mut self, provider: &PeerId) -> Vec<Key> {
        let keys: Vec<Key> = self.kept.get(provider).into_iter().flat_map(BTreeMap::keys).copied().collect();
        for key in &keys {
            self.remove(*key, *provider);
        }
        keys
    }

    fn remove(&mut self, key: Key, provider: PeerId) {
        let Some(own) = self.kept.get_mut(&provider) else { return };
        let Some(expiry) = own.remove(&key) else { return };
        if own.is_empty() {
            self.kept.remove(&provider);
        }
        self.expiries.remove(&(expiry, provider, key));
        if let Some(providers) = self.keys.get_mut(&key) {
            *providers = providers.saturating_sub(1);
            if *providers == 0 {
                self.keys.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::kad::{ProviderRecord, RecordKey, store::RecordStore as _};

    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an instant can only be had from the clock")]
    fn start() -> Instant {
        Instant::now()
    }

    fn key(number: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(number as u64).to_be_bytes());
        key
    }

    /// An index that is full of strangers' keys, and the store that follows it.
    fn full(local: PeerId, now: Instant) -> (Providers, kad::store::MemoryStore) {
        let (mut providers, mut store) = (Providers::default(), store(local));
        let mut provider = PeerId::random();
        for number in 0..STRANGERS_KEYS {
            if number % KEYS_PER_PROVIDER == 0 {
                provider = PeerId::random();
            }
            providers.admit(key(number), provider, now).unwrap();
            store
                .add_provider(ProviderRecord::new(RecordKey::new(&key(number)), provider, Vec::new()))
                .unwrap();
        }
        (providers, store)
    }

    #[test]
    fn a_provider_has_its_share_of_keys_and_may_renew_each() {
        let (mut providers, now, greedy) = (Providers::default(), start(), PeerId::random());
        for number in 0..KEYS_PER_PROVIDER {
            providers.admit(key(number), greedy, now).unwrap();
        }
        assert_eq!(providers.admit(key(KEYS_PER_PROVIDER), greedy, now), Err(Refused::TooMany));
        assert_eq!(providers.admit(key(0), greedy, now), Ok(()));
        assert_eq!(providers.admit(key(KEYS_PER_PROVIDER), PeerId::random(), now), Ok(()));
    }

    #[test]
    fn a_record_goes_when_it_was_not_renewed_in_time() {
        let (mut providers, now, provider) = (Providers::default(), start(), PeerId::random());
        providers.admit(key(1), provider, now).unwrap();
        providers.admit(key(2), provider, now).unwrap();
        let later = now + PROVIDER_TTL / 2;
        providers.admit(key(2), provider, later).unwrap();
        assert_eq!(providers.expire(later), []);
        assert_eq!(providers.expire(now + PROVIDER_TTL), [(key(1), provider)]);
        assert_eq!(providers.expire(later + PROVIDER_TTL), [(key(2), provider)]);
        assert!(providers.kept.is_empty() && providers.keys.is_empty() && providers.expiries.is_empty());
    }

    #[test]
    fn a_provider_that_is_forgotten_leaves_nothing_behind() {
        let (mut providers, now) = (Providers::default(), start());
        let (banned, other) = (PeerId::random(), PeerId::random());
        providers.admit(key(1), banned, now).unwrap();
        providers.admit(key(2), banned, now).unwrap();
        providers.admit(key(1), other, now).unwrap();
        assert_eq!(providers.forget(&banned), [key(1), key(2)]);
        assert_eq!(providers.forget(&banned), [[0; 32]; 0]);
        assert_eq!(providers.expire(now + PROVIDER_TTL), [(key(1), other)]);
    }

    #[test]
    fn keys_and_the_providers_of_a_key_are_bounded() {
        let now = start();
        let (mut providers, _) = full(PeerId::random(), now);
        assert_eq!(providers.admit(key(STRANGERS_KEYS), PeerId::random(), now), Err(Refused::Full));
        for _ in 1..PROVIDERS_PER_KEY {
            providers.admit(key(0), PeerId::random(), now).unwrap();
        }
        assert_eq!(providers.admit(key(0), PeerId::random(), now), Err(Refused::Full));
        // What expires makes room again.
        let later = now + PROVIDER_TTL;
        assert_eq!(providers.expire(later).len(), STRANGERS_KEYS + PROVIDERS_PER_KEY - 1);
        assert_eq!(providers.admit(key(STRANGERS_KEYS), PeerId::random(), later), Ok(()));
    }

    #[test]
    fn strangers_cannot_take_the_room_of_own_announcements() {
        let local = PeerId::random();
        let (mut providers, mut store) = full(local, start());
        for number in 0..OWN_KEYS {
            let own = RecordKey::new(&key(STRANGERS_KEYS + number));
            store.add_provider(ProviderRecord::new(own, local, Vec::new())).unwrap();
        }
        assert_eq!(store.provided().count(), OWN_KEYS);
        // Nor with a crowd of providers for a model that this peer provides too.
        let crowded = key(0);
        while providers.admit(crowded, PeerId::random(), start()).is_ok() {
            let record = ProviderRecord::new(RecordKey::new(&crowded), PeerId::random(), Vec::new());
            store.add_provider(record).unwrap();
        }
        store.add_provider(ProviderRecord::new(RecordKey::new(&crowded), local, Vec::new())).unwrap();
        assert_eq!(store.provided().count(), OWN_KEYS + 1);
    }
}
