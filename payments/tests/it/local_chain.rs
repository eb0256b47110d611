//! The embedded chain through its public interface, with wallets that tonlib-core builds.

use cocoon_payments::{
    Address, NanoTon,
    local::{LocalChain, LocalChainError, MAX_GRANT_NANOTON, SUPPLY_NANOTON, StackValue, SubmitError},
};

use super::local_testkit::{Harness, TestWallet, transfers_total};

const TON: u64 = 1_000_000_000;

#[test]
fn every_chain_is_a_network_of_its_own_and_stays_the_same_when_reopened() {
    let (one, two) = (Harness::new(), Harness::new());
    assert_ne!(one.chain.zero_state(), two.chain.zero_state());
    assert_ne!(one.chain.global_id(), two.chain.global_id());
    assert!(one.chain.global_id() > 0, "public networks have negative ids");
    let param = one.chain.config().get_raw_cell(19).unwrap().unwrap();
    assert_eq!(param.parse::<i32>().unwrap(), one.chain.global_id());

    let identity = (one.chain.global_id(), one.chain.zero_state(), one.chain.faucet_address());
    let reopened = one.reopen();
    assert_eq!(
        (reopened.chain.global_id(), reopened.chain.zero_state(), reopened.chain.faucet_address()),
        identity
    );
}

#[test]
fn a_directory_holds_one_chain_and_one_process_holds_the_directory() {
    let harness = Harness::new();
    let dir = harness.path();
    assert!(matches!(LocalChain::open(dir), Err(LocalChainError::Locked { .. })));
    let dir = harness.close();
    assert!(matches!(LocalChain::create(dir.path(), 1), Err(LocalChainError::Exists { .. })));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(LocalChain::open(empty.path()), Err(LocalChainError::Missing { .. })));
}

#[test]
fn a_wallet_is_funded_deploys_itself_and_pays_another() {
    let mut harness = Harness::new();
    let (alice, bob) = (TestWallet::new(1), TestWallet::new(2));
    harness.chain.faucet(&alice.address(), NanoTon(5 * TON)).unwrap();
    let block = harness.block();
    assert_eq!(block.transactions, 2, "the faucet's and the recipient's");
    assert_eq!(harness.balance(&alice.address()), 5 * TON);
    assert_eq!(harness.state(&alice.address()), "uninitialized");

    harness.chain.submit(&alice.transfer(0, harness.now + 60, &bob.address(), TON)).unwrap();
    assert_eq!(harness.chain.pending(), 1);
    harness.block();
    assert_eq!(harness.state(&alice.address()), "active");
    assert_eq!(harness.balance(&bob.address()), TON);
    let spent = 5 * TON - TON - harness.balance(&alice.address());
    assert!((100_000..3_000_000).contains(&spent), "fees are mainnet's: {spent} nanoTON");

    let seqno = harness.chain.run_get_method(&alice.address(), "seqno", &[]).unwrap();
    assert_eq!((seqno.exit_code, seqno.stack), (0, vec![StackValue::Int(1.into())]));
    let history = harness.chain.stored_transactions(&alice.address(), None, None, 10).unwrap();
    assert_eq!(history.len(), 2);
    assert!(history[0].lt > history[1].lt, "newest first");
    assert_eq!(history[0].block, harness.chain.head().seqno);
}

#[test]
fn a_message_that_its_account_does_not_accept_is_refused_at_once() {
    let mut harness = Harness::new();
    let (alice, bob) = (TestWallet::new(1), TestWallet::new(2));
    let not_accepted = |harness: &Harness, boc: &[u8]| {
        matches!(harness.chain.submit(boc), Err(SubmitError::NotAccepted { .. }))
    };
    let payment = alice.transfer(0, harness.now + 600, &bob.address(), TON);
    assert!(not_accepted(&harness, &payment), "an account without coins cannot pay for the message");

    harness.chain.faucet(&alice.address(), NanoTon(5 * TON)).unwrap();
    harness.block();
    harness.chain.submit(&payment).unwrap();
    harness.chain.submit(&payment).unwrap();
    assert_eq!(harness.chain.pending(), 1, "the same message waits once");
    harness.block();
    assert!(not_accepted(&harness, &payment), "its sequence number is used up");
    assert!(not_accepted(&harness, &alice.transfer(1, harness.now - 1, &bob.address(), TON)), "expired");
    let mut forged = TestWallet::new(1).transfer(1, harness.now + 60, &bob.address(), TON);
    let last = forged.len() - 20;
    forged[last] ^= 1;
    assert!(harness.chain.submit(&forged).is_err(), "one bit is wrong");
    assert_eq!(harness.balance(&bob.address()), TON);
}

#[test]
fn what_is_no_external_message_is_refused_with_a_reason() {
    let harness = Harness::new();
    let refused = |boc: &[u8]| harness.chain.submit(boc).unwrap_err().to_string();
    assert!(refused(b"").contains("bag of cells"));
    assert!(refused(&[0xff; 100]).contains("bag of cells"));
    assert!(refused(&vec![0; 70_000]).contains("70000 bytes"));
    let empty_cell = [0xb5, 0xee, 0x9c, 0x72, 1, 1, 1, 1, 0, 2, 0, 0, 0];
    assert!(refused(&empty_cell).contains("not an external inbound message"), "{}", refused(&empty_cell));
}

#[test]
fn the_faucet_gives_within_bounds() {
    let mut harness = Harness::new();
    let alice = TestWallet::new(1).address();
    assert!(harness.chain.faucet(&alice, NanoTon(0)).is_err());
    assert!(harness.chain.faucet(&alice, NanoTon(MAX_GRANT_NANOTON + 1)).is_err());
    let elsewhere = Address { workchain: 5, ..alice };
    assert!(harness.chain.faucet(&elsewhere, NanoTon(TON)).is_err(), "the coins would be lost");
    for _ in 0..150 {
        harness.chain.faucet(&alice, NanoTon(TON)).unwrap();
    }
    harness.block();
    assert_eq!(harness.balance(&alice), 100 * TON, "a hundred grants a block");
    harness.block();
    let missing = 150 * TON - harness.balance(&alice);
    assert!(missing < 10, "only storage was paid for: {missing} nanoTON");
}

#[test]
fn coins_are_neither_made_nor_lost() {
    let mut harness = Harness::new();
    let wallets: Vec<TestWallet> = (1..=8).map(TestWallet::new).collect();
    for wallet in &wallets {
        harness.chain.faucet(&wallet.address(), NanoTon(10 * TON)).unwrap();
    }
    harness.block();
    for round in 0..3 {
        for (index, wallet) in wallets.iter().enumerate() {
            let to = wallets[(index + 3) % wallets.len()].address();
            let boc = wallet.transfer(round, harness.now + 60, &to, TON / (1 + index as u64));
            harness.chain.submit(&boc).unwrap();
        }
        harness.block();
    }
    assert_eq!(harness.chain.undelivered().unwrap(), 0);
    let mut accounts: Vec<Address> = wallets.iter().map(TestWallet::address).collect();
    accounts.push(harness.chain.faucet_address());
    let held: u64 = accounts.iter().map(|account| harness.balance(account)).sum();
    let fees: u64 = accounts.iter().map(|account| transfers_total(&harness.chain, account)).sum();
    assert_eq!(held + fees, SUPPLY_NANOTON);
}

#[test]
fn blocks_form_a_chain_in_time_even_when_the_clock_goes_back() {
    let mut harness = Harness::new();
    let genesis = harness.chain.head();
    assert_eq!((genesis.seqno, genesis.root_hash), (0, harness.chain.zero_state()));
    let mut previous = genesis;
    for now in [harness.now + 1, harness.now - 500, harness.now + 1, harness.now + 2] {
        let block = harness.chain.produce_block(now).unwrap();
        assert_eq!((block.seqno, block.previous), (previous.seqno + 1, previous.root_hash));
        assert!(block.unixtime >= previous.unixtime && block.start_lt > previous.end_lt);
        assert_eq!(harness.chain.block(block.seqno).unwrap().as_ref(), Some(&block));
        previous = block;
    }
    harness.now += 10;
    let reopened = harness.reopen();
    assert_eq!(reopened.chain.head(), previous);
}

#[test]
fn a_message_that_is_overtaken_is_dropped() {
    let mut harness = Harness::new();
    let alice = TestWallet::new(1);
    harness.chain.faucet(&alice.address(), NanoTon(5 * TON)).unwrap();
    harness.block();
    // Both are acceptable now; the first to run uses up the sequence number.
    for amount in [1, 2] {
        let boc = alice.transfer(0, harness.now + 60, &alice.address(), amount);
        harness.chain.submit(&boc).unwrap();
    }
    let block = harness.block();
    assert_eq!((block.transactions, harness.chain.pending()), (2, 0));
    assert_eq!(harness.chain.stored_transactions(&alice.address(), None, None, 9).unwrap().len(), 3);
}
