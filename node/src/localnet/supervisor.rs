//! Starts the processes of a network in order, waits for each, watches them, stops them in reverse.

// A shell: it measures how long the start takes.
#![allow(clippy::disallowed_methods, reason = "the supervisor is an async shell")]

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use cocoon_client::genesis::Genesis;
use cocoon_inference::{EchoEngine, Engine as _, embedded};
use cocoon_payments::NanoTon;
use nix::fcntl::Flock;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::watch;

use super::{
    faucet::Faucet,
    genesis::{NewNetwork, SetupError, ensure_key, ensure_wallet, write, write_private},
    layout::Layout,
    lock,
    network::{ChainEndpoint, Kind, Network, ProcessInfo},
    process::{Process, ProcessError},
};
use crate::config::{
    ChainConfig, EnclaveConfig, EngineKind, GatewayConfig, HostConfig, LinkConfig, NetworkConfig, Role,
    WalletConfig,
};

/// How long one process may take to serve; a model of some gigabytes has to load in it.
const READY: Duration = Duration::from_secs(60);
/// A worker's wallet pays for settling; this lasts for hundreds of settlements.
const WORKER_FUNDS: NanoTon = NanoTon(2_000_000_000);
/// The gateway's wallet opens channels.
const GATEWAY_FUNDS: NanoTon = NanoTon(100_000_000_000);

/// What the workers' enclaves run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The embedded model on burn.
    Model {
        /// Least milliseconds between two tokens; 0 is full speed.
        pace_ms: u64,
    },
    /// A fixed pattern, for benchmarks.
    Echo {
        /// Tokens of an answer.
        tokens: u32,
        /// Bytes of a token.
        bytes: u32,
    },
}

impl Engine {
    /// What askers call it.
    pub fn model_name(self) -> &'static str {
        match self {
            Self::Model { .. } => embedded::NAME,
            Self::Echo { .. } => "echo",
        }
    }
}

/// What network to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its files are.
    pub layout: Layout,
    /// Worker count; each is a host and an enclave.
    pub workers: usize,
    /// What they run.
    pub engine: Engine,
    /// Whether an OpenAI gateway runs.
    pub gateway: bool,
    /// Time between blocks.
    pub block_interval: Duration,
    /// The executable of every process.
    pub program: PathBuf,
    /// Another executable for one worker's enclave: (worker, path). A test shows with it that an altered
    /// enclave is refused.
    pub odd_enclave: Option<(usize, PathBuf)>,
    /// Passed to each process, for its log.
    pub verbose: u8,
}

/// What the start is doing, for a progress display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Something began.
    Step(String),
    /// A process serves.
    Ready(String),
}

/// Why a network did not come up.
#[derive(Debug, Error)]
pub enum UpError {
    /// Another supervisor holds the state directory.
    #[error(
        "a testnet already runs in {0}; stop it with `cocoon testnet down`, or name another folder with --state"
    )]
    Running(PathBuf),
    /// A file cannot be used.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The network's files could not be made.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A process did not come up.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A process serves but did not say what the next one needs.
    #[error("{0} did not say where it serves")]
    Silent(&'static str),
    /// The faucet refused.
    #[error("the faucet gave nothing: {0}")]
    Faucet(String),
    /// Everything runs and yet no answer can be had.
    #[error("no answer can be had after {seconds} s: {why}; see the logs in {logs}")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// What the gateway said last.
        why: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// Told to stop before everything ran.
    #[error("stopped before the network was ready")]
    Stopped,
}

/// A running network. Dropping it kills its processes; [`Self::down`] asks them first.
#[derive(Debug)]
pub struct Localnet {
    layout: Layout,
    genesis: Genesis,
    network: Network,
    processes: Vec<Process>,
    // Held as long as the network runs.
    _lock: Flock<File>,
}

impl Localnet {
    /// Starts a network and waits until an answer can be had.
    ///
    /// # Errors
    /// [`UpError`]; whatever had been started is stopped again.
    pub async fn up(
        options: Options,
        progress: &mut (dyn FnMut(Progress) + Send),
        stop: watch::Receiver<bool>,
    ) -> Result<Self, UpError> {
        let lock = hold(&options.layout).await?;
        // Left by a supervisor that was killed: until this network is described, nothing is to be found here.
        let _ = fs::remove_file(options.layout.network());
        let mut start = Start { options, progress, processes: Vec::new(), infos: Vec::new() };
        let mut stopped = stop;
        let result = tokio::select! {
            result = start.run() => result,
            _ = stopped.wait_for(|stop| *stop) => Err(UpError::Stopped),
        };
        match result {
            Ok((genesis, network)) => Ok(Self {
                layout: start.options.layout,
                genesis,
                network,
                processes: start.processes,
                _lock: lock,
            }),
            Err(error) => {
                stop_all(&mut start.processes).await;
                Err(error)
            }
        }
    }

    /// What runs, and where.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network's genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Where its files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Waits until a process ends, and says which and how.
    pub async fn watch(&mut self) -> (String, String) {
        if self.processes.is_empty() {
            std::future::pending::<()>().await;
        }
        let waits = self.processes.iter_mut().map(|process| {
            Box::pin(async {
                let status = process.wait().await;
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                (process.name().to_owned(), how)
            })
        });
        let ((name, how), _, _) = futures::future::select_all(waits).await;
        self.processes.retain(|process| process.name() != name);
        (name, how)
    }

    /// Stops every process, last started first.
    pub async fn down(mut self) {
        stop_all(&mut self.processes).await;
        let _ = fs::remove_file(self.layout.network());
    }
}

async fn stop_all(processes: &mut Vec<Process>) {
    while let Some(mut process) = processes.pop() {
        process.stop().await;
    }
}

async fn hold(layout: &Layout) -> Result<Flock<File>, UpError> {
    let path = layout.lock();
    let file = |source| UpError::File { path: path.clone(), source };
    fs::create_dir_all(layout.root()).map_err(file)?;
    let lock = lock::take(&path).await.map_err(file)?;
    lock.ok_or_else(|| UpError::Running(layout.root().to_owned()))
}

/// A network that is being started.
struct Start<'a> {
    options: Options,
    progress: &'a mut (dyn FnMut(Progress) + Send),
    processes: Vec<Process>,
    infos: Vec<ProcessInfo>,
}

impl Start<'_> {
    async fn run(&mut self) -> Result<(Genesis, Network), UpError> {
        let started = Instant::now();
        let layout = self.options.layout.clone();
        self.step("making keys, genesis and model files");
        let enclave = self.enclave_config()?;
        let model = self.options.engine.model_name();
        let genesis =
            NewNetwork { layout: &layout, program: &self.options.program, enclave: &enclave, model }
                .ensure()?;

        self.step("starting the local chain");
        let (chain, chain_key) = self.start_chain().await?;
        let chain_config = ChainConfig { url: chain.url.clone(), api_key: chain_key, refresh_s: 2 };
        self.step("starting the bootstrap peer");
        let bootstrap = self.start_bootstrap(&chain_config).await?;

        self.step("funding wallets and starting workers");
        let faucet = Faucet::new(&chain_config)?;
        for worker in 1..=self.options.workers {
            self.spawn_worker(worker, &enclave, &chain_config, &bootstrap, &faucet, genesis.global_id())
                .await?;
        }
        let mut network = Network {
            name: genesis.name().to_owned(),
            network_id: hex::encode(genesis.network_id()),
            supervisor: std::process::id(),
            base_url: String::new(),
            api_key_file: layout.process("gateway").join("api.key"),
            chain,
            bootstrap: bootstrap.clone(),
            processes: Vec::new(),
            ready_ms: 0.0,
        };
        let mut key = String::new();
        if self.options.gateway {
            self.step("starting the gateway");
            key = self.spawn_gateway(&chain_config, &bootstrap, &faucet, genesis.global_id()).await?;
        }
        network.base_url = self.wait_for_all().await?;
        if self.options.gateway {
            self.step("waiting for the first attested, funded worker");
            self.wait_for_answers(&network.base_url, &key).await?;
        }
        network.ready_ms = started.elapsed().as_secs_f64() * 1e3;
        network.processes.clone_from(&self.infos);
        let text = serde_json::to_vec_pretty(&network).unwrap_or_default();
        write(&layout.network(), &text)?;
        Ok((genesis, network))
    }

    /// What all enclaves of this network share; its measured section is named in the genesis.
    fn enclave_config(&self) -> Result<EnclaveConfig, UpError> {
        let models = self.options.layout.process("models").join(embedded::NAME);
        if !models.join("config.json").exists() {
            embedded::write_to(&models).map_err(|source| UpError::File { path: models.clone(), source })?;
        }
        let mut config = EnclaveConfig::embedded();
        config.engine.model_digest = hex::encode(embedded::digest());
        config.model.directory = models;
        config.model.threads = 1;
        config.tee.platform = self.options.layout.platform();
        match self.options.engine {
            Engine::Model { pace_ms } => config.engine.pace_ms = pace_ms,
            Engine::Echo { tokens, bytes } => {
                config.engine.kind = EngineKind::Echo;
                // An enclave claims what it serves: an echo is a model of its own.
                let echo = EchoEngine::new(tokens, bytes as usize);
                config.engine.model_digest = hex::encode(echo.info().digest);
                config.engine.slots = 64;
                config.engine.echo_tokens = tokens;
                config.engine.echo_bytes = bytes;
            }
        }
        Ok(config)
    }

    async fn start_chain(&mut self) -> Result<(ChainEndpoint, String), UpError> {
        let layout = self.options.layout.clone();
        let key = ensure_key(&layout.chain_key())?;
        let args: Vec<OsString> = vec![
            "testnet".into(),
            "chain".into(),
            "--dir".into(),
            layout.chain().into(),
            "--listen".into(),
            "127.0.0.1:0".into(),
            "--key-file".into(),
            layout.chain_key().into(),
            "--block-ms".into(),
            self.options.block_interval.as_millis().to_string().into(),
        ];
        self.spawn("chain", Kind::Chain, args)?;
        let ready = self.wait_last().await?;
        let url = ready["url"].as_str().ok_or(UpError::Silent("the chain"))?.to_owned();
        Ok((ChainEndpoint { url, api_key_file: layout.chain_key() }, key))
    }

    async fn start_bootstrap(&mut self, chain: &ChainConfig) -> Result<Vec<String>, UpError> {
        let mut config = self.host_config("bootstrap", chain, &[]);
        config.role = Role::Bootstrap;
        self.spawn_host("bootstrap", Kind::Bootstrap, &config)?;
        let ready = self.wait_last().await?;
        let listen: Vec<String> = serde_json::from_value(ready["listen"].clone()).unwrap_or_default();
        if listen.is_empty() { Err(UpError::Silent("the bootstrap peer")) } else { Ok(listen) }
    }

    async fn spawn_worker(
        &mut self,
        worker: usize,
        enclave: &EnclaveConfig,
        chain: &ChainConfig,
        bootstrap: &[String],
        faucet: &Faucet,
        global_id: i32,
    ) -> Result<(), UpError> {
        let name = format!("worker-{worker}");
        let dir = self.options.layout.process(&name);
        let mut config = self.host_config(&name, chain, bootstrap);
        let wallet = ensure_wallet(&config.wallet.mnemonic_file, global_id)?;
        faucet.fund(&wallet.address(), WORKER_FUNDS).await?;

        let mut enclave = enclave.clone();
        enclave.socket = dir.join("enclave.sock");
        let path = dir.join("enclave.toml");
        write_private(&path, enclave.to_toml().as_bytes())?;
        let program = match &self.options.odd_enclave {
            Some((odd, program)) if *odd == worker => program.clone(),
            _ => self.options.program.clone(),
        };
        let args = vec!["enclave".into(), "--config".into(), path.into()];
        self.spawn_program(&format!("{name}-enclave"), Kind::Enclave, &program, args)?;

        config.enclave = LinkConfig { socket: enclave.socket, ..LinkConfig::default() };
        self.spawn_host(&name, Kind::Host, &config)
    }

    async fn spawn_gateway(
        &mut self,
        chain: &ChainConfig,
        bootstrap: &[String],
        faucet: &Faucet,
        global_id: i32,
    ) -> Result<String, UpError> {
        let layout = self.options.layout.clone();
        let dir = layout.process("gateway");
        let mut config = GatewayConfig::desktop();
        config.listen = ([127, 0, 0, 1], 0).into();
        config.api_key_file = dir.join("api.key");
        config.genesis = layout.genesis();
        config.state = dir.join("state");
        config.network.bootstrap = bootstrap.to_vec();
        config.chain = chain.clone();
        config.wallet = WalletConfig { mnemonic_file: dir.join("wallet.txt") };
        config.policy.assurance = "test".to_owned();
        config.payment.channels = self.options.workers.clamp(1, 2);
        let key = ensure_key(&config.api_key_file)?;
        let wallet = ensure_wallet(&config.wallet.mnemonic_file, global_id)?;
        faucet.fund(&wallet.address(), GATEWAY_FUNDS).await?;
        let path = dir.join("gateway.toml");
        write_private(&path, config.to_toml().as_bytes())?;
        self.spawn("gateway", Kind::Gateway, vec!["gateway".into(), "--config".into(), path.into()])?;
        Ok(key)
    }

    fn host_config(&self, name: &str, chain: &ChainConfig, bootstrap: &[String]) -> HostConfig {
        let dir = self.options.layout.process(name);
        let mut config = HostConfig::worker();
        config.genesis = self.options.layout.genesis();
        config.state = dir.join("state");
        config.network = NetworkConfig {
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".to_owned(), "/ip4/127.0.0.1/tcp/0".to_owned()],
            external: Vec::new(),
            bootstrap: bootstrap.to_vec(),
        };
        config.chain = chain.clone();
        config.wallet = WalletConfig { mnemonic_file: dir.join("wallet.txt") };
        // Everybody in a local network is the same person.
        config.limits.sessions_per_peer = 64;
        config.limits.opens_per_minute = 6000;
        config
    }

    fn spawn_host(&mut self, name: &str, kind: Kind, config: &HostConfig) -> Result<(), UpError> {
        let path = self.options.layout.process(name).join("host.toml");
        write_private(&path, config.to_toml().as_bytes())?;
        self.spawn(name, kind, vec!["node".into(), "--config".into(), path.into()])
    }

    fn spawn(&mut self, name: &str, kind: Kind, args: Vec<OsString>) -> Result<(), UpError> {
        let program = self.options.program.clone();
        self.spawn_program(name, kind, &program, args)
    }

    fn spawn_program(
        &mut self,
        name: &str,
        kind: Kind,
        program: &std::path::Path,
        mut args: Vec<OsString>,
    ) -> Result<(), UpError> {
        if self.options.verbose > 0 {
            args.push(format!("-{}", "v".repeat(usize::from(self.options.verbose))).into());
        }
        let process = Process::spawn(&self.options.layout, name, program, args)?;
        let pid = process.pid().unwrap_or(0);
        self.infos.push(ProcessInfo { name: name.to_owned(), kind, pid, log: self.options.layout.log(name) });
        self.processes.push(process);
        Ok(())
    }

    async fn wait_last(&mut self) -> Result<Value, UpError> {
        let Some(process) = self.processes.last_mut() else { return Ok(Value::Null) };
        let ready = process.ready(READY).await?;
        let name = process.name().to_owned();
        (self.progress)(Progress::Ready(name));
        Ok(ready)
    }

    /// Waits for every process, and returns the gateway's base URL.
    async fn wait_for_all(&mut self) -> Result<String, UpError> {
        let mut url = String::new();
        for process in &mut self.processes {
            let ready = process.ready(READY).await?;
            if process.name() == "gateway" {
                ready["base_url"].as_str().ok_or(UpError::Silent("the gateway"))?.clone_into(&mut url);
            }
            (self.progress)(Progress::Ready(process.name().to_owned()));
        }
        Ok(url)
    }

    async fn wait_for_answers(&mut self, base_url: &str, key: &str) -> Result<(), UpError> {
        let url = format!("{}/health", base_url.trim_end_matches("/v1"));
        let http = http_client()?;
        let deadline = Instant::now() + READY;
        loop {
            let why = match http.get(&url).bearer_auth(key).send().await {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => response.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                let logs = self.options.layout.root().join("logs");
                return Err(UpError::NotReady { seconds: READY.as_secs(), why, logs });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn step(&mut self, text: &str) {
        (self.progress)(Progress::Step(text.to_owned()));
    }
}

pub(super) fn http_client() -> Result<reqwest::Client, UpError> {
    let timeout = Duration::from_secs(10);
    reqwest::Client::builder()
        .no_proxy()
        .timeout(timeout)
        .build()
        .map_err(|error| UpError::Faucet(error.to_string()))
}
