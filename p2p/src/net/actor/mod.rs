//! The task that owns the swarm.
//!
//! It waits for three things: a command from a handle, an event of the swarm, and a tick twice a second
//! for what is due (expired ads, lost bootstrap peers, delayed announcements). Each is handled to its
//! end without waiting for anything, so that no command can hold up the network. `peers` deals with
//! connections and the DHT, `providers` bounds what the DHT keeps here for others, `ads` deals with gossip
//! and the exchange protocol.

mod ads;
mod peers;
mod providers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::{ListenerId, TransportError},
    kad,
    request_response::OutboundRequestId,
    swarm::{ConnectionId, SwarmEvent},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};

use providers::Providers;
pub(super) use providers::{PROVIDER_TTL, store as provider_store};

use super::{
    FetchError, Mode, Names, NetConfig, NetError, NetEvent, NetStatus, PublishError, SessionError,
    addresses::Reach,
    behaviour::{Behaviour, Event},
    shared::Shared,
    streams::Opener,
};
use crate::core::{Rate, SignedAd, Standing, TokenBucket};

const TICK: Duration = Duration::from_millis(500);
/// A listener that closed is opened again after this long; for relays, whose reservations come and go.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// [`Net::listen_addresses`](super::Net::listen_addresses) waits this long for the slowest listener.
const LISTENERS_PATIENCE: Duration = Duration::from_secs(10);

/// What handles ask of the actor. A dropped reply means that the asker lost interest.
#[derive(Debug)]
pub(crate) enum Command {
    ListenAddresses(oneshot::Sender<Vec<Multiaddr>>),
    PublishAd(Box<SignedAd>, oneshot::Sender<Result<(), PublishError>>),
    Provide([u8; 32], oneshot::Sender<()>),
    FindProviders([u8; 32], oneshot::Sender<Vec<PeerId>>),
    JoinModel([u8; 32], oneshot::Sender<()>),
    FetchEvidence { peer: PeerId, digest: [u8; 32], reply: oneshot::Sender<Result<Vec<u8>, FetchError>> },
    FetchAds { peer: PeerId, model: Option<[u8; 32]>, reply: oneshot::Sender<Result<usize, FetchError>> },
    Dial { peer: PeerId, addresses: Vec<Multiaddr>, reply: oneshot::Sender<Result<(), SessionError>> },
    OpenSession { peer: PeerId, addresses: Vec<Multiaddr>, reply: Opener },
    Status(oneshot::Sender<NetStatus>),
    Shutdown(oneshot::Sender<()>),
}

/// A configured first peer.
#[derive(Debug)]
struct Bootstrap {
    address: Multiaddr,
    peer: Option<PeerId>,
    /// The dial in progress, if there is one.
    dialling: Option<ConnectionId>,
    retry_at: Instant,
    backoff: Duration,
}

/// A dial for a session in progress.
#[derive(Debug)]
struct Dial {
    peer: PeerId,
    waiting: Vec<Waiter>,
}

/// Who waits for a connection, and for what.
#[derive(Debug)]
enum Waiter {
    Connection(oneshot::Sender<Result<(), SessionError>>),
    Session(Opener),
}

/// An exchange in progress.
#[derive(Debug)]
enum Fetch {
    Evidence { digest: [u8; 32], reply: oneshot::Sender<Result<Vec<u8>, FetchError>> },
    Ads { reply: Option<oneshot::Sender<Result<usize, FetchError>>> },
}

/// A DHT lookup in progress.
#[derive(Debug)]
enum Lookup {
    Providers {
        model: [u8; 32],
        found: BTreeSet<PeerId>,
        replies: Vec<oneshot::Sender<Vec<PeerId>>>,
    },
    /// Where one provider lives, to ask it for its ad.
    Whereabouts {
        peer: PeerId,
        model: [u8; 32],
    },
}

/// This peer's own ad, and what is still to be said about it.
#[derive(Debug)]
struct OwnAd {
    encoded: Vec<u8>,
    buckets: BTreeSet<u8>,
    /// Buckets in which nobody has heard this ad yet.
    unheard: BTreeSet<u8>,
}

/// See the module page.
pub(crate) struct Actor {
    swarm: Swarm<Behaviour>,
    config: NetConfig,
    names: Names,
    reach: Reach,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Command>,

    /// Configured listeners by their place in the configuration; those that have not reported an address
    /// yet, those to open again, and who waits for all to report.
    listeners: HashMap<ListenerId, usize>,
    silent_listeners: BTreeSet<usize>,
    listen_again: BTreeMap<usize, Instant>,
    awaiting_listeners: Vec<oneshot::Sender<Vec<Multiaddr>>>,
    listening: Vec<Multiaddr>,

    bootstraps: Vec<Bootstrap>,
    dials: HashMap<ConnectionId, Dial>,
    connections: BTreeMap<PeerId, Vec<(ConnectionId, Reach)>>,
    standing: Standing,

    lookups: HashMap<kad::QueryId, Lookup>,
    providers: Providers,
    provided: BTreeSet<[u8; 32]>,
    provide_again_at: Option<Instant>,

    own_ad: Option<OwnAd>,
    announcements: TokenBucket,
    joined: BTreeSet<u8>,
    fetches: HashMap<OutboundRequestId, Fetch>,
    /// Peers that answer exchanges, in the order in which they were identified.
    servers: Vec<PeerId>,
    snapshots_wanted: u32,
    next_snapshot_at: Instant,
    askers: BTreeMap<PeerId, TokenBucket>,
    started: Instant,
}

/// Own announcements, paced well below what directories accept.
const OWN_ANNOUNCEMENTS: Rate = Rate { burst: 4, every: 3 };
/// Snapshots a new peer asks for.
const FIRST_SNAPSHOTS: u32 = 3;

impl Actor {
    #[allow(
        clippy::disallowed_methods,
        reason = "the shell's clock; tokio's, so that simulations can drive it"
    )]
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        config: NetConfig,
        names: Names,
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Command>,
    ) -> Result<Self, NetError> {
        let now = Instant::now();
        let mut actor = Self {
            reach: config.effective_reach(),
            bootstraps: Vec::new(),
            swarm,
            names,
            shared,
            inbox,
            listeners: HashMap::new(),
            silent_listeners: (0..config.listen.len()).collect(),
            listen_again: BTreeMap::new(),
            awaiting_listeners: Vec::new(),
            listening: Vec::new(),
            dials: HashMap::new(),
            connections: BTreeMap::new(),
            standing: Standing::default(),
            lookups: HashMap::new(),
            providers: Providers::default(),
            provided: BTreeSet::new(),
            provide_again_at: None,
            own_ad: None,
            announcements: TokenBucket::full(OWN_ANNOUNCEMENTS, 0),
            joined: BTreeSet::new(),
            fetches: HashMap::new(),
            servers: Vec::new(),
            snapshots_wanted: FIRST_SNAPSHOTS,
            next_snapshot_at: now + config.snapshot_every,
            askers: BTreeMap::new(),
            started: now,
            config,
        };
        actor.start(now)?;
        Ok(actor)
    }

    fn start(&mut self, now: Instant) -> Result<(), NetError> {
        for (number, address) in self.config.listen.clone().into_iter().enumerate() {
            self.listen(number).map_err(|error| {
                let why = match error {
                    // libp2p prints nothing for the errors of a transport itself.
                    TransportError::Other(error) => error.to_string(),
                    unsupported @ TransportError::MultiaddrNotSupported(_) => unsupported.to_string(),
                };
                NetError::Listen { address, why }
            })?;
        }
        for address in self.config.external.clone() {
            self.swarm.add_external_address(address);
        }
        if self.config.hear_everything {
            for bucket in 0..super::gossip::BUCKETS {
                self.join_bucket(bucket);
            }
        }
        for address in self.config.bootstrap.clone() {
            let (address, peer) = super::addresses::split_peer(address);
            self.bootstraps.push(Bootstrap {
                address,
                peer,
                dialling: None,
                retry_at: now,
                backoff: peers::FIRST_BACKOFF,
            });
        }
        self.dial_lost_bootstraps(now);
        Ok(())
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the shell's clock; tokio's, so that simulations can drive it"
    )]
    pub(crate) async fn run(mut self) {
        use futures::StreamExt;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.inbox.recv() => match command {
                    None => break,
                    Some(Command::Shutdown(reply)) => {
                        self.close();
                        let addresses = std::mem::take(&mut self.listening);
                        drop(self.swarm);
                        super::transport::released(&addresses).await;
                        let _ = reply.send(());
                        return;
                    }
                    Some(command) => self.obey(command),
                },
                event = self.swarm.select_next_some() => self.witness(event),
                _ = tick.tick() => self.tick(Instant::now()),
            }
        }
        self.close();
    }

    fn close(&mut self) {
        self.shared.evidence.clear();
        for mut entry in self.shared.peers.iter_mut() {
            entry.connected = false;
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::ListenAddresses(reply) => {
                self.awaiting_listeners.push(reply);
                self.answer_listeners();
            }
            Command::PublishAd(ad, reply) => {
                let _ = reply.send(self.publish(*ad));
            }
            Command::Provide(model, reply) => {
                self.provided.insert(model);
                self.provide(&model);
                let _ = reply.send(());
            }
            Command::FindProviders(model, reply) => self.find_providers(model, reply),
            Command::JoinModel(model, reply) => {
                self.join_bucket(super::gossip::bucket(&model));
                self.ask_servers_for(model);
                let _ = reply.send(());
            }
            Command::FetchEvidence { peer, digest, reply } => self.fetch_evidence(peer, digest, reply),
            Command::FetchAds { peer, model, reply } => self.fetch_ads(peer, model, Some(reply)),
            Command::Dial { peer, addresses, reply } => {
                self.dial(peer, addresses, Waiter::Connection(reply));
            }
            Command::OpenSession { peer, addresses, reply } => {
                self.dial(peer, addresses, Waiter::Session(reply));
            }
            Command::Status(reply) => {
                let _ = reply.send(self.status());
            }
            // Handled by `run`, which has to give the swarm away.
            Command::Shutdown(_) => {}
        }
    }

    fn witness(&mut self, event: SwarmEvent<Event>) {
        match event {
            SwarmEvent::Behaviour(Event::Gossip(event)) => self.on_gossip(*event),
            SwarmEvent::Behaviour(Event::Exchange(event)) => self.on_exchange(*event),
            SwarmEvent::Behaviour(Event::Kad(event)) => self.on_kad(*event),
            SwarmEvent::Behaviour(Event::Identify(event)) => self.on_identify(*event),
            SwarmEvent::Behaviour(Event::HolePunch(event)) => {
                tracing::debug!(peer = %event.remote_peer_id, ok = event.result.is_ok(), "hole punch");
            }
            SwarmEvent::NewListenAddr { listener_id, address } => self.on_listening(listener_id, address),
            SwarmEvent::ExpiredListenAddr { address, .. } => self.listening.retain(|a| *a != address),
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                self.listening.retain(|a| !addresses.contains(a));
                self.on_listener_closed(listener_id, reason);
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                self.on_closed(peer_id, connection_id, num_established);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                if matches!(error, libp2p::swarm::ListenError::Denied { .. }) {
                    self.shared.counters.connections_refused.add(1);
                }
                tracing::debug!(%error, "inbound connection failed");
            }
            // Pings, relay bookkeeping, address candidates: nothing to decide.
            _ => {}
        }
    }

    fn listen(&mut self, number: usize) -> Result<(), TransportError<io::Error>> {
        let id = self.swarm.listen_on(self.config.listen[number].clone())?;
        self.listeners.insert(id, number);
        Ok(())
    }

    /// An interface went away, or a relay refused or lost a reservation: try again in a while.
    fn on_listener_closed(&mut self, id: ListenerId, reason: io::Result<()>) {
        let Some(number) = self.listeners.remove(&id) else { return };
        if let Err(error) = reason {
            tracing::debug!(%error, address = %self.config.listen[number], "a listener closed");
        }
        self.listen_again.insert(number, Self::now() + LISTEN_AGAIN_AFTER);
    }

    fn tick(&mut self, now: Instant) {
        let unix = super::clock::unix_now();
        for peer in self.shared.directory.expire(unix) {
            self.shared.emit(NetEvent::Gone(peer));
        }
        for pardoned in self.standing.expire(unix) {
            if let Some(peer) = pardoned.peer_id() {
                self.swarm.behaviour_mut().blocked.unblock_peer(peer);
            }
        }
        for (key, provider) in self.providers.expire(now) {
            self.drop_provider(&key, &provider);
        }
        self.dial_lost_bootstraps(now);
        let due: Vec<usize> =
            self.listen_again.iter().filter(|(_, at)| **at <= now).map(|(n, _)| *n).collect();
        for number in due {
            self.listen_again.remove(&number);
            if self.listen(number).is_err() {
                self.listen_again.insert(number, now + LISTEN_AGAIN_AFTER);
            }
        }
        if !self.silent_listeners.is_empty() && now >= self.started + LISTENERS_PATIENCE {
            self.silent_listeners.clear();
            self.answer_listeners();
        }
        self.announce();
        if self.provide_again_at.is_some_and(|at| at <= now) {
            self.provide_again_at = None;
            for model in self.provided.clone() {
                self.provide(&model);
            }
        }
        if self.next_snapshot_at <= now {
            self.next_snapshot_at = now + self.config.snapshot_every;
            self.refresh_snapshot();
        }
    }

    fn on_listening(&mut self, listener: ListenerId, address: Multiaddr) {
        if !self.listening.contains(&address) {
            self.listening.push(address.clone());
        }
        // Kademlia and identify name only confirmed addresses to others. A server claims to be reachable
        // where it listens; receivers filter what is too local for them.
        if self.config.mode == Mode::Server && super::addresses::reach(&address).is_some() {
            self.swarm.add_external_address(address.clone());
        }
        self.shared.emit(NetEvent::Listening(address));
        if let Some(number) = self.listeners.get(&listener) {
            self.silent_listeners.remove(number);
        }
        self.answer_listeners();
    }

    fn answer_listeners(&mut self) {
        if self.silent_listeners.is_empty() {
            for reply in self.awaiting_listeners.drain(..) {
                let _ = reply.send(self.listening.clone());
            }
        }
    }

    fn status(&mut self) -> NetStatus {
        let external: Vec<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        let bootstrap_connected = self
            .bootstraps
            .iter()
            .filter(|b| b.peer.is_some_and(|peer| self.connections.contains_key(&peer)))
            .count();
        let provider_records = self.provider_records();
        let behaviour = self.swarm.behaviour_mut();
        let mesh: BTreeSet<PeerId> = behaviour.gossip.all_mesh_peers().copied().collect();
        let topics = behaviour.gossip.topics().count();
        let kad_peers = behaviour.kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        let counters = &self.shared.counters;
        NetStatus {
            peer_id: *self.swarm.local_peer_id(),
            mode: self.config.mode,
            listening: self.listening.clone(),
            reachability: peers::reachability(self.config.mode, &external, &self.listening),
            external,
            connected_peers: self.connections.len(),
            bootstrap_connected,
            bootstrap_configured: self.bootstraps.len(),
            mesh_peers: mesh.len(),
            topics,
            kad_peers,
            provided_models: self.provided.len(),
            provider_records,
            workers: self.shared.directory.read(|directory| directory.len()),
            banned: self.standing.banned(super::clock::unix_now()),
            ads_accepted: counters.ads_accepted.get(),
            ads_ignored: counters.ads_ignored.get(),
            ads_rejected: counters.ads_rejected.get(),
            sessions_in: counters.sessions_in.get(),
            sessions_out: counters.sessions_out.get(),
            sessions_refused: counters.sessions_refused.get(),
            connections_refused: counters.connections_refused.get(),
        }
    }
}
