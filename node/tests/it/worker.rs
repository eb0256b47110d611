//! A whole worker: real host, real enclave with an echo engine, real chain, real light peer, each over its
//! own sockets; only the process boundary is missing, which `testnet/` adds.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use cocoon_attest::{Assurance, Live, software_tee};
use cocoon_client::genesis::{
    ChainSection, Genesis, GenesisFile, ModelSection, Params, RegistrySection, TrustSection,
};
use cocoon_client::{AnswerEvent, AskPolicy, ChainEndpoint, ChatError, ChatRequest, Config, LightPeer};
use cocoon_inference::{ChatRole, EchoEngine, Engine as _, Message};
use cocoon_node::chain::{ChainServerConfig, bind};
use cocoon_node::config::{EnclaveConfig, EngineKind, HostConfig};
use cocoon_node::enclave::EnclaveError;
use cocoon_node::host::{HostError, control};
use cocoon_node::{Instruments, enclave, host};
use cocoon_payments::NanoTon;
use cocoon_payments::local::LocalChain;
use cocoon_payments::wallet::Wallet;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const TOKENS: u32 = 100;
const NAME: &str = "echo";

/// A task that can be stopped and waited for.
struct Running<E> {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), E>>,
}

impl<E: std::fmt::Debug> Running<E> {
    async fn stop(self) {
        self.stop.send_replace(true);
        timeout(PATIENCE, self.task).await.expect("it stops").unwrap().unwrap();
    }
}

struct Net {
    dir: tempfile::TempDir,
    genesis: Genesis,
    chain_url: String,
    asker_words: String,
    enclave: EnclaveConfig,
    /// Where the host listens; a port of the system's choice at the first start, the same one later.
    listen: Mutex<String>,
}

impl Net {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();

        let chain = LocalChain::create(&root.join("chain"), u32::try_from(now).unwrap()).unwrap();
        let (global_id, zero_state) = (chain.global_id(), chain.zero_state());
        let (asker, asker_words) = Wallet::generate(global_id).unwrap();
        let (worker, worker_words) = Wallet::generate(global_id).unwrap();
        for address in [asker.address(), worker.address()] {
            chain.faucet(&address, NanoTon(5_000_000_000)).unwrap();
        }
        chain.produce_block(u32::try_from(now).unwrap()).unwrap();
        drop(chain);
        std::fs::write(root.join("wallet.txt"), worker_words.words()).unwrap();
        let chain_url = serve_chain(&root.join("chain")).await;

        let platform = software_tee::Platform::generate(now).unwrap();
        std::fs::write(root.join("tee.json"), platform.to_json().as_bytes()).unwrap();
        let mut enclave = EnclaveConfig::embedded();
        enclave.socket = root.join("enclave.sock");
        enclave.tee.platform = root.join("tee.json");
        enclave.engine.kind = EngineKind::Echo;
        enclave.engine.echo_tokens = TOKENS;
        enclave.engine.echo_bytes = 20;
        let model = EchoEngine::new(TOKENS, 20).info().digest;

        let trust = platform.trust_root();
        let image = software_tee::measure_executable(&std::env::current_exe().unwrap()).unwrap();
        let genesis = GenesisFile {
            version: 1,
            name: "worker-test".to_owned(),
            chain: ChainSection { global_id, zero_state: hex::encode(zero_state) },
            trust: vec![TrustSection {
                name: trust.name,
                assurance: trust.assurance.to_string(),
                certificate: base64::engine::general_purpose::STANDARD.encode(trust.certificate),
            }],
            registry: RegistrySection {
                min_tcb_evaluation: 0,
                measurements: vec![image.to_string()],
                enclave_configs: vec![hex::encode(enclave.digest())],
                models: vec![ModelSection { name: NAME.to_owned(), digest: hex::encode(model) }],
            },
            params: Params { quantum_tokens: 64, close_delay_s: 3600, ad_ttl_s: 30 },
        };
        std::fs::write(root.join("genesis.toml"), genesis.to_toml().unwrap()).unwrap();
        let genesis = Genesis::load(root.join("genesis.toml")).unwrap();
        let listen = Mutex::new("/ip4/127.0.0.1/udp/0/quic-v1".to_owned());
        Self { genesis, chain_url, asker_words: asker_words.words().to_owned(), enclave, dir, listen }
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn host_config(&self) -> HostConfig {
        let mut config = HostConfig::worker();
        config.genesis = self.root().join("genesis.toml");
        config.state = self.root().join("host");
        config.network.listen = vec![self.listen.lock().unwrap().clone()];
        config.chain.url = self.chain_url.clone();
        config.chain.refresh_s = 1;
        config.wallet.mnemonic_file = self.root().join("wallet.txt");
        config.enclave.socket = self.enclave.socket.clone();
        config
    }

    async fn start_enclave(&self) -> Running<EnclaveError> {
        let (stop, stopped) = watch::channel(false);
        let (ready, is_ready) = oneshot::channel();
        let config = self.enclave.clone();
        let task = tokio::spawn(enclave::run(config, Instruments::default(), stopped, move |_| {
            let _ = ready.send(());
        }));
        timeout(PATIENCE, is_ready).await.expect("the enclave starts in time").expect("the enclave starts");
        Running { stop, task }
    }

    async fn start_host(&self) -> (Running<HostError>, Vec<String>) {
        let (stop, stopped) = watch::channel(false);
        let (ready, is_ready) = oneshot::channel();
        let config = self.host_config();
        let mut task = tokio::spawn(host::run(config, Instruments::default(), stopped, move |host| {
            let _ = ready.send(host.listen);
        }));
        let listen = match timeout(PATIENCE, is_ready).await.expect("the host starts in time") {
            Ok(listen) => listen,
            Err(_) => panic!("the host ended: {:?}", (&mut task).await),
        };
        *self.listen.lock().unwrap() = listen[0].split("/p2p/").next().unwrap().to_owned();
        (Running { stop, task }, listen)
    }

    async fn start_asker(&self, bootstrap: &[String]) -> LightPeer {
        let mut config =
            Config::new(self.genesis.clone(), self.root().join("asker"), &self.asker_words).unwrap();
        config.bootstrap = bootstrap.iter().map(|address| address.parse().unwrap()).collect();
        config.chain = ChainEndpoint { url: self.chain_url.clone(), api_key: None };
        config.policy = AskPolicy { minimum: Assurance::Test, live: Live::FirstUse, ..AskPolicy::default() };
        config.channels = 1;
        LightPeer::start(config).await.unwrap()
    }

    fn control(&self) -> PathBuf {
        self.host_config().control_socket()
    }

    async fn ask_host(&self, command: &str) -> Value {
        timeout(PATIENCE, control::request(&self.control(), &json!({"cmd": command}))).await.unwrap().unwrap()
    }
}

async fn serve_chain(dir: &Path) -> String {
    let server = bind(ChainServerConfig {
        dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        api_key: None,
        block_interval: Duration::from_millis(100),
        faucet: false,
    })
    .await
    .unwrap();
    let url = format!("http://{}", server.address());
    tokio::spawn(async move {
        let (stop, stopped) = watch::channel(false);
        let _ = server.serve(stopped).await;
        drop(stop);
    });
    url
}

/// One answer; returns its number of tokens and what it cost.
async fn chat(asker: &LightPeer) -> (usize, NanoTon) {
    try_chat(asker).await.unwrap()
}

/// The same soon after a restart, when the asker may not have noticed yet.
async fn chat_again(asker: &LightPeer) -> (usize, NanoTon) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match try_chat(asker).await {
            Ok(done) => return done,
            Err(error) => {
                assert!(tokio::time::Instant::now() < deadline, "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn try_chat(asker: &LightPeer) -> Result<(usize, NanoTon), ChatError> {
    let messages = vec![Message::new(ChatRole::User, "hello, worker")];
    let request = ChatRequest { deadline: Some(PATIENCE), ..ChatRequest::new(NAME, messages) };
    let mut answer = asker.chat(request).await?;
    let mut tokens = 0;
    while let Some(event) = timeout(PATIENCE, answer.next()).await.expect("the answer goes on") {
        match event? {
            AnswerEvent::Tokens(more) => tokens += more.len(),
            AnswerEvent::Finished { receipt, .. } => return Ok((tokens, receipt.total)),
            _ => {}
        }
    }
    panic!("the answer ended without a receipt after {tokens} tokens");
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("`{key}` in {value}"))
}

/// Logs of both processes with `RUST_LOG=debug cargo test -- --nocapture`.
fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_serves_survives_restarts_and_redeems_what_it_earned() {
    log();
    let net = Net::new().await;
    let enclave = net.start_enclave().await;
    let (host, listen) = net.start_host().await;
    let asker = net.start_asker(&listen).await;

    let (tokens, cost) = chat(&asker).await;
    assert_eq!(tokens, TOKENS as usize);
    let status = net.ask_host("status").await;
    assert_eq!(status["attested"], true, "{status}");
    assert_eq!(status["visible"], true, "{status}");
    assert!(number(&status, "vouchers") > 0, "{status}");
    let quantum = net.genesis.quantum(net.host_config().prices.output).0;
    let lead = number(&status, "earned_nanoton") - cost.0;
    assert!(lead <= quantum, "paid {lead} ahead, a quantum is {quantum}");

    // The host goes and comes back: nothing that was paid is lost, and the asker goes on from its newest
    // voucher.
    let earned = number(&status, "earned_nanoton");
    host.stop().await;
    let (host, _) = net.start_host().await;
    assert_eq!(number(&net.ask_host("status").await, "earned_nanoton"), earned);
    let (tokens, _) = chat_again(&asker).await;
    assert_eq!(tokens, TOKENS as usize);
    let earned = number(&net.ask_host("status").await, "earned_nanoton");

    // The enclave goes and comes back with other keys: the host attests anew and the asker finds the new
    // evidence.
    let before = net.ask_host("status").await["evidence"]["digest"].clone();
    enclave.stop().await;
    let enclave = net.start_enclave().await;
    let fresh = async {
        loop {
            let status = net.ask_host("status").await;
            if status["attested"] == true && status["evidence"]["digest"] != before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, fresh).await.expect("the host attests anew");
    let (tokens, _) = chat_again(&asker).await;
    assert_eq!(tokens, TOKENS as usize);

    // Everything earned is redeemed, by real contract code, to the newest voucher.
    let settled = net.ask_host("settle").await;
    let status = net.ask_host("status").await;
    assert_eq!(number(&status, "unsettled_nanoton"), 0, "{settled} {status}");
    assert!(number(&status, "settled_nanoton") >= earned, "{status}");
    assert_eq!(number(&status, "settled_nanoton"), number(&status, "earned_nanoton"));

    asker.close().await;
    host.stop().await;
    enclave.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_refuses_another_chain() {
    let net = Net::new().await;
    let other = tempfile::tempdir().unwrap();
    let mut config = net.host_config();
    config.chain.url = serve_chain(&other.path().join("chain")).await;
    let (_stop, stopped) = watch::channel(false);
    let error = timeout(PATIENCE, host::run(config, Instruments::default(), stopped, |_| {}))
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, HostError::WrongChain(_)), "{error}");
    assert!(error.to_string().contains("chain.url"), "{error}");
}
