//! kill -9 while blocks are being written.
//!
//! The test starts itself as a second process, the victim, which produces blocks full of transactions as
//! fast as it can and prints each block's number once `produce_block` has returned. The test kills it at
//! an arbitrary moment, opens the chain, and checks that every block that was announced is there and that
//! accounts, transactions and queue belong together.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use cocoon_payments::{
    Address, NanoTon,
    local::{LocalChain, SUPPLY_NANOTON},
};

use super::local_testkit::{START, TestWallet, balance, transfers_total};

const VICTIM_DIR: &str = "COCOON_TEST_CHAIN_VICTIM";
const ROUNDS: u32 = 4;
const RECIPIENTS: u8 = 20;

fn recipients() -> Vec<Address> {
    (1..=RECIPIENTS).map(|seed| TestWallet::new(seed).address()).collect()
}

/// Not a test of its own: does nothing unless the test below started it.
#[test]
fn victim() {
    let Ok(dir) = env::var(VICTIM_DIR) else { return };
    let chain = LocalChain::open(Path::new(&dir)).unwrap();
    let recipients = recipients();
    loop {
        for recipient in &recipients {
            chain.faucet(recipient, NanoTon(1_000_000)).unwrap();
        }
        let block = chain.produce_block(0).unwrap();
        println!("\nblock {} {}", block.seqno, hex::encode(block.root_hash));
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn a_killed_chain_has_every_block_that_it_announced_and_no_half_block() {
    let dir = tempfile::tempdir().unwrap();
    drop(LocalChain::create(dir.path(), START).unwrap());
    for round in 0..ROUNDS {
        let (seqno, hash) = run_and_kill(dir.path(), 5 + round as usize);
        let chain = LocalChain::open(dir.path()).unwrap();
        let head = chain.head();
        assert!(head.seqno >= seqno, "block {seqno} was announced, the chain ends at {}", head.seqno);
        assert_eq!(hex::encode(chain.block(seqno).unwrap().unwrap().root_hash), hash);
        check(&chain);
        let next = chain.produce_block(0).unwrap();
        assert_eq!((next.seqno, next.previous), (head.seqno + 1, head.root_hash));
    }
}

/// Returns the last block that the victim announced before it was killed.
fn run_and_kill(dir: &Path, blocks: usize) -> (u32, String) {
    let mut victim = Command::new(env::current_exe().unwrap())
        .args(["--exact", "local_crash::victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut last = None;
    let mut seen = 0;
    for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((seqno, hash)) = line.strip_prefix("block ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        last = Some((seqno.parse().unwrap(), hash.to_owned()));
        seen += 1;
        if seen == blocks {
            // SIGKILL. What the pipe still holds was announced too, so it is read to its end.
            victim.kill().unwrap();
        }
    }
    victim.wait().unwrap();
    last.expect("the victim announced blocks")
}

fn check(chain: &LocalChain) {
    assert_eq!(chain.undelivered().unwrap(), 0, "everything fits into its block here");
    let mut accounts = recipients();
    accounts.push(chain.faucet_address());
    let mut held = 0;
    let mut spent = 0;
    for account in &accounts {
        held += balance(chain, account);
        spent += transfers_total(chain, account);
        let newest = chain.stored_transactions(account, None, None, 1).unwrap();
        assert!(newest[0].block <= chain.head().seqno);
    }
    assert_eq!(held + spent, SUPPLY_NANOTON, "coins are neither made nor lost");
}
