//! What a swarm is told before it starts. The defaults are safe on the open internet and also work for
//! two peers on one machine.

use std::time::Duration;

use libp2p::{Multiaddr, identity::Keypair};
use serde::Serialize;

use super::addresses::{self, Reach};
use crate::core::DirectoryLimits;

/// How much of the overlay's work this peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Reachable: answers Kademlia queries, relays for others. Bootstrap peers and workers.
    Server,
    /// Only asks: laptops, light peers, anything behind a NAT without a relay.
    Client,
}

/// Bounds on what others can make this peer hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Inbound connections still in their handshake.
    pub pending_in: u32,
    /// Outbound connections still in their handshake.
    pub pending_out: u32,
    /// Inbound connections.
    pub established_in: u32,
    /// Outbound connections.
    pub established_out: u32,
    /// Connections with one peer: a direct one, a relayed one, and one that crossed with ours.
    pub per_peer: u32,
    /// Share of physical memory above which no connection is accepted or made; `None` switches it off.
    pub memory: Option<f64>,
    /// Inbound session streams waiting for [`Incoming::next`](super::Incoming::next); further ones are
    /// dropped, which the opener sees as a reset.
    pub pending_sessions: usize,
    /// Evidence blobs served at once.
    pub evidence: usize,
    /// Bounds of the directory.
    pub directory: DirectoryLimits,
    /// Circuits relayed for others (server mode).
    pub relayed_circuits: usize,
    /// Bytes one relayed circuit may carry each way. A long answer with its envelope is under 1 MiB.
    pub relayed_bytes: u64,
    /// How long one relayed circuit may live. Long enough for hole punching and a few answers.
    pub relayed_for: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_in: 64,
            pending_out: 64,
            established_in: 512,
            established_out: 256,
            per_peer: 3,
            memory: Some(0.85),
            pending_sessions: 256,
            evidence: 64,
            directory: DirectoryLimits::default(),
            relayed_circuits: 256,
            relayed_bytes: 16 * 1024 * 1024,
            relayed_for: Duration::from_secs(30 * 60),
        }
    }
}

/// Configuration of one swarm. Build it with [`NetConfig::new`] and adjust.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// This peer's identity; also signs its ads.
    pub keypair: Keypair,
    /// Hash of the genesis file. Peers of other networks are disconnected.
    pub network_id: [u8; 32],
    /// Addresses to listen on; empty for a peer that only dials.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which others reach this peer, if not the ones it listens on.
    pub external: Vec<Multiaddr>,
    /// First peers to dial, and to dial again whenever the connection is lost.
    pub bootstrap: Vec<Multiaddr>,
    /// See [`Mode`].
    pub mode: Mode,
    /// See [`Limits`].
    pub limits: Limits,
    /// Listen to the ads of every model, not only of joined ones. On for servers, whose snapshots cold
    /// clients rely on; a big network switches it off on workers.
    pub hear_everything: bool,
    /// The most local addresses this peer dials because somebody else named them. `None` derives it from
    /// `listen` and `bootstrap`: a peer of a loopback network dials loopback, a peer of the internet
    /// cannot be made to probe its own machine or LAN, by an ad, a DNS name or the DHT. A peer that listens
    /// on 0.0.0.0 counts as one of the internet; in a LAN, let it listen on or bootstrap from a LAN address.
    pub reach: Option<Reach>,
    /// A connection without any stream is closed after this long.
    pub idle_timeout: Duration,
    /// How often to ask some connected server for a fresh snapshot of ads.
    pub snapshot_every: Duration,
}

impl NetConfig {
    /// Safe defaults for a peer that listens on `listen`.
    pub fn new(keypair: Keypair, network_id: [u8; 32], mode: Mode, listen: Vec<Multiaddr>) -> Self {
        Self {
            keypair,
            network_id,
            listen,
            external: Vec::new(),
            bootstrap: Vec::new(),
            mode,
            limits: Limits::default(),
            hear_everything: mode == Mode::Server,
            reach: None,
            idle_timeout: Duration::from_secs(300),
            snapshot_every: Duration::from_secs(30),
        }
    }

    /// The same, with first peers to dial.
    pub fn with_bootstrap(mut self, bootstrap: Vec<Multiaddr>) -> Self {
        self.bootstrap = bootstrap;
        self
    }

    pub(crate) fn effective_reach(&self) -> Reach {
        // Listening on 0.0.0.0 names no place, so that it counts as the internet. A peer that neither
        // listens nor bootstraps dials only what its application says.
        let listen = self.listen.iter().map(|address| addresses::reach(address).unwrap_or(Reach::Public));
        let bootstrap = self.bootstrap.iter().filter_map(addresses::reach);
        self.reach.or_else(|| listen.chain(bootstrap).min()).unwrap_or(Reach::Loopback)
    }
}
