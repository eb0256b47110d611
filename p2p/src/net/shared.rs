//! What the actor and its handles share: the directory, the table of peers, counters and events.
//!
//! Readers never wait for the actor. The actor is the only writer of the directory's ads and of the
//! table of peers; histories are written by whoever had the experience.

use std::{
    collections::BTreeMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dashmap::DashMap;
use libp2p::{Multiaddr, PeerId};
use rand::Rng;
use serde::{Serialize, Serializer};
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};

use super::clock;
use crate::core::{
    Ad, AdError, Ask, Candidate, Directory, Inserted, ModelView, NoCandidate, Outcome, PeerKey, SignedAd,
    choose,
};

/// Peers remembered; beyond this, disconnected ones are forgotten.
pub(crate) const MAX_PEERS: usize = 4_096;
/// Events a slow listener may fall behind by.
const EVENT_BACKLOG: usize = 256;

/// How a peer came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Discovery {
    /// Named in the configuration.
    Bootstrap,
    /// Met through Kademlia: a provider record or a routing table.
    Kademlia,
    /// Its ad arrived by gossip.
    Gossip,
    /// Its ad came in another peer's snapshot.
    Snapshot,
    /// The application dialled it by address.
    Dialed,
    /// It connected to us.
    Inbound,
}

/// What is known about one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerView {
    /// The peer.
    #[serde(serialize_with = "text")]
    pub peer: PeerId,
    /// Where it can be dialled, as far as anybody said.
    #[serde(serialize_with = "texts")]
    pub addresses: Vec<Multiaddr>,
    /// How it was found first.
    pub how: Discovery,
    /// Every way in which it was found, in order.
    pub ways: Vec<Discovery>,
    /// Whether a connection is open now.
    pub connected: bool,
    /// Software and version, once identified.
    pub agent: Option<String>,
}

fn text<T: ToString, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

pub(super) fn texts<T: ToString, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

/// What happened in the overlay. A listener that falls behind loses the oldest events; the directory and
/// the table of peers are the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEvent {
    /// A listener is ready.
    Listening(Multiaddr),
    /// First connection to a peer.
    Connected(PeerId),
    /// Last connection to a peer closed.
    Disconnected(PeerId),
    /// A worker's ad was taken into the directory.
    Advertised {
        /// The worker.
        worker: PeerKey,
        /// How the ad came.
        how: Discovery,
    },
    /// A worker's ad expired or was withdrawn.
    Gone(PeerKey),
    /// A peer was refused for its behaviour until it is forgiven.
    Banned(PeerId),
}

/// A counter that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) ads_accepted: Counter,
    pub(crate) ads_ignored: Counter,
    pub(crate) ads_rejected: Counter,
    pub(crate) sessions_in: Counter,
    pub(crate) sessions_out: Counter,
    pub(crate) sessions_refused: Counter,
    pub(crate) connections_refused: Counter,
}

/// The directory, for any number of readers at once, with a way to wait for changes.
#[derive(Debug)]
pub struct SharedDirectory {
    inner: RwLock<Directory>,
    revision: watch::Sender<u64>,
}

impl SharedDirectory {
    pub(crate) fn new(directory: Directory) -> Self {
        Self { inner: RwLock::new(directory), revision: watch::Sender::new(0) }
    }

    /// Looks at the directory. Keep it short: writers wait.
    pub fn read<R>(&self, look: impl FnOnce(&Directory) -> R) -> R {
        // A panicking reader cannot have left the directory half written.
        look(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<R>(&self, change: impl FnOnce(&mut Directory) -> R) -> R {
        change(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// `taken` sees an ad that was taken before any reader can.
    pub(crate) fn insert(
        &self,
        signed: SignedAd,
        now: u64,
        taken: impl FnOnce(&Ad),
    ) -> Result<Inserted, AdError> {
        let inserted = self.write(|directory| {
            let inserted = directory.insert(signed, now)?;
            if let Inserted::New(ad) | Inserted::Updated(ad) = &inserted {
                taken(ad);
            }
            Ok(inserted)
        })?;
        if inserted != Inserted::Known {
            self.revision.send_modify(|revision| *revision += 1);
        }
        Ok(inserted)
    }

    pub(crate) fn expire(&self, now: u64) -> Vec<PeerKey> {
        if self.read(|d| d.next_expiry().is_none_or(|at| at > now)) {
            return Vec::new();
        }
        let gone = self.write(|directory| directory.expire(now));
        self.revision.send_modify(|revision| *revision += 1);
        gone
    }

    pub(crate) fn remove(&self, peer: &PeerKey) -> bool {
        let removed = self.write(|directory| directory.remove(peer)).is_some();
        if removed {
            self.revision.send_modify(|revision| *revision += 1);
        }
        removed
    }

    /// See [`Directory::first_on`].
    pub(crate) fn first_on(&self, peer: &PeerKey, topic: u8) -> bool {
        self.write(|directory| directory.first_on(peer, topic))
    }

    /// Every model on offer.
    pub fn models(&self) -> Vec<ModelView> {
        self.read(Directory::models)
    }

    /// Candidates for a request; see [`choose`]. Uses this machine's clock.
    pub fn choose(&self, ask: &Ask<'_>, rng: &mut impl Rng) -> Result<Vec<Candidate>, NoCandidate> {
        self.read(|directory| choose(directory, ask, clock::unix_now(), rng))
    }

    /// Remembers how a request ended.
    pub fn record_outcome(&self, peer: &PeerKey, outcome: Outcome) {
        self.write(|directory| directory.record_outcome(peer, outcome, clock::unix_now()));
    }

    /// A receiver that wakes whenever the directory changes; its value is a revision number.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Waits until `ready` finds what it looks for, looking once now and once after every change.
    pub async fn wait_until<R>(
        &self,
        wait: Duration,
        mut ready: impl FnMut(&Directory) -> Option<R>,
    ) -> Option<R> {
        let mut changes = self.changes();
        let found = async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = self.read(&mut ready) {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        timeout(wait, found).await.ok().flatten()
    }

    /// Waits until some worker offers `model`; `false` if none did in time.
    pub async fn wait_for_model(&self, model: &[u8; 32], wait: Duration) -> bool {
        self.wait_until(wait, |directory| directory.for_model(model).next().map(|_| ())).await.is_some()
    }
}

/// Everything shared.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) directory: std::sync::Arc<SharedDirectory>,
    pub(crate) peers: DashMap<PeerId, PeerView>,
    pub(crate) evidence: DashMap<[u8; 32], Bytes>,
    pub(crate) events: broadcast::Sender<NetEvent>,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn new(directory: Directory) -> Self {
        Self {
            directory: std::sync::Arc::new(SharedDirectory::new(directory)),
            peers: DashMap::new(),
            evidence: DashMap::new(),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            counters: Counters::default(),
        }
    }

    pub(crate) fn emit(&self, event: NetEvent) {
        // Nobody listening is not an error.
        let _ = self.events.send(event);
    }

    /// Notes that a peer exists and how it was found.
    pub(crate) fn met(&self, peer: PeerId, how: Discovery, addresses: &[Multiaddr]) {
        self.make_room(&peer);
        let mut view = self.peers.entry(peer).or_insert_with(|| PeerView {
            peer,
            addresses: Vec::new(),
            how,
            ways: Vec::new(),
            connected: false,
            agent: None,
        });
        if !view.ways.contains(&how) {
            view.ways.push(how);
        }
        for address in addresses {
            if view.addresses.len() < crate::core::MAX_ADDRESSES && !view.addresses.contains(address) {
                view.addresses.push(address.clone());
            }
        }
    }

    fn make_room(&self, newcomer: &PeerId) {
        if self.peers.len() < MAX_PEERS || self.peers.contains_key(newcomer) {
            return;
        }
        let forget = self.sorted_peers().into_iter().find(|view| !view.connected);
        if let Some(view) = forget {
            self.peers.remove(&view.peer);
        }
    }

    pub(crate) fn update(&self, peer: &PeerId, change: impl FnOnce(&mut PeerView)) {
        if let Some(mut view) = self.peers.get_mut(peer) {
            change(&mut view);
        }
    }

    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|view| view.connected)
    }

    /// Sorted, because a hash table's order differs between machines.
    pub(crate) fn sorted_peers(&self) -> Vec<PeerView> {
        let peers: BTreeMap<PeerId, PeerView> =
            self.peers.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        peers.into_values().collect()
    }
}
