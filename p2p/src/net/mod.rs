//! The overlay as a running thing: a libp2p swarm, one task that owns it, and handles to it.
//!
//! [`Net::spawn`] starts the actor and returns a cloneable [`Net`] and the stream of [`Incoming`]
//! sessions. Commands go to the actor over a bounded channel and are answered over oneshots; reading
//! the directory, the table of peers or served evidence needs no actor, and neither does the traffic of
//! a session.
//!
//! What the actor does by itself: it dials the bootstrap peers and dials them again when they are lost;
//! keeps the DHT's table and this peer's provider records fresh; verifies every ad before it forwards
//! it; asks a few servers for snapshots when it is new and one now and then; disconnects peers of
//! other networks and bans those that misbehave.
//!
//! The same actor and behaviour run in the simulator: [`Net::spawn_on`] takes the transport and the
//! executor instead of making them.

mod actor;
mod addresses;
mod behaviour;
mod clock;
mod config;
mod error;
mod exchange;
mod gossip;
mod session;
mod shared;
mod status;
mod streams;
mod transport;

use std::{fmt, sync::Arc, time::Duration};

use actor::Command;
pub use addresses::Reach;
pub use config::{Limits, Mode, NetConfig};
pub use error::{FetchError, NetError, PublishError, ServeError, SessionError};
pub use exchange::MAX_EVIDENCE_BYTES;
pub(crate) use exchange::{decode_request, decode_response};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, swarm};
pub use session::{Incoming, SessionStream};
use sha2::{Digest, Sha256};
use shared::Shared;
pub use shared::{Discovery, NetEvent, PeerView, SharedDirectory};
pub use status::NetStatus;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::timeout,
};
pub use transport::Substrate;

use crate::core::{Ad, Directory, Inserted, PeerKey, SignedAd};

/// Commands that may wait for the actor.
const COMMANDS: usize = 256;
/// How long opening a session may take: a dial and a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The protocol names of one network. Peers of different networks share none of them.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) root: String,
    pub(crate) kad: StreamProtocol,
    pub(crate) session: StreamProtocol,
    pub(crate) exchange: StreamProtocol,
}

impl Names {
    pub(crate) fn new(network_id: &[u8; 32]) -> Self {
        // 64 bits keep two networks apart by name; ads carry the whole id.
        let root = format!("/cocoon/{}/1", hex::encode(&network_id[..8]));
        let name = |suffix: &str| {
            // `root` begins with a slash, which is all that `try_from_owned` asks for.
            StreamProtocol::try_from_owned(format!("{root}/{suffix}"))
                .unwrap_or(StreamProtocol::new("/cocoon"))
        };
        Self { kad: name("kad"), session: name("session"), exchange: name("exchange"), root }
    }
}

/// Handle to a running swarm. Cheap to clone; the swarm stops when [`Net::shutdown`] is called or the
/// last handle is dropped.
#[derive(Clone)]
pub struct Net {
    peer_id: PeerId,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    evidence_limit: usize,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("peer_id", &self.peer_id).finish_non_exhaustive()
    }
}

impl Net {
    /// Starts a swarm over QUIC and TCP on the current tokio runtime.
    pub fn spawn(config: NetConfig) -> Result<(Self, Incoming), NetError> {
        let substrate = transport::sockets(&config.keypair, config.effective_reach())?;
        Self::spawn_on(config, substrate, swarm::Config::with_tokio_executor())
    }

    /// Starts a swarm over any transport that authenticates peers, with any executor for its
    /// connections. The actor itself runs on the current tokio runtime.
    pub fn spawn_on(
        config: NetConfig,
        substrate: Substrate,
        executor: swarm::Config,
    ) -> Result<(Self, Incoming), NetError> {
        let names = Names::new(&config.network_id);
        let directory = Directory::new(config.network_id, config.limits.directory);
        let shared = Arc::new(Shared::new(directory));
        let (queue, incoming) = mpsc::channel(config.limits.pending_sessions.max(1));
        let sessions = streams::Behaviour::new(names.session.clone(), queue, shared.clone());
        let (relay, behaviour) = behaviour::behaviour(&config, &names, sessions)?;
        let transport = transport::with_relay(substrate, &config.keypair, relay)?;
        let peer_id = config.keypair.public().to_peer_id();
        let executor = executor
            .with_idle_connection_timeout(config.idle_timeout)
            .with_max_negotiating_inbound_streams(behaviour::MAX_NEGOTIATING)
            .with_notify_handler_buffer_size(behaviour::NOTIFY_BUFFER)
            .with_smart_dial();
        let swarm = Swarm::new(transport, behaviour, peer_id, executor);

        let (commands, inbox) = mpsc::channel(COMMANDS);
        let evidence_limit = config.limits.evidence;
        let actor = actor::Actor::new(swarm, config, names, shared.clone(), inbox)?;
        tokio::spawn(actor.run());
        let net = Self { peer_id, commands, shared, evidence_limit };
        Ok((net, Incoming::new(incoming)))
    }

    /// This peer.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The addresses listened on, without `/p2p`, once every listener has its first one; after ten seconds
    /// those there are. Empty for a peer that only dials, or after shutdown.
    pub async fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.ask(Command::ListenAddresses).await.unwrap_or_default()
    }

    /// Signs nothing, checks everything: takes this peer's own ad into its directory and announces it.
    /// If ads come faster than others accept them, the newest is announced as soon as they would.
    pub async fn publish_ad(&self, ad: SignedAd) -> Result<(), PublishError> {
        self.ask(|reply| Command::PublishAd(Box::new(ad), reply)).await.ok_or(PublishError::Stopped)?
    }

    /// The directory of workers, for reading, choosing, and waiting for changes.
    pub fn directory(&self) -> Arc<SharedDirectory> {
        self.shared.directory.clone()
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.shared.events.subscribe()
    }

    /// Serves evidence to whoever asks for its digest.
    pub fn serve_evidence(&self, digest: [u8; 32], evidence: Vec<u8>) -> Result<(), ServeError> {
        let (found, limit) = (evidence.len(), MAX_EVIDENCE_BYTES);
        if found > limit {
            return Err(ServeError::TooLarge { found, limit });
        }
        if sha256(&evidence) != digest {
            return Err(ServeError::WrongDigest);
        }
        let served = &self.shared.evidence;
        if served.len() >= self.evidence_limit && !served.contains_key(&digest) {
            return Err(ServeError::Full { limit: self.evidence_limit });
        }
        served.insert(digest, evidence.into());
        Ok(())
    }

    /// Stops serving evidence.
    pub fn withdraw_evidence(&self, digest: &[u8; 32]) {
        self.shared.evidence.remove(digest);
    }

    /// Announces in the DHT that this peer serves a model, until shutdown.
    pub async fn provide(&self, model: [u8; 32]) {
        self.ask(|reply| Command::Provide(model, reply)).await;
    }

    /// Looks a model's providers up in the DHT. Providers without an ad in the directory are asked for
    /// one in the background.
    pub async fn find_providers(&self, model: [u8; 32]) -> Vec<PeerId> {
        self.ask(|reply| Command::FindProviders(model, reply)).await.unwrap_or_default()
    }

    /// Listens to the ads of a model from now on, and asks connected servers for the current ones.
    pub async fn join_model(&self, model: [u8; 32]) {
        self.ask(|reply| Command::JoinModel(model, reply)).await;
    }

    /// Fetches evidence by digest. What is returned has that digest.
    pub async fn fetch_evidence(&self, peer: PeerId, digest: [u8; 32]) -> Result<Vec<u8>, FetchError> {
        self.ask(|reply| Command::FetchEvidence { peer, digest, reply }).await.ok_or(FetchError::Stopped)?
    }

    /// Asks a peer for a snapshot of ads and takes the valid ones into the directory; how many were new.
    pub async fn fetch_ads(&self, peer: PeerId) -> Result<usize, FetchError> {
        self.ask(|reply| Command::FetchAds { peer, model: None, reply }).await.ok_or(FetchError::Stopped)?
    }

    /// Like [`Net::fetch_ads`], of one model only.
    pub async fn fetch_ads_for(&self, peer: PeerId, model: [u8; 32]) -> Result<usize, FetchError> {
        self.ask(|reply| Command::FetchAds { peer, model: Some(model), reply })
            .await
            .ok_or(FetchError::Stopped)?
    }

    /// Connects to a peer, at `addresses` or where its ad says if there are none.
    pub async fn connect(&self, peer: PeerId, addresses: Vec<Multiaddr>) -> Result<(), SessionError> {
        if self.shared.is_connected(&peer) {
            return Ok(());
        }
        let dial = self.ask(|reply| Command::Dial { peer, addresses, reply });
        match timeout(OPEN_TIMEOUT, dial).await {
            Ok(dialled) => dialled.ok_or(SessionError::Stopped)?,
            Err(_) => Err(SessionError::Timeout { peer, after: OPEN_TIMEOUT }),
        }
    }

    /// Opens a session stream, connecting first if necessary.
    pub async fn open_session(
        &self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    ) -> Result<SessionStream, SessionError> {
        let open = self.ask(|reply| Command::OpenSession { peer, addresses, reply });
        match timeout(OPEN_TIMEOUT, open).await {
            Ok(Some(opened)) => opened,
            // The connection broke before the stream was there.
            Ok(None) if !self.commands.is_closed() => {
                Err(SessionError::Refused { peer, why: "the connection closed".into() })
            }
            Ok(None) => Err(SessionError::Stopped),
            Err(_) => Err(SessionError::Timeout { peer, after: OPEN_TIMEOUT }),
        }
    }

    /// Every peer known, sorted by id.
    pub fn peers(&self) -> Vec<PeerView> {
        self.shared.sorted_peers()
    }

    /// How the overlay is doing; `None` after shutdown.
    pub async fn status(&self) -> Option<NetStatus> {
        self.ask(Command::Status).await
    }

    /// Stops the swarm and closes every connection. Sessions end, and the ports listened on are free again.
    pub async fn shutdown(&self) {
        self.ask(Command::Shutdown).await;
    }

    async fn ask<R>(&self, command: impl FnOnce(oneshot::Sender<R>) -> Command) -> Option<R> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The ads in an answer, if it carries ads.
pub(crate) fn ads_of(response: exchange::Response) -> Option<Vec<Vec<u8>>> {
    match response {
        exchange::Response::Ads(ads) => Some(ads),
        exchange::Response::Evidence(_) | exchange::Response::NotFound | exchange::Response::Busy => None,
    }
}

/// Verifies and takes a batch of encoded ads from somebody else's snapshot.
pub(crate) fn take_snapshot(
    directory: &SharedDirectory,
    encoded: &[Vec<u8>],
    now: u64,
    mut on_taken: impl FnMut(&Ad),
) -> (Vec<PeerKey>, Option<crate::core::AdError>) {
    let (mut taken, mut fault) = (Vec::new(), None);
    for bytes in encoded.iter().take(exchange::SNAPSHOT_ADS) {
        match SignedAd::decode(bytes).and_then(|signed| directory.insert(signed, now, &mut on_taken)) {
            Ok(Inserted::New(ad) | Inserted::Updated(ad)) => taken.push(ad.peer.clone()),
            Ok(Inserted::Known) => {}
            Err(error) if error.is_fault() => fault = Some(error),
            // Late or repeated: snapshots overlap with gossip.
            Err(_) => {}
        }
    }
    (taken, fault)
}
