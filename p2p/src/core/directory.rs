//! The directory: the newest valid ad of every worker a peer has heard of.
//!
//! Invariants, checked by the property tests:
//! * at most one ad per peer, and its sequence number never falls while the peer is listed;
//! * every listed ad was valid and correctly signed when it came in, and leaves when it expires;
//! * the table, its indices and the histories stay within [`DirectoryLimits`], whatever comes in.
//!
//! When the table is full, newcomers are refused rather than incumbents evicted: an attacker who could
//! evict by flooding would empty every directory for the price of some keys. A public network prefix can
//! hold only a share of the table for the same reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use libp2p::Multiaddr;

use super::{
    ad::{Ad, AdError, PeerKey},
    bucket::{Rate, TokenBucket},
    history::{History, Outcome},
    place::Prefix,
    signed::SignedAd,
};

/// How often one peer may announce: every 30 s is the habit, on material change is allowed, chatter is
/// not. Publishers pace themselves a little slower than this.
pub const ANNOUNCE_RATE: Rate = Rate { burst: 10, every: 2 };

/// Bounds of a [`Directory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryLimits {
    /// Workers listed at once. An entry costs about 3 KiB.
    pub peers: usize,
    /// Workers listed whose first public address lies in one prefix.
    pub peers_per_prefix: usize,
    /// Workers whose history is remembered; the longest unused one is forgotten.
    pub histories: usize,
    /// Model digests whose existence is remembered after their last worker left.
    pub known_models: usize,
}

impl Default for DirectoryLimits {
    fn default() -> Self {
        Self { peers: 16_384, peers_per_prefix: 512, histories: 16_384, known_models: 1_024 }
    }
}

/// What [`Directory::insert`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// The peer was not listed.
    New(Arc<Ad>),
    /// The peer's ad was replaced by a newer one.
    Updated(Arc<Ad>),
    /// Exactly this ad was already listed; nothing changed, nothing was verified again.
    Known,
}

/// One model as the directory sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelView {
    /// Digest of the model's manifest.
    pub digest: [u8; 32],
    /// The name that most of its workers use.
    pub name: String,
    /// Largest context window offered.
    pub context: u32,
    /// Workers that offer it now.
    pub workers: usize,
    /// Lowest input price offered, nanoTON per million tokens.
    pub price_input: u64,
    /// Lowest output price offered, nanoTON per million tokens.
    pub price_output: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) signed: SignedAd,
    pub(super) ad: Arc<Ad>,
    /// Distinct public prefixes among the addresses.
    pub(super) prefixes: Vec<Prefix>,
    announcements: TokenBucket,
    /// Topics on which this very ad has been heard, one bit each.
    heard_on: u32,
}

/// See the module page.
#[derive(Debug, Clone)]
pub struct Directory {
    network_id: [u8; 32],
    limits: DirectoryLimits,
    entries: BTreeMap<PeerKey, Entry>,
    by_model: BTreeMap<[u8; 32], BTreeSet<PeerKey>>,
    by_expiry: BTreeSet<(u64, PeerKey)>,
    by_prefix: BTreeMap<Prefix, usize>,
    histories: BTreeMap<PeerKey, History>,
    known_models: BTreeMap<[u8; 32], u64>,
}

impl Directory {
    /// An empty directory of one network.
    pub fn new(network_id: [u8; 32], limits: DirectoryLimits) -> Self {
        Self {
            network_id,
            limits,
            entries: BTreeMap::new(),
            by_model: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
            by_prefix: BTreeMap::new(),
            histories: BTreeMap::new(),
            known_models: BTreeMap::new(),
        }
    }

    /// The network whose ads are listed here.
    pub fn network_id(&self) -> &[u8; 32] {
        &self.network_id
    }

    /// Takes an ad if it is valid, current and newer than what is listed. `now` is unix seconds.
    ///
    /// The cheap checks come first, so that a flood of late or repeated ads costs no signature checks.
    pub fn insert(&mut self, signed: SignedAd, now: u64) -> Result<Inserted, AdError> {
        let ad = signed.claims()?;
        ad.check_time_and_network(&self.network_id, now)?;
        let prefixes = prefixes(&ad);
        match self.entries.get(&ad.peer) {
            Some(listed) if listed.signed == signed => return Ok(Inserted::Known),
            Some(listed) if listed.ad.sequence >= ad.sequence => {
                return Err(AdError::Stale { found: ad.sequence, newest: listed.ad.sequence });
            }
            Some(_) => {}
            None => self.check_room(&prefixes, now)?,
        }
        signed.check_signature(&ad)?;

        // Only ads that the peer really signed use up its allowance.
        let mut announcements = match self.entries.get(&ad.peer) {
            Some(listed) => listed.announcements,
            None => TokenBucket::full(ANNOUNCE_RATE, now),
        };
        let allowed = announcements.take(ANNOUNCE_RATE, now);
        if let Some(listed) = self.entries.get_mut(&ad.peer).filter(|_| !allowed) {
            listed.announcements = announcements;
            return Err(AdError::TooFrequent { burst: ANNOUNCE_RATE.burst, every_s: ANNOUNCE_RATE.every });
        }

        let replaced = self.remove(&ad.peer).is_some();
        let ad = Arc::new(ad);
        self.index(&ad, &prefixes, now);
        self.entries
            .insert(ad.peer.clone(), Entry { signed, ad: ad.clone(), prefixes, announcements, heard_on: 0 });
        Ok(if replaced { Inserted::Updated(ad) } else { Inserted::New(ad) })
    }

    fn check_room(&mut self, prefixes: &[Prefix], now: u64) -> Result<(), AdError> {
        if self.entries.len() >= self.limits.peers {
            self.expire(now);
        }
        if self.entries.len() >= self.limits.peers {
            return Err(AdError::Full { limit: self.limits.peers });
        }
        let crowded = prefixes.first().and_then(|prefix| self.by_prefix.get(prefix));
        if crowded.is_some_and(|&count| count >= self.limits.peers_per_prefix) {
            return Err(AdError::Full { limit: self.limits.peers_per_prefix });
        }
        Ok(())
    }

    fn index(&mut self, ad: &Arc<Ad>, prefixes: &[Prefix], now: u64) {
        for offer in &ad.models {
            self.by_model.entry(offer.digest).or_default().insert(ad.peer.clone());
            let known = self.known_models.len() < self.limits.known_models
                || self.known_models.contains_key(&offer.digest);
            if known {
                self.known_models.insert(offer.digest, now);
            }
        }
        self.by_expiry.insert((ad.expires_at, ad.peer.clone()));
        if let Some(&first) = prefixes.first() {
            *self.by_prefix.entry(first).or_default() += 1;
        }
    }

    /// Removes a peer, for example because it was banned.
    pub fn remove(&mut self, peer: &PeerKey) -> Option<Arc<Ad>> {
        let entry = self.entries.remove(peer)?;
        for offer in &entry.ad.models {
            if let Some(peers) = self.by_model.get_mut(&offer.digest) {
                peers.remove(peer);
                if peers.is_empty() {
                    self.by_model.remove(&offer.digest);
                }
            }
        }
        self.by_expiry.remove(&(entry.ad.expires_at, peer.clone()));
        if let Some(first) = entry.prefixes.first()
            && let Some(count) = self.by_prefix.get_mut(first)
        {
            *count -= 1;
            if *count == 0 {
                self.by_prefix.remove(first);
            }
        }
        Some(entry.ad)
    }

    /// Whether a peer's listed ad is heard on this topic (0 to 31) for the first time. An ad of several
    /// models comes once on each of their topics and has to be forwarded on each; a repetition has not.
    pub fn first_on(&mut self, peer: &PeerKey, topic: u8) -> bool {
        let Some(entry) = self.entries.get_mut(peer) else { return false };
        let bit = 1u32.checked_shl(u32::from(topic)).unwrap_or(0);
        let first = entry.heard_on & bit == 0;
        entry.heard_on |= bit;
        first && bit != 0
    }

    /// Drops every ad that has expired and names the peers that left.
    pub fn expire(&mut self, now: u64) -> Vec<PeerKey> {
        let mut gone = Vec::new();
        while let Some((expires_at, peer)) = self.by_expiry.first().cloned() {
            if expires_at > now {
                break;
            }
            self.remove(&peer);
            gone.push(peer);
        }
        gone
    }

    /// When [`Directory::expire`] next has something to do.
    pub fn next_expiry(&self) -> Option<u64> {
        self.by_expiry.first().map(|(at, _)| *at)
    }

    /// The ad of one peer.
    pub fn get(&self, peer: &PeerKey) -> Option<&Arc<Ad>> {
        self.entries.get(peer).map(|entry| &entry.ad)
    }

    /// The ads of every worker that offers a model, ordered by peer.
    pub fn for_model<'a>(&'a self, digest: &[u8; 32]) -> impl Iterator<Item = &'a Arc<Ad>> + use<'a> {
        self.entries_for(digest).map(|entry| &entry.ad)
    }

    pub(super) fn entries_for<'a>(&'a self, digest: &[u8; 32]) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let peers = self.by_model.get(digest);
        peers.into_iter().flatten().filter_map(|peer| self.entries.get(peer))
    }

    /// Every model that somebody offers now, ordered by digest.
    pub fn models(&self) -> Vec<ModelView> {
        self.by_model.keys().filter_map(|digest| self.model(digest)).collect()
    }

    /// One model that somebody offers now.
    pub fn model(&self, digest: &[u8; 32]) -> Option<ModelView> {
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        let mut view = ModelView {
            digest: *digest,
            name: String::new(),
            context: 0,
            workers: 0,
            price_input: u64::MAX,
            price_output: u64::MAX,
        };
        for offer in self.for_model(digest).filter_map(|ad| ad.offer(digest)) {
            *names.entry(&offer.name).or_default() += 1;
            view.workers += 1;
            view.context = view.context.max(offer.context);
            view.price_input = view.price_input.min(offer.price_input);
            view.price_output = view.price_output.min(offer.price_output);
        }
        let (name, _) = names.into_iter().max_by_key(|(_, count)| *count)?;
        view.name = name.to_owned();
        Some(view)
    }

    /// Whether any worker ever offered this model, as far as this directory remembers.
    pub fn has_known(&self, digest: &[u8; 32]) -> bool {
        self.known_models.contains_key(digest)
    }

    /// Up to `limit` signed ads, those that live longest first, to hand to another peer.
    pub fn snapshot(&self, limit: usize) -> Vec<SignedAd> {
        let newest = self.by_expiry.iter().rev();
        newest.filter_map(|(_, peer)| self.entries.get(peer)).take(limit).map(|e| e.signed.clone()).collect()
    }

    /// Like [`Directory::snapshot`], of one model's workers.
    pub fn snapshot_for(&self, digest: &[u8; 32], limit: usize) -> Vec<SignedAd> {
        self.entries_for(digest).take(limit).map(|entry| entry.signed.clone()).collect()
    }

    /// Workers listed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Remembers how a request at `peer` ended. `now` is unix seconds.
    pub fn record_outcome(&mut self, peer: &PeerKey, outcome: Outcome, now: u64) {
        if !self.histories.contains_key(peer) && self.histories.len() >= self.limits.histories {
            let oldest = self.histories.iter().min_by_key(|(_, h)| h.updated_at());
            if let Some(oldest) = oldest.map(|(peer, _)| peer.clone()) {
                self.histories.remove(&oldest);
            }
        }
        self.histories.entry(peer.clone()).or_default().record(outcome, now);
    }

    /// This asker's experience with `peer`.
    pub fn history(&self, peer: &PeerKey) -> Option<&History> {
        self.histories.get(peer)
    }
}

fn prefixes(ad: &Ad) -> Vec<Prefix> {
    let mut found: Vec<Prefix> = ad
        .addresses
        .iter()
        .filter_map(|text| text.parse::<Multiaddr>().ok())
        .filter_map(|address| Prefix::of_address(&address))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
