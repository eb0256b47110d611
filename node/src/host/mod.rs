//! The host: the half of a worker that owns network, money and disk, or a bootstrap peer, which owns only
//! network.
//!
//! ```text
//!             libp2p                                    Unix socket
//!   askers ◄──────────► net ── session tasks ── link ◄──────────────► enclave
//!                        ▲          │
//!                   ads, epochs   money ── store (disk), settle ── chain
//! ```
//!
//! A host never sees a prompt: it relays sealed records (`session`), verifies and stores vouchers
//! (`money`), tells the enclave what was paid, keeps its evidence current (`epochs`), says what it offers
//! (`ads`) and redeems what it earned (`settle`). Before any of this it makes sure that the chain is the
//! one its genesis names. After `kill -9` it goes on from its state directory; the enclave's keys survive it.

mod ads;
mod chain;
mod claim;
pub mod control;
mod door;
mod epochs;
mod link;
mod money;
mod outflow;
mod session;
mod settle;
mod state;
mod status;
mod wire;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cocoon_client::genesis::{Genesis, GenesisError};
use cocoon_p2p::net::{Limits, Mode};
use cocoon_p2p::{Incoming, Keypair, Net, NetConfig, NetError};
use cocoon_payments::chain::{Chain, Toncenter, ToncenterError};
use cocoon_payments::lane::PayeePolicy;
use cocoon_payments::store::{PayeeStore, StoreError};
use cocoon_payments::wallet::Wallet;
use cocoon_payments::{Address, NanoTon};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use chain::WrongChain;
pub use state::StateError;

use crate::config::{ConfigError, HostConfig, PriceConfig, Role, multiaddrs};
use crate::instruments::{Instruments, Tap};
use crate::link::HostHello;

/// Evidence and failures that may wait to be looked at.
const NEWS: usize = 8;
/// People's wishes to redeem that may wait.
const WISHES: usize = 4;

/// Why a host process cannot serve.
#[derive(Debug, Error)]
pub enum HostError {
    /// The genesis file.
    #[error("cannot use the genesis file (configuration key `genesis`)")]
    Genesis(#[from] GenesisError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The network.
    #[error("cannot join the network")]
    Net(#[from] NetError),
    /// The chain endpoint's address.
    #[error("cannot use the chain endpoint (configuration key `chain.url`)")]
    Endpoint(#[from] ToncenterError),
    /// The chain endpoint's chain.
    #[error(transparent)]
    WrongChain(#[from] WrongChain),
    /// The vouchers on disk.
    #[error("cannot open the stored vouchers in the state directory")]
    Store(#[from] StoreError),
    /// The control socket.
    #[error("cannot open the control socket {path}: {why}")]
    Control {
        /// The socket.
        path: String,
        /// The system's words.
        why: std::io::Error,
    },
}

/// What a supervisor learns when the host serves.
#[derive(Debug, Clone)]
pub struct HostReady {
    /// This host's peer id.
    pub peer_id: String,
    /// Where it can be dialled, each ending in `/p2p/<peer id>`.
    pub listen: Vec<String>,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Sessions opened.
    pub(crate) sessions: AtomicU64,
    /// Sessions refused or ended by a refusal.
    pub(crate) refused: AtomicU64,
    /// Vouchers accepted.
    pub(crate) vouchers: AtomicU64,
    /// Channels redeemed.
    pub(crate) settlements: AtomicU64,
}

/// What the tasks of a worker's host share.
pub(crate) struct Worker {
    net: Net,
    chain: Arc<chain::ChainView>,
    enclave: link::EnclaveLink,
    money: Arc<money::Money>,
    counters: Arc<Counters>,
    tap: Option<Arc<dyn Tap>>,
    network_id: [u8; 32],
    prices: PriceConfig,
    quantum: NanoTon,
    payout: Address,
    payee_key: [u8; 32],
    min_close_delay_s: u32,
    ad_ttl_s: u32,
    /// Why there is no current evidence, while there is none.
    trouble_attesting: Mutex<Option<String>>,
}

/// Runs a host until `stop` turns true.
///
/// # Errors
/// When it cannot serve: see [`HostError`].
pub async fn run(
    config: HostConfig,
    instruments: Instruments,
    mut stop: watch::Receiver<bool>,
    ready: impl FnOnce(HostReady) + Send,
) -> Result<(), HostError> {
    let genesis = Genesis::load(&config.genesis)?;
    let state = state::StateDir::open(&config.state)?;
    let keypair = state.identity()?;
    // Deriving a key from words takes a while by design: done before the network can wait for it.
    let wallet = match config.role {
        Role::Worker => Some(state::wallet(&config.wallet.mnemonic_file, genesis.global_id())?),
        Role::Bootstrap => None,
    };
    let (net, incoming) = Net::spawn(net_config(&config, &genesis, keypair.clone())?)?;
    let listening = net.listen_addresses().await;
    let host_ready = HostReady {
        peer_id: net.peer_id().to_string(),
        listen: listening.iter().map(|address| format!("{address}/p2p/{}", net.peer_id())).collect(),
    };
    tracing::info!(peer = %net.peer_id(), network = genesis.name(), listen = ?host_ready.listen, "host joined");

    let result = match wallet {
        None => bootstrap(&config, &genesis, &net, incoming, &mut stop, || ready(host_ready)).await,
        Some(wallet) => {
            let parts =
                Parts { config, genesis, instruments, keypair, wallet, net: net.clone(), incoming, state };
            worker(parts, &mut stop, || ready(host_ready)).await
        }
    };
    net.shutdown().await;
    result
}

/// Resolves when `stop` turns true or nobody can turn it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn net_config(config: &HostConfig, genesis: &Genesis, keypair: Keypair) -> Result<NetConfig, HostError> {
    let network = &config.network;
    let listen = multiaddrs("network.listen", &network.listen)?;
    let mut net = NetConfig::new(keypair, genesis.network_id(), Mode::Server, listen)
        .with_bootstrap(multiaddrs("network.bootstrap", &network.bootstrap)?);
    net.external = multiaddrs("network.external", &network.external)?;
    net.limits = Limits { pending_sessions: config.limits.sessions, ..Limits::default() };
    Ok(net)
}

/// A bootstrap peer: the overlay does all the work.
async fn bootstrap(
    config: &HostConfig,
    genesis: &Genesis,
    net: &Net,
    mut incoming: Incoming,
    stop: &mut watch::Receiver<bool>,
    ready: impl FnOnce(),
) -> Result<(), HostError> {
    let answers = Arc::new(status::Bootstrap::new(net.clone(), genesis.name().to_owned()));
    let control = tokio::spawn(control::serve(control_socket(config)?, answers));
    ready();
    loop {
        tokio::select! {
            // A stream dropped is a stream refused: nothing is served here.
            session = incoming.next() => if session.is_none() { break },
            () = stopped(stop) => break,
        }
    }
    control.abort();
    Ok(())
}

fn control_socket(config: &HostConfig) -> Result<tokio::net::UnixListener, HostError> {
    let path = config.control_socket();
    control::listen(&path).map_err(|why| HostError::Control { path: path.display().to_string(), why })
}

struct Parts {
    config: HostConfig,
    genesis: Genesis,
    instruments: Instruments,
    keypair: Keypair,
    wallet: Wallet,
    net: Net,
    incoming: Incoming,
    state: state::StateDir,
}

/// A worker: starts its tasks, accepts sessions, and ends them in order.
async fn worker(
    parts: Parts,
    stop: &mut watch::Receiver<bool>,
    ready: impl FnOnce(),
) -> Result<(), HostError> {
    let Parts { config, genesis, instruments, keypair, wallet, net, incoming, state } = parts;
    let api_key = Some(config.chain.api_key.clone()).filter(|key| !key.is_empty());
    let endpoint: Arc<dyn Chain> = Arc::new(Toncenter::new(&config.chain.url, api_key)?);
    let view = tokio::select! {
        view = chain::ChainView::check(endpoint, &genesis) => Arc::new(view?),
        () = stopped(stop) => return Ok(()),
    };

    let (news, heard) = mpsc::channel(NEWS);
    let hello = HostHello { network_id: genesis.network_id(), peer_id: net.peer_id().to_bytes() };
    let enclave =
        link::EnclaveLink::spawn(config.enclave.socket.clone(), hello, instruments.tap.clone(), news);
    let payee_key = state::payee_key(&keypair)?;
    let worker =
        Arc::new(assemble(&config, &genesis, &instruments, &net, &wallet, payee_key, view, enclave, &state)?);

    let (evidence, current_evidence) = watch::channel(None);
    let (published, last_ad) = watch::channel(ads::Published::default());
    let (wishes, wished) = mpsc::channel(WISHES);
    let external = multiaddrs("network.external", &config.network.external)?;
    let refresh = Duration::from_secs(config.chain.refresh_s);
    let answers =
        status::Status::new(worker.clone(), &genesis, current_evidence.clone(), last_ad.clone(), wishes);

    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(epochs::run(worker.clone(), config.enclave.epoch_h * 3600, heard, evidence));
    tasks.spawn(ads::run(worker.clone(), keypair, external, current_evidence, published));
    tasks.spawn(worker.money.clone().sync_forever());
    tasks.spawn(settle::run(worker.clone(), wallet, refresh, wished));
    tasks.spawn(control::serve(control_socket(&config)?, Arc::new(answers)));

    let closing = CancellationToken::new();
    let door = tokio::spawn(door::run(worker.clone(), config.limits, incoming, closing.clone()));
    // Ready means that askers can find it: its first ad is out.
    let mut first_ad = last_ad;
    tokio::select! {
        published = async { first_ad.wait_for(|ad| ad.sequence > 0).await.is_ok() } => {
            if published {
                ready();
            }
            stopped(stop).await;
        }
        () = stopped(stop) => {}
    }
    closing.cancel();
    let _ = door.await;
    worker.money.sync().await;
    tasks.shutdown().await;
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "the parts of a worker, once")]
fn assemble(
    config: &HostConfig,
    genesis: &Genesis,
    instruments: &Instruments,
    net: &Net,
    wallet: &Wallet,
    payee_key: [u8; 32],
    chain: Arc<chain::ChainView>,
    enclave: link::EnclaveLink,
    state: &state::StateDir,
) -> Result<Worker, HostError> {
    let settlement = config.settlement;
    let min_close_delay_s = match settlement.min_close_delay_s {
        0 => genesis.params().close_delay_s,
        seconds => seconds,
    };
    let policy = PayeePolicy {
        worker: wallet.address(),
        worker_key: payee_key,
        global_id: genesis.global_id(),
        min_close_delay_s,
        expiry_margin_s: settlement.min_remaining_s,
        max_unsettled: NanoTon(settlement.max_unsettled_nanoton),
        settle_factor: settlement.factor,
    };
    let counters = Arc::new(Counters::default());
    let store = PayeeStore::open(&state.vouchers())?;
    let cost = NanoTon(settlement.cost_nanoton);
    let money = Arc::new(money::Money::open(store, policy, cost, chain.clone(), counters.clone()));
    Ok(Worker {
        net: net.clone(),
        chain,
        enclave,
        money,
        counters,
        tap: instruments.tap.clone(),
        network_id: genesis.network_id(),
        prices: config.prices,
        quantum: genesis.quantum(config.prices.output),
        payout: wallet.address(),
        payee_key,
        min_close_delay_s,
        ad_ttl_s: genesis.params().ad_ttl_s,
        trouble_attesting: Mutex::new(None),
    })
}
