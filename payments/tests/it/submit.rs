//! Sending and waiting, on a local chain whose blocks another thread makes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use cocoon_payments::{
    Address, NanoTon,
    chain::{
        AccountState, BoxFuture, Chain, ChainError, ChainIdentity, GetMethodResult, Head, StackValue,
        SubmitError, Toncenter, TransactionInfo, submit,
    },
    local::LocalChain,
    wallet::{Outgoing, Wallet},
};
use tempfile::TempDir;

use crate::{
    local_testkit::START,
    network::{TON, wait},
    testkit::key,
};

/// Makes a block every 20 ms, `step` seconds of chain time apart.
struct Blocks {
    api: Toncenter,
    wallet: Arc<Wallet>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Blocks {
    fn start(step: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let chain = Arc::new(LocalChain::create(dir.path(), START).unwrap());
        let wallet = Arc::new(Wallet::from_key(key(11), chain.global_id()).unwrap());
        chain.faucet(&wallet.address(), NanoTon(10 * TON)).unwrap();
        chain.produce_block(START).unwrap();
        let api = Toncenter::embedded(chain.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let now = AtomicU32::new(START);
        let stopped = stop.clone();
        let (_never, pause) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _never = _never;
            while !stopped.load(Ordering::SeqCst) {
                let _ = pause.recv_timeout(Duration::from_millis(20));
                chain.produce_block(now.fetch_add(step, Ordering::SeqCst) + step).unwrap();
            }
        });
        Self { api, wallet, stop, thread: Some(thread), _dir: dir }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn payment(nanoton: u64) -> Outgoing {
    Outgoing::payment(Address::base([9; 32]), NanoTon(nanoton))
}

#[test]
fn a_transfer_is_awaited_until_it_is_in_a_block() {
    let blocks = Blocks::start(1);
    let first = wait(submit(&blocks.api, &blocks.wallet, &[payment(TON)])).unwrap();
    assert_eq!(first.seqno, 0, "the first one deploys the wallet");
    let transaction = first.transaction.unwrap();
    assert!(transaction.succeeded() && transaction.out_msgs.len() == 1, "{transaction:?}");
    assert_eq!(transaction.out_msgs[0].value, NanoTon(TON));
    let second = wait(submit(&blocks.api, &blocks.wallet, &[payment(TON), payment(TON)])).unwrap();
    assert_eq!(second.seqno, 1);
    let paid = wait(blocks.api.account(&Address::base([9; 32]))).unwrap().balance;
    assert!(paid.0 <= 3 * TON && paid.0 > 3 * TON - 1000, "all but storage: {paid}");
}

#[test]
fn transfers_of_one_wallet_queue_up() {
    let blocks = Blocks::start(1);
    let seqnos = wait(async {
        let (a, b, c) = (payment(1), payment(2), payment(3));
        let mut tasks = tokio::task::JoinSet::new();
        for message in [a, b, c] {
            let (api, wallet) = (blocks.api.clone(), blocks.wallet.clone());
            tasks.spawn(async move { submit(&api, &wallet, &[message]).await.unwrap().seqno });
        }
        let mut seqnos = tasks.join_all().await;
        seqnos.sort_unstable();
        seqnos
    });
    assert_eq!(seqnos, [0, 1, 2]);
}

/// An endpoint that answers every message with an error, and may pass it on all the same.
#[derive(Debug)]
struct Refusing {
    api: Toncenter,
    code: i64,
    words: &'static str,
    passes_on: bool,
}

impl Chain for Refusing {
    fn identity(&self) -> BoxFuture<'_, Result<ChainIdentity, ChainError>> {
        self.api.identity()
    }

    fn head(&self) -> BoxFuture<'_, Result<Head, ChainError>> {
        self.api.head()
    }

    fn account<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<AccountState, ChainError>> {
        self.api.account(address)
    }

    fn run_get_method<'a>(
        &'a self,
        address: &'a Address,
        method: &'a str,
        stack: &'a [StackValue],
    ) -> BoxFuture<'a, Result<GetMethodResult, ChainError>> {
        self.api.run_get_method(address, method, stack)
    }

    fn send<'a>(&'a self, boc: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], ChainError>> {
        Box::pin(async move {
            if self.passes_on {
                let _ = self.api.send(boc).await;
            }
            Err(ChainError::Refused { method: "sendBoc", code: self.code, message: self.words.into() })
        })
    }

    fn transactions<'a>(
        &'a self,
        address: &'a Address,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<TransactionInfo>, ChainError>> {
        self.api.transactions(address, limit)
    }
}

#[test]
fn an_error_after_the_message_went_through_is_no_failure() {
    let blocks = Blocks::start(1);
    for (code, words) in [(502, "bad gateway"), (500, "duplicate message")] {
        let chain = Refusing { api: blocks.api.clone(), code, words, passes_on: true };
        wait(submit(&chain, &blocks.wallet, &[payment(TON)])).unwrap();
    }
    let paid = wait(blocks.api.account(&Address::base([9; 32]))).unwrap().balance;
    assert!(paid.0 <= 2 * TON && paid.0 > 2 * TON - 1000, "each once: {paid}");
}

#[test]
fn a_refused_transfer_fails_once_it_has_expired_and_says_what_the_chain_answered() {
    // Chain time flies, so that the expiry is near.
    let blocks = Blocks::start(10);
    let api = blocks.api.clone();
    let chain = Refusing { api, code: 406, words: "not accepted by the wallet", passes_on: false };
    let error = wait(submit(&chain, &blocks.wallet, &[payment(TON)])).unwrap_err();
    assert!(matches!(error, SubmitError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("406: not accepted by the wallet"), "{error}");
    let account = wait(blocks.api.account(&blocks.wallet.address())).unwrap();
    assert!(account.unixtime > u64::from(START) + 60, "not before it can never be included");
}

#[test]
fn an_empty_purse_is_named_before_anything_is_signed() {
    let blocks = Blocks::start(1);
    let error = wait(submit(&blocks.api, &blocks.wallet, &[payment(10 * TON)])).unwrap_err();
    let SubmitError::Balance { wallet, have, need } = error else { panic!("{error}") };
    assert_eq!((wallet, have), (blocks.wallet.address(), NanoTon(10 * TON)));
    assert!(need > have);
}

#[test]
fn the_chain_identity_and_head_are_read() {
    let blocks = Blocks::start(1);
    let identity = wait(blocks.api.identity()).unwrap();
    assert_eq!(identity.global_id, blocks.wallet.global_id());
    assert_ne!(identity.zero_state, [0; 32]);
    let head = wait(blocks.api.head()).unwrap();
    assert!(head.seqno > 0 && head.unixtime >= u64::from(START));
}
