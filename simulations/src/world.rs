//! A world: one thread, one seed, one paused clock.
//!
//! [`run`] gives a scenario a fresh thread whose operating system is virtual, and a single-threaded
//! tokio runtime whose clock jumps to the next timer whenever nobody has anything to do. Peers in it are
//! the ones that ship: the same behaviour, the same actor, the same cores.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    thread,
};

use cocoon_p2p::{Incoming, Keypair, Net, NetConfig, NetError};
use libp2p::swarm;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use serde::Serialize;
use thiserror::Error;

use crate::{link::Links, os, trace::Trace};

/// Why a simulation gave no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum SimError {
    /// The runtime or its thread could not be started.
    #[error("the simulation could not be started")]
    Start(#[source] std::io::Error),
    /// A peer of the world did not start.
    #[error("a simulated peer did not start")]
    Peer(#[from] NetError),
    /// What the scenario waits for did not happen.
    #[error("{what} did not happen within {within_s} virtual seconds")]
    NeverHappened {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        within_s: u64,
    },
    /// Something that cannot fail here failed.
    #[error("{what}: {why}")]
    Broken {
        /// What was being done.
        what: &'static str,
        /// What was said.
        why: String,
    },
    /// The world's thread died.
    #[error("the simulation crashed; run it again with RUST_BACKTRACE=1")]
    Crashed,
}

/// What a run reports, as one JSON object.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// Which scenario.
    pub(crate) scenario: &'static str,
    /// Which engine; this one runs real swarms.
    pub(crate) engine: &'static str,
    /// Peers.
    pub(crate) nodes: usize,
    /// The seed.
    pub(crate) seed: u64,
    /// Digest of everything that happened; equal seeds give equal hashes.
    pub(crate) trace_hash: String,
    /// Virtual seconds simulated.
    pub(crate) virtual_s: f64,
    /// Real seconds it took.
    pub(crate) wall_s: f64,
    /// Events in the trace.
    pub(crate) events: u64,
    /// Memory of the process at the end.
    pub(crate) rss_bytes: u64,
    /// What the scenario measured.
    pub(crate) results: serde_json::Value,
}

/// What a scenario gets.
#[derive(Debug, Clone)]
pub(crate) struct World {
    /// The network.
    pub(crate) links: Links,
    /// What happens goes in here.
    pub(crate) trace: Trace,
    seed: u64,
}

/// What a scenario gives back: how many peers there were, and what it measured.
pub(crate) type Outcome = Result<(usize, serde_json::Value), SimError>;

impl World {
    /// The identity of peer `number`, determined by the seed.
    pub(crate) fn keypair(&self, number: u64) -> Result<Keypair, SimError> {
        let mut secret = [0u8; 32];
        secret[..8].copy_from_slice(&self.seed.to_le_bytes());
        secret[8..16].copy_from_slice(&number.to_le_bytes());
        Keypair::ed25519_from_bytes(secret)
            .map_err(|error| SimError::Broken { what: "making an identity", why: error.to_string() })
    }

    /// Starts a peer on this world's network, and writes what it reports into the trace.
    pub(crate) fn spawn(&self, mut config: NetConfig) -> Result<(Net, Incoming), SimError> {
        // The process's memory is the simulator's, not the peer's.
        config.limits.memory = None;
        let substrate = self
            .links
            .substrate(&config.keypair)
            .map_err(|error| SimError::Broken { what: "making a transport", why: error.to_string() })?;
        let (net, incoming) = Net::spawn_on(config, substrate, swarm::Config::with_tokio_executor())?;
        let (trace, mut events, peer) = (self.trace.clone(), net.events(), net.peer_id().to_bytes());
        tokio::spawn(async move {
            while let Ok(event) = events.recv().await {
                trace.event("peer", &peer);
                trace.event("reports", format!("{event:?}").as_bytes());
            }
        });
        Ok((net, incoming))
    }
}

/// Runs a scenario in a world of its own.
pub(crate) fn run<F, S>(
    name: &'static str,
    seed: u64,
    latency_ms: std::ops::Range<u64>,
    scenario: S,
) -> Result<Report, SimError>
where
    S: FnOnce(World) -> F + Send + 'static,
    F: Future<Output = Outcome>,
{
    // A fresh thread: hash-map keys and `rand`'s generator are drawn once per thread.
    let world = thread::Builder::new()
        .name(format!("world-{seed}"))
        .spawn(move || inhabit(name, seed, latency_ms, scenario))
        .map_err(SimError::Start)?;
    world.join().unwrap_or(Err(SimError::Crashed))
}

fn inhabit<F, S>(
    name: &'static str,
    seed: u64,
    latency_ms: std::ops::Range<u64>,
    scenario: S,
) -> Result<Report, SimError>
where
    S: FnOnce(World) -> F,
    F: Future<Output = Outcome>,
{
    os::enter(seed);
    let began = os::wall_seconds();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(SimError::Start)?;
    let trace = Trace::default();
    // A stream of its own for the network: see `Links::rng`.
    let rng = ChaCha12Rng::seed_from_u64(seed ^ 0x11_4b5);
    let links = Links { latency_ms, rng: Arc::new(Mutex::new(rng)), trace: trace.clone() };
    let world = World { links, trace: trace.clone(), seed };
    let (outcome, virtual_s) = runtime.block_on(async move {
        os::start_clock();
        let outcome = scenario(world).await;
        (outcome, os::elapsed().as_secs_f64())
    });
    let (nodes, results) = outcome?;
    let (trace_hash, events) = trace.summary();
    Ok(Report {
        scenario: name,
        engine: "swarm",
        nodes,
        seed,
        trace_hash,
        virtual_s,
        wall_s: os::wall_seconds() - began,
        events,
        rss_bytes: rss_bytes(),
        results,
    })
}

/// Resident memory of this process; 0 where `/proc` does not say.
fn rss_bytes() -> u64 {
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE
}
