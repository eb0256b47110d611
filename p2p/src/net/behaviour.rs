//! The swarm's behaviour: which protocols a peer speaks, with which bounds.
//!
//! The same behaviour runs over sockets in production and over the simulated transport in the
//! simulator; only the [`Substrate`](super::Substrate) below it differs.

use std::{fmt, num::NonZeroUsize, time::Duration};

use libp2p::{
    allow_block_list, connection_limits, dcutr, gossipsub, identify, kad, memory_connection_limits, ping,
    relay, request_response,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{
    Mode, Names, NetConfig, NetError,
    actor::{PROVIDER_TTL, provider_store},
    exchange::{self, Request, Response},
    gossip::{self, Gossip},
    streams,
};

/// How often own provider records are published again: well before [`PROVIDER_TTL`] is over.
const PROVIDER_REPUBLISH: Duration = Duration::from_secs(180);
/// A lookup that takes longer than this is of no use to somebody who waits.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

/// Everything a peer speaks. See the module page.
#[derive(NetworkBehaviour)]
#[behaviour(to_swarm = "Event", prelude = "libp2p::swarm::derive_prelude")]
pub(crate) struct Behaviour {
    // Those that refuse connections come first, so that nothing else is set up for a refused one.
    limits: connection_limits::Behaviour,
    memory: Toggle<memory_connection_limits::Behaviour>,
    pub(crate) blocked: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) kad: kad::Behaviour<kad::store::MemoryStore>,
    pub(crate) gossip: Gossip,
    relay_server: Toggle<relay::Behaviour>,
    relay_client: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    pub(crate) sessions: streams::Behaviour,
    pub(crate) exchange: request_response::Behaviour<exchange::Codec>,
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour").finish_non_exhaustive()
    }
}

/// What the behaviour tells the actor.
#[derive(Debug)]
pub(crate) enum Event {
    Identify(Box<identify::Event>),
    Kad(Box<kad::Event>),
    Gossip(Box<gossipsub::Event>),
    Exchange(Box<request_response::Event<Option<Request>, Response>>),
    HolePunch(dcutr::Event),
    /// Pings and relay bookkeeping: kept alive by libp2p itself, nothing to decide.
    Quiet,
}

impl From<identify::Event> for Event {
    fn from(event: identify::Event) -> Self {
        Self::Identify(Box::new(event))
    }
}
impl From<kad::Event> for Event {
    fn from(event: kad::Event) -> Self {
        Self::Kad(Box::new(event))
    }
}
impl From<gossipsub::Event> for Event {
    fn from(event: gossipsub::Event) -> Self {
        Self::Gossip(Box::new(event))
    }
}
impl From<request_response::Event<Option<Request>, Response>> for Event {
    fn from(event: request_response::Event<Option<Request>, Response>) -> Self {
        Self::Exchange(Box::new(event))
    }
}
impl From<dcutr::Event> for Event {
    fn from(event: dcutr::Event) -> Self {
        Self::HolePunch(event)
    }
}
impl From<ping::Event> for Event {
    fn from(_: ping::Event) -> Self {
        Self::Quiet
    }
}
impl From<relay::Event> for Event {
    fn from(_: relay::Event) -> Self {
        Self::Quiet
    }
}
impl From<relay::client::Event> for Event {
    fn from(_: relay::client::Event) -> Self {
        Self::Quiet
    }
}
impl From<()> for Event {
    fn from((): ()) -> Self {
        Self::Quiet
    }
}
impl From<std::convert::Infallible> for Event {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// Builds the behaviour and the relay transport that belongs to it.
pub(crate) fn behaviour(
    config: &NetConfig,
    names: &Names,
    sessions: streams::Behaviour,
) -> Result<(relay::client::Transport, Behaviour), NetError> {
    let public = config.keypair.public();
    let local = public.to_peer_id();
    let (relay_transport, relay_client) = relay::client::new(local);
    let limits = &config.limits;

    let connection_limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.pending_in))
        .with_max_pending_outgoing(Some(limits.pending_out))
        .with_max_established_incoming(Some(limits.established_in))
        .with_max_established_outgoing(Some(limits.established_out))
        .with_max_established_per_peer(Some(limits.per_peer));

    let identify = identify::Config::new(names.root.clone(), public)
        .with_agent_version(concat!("cocoon/", env!("CARGO_PKG_VERSION")).to_owned())
        .with_push_listen_addr_updates(true)
        // Its cache would hand out addresses that `addresses::believable` refused.
        .with_cache_size(0);

    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(connection_limits),
        memory: limits.memory.map(memory_connection_limits::Behaviour::with_max_percentage).into(),
        blocked: allow_block_list::Behaviour::default(),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(ping::Config::new()),
        kad: kademlia(config, names),
        gossip: gossip::behaviour(names, &config.keypair)
            .map_err(|why| NetError::Transport { what: "gossip", why })?,
        relay_server: (config.mode == Mode::Server)
            .then(|| relay::Behaviour::new(local, relay_config(config)))
            .into(),
        relay_client,
        dcutr: dcutr::Behaviour::new(local),
        sessions,
        exchange: request_response::Behaviour::new(
            [(names.exchange.clone(), request_response::ProtocolSupport::Full)],
            request_response::Config::default()
                .with_request_timeout(Duration::from_secs(10))
                .with_max_concurrent_streams(64),
        ),
    };
    Ok((relay_transport, behaviour))
}

fn kademlia(config: &NetConfig, names: &Names) -> kad::Behaviour<kad::store::MemoryStore> {
    let local = config.keypair.public().to_peer_id();
    let mut kademlia = kad::Config::new(names.kad.clone());
    kademlia
        .set_query_timeout(QUERY_TIMEOUT)
        .set_provider_record_ttl(Some(PROVIDER_TTL))
        .set_provider_publication_interval(Some(PROVIDER_REPUBLISH))
        // Only provider records are used; what a stranger wants stored is looked at first.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        // Addresses enter the table only after `addresses::believable`.
        .set_kbucket_inserts(kad::BucketInserts::OnConnected)
        .set_max_packet_size(16 * 1024);
    let mut behaviour = kad::Behaviour::with_config(local, provider_store(local), kademlia);
    behaviour.set_mode(Some(match config.mode {
        Mode::Server => kad::Mode::Server,
        Mode::Client => kad::Mode::Client,
    }));
    behaviour
}

/// libp2p's defaults (16 circuits of 128 KiB and 2 minutes) are for hole punching only; a peer that
/// cannot be punched needs its answers carried.
fn relay_config(config: &NetConfig) -> relay::Config {
    relay::Config {
        max_reservations: config.limits.relayed_circuits,
        max_circuits: config.limits.relayed_circuits,
        max_circuits_per_peer: 8,
        max_circuit_duration: config.limits.relayed_for,
        max_circuit_bytes: config.limits.relayed_bytes,
        ..relay::Config::default()
    }
}

/// Streams still negotiating their protocol, per connection; more are reset.
pub(crate) const MAX_NEGOTIATING: usize = 128;
/// Commands to a connection's task that may wait.
pub(crate) const NOTIFY_BUFFER: NonZeroUsize = NonZeroUsize::new(32).unwrap();
