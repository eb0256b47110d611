//! The light peer: joins discovery, verification, payment and the session protocol.
//!
//! | part | what it does |
//! |---|---|
//! | [`keeper`] | keeps channels funded and sessions open in the background |
//! | [`legs`] | from a question to a verified worker that has it |
//! | [`answer`] | the stream of one answer, over as many workers as it takes |
//! | [`link`] | the task that runs one session |
//! | [`book`], [`vault`] | channels in memory and on disk |
//! | [`sight`] | what is believed of a channel's account, and when it may be forgotten |
//! | [`evidence`] | verdicts on workers' evidence |

mod answer;
mod book;
mod config;
mod error;
mod evidence;
mod keeper;
mod legs;
mod link;
mod receipt;
mod sight;
mod vault;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cocoon_attest::{Live, noise};
use cocoon_inference::RequestError;
use cocoon_p2p::{Keypair, Mode, Net, NetConfig, PeerView, core::PeerKey};
use cocoon_payments::{
    Address, NanoTon,
    chain::{Chain, Toncenter},
    channel,
    wallet::Wallet,
};
use serde::Serialize;
use tokio::sync::{Notify, watch};

pub use answer::{Answer, AnswerEvent, ChatRequest, LegStart, StepTimings};
pub use book::{ChannelStatus, ChannelView, RefusedWorker};
pub use config::{AskPolicy, ChainEndpoint, Config, ConfigError, DEFAULT_DEPOSIT};
pub use error::{ChatError, FailedLeg, StartError};
pub use receipt::{Leg, Receipt};

use book::Book;
use evidence::Attestations;
use vault::Vault;

use crate::{genesis::Genesis, session::asker::Patience};

/// A peer that asks. Cheap to clone; the last clone's drop ends it, [`LightPeer::close`] does so
/// in order.
#[derive(Clone)]
pub struct LightPeer {
    inner: Arc<Inner>,
}

struct Inner {
    genesis: Genesis,
    policy: AskPolicy,
    patience: Patience,
    crypto: noise::Crypto,
    deposit: NanoTon,
    target: usize,
    net: Net,
    chain: Arc<dyn Chain>,
    wallet: Wallet,
    vault: Vault,
    book: Book,
    attestations: Attestations,
    epoch: Instant,
    kick: Arc<Notify>,
    wanted: Mutex<Option<([u8; 32], BTreeSet<PeerKey>)>>,
    funding: AtomicBool,
    fund_after: AtomicU64,
    stop: watch::Sender<bool>,
}

/// A model that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelListing {
    /// The name people use.
    pub name: String,
    /// Digest of its manifest.
    #[serde(serialize_with = "hexadecimal")]
    pub digest: [u8; 32],
    /// Largest context on offer, in tokens.
    pub context: u32,
    /// Workers that offer it now.
    pub workers: usize,
    /// Lowest price in nanoTON per million input tokens.
    pub price_input: u64,
    /// Lowest price in nanoTON per million output tokens.
    pub price_output: u64,
}

/// How a light peer is doing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStatus {
    /// A verified worker has a funded, confirmed channel and an open session.
    pub ready: bool,
    /// The network's name.
    pub network: String,
    /// Its id, hexadecimal.
    pub network_id: String,
    /// This peer's id; a new one at every start.
    pub peer_id: String,
    /// Where deposits come from.
    pub wallet: Address,
    /// Models on offer.
    pub models: Vec<ModelListing>,
    /// Channels.
    pub channels: Vec<ChannelView>,
    /// Requests being answered.
    pub streams: usize,
    /// Workers refused by verification, newest verdict per worker.
    pub refused: Vec<RefusedWorker>,
}

impl PeerStatus {
    /// Whether a request would be answered without waiting for the chain.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready
    }
}

impl LightPeer {
    /// Joins the network, checks the chain, and begins to fund channels in the background.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let chain = Toncenter::new(&config.chain.url, config.chain.api_key.clone())?;
        Self::start_on(config, Arc::new(chain)).await
    }

    /// The same on a chain that is reached in another way.
    pub async fn start_on(config: Config, chain: Arc<dyn Chain>) -> Result<Self, StartError> {
        let genesis = config.genesis;
        reachable(&genesis, &config.policy)?;
        check_chain(&genesis, chain.as_ref()).await?;
        let vault = Vault::open(&config.state)?;
        let book = Book::new(vault.channels(genesis.global_id())?);

        // A new identity at every start: nobody can follow an asker by its peer id.
        let keypair = Keypair::generate_ed25519();
        let net = NetConfig::new(keypair, genesis.network_id(), Mode::Client, config.listen)
            .with_bootstrap(config.bootstrap);
        // Nobody opens sessions with an asker: the stream of inbound ones is dropped.
        let (net, _) = Net::spawn(net)?;
        let attestations = Attestations::new(genesis.policy(config.policy.minimum, config.policy.live));
        let (stop, stopped) = watch::channel(false);
        let inner = Arc::new(Inner {
            policy: config.policy,
            patience: config.patience,
            crypto: config.crypto,
            deposit: config.deposit,
            target: config.channels,
            net,
            chain,
            wallet: config.wallet,
            vault,
            book,
            attestations,
            epoch: now(),
            kick: Arc::new(Notify::new()),
            wanted: Mutex::default(),
            funding: AtomicBool::new(false),
            fund_after: AtomicU64::new(0),
            stop,
            genesis,
        });
        for known in inner.genesis.models() {
            inner.net.join_model(known.digest).await;
        }
        tokio::spawn(keeper::run(Arc::downgrade(&inner), stopped));
        Ok(Self { inner })
    }

    /// The models of this network, with who offers them now.
    pub async fn models(&self) -> Vec<ModelListing> {
        self.inner.models()
    }

    /// Asks. Resolves once a verified worker has the request.
    pub async fn chat(&self, request: ChatRequest) -> Result<Answer, ChatError> {
        if *self.inner.stop.borrow() {
            return Err(ChatError::Closed);
        }
        let Some(model) = self.inner.genesis.find_model(&request.model) else {
            let known = self.inner.genesis.models().iter().map(|known| known.name.clone()).collect();
            return Err(ChatError::UnknownModel { model: request.model, known });
        };
        let model = model.digest;
        validate(&request)?;
        Answer::begin(self.inner.clone(), request, model).await
    }

    /// The channels, by worker.
    #[must_use]
    pub fn channels(&self) -> Vec<ChannelView> {
        self.inner.book.all().iter().map(|channel| channel.view()).collect()
    }

    /// Everybody this peer has heard of, and how.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerView> {
        self.inner.net.peers()
    }

    /// A worker's evidence, as it was verified.
    #[must_use]
    pub fn evidence(&self, worker: &str) -> Option<Vec<u8>> {
        let channel = self.inner.book.all().into_iter().find(|c| c.worker.to_string() == worker)?;
        if let Some(link) = channel.link() {
            return Some(link.attested.bytes.clone());
        }
        let directory = self.inner.net.directory();
        let digest = directory.read(|d| d.get(&channel.worker).map(|ad| ad.evidence_digest))?;
        let known = self.inner.attestations.known(&digest, unix_now())?;
        Some(known.bytes.clone())
    }

    /// How this peer is doing.
    pub async fn status(&self) -> PeerStatus {
        let inner = &self.inner;
        let channels = inner.book.all();
        let now = unix_now();
        let ready =
            |channel: &Arc<book::Channel>| channel.link().is_some() && channel.is_usable(NanoTon(1), now);
        PeerStatus {
            ready: channels.iter().any(ready),
            network: inner.genesis.name().to_owned(),
            network_id: hex::encode(inner.genesis.network_id()),
            peer_id: inner.net.peer_id().to_string(),
            wallet: inner.wallet.address(),
            models: inner.models(),
            channels: channels.iter().map(|channel| channel.view()).collect(),
            streams: channels.iter().filter_map(|c| c.link()).map(|link| link.streams()).sum(),
            refused: inner.book.refused(),
        }
    }

    /// Measures one handshake with a worker that has a funded channel: session stream, Noise and
    /// welcome; with `fresh` also fetching and verifying its evidence. The session is closed again.
    pub async fn handshake_probe(&self, fresh: bool) -> Result<Duration, ChatError> {
        let inner = &self.inner;
        let internal = |what: String| ChatError::Internal { what };
        let now_unix = unix_now();
        let channel = inner.book.all().into_iter().find(|channel| {
            channel.is_usable(NanoTon(1), now_unix)
                && inner.net.directory().read(|d| d.get(&channel.worker).is_some())
        });
        let channel = channel.ok_or_else(|| internal("no worker has a funded channel yet".into()))?;
        let ad = inner.net.directory().read(|d| d.get(&channel.worker).cloned());
        let ad = ad.ok_or_else(|| internal("the worker left".into()))?;
        let offer = ad.models.first().ok_or_else(|| internal("the worker offers no model".into()))?;
        let began = now();
        let attested = legs::attest(inner, &ad, offer.digest, fresh).await;
        let (attested, _) = attested.map_err(|error| internal(error.to_string()))?;
        let link = legs::dial(inner, &channel, &ad, offer, attested).await;
        let took = began.elapsed();
        link.map_err(|error| internal(error.to_string()))?.close().await;
        Ok(took)
    }

    /// Asks for the deposit of the channel with a worker back. The refund comes once the close
    /// delay has passed, while a light peer with this wallet runs.
    pub async fn close_channel(&self, worker: &str) -> Result<(), ChatError> {
        let inner = &self.inner;
        let channel = inner.book.all().into_iter().find(|c| c.worker.to_string() == worker);
        let channel = channel.ok_or_else(|| ChatError::Invalid {
            field: "worker".into(),
            why: "there is no channel with this worker".into(),
        })?;
        channel.begin_closing();
        let noted = inner.vault.closing(&channel.address);
        noted.map_err(|error| ChatError::Internal { what: error.to_string() })?;
        if let Some(link) = channel.set_link(None) {
            link.close().await;
        }
        let asked = inner.call(&channel, channel::request_close()).await;
        inner.read_channel(&channel).await;
        asked.map_err(|why| ChatError::Funding { why })
    }

    /// Ends all sessions, writes down what was promised, and leaves the network. Channels stay
    /// open for the next start.
    pub async fn close(&self) {
        self.inner.stop.send_replace(true);
        for channel in self.inner.book.all() {
            if let Some(link) = channel.set_link(None) {
                link.close().await;
            }
        }
        self.inner.persist();
        self.inner.net.shutdown().await;
    }
}

impl fmt::Debug for LightPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LightPeer").field("genesis", &self.inner.genesis).finish_non_exhaustive()
    }
}

impl Inner {
    /// Milliseconds since the start.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn models(&self) -> Vec<ModelListing> {
        let offered = self.net.directory().models();
        let listing = |known: &crate::genesis::KnownModel| {
            let offer = offered.iter().find(|offer| offer.digest == known.digest);
            ModelListing {
                name: known.name.clone(),
                digest: known.digest,
                context: offer.map_or(0, |offer| offer.context),
                workers: offer.map_or(0, |offer| offer.workers),
                price_input: offer.map_or(0, |offer| offer.price_input),
                price_output: offer.map_or(0, |offer| offer.price_output),
            }
        };
        self.genesis.models().iter().map(listing).collect()
    }

    /// Whether a new session under this evidence needs a fresh quote.
    fn must_challenge(&self, evidence: &[u8; 32]) -> bool {
        match self.policy.live {
            Live::Off => false,
            Live::FirstUse => !self.attestations.was_bound(evidence),
            Live::Required => true,
        }
    }

    fn is_funding(&self) -> bool {
        self.funding.load(Ordering::Relaxed)
    }

    fn set_funding(&self, funding: bool) {
        self.funding.store(funding, Ordering::Relaxed);
    }

    fn fund_after(&self) -> u64 {
        self.fund_after.load(Ordering::Relaxed)
    }
}

/// A policy above every root would refuse every worker, one by one: say so at once.
fn reachable(genesis: &Genesis, policy: &AskPolicy) -> Result<(), StartError> {
    let best = genesis.roots().iter().map(|root| root.assurance).max();
    if best.is_some_and(|best| best >= policy.minimum) {
        return Ok(());
    }
    let minimum = policy.minimum;
    Err(StartError::Unreachable { minimum, hint: "on a test network, set `assurance = \"test\"`" })
}

/// Nothing is signed for another chain than the genesis names.
async fn check_chain(genesis: &Genesis, chain: &dyn Chain) -> Result<(), StartError> {
    let identity = chain.identity().await?;
    let wrong = |field, found, expected| Err(StartError::WrongChain { field, found, expected });
    if identity.global_id != genesis.global_id() {
        return wrong("the global id", identity.global_id.to_string(), genesis.global_id().to_string());
    }
    if identity.zero_state != genesis.zero_state() {
        let (found, expected) = (hex::encode(identity.zero_state), hex::encode(genesis.zero_state()));
        return wrong("the zero state", found, expected);
    }
    Ok(())
}

/// What needs no worker to be wrong.
fn validate(request: &ChatRequest) -> Result<(), ChatError> {
    let invalid = |field: &str, why: &str| Err(ChatError::Invalid { field: field.into(), why: why.into() });
    if request.messages.is_empty() {
        return invalid("messages", "empty; send at least one message");
    }
    if request.max_cost == Some(NanoTon::ZERO) {
        return invalid("max_cost", "0 pays for nothing; leave it out for no ceiling");
    }
    request.sampling.validate().map_err(|error| match error {
        RequestError::Invalid { field, why } => ChatError::Invalid { field, why },
        other => ChatError::Internal { what: other.to_string() },
    })
}

fn hexadecimal<S: serde::Serializer>(digest: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(digest))
}

#[allow(clippy::disallowed_methods)] // A shell: this is where its clock is read.
fn now() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods)] // As above.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
