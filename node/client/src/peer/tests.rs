//! The whole light peer over real sockets, with a chain and workers in this process.

mod chain;
mod worker;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cocoon_attest::{Assurance, Measurement, software_tee::Platform};
use cocoon_inference::{ChatRole, Message, Sampling};
use cocoon_p2p::Multiaddr;
use cocoon_payments::chain::ChainIdentity;
use futures::StreamExt;
use tempfile::TempDir;

use super::*;
use crate::{
    genesis::{ChainSection, GenesisFile, ModelSection, Params, RegistrySection, TrustSection},
    session::testkit::{CONFIG, IMAGE, MODEL, TARIFF},
};
use chain::TestChain;
use worker::{Manner, TestWorker};

const GLOBAL_ID: i32 = -217;
/// Far longer than anything takes: a test that needs it has failed.
const DEADLINE: Duration = Duration::from_secs(120);

/// A network whose first worker is everybody's bootstrap peer.
struct Town {
    platform: Arc<Platform>,
    genesis: Genesis,
    chain: Arc<TestChain>,
    wallet: String,
    workers: Vec<TestWorker>,
    state: TempDir,
}

impl Town {
    async fn new(balance: u64, manners: &[Manner]) -> Self {
        Self::with_image(balance, manners, IMAGE).await
    }

    async fn with_image(balance: u64, manners: &[Manner], image: Measurement) -> Self {
        let platform = Arc::new(Platform::generate(unix_now()).unwrap());
        let genesis = genesis(&platform);
        let (wallet, words) = Wallet::generate(GLOBAL_ID).unwrap();
        let identity = ChainIdentity { global_id: GLOBAL_ID, zero_state: [0x11; 32] };
        let chain = Arc::new(TestChain::new(identity, wallet.address(), NanoTon(balance)));
        let mut workers: Vec<TestWorker> = Vec::new();
        for manner in manners {
            let bootstrap: Vec<Multiaddr> = workers.iter().take(1).map(|w| w.address.clone()).collect();
            let start = TestWorker::start(platform.clone(), genesis.network_id(), image, bootstrap, *manner);
            workers.push(start.await);
        }
        let state = tempfile::tempdir().unwrap();
        Self { platform, genesis, chain, wallet: words.to_string(), workers, state }
    }

    fn config(&self) -> Config {
        let mut config = Config::new(self.genesis.clone(), self.state.path(), &self.wallet).unwrap();
        config.bootstrap = self.workers.iter().map(|worker| worker.address.clone()).collect();
        config.policy.minimum = Assurance::Test;
        config
    }

    async fn peer(&self) -> LightPeer {
        LightPeer::start_on(self.config(), self.chain.clone()).await.unwrap()
    }

    /// A peer with `sessions` open sessions.
    async fn ready(&self, sessions: usize) -> LightPeer {
        let peer = self.peer().await;
        within(async {
            while peer.channels().iter().filter(|channel| channel.session).count() < sessions {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert!(peer.status().await.ready());
        peer
    }
}

fn genesis(platform: &Platform) -> Genesis {
    let root = platform.trust_root();
    let file = GenesisFile {
        version: 1,
        name: "town".into(),
        chain: ChainSection { global_id: GLOBAL_ID, zero_state: "11".repeat(32) },
        trust: vec![TrustSection {
            name: root.name,
            assurance: "test".into(),
            certificate: BASE64.encode(root.certificate),
        }],
        registry: RegistrySection {
            min_tcb_evaluation: 0,
            measurements: vec![IMAGE.to_string()],
            enclave_configs: vec![hex::encode(CONFIG)],
            models: vec![ModelSection { name: "tiny".into(), digest: hex::encode(MODEL) }],
        },
        params: Params { quantum_tokens: 8, close_delay_s: 3600, ad_ttl_s: 90 },
    };
    Genesis::parse(file.to_toml().unwrap().as_bytes()).unwrap()
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("not done before the deadline")
}

fn question(max_tokens: u32) -> ChatRequest {
    ChatRequest {
        sampling: Sampling { max_tokens: Some(max_tokens), ..Sampling::default() },
        deadline: Some(DEADLINE),
        ..ChatRequest::new("tiny", vec![Message::new(ChatRole::User, "hello")])
    }
}

/// The answer's token ids, its failovers and its receipt.
async fn read(mut answer: Answer) -> Result<(Vec<u32>, usize, Receipt), ChatError> {
    let (mut ids, mut failovers) = (Vec::new(), 0);
    while let Some(event) = within(answer.next()).await {
        match event? {
            AnswerEvent::Started { leg } => assert_eq!(leg.assurance, Assurance::Test),
            AnswerEvent::Prepared { prompt_tokens, .. } => assert!(prompt_tokens > 0),
            AnswerEvent::Tokens(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
            AnswerEvent::Failover { .. } => failovers += 1,
            AnswerEvent::Finished { receipt, .. } => return Ok((ids, failovers, receipt)),
        }
    }
    panic!("the answer ended without a receipt")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_verified_paid_and_signed_for() {
    let town = Town::new(10_000_000_000, &[Manner::Honest]).await;
    let peer = town.ready(1).await;
    for round in 1..=3u64 {
        let answer = within(peer.chat(question(50))).await.unwrap();
        let (ids, failovers, receipt) = read(answer).await.unwrap();
        assert_eq!(ids, (0..50).collect::<Vec<_>>());
        assert_eq!(failovers, 0);
        assert_eq!(receipt.total, NanoTon(5 + 100));
        let [leg] = receipt.legs.as_slice() else { panic!("{receipt:?}") };
        assert_eq!(leg.signed.as_ref().unwrap().verify(), Ok(()));
        assert_eq!(leg.worker, town.workers[0].peer);
        let paid = peer.channels()[0].paid.0;
        assert!(paid >= 105 * round && paid <= 105 * round + 16, "{paid} after {round}");
    }
    assert_eq!(town.workers[0].counters.sessions.load(Ordering::Relaxed), 1, "one session for all");
    assert!(peer.evidence(&town.workers[0].peer).is_some());
    assert!(within(peer.handshake_probe(true)).await.is_ok());
    within(peer.close()).await;

    // What was promised survives; the channel is used again instead of funding another.
    let transfers = town.chain.transfers();
    drop(peer);
    let again = town.ready(1).await;
    assert!(again.channels()[0].paid.0 >= 315);
    assert_eq!(town.chain.transfers(), transfers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_continues_the_answer_exactly() {
    let town = Town::new(10_000_000_000, &[Manner::Honest, Manner::DiesAt(10)]).await;
    let peer = town.ready(2).await;
    // The lottery picks either first; ask until the dying one was.
    for _ in 0..32 {
        let (ids, failovers, receipt) = read(within(peer.chat(question(40))).await.unwrap()).await.unwrap();
        assert_eq!(ids, (0..40).collect::<Vec<_>>(), "no gap, no repetition");
        if failovers == 0 {
            continue;
        }
        let [first, second] = receipt.legs.as_slice() else { panic!("{receipt:?}") };
        assert_eq!((first.worker.as_str(), first.signed.is_some()), (town.workers[1].peer.as_str(), false));
        assert_eq!((second.worker.as_str(), second.signed.is_some()), (town.workers[0].peer.as_str(), true));
        assert_eq!(first.output_tokens + second.output_tokens, 40, "no output token is paid twice");
        assert_eq!(second.input_tokens, 5 + first.output_tokens);
        assert!(first.failed.is_some());
        return;
    }
    panic!("the dying worker was never chosen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_goodbye_is_neither_lost_nor_paid_again() {
    let town = Town::new(10_000_000_000, &[Manner::Honest, Manner::LeavesAt(10)]).await;
    let peer = town.ready(2).await;
    for _ in 0..32 {
        let (ids, failovers, receipt) = read(within(peer.chat(question(40))).await.unwrap()).await.unwrap();
        assert_eq!(ids, (0..40).collect::<Vec<_>>());
        if failovers == 0 {
            continue;
        }
        let [first, second] = receipt.legs.as_slice() else { panic!("{receipt:?}") };
        assert_eq!((first.output_tokens, second.output_tokens), (10, 30));
        assert_eq!(second.input_tokens, 5 + 10, "the prefix holds all that was charged");
        return;
    }
    panic!("the leaving worker was never chosen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_complete_does_not_fail_over() {
    let town = Town::new(10_000_000_000, &[Manner::LeavesAt(5)]).await;
    let peer = town.ready(1).await;
    let (ids, failovers, receipt) = read(within(peer.chat(question(5))).await.unwrap()).await.unwrap();
    assert_eq!((ids.len(), failovers), (5, 0));
    assert!(receipt.legs[0].is_signed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_taken_for_nothing_is_shown_and_counts() {
    let town = Town::new(10_000_000_000, &[Manner::Honest, Manner::Thief]).await;
    let peer = town.ready(2).await;
    for _ in 0..32 {
        let mut answer = within(peer.chat(question(20))).await.unwrap();
        let mut end = None;
        while let Some(event) = within(answer.next()).await {
            if let AnswerEvent::Finished { receipt, .. } = event.unwrap() {
                end = Some(receipt);
            }
        }
        let receipt = end.unwrap();
        let last = receipt.legs.last().unwrap();
        assert_eq!((last.is_signed, last.unused), (true, NanoTon::ZERO));
        if let [thief, honest] = receipt.legs.as_slice() {
            assert_eq!(thief.worker, town.workers[1].peer);
            assert_eq!((thief.cost, thief.is_signed), (NanoTon::ZERO, false));
            assert!(thief.unused >= TARIFF.step(), "{thief:?}");
            assert_eq!(receipt.total, honest.cost, "the total is what was delivered");
            assert_eq!(answer.spent(), NanoTon(receipt.total.0 + thief.unused.0));
            return;
        }
        assert_eq!(answer.spent(), receipt.total);
    }
    panic!("the thief was never chosen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thief_leaves_no_whole_ceiling_to_the_next() {
    let town = Town::new(10_000_000_000, &[Manner::Honest, Manner::Thief]).await;
    let peer = town.ready(2).await;
    for _ in 0..32 {
        // A step of 8 is gone with the thief; what is left does not pay for the input of 5.
        let bounded = ChatRequest { max_cost: Some(NanoTon(12)), ..question(20) };
        let mut answer = within(peer.chat(bounded)).await.unwrap();
        let mut error = None;
        while let Some(event) = within(answer.next()).await {
            error = event.err();
        }
        let Some(error) = error else { continue };
        assert!(matches!(error, ChatError::CostCeiling { max_cost: NanoTon(12), .. }), "{error}");
        let spent = answer.spent();
        assert!(spent >= TARIFF.step() && spent <= TARIFF.quantum, "valid after an error: {spent}");
        return;
    }
    panic!("the thief was never chosen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_loses_a_channel_does_not_cost_its_deposit() {
    let town = Town::new(10_000_000_000, &[Manner::Honest]).await;
    let peer = town.ready(1).await;
    let transfers = town.chain.transfers();
    town.chain.hide(true);
    let channel = peer.inner.book.all().remove(0);
    for _ in 0..3 {
        peer.inner.read_channel(&channel).await;
    }
    assert_eq!(channel.status(), ChannelStatus::Open);
    within(peer.close()).await;
    drop((channel, peer));

    // Nor does it after a restart, when nothing but the disk says that it was open.
    let again = town.peer().await;
    let channel = again.inner.book.all().remove(0);
    for _ in 0..3 {
        again.inner.read_channel(&channel).await;
    }
    assert_eq!(again.channels().len(), 1);
    town.chain.hide(false);
    again.inner.read_channel(&channel).await;
    assert_eq!(channel.status(), ChannelStatus::Open);
    assert_eq!(town.chain.transfers(), transfers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_top_up_that_is_on_its_way_is_not_sent_again() {
    let town = Town::new(100_000_000_000, &[Manner::Honest]).await;
    let mut config = town.config();
    // The chain of these tests shows 1 TON on every channel, whatever is sent: no top-up ever lands.
    config.deposit = NanoTon(5_000_000_000);
    let peer = LightPeer::start_on(config, town.chain.clone()).await.unwrap();
    within(async {
        while town.chain.transfers() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // Several rounds of the keeper, and far less time than a top-up may take.
    for _ in 0..15 {
        peer.inner.kick.notify_one();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(town.chain.transfers(), 2, "one to open, one to top up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_an_answer_cancels_it() {
    let town = Town::new(10_000_000_000, &[Manner::Silent]).await;
    let peer = town.ready(1).await;
    let answer = within(peer.chat(question(40))).await.unwrap();
    let counters = town.workers[0].counters.clone();
    within(async {
        while counters.requests.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(answer);
        while counters.cancelled.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(peer.status().await.streams, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_ends_in_an_error_that_names_it() {
    let town = Town::new(10_000_000_000, &[Manner::Silent]).await;
    let mut config = town.config();
    config.patience.first_token_ms = 300;
    let peer = LightPeer::start_on(config, town.chain.clone()).await.unwrap();
    let error = read(within(peer.chat(question(5))).await.unwrap()).await.unwrap_err();
    let ChatError::AllWorkersFailed { legs } = &error else { panic!("{error}") };
    assert_eq!(legs[0].worker, town.workers[0].peer);
    assert!(legs[0].why.contains("said nothing"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hopeless_request_ends_soon_with_its_own_error() {
    let quick = |began: Instant| assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());

    let town = Town::new(1_000, &[Manner::Honest]).await;
    let peer = town.peer().await;
    let began = now();
    let error = within(peer.chat(question(5))).await.unwrap_err();
    assert!(matches!(error, ChatError::WalletEmpty { balance: NanoTon(1_000), .. }), "{error}");
    quick(began);
    let unknown = ChatRequest { model: "other".into(), ..question(5) };
    let error = within(peer.chat(unknown)).await.unwrap_err();
    assert!(matches!(error, ChatError::UnknownModel { ref known, .. } if known == &["tiny"]), "{error}");

    let mut dear = town.config();
    dear.state = town.state.path().join("dear");
    dear.policy.max_price_output = 1;
    let dear = LightPeer::start_on(dear, town.chain.clone()).await.unwrap();
    let began = now();
    let error = within(dear.chat(question(5))).await.unwrap_err();
    assert!(matches!(error, ChatError::Policy { ref why } if why.contains("price")), "{error}");
    quick(began);

    let empty = Town::new(10_000_000_000, &[]).await;
    let peer = empty.peer().await;
    let began = now();
    let error = within(peer.chat(question(5))).await.unwrap_err();
    assert!(matches!(error, ChatError::NoWorkerOnline { .. }), "{error}");
    quick(began);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_another_image_gets_no_deposit_and_no_word() {
    let town = Town::with_image(10_000_000_000, &[Manner::Honest], Measurement([66; 48])).await;
    let peer = town.peer().await;
    let error = within(peer.chat(question(5))).await.unwrap_err();
    assert!(matches!(error, ChatError::Policy { ref why } if why.contains("check measurement")), "{error}");
    assert_eq!(town.chain.transfers(), 0);
    assert_eq!(town.workers[0].counters.sessions.load(Ordering::Relaxed), 0);
    assert_eq!(peer.status().await.refused[0].check, "measurement");
}

#[tokio::test]
async fn nothing_starts_on_another_chain_or_above_every_root() {
    let town = Town::new(0, &[]).await;
    let mut identity = town.chain.identity;
    identity.zero_state[0] ^= 1;
    let other = Arc::new(TestChain::new(identity, Address::base([0; 32]), NanoTon::ZERO));
    let error = LightPeer::start_on(town.config(), other).await.unwrap_err();
    assert!(matches!(error, StartError::WrongChain { field: "the zero state", .. }), "{error}");
    let mut config = town.config();
    config.policy.minimum = Assurance::Confidential;
    let error = LightPeer::start_on(config, town.chain.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::Unreachable { .. }), "{error}");
    drop(town.platform);
}
