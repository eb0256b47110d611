//! Every operation of the channel contract in the real TVM.

use std::fmt::Write as _;

use cocoon_payments::{
    Address, NanoTon, Voucher,
    cell::{CellBuilder, to_boc},
    chain::{AccountStatus, Chain as _},
    channel::{self, ChannelParams, RESERVE, SETTLE_VALUE, Stage, code_hash},
    wallet::Outgoing,
};

use crate::{
    network::{Network, TON, Who, wait},
    testkit::key,
};

/// Exit codes of `channel.tolk`.
mod exit {
    pub const SENDER: Option<i32> = Some(100);
    pub const NOT_OPEN: Option<i32> = Some(101);
    pub const ALREADY_OPEN: Option<i32> = Some(102);
    pub const OPEN_WINDOW: Option<i32> = Some(103);
    pub const TERMS: Option<i32> = Some(104);
    pub const CLOSING: Option<i32> = Some(105);
    pub const EXPIRED: Option<i32> = Some(106);
    pub const EXPIRY_LOWERED: Option<i32> = Some(107);
    pub const NETWORK: Option<i32> = Some(108);
    pub const CHANNEL: Option<i32> = Some(109);
    pub const NOT_NEWER: Option<i32> = Some(110);
    pub const CLIENT_SIGNATURE: Option<i32> = Some(111);
    pub const WORKER_SIGNATURE: Option<i32> = Some(112);
    pub const DEADLINE: Option<i32> = Some(113);
    pub const TOO_EARLY: Option<i32> = Some(114);
    pub const UNKNOWN: Option<i32> = Some(0xffff);
    pub const OK: Option<i32> = Some(0);
}

/// Equal but for what storage costs in a few seconds.
#[track_caller]
fn assert_near(found: u64, expected: u64) {
    assert!(found.abs_diff(expected) < 1000, "found {found}, expected about {expected}");
}

fn open_network(deposit: u64) -> Network {
    let mut network = Network::new();
    assert_eq!(network.open(deposit), exit::OK);
    network
}

#[test]
fn a_channel_opens_at_the_address_that_both_sides_compute() {
    let network = open_network(10 * TON);
    let state = network.on_chain();
    assert_eq!(state.stage, Stage::Open);
    assert_eq!(state.settled, NanoTon::ZERO);
    assert!(state.balance.0 > 10 * TON - TON / 100, "only gas was taken: {}", state.balance);
    assert_eq!(state.capacity(), state.balance.checked_sub(RESERVE).unwrap());
    let getter = wait(network.api.run_get_method(&network.address(), "channel_state", &[])).unwrap();
    assert_eq!((getter.exit_code, getter.stack[0].as_bool()), (0, Some(true)));
    assert_eq!(getter.stack[4].as_u64(), Some(state.capacity().0));
    network.assert_conserved();
}

#[test]
fn only_the_client_opens_and_only_once_and_in_time() {
    let mut network = Network::new();
    let open = channel::open().unwrap();
    assert_eq!(network.call_with_init(Who::Stranger, TON, open.clone()), exit::SENDER);
    // The attempt deployed the code all the same, as TON does; its coins bounced.
    assert_eq!(network.account(&network.address()).status, AccountStatus::Active);
    assert_eq!((network.on_chain().stage, network.channel_balance()), (Stage::Unopened, 0));
    assert_eq!(network.open(TON), exit::OK);
    assert_eq!(network.call(Who::Client, TON, open), exit::ALREADY_OPEN);

    let mut late = Network::new();
    late.now = late.params.open_by;
    assert_eq!(late.open(TON), exit::OPEN_WINDOW);
    assert_eq!(late.channel_balance(), 0, "the deposit bounced");
    late.assert_conserved();
}

#[test]
fn terms_that_would_lock_coins_or_break_signatures_do_not_open() {
    type Change = fn(&mut ChannelParams);
    let cases: [(Change, Option<i32>); 7] = [
        (|p| p.client_key = [0; 32], exit::TERMS),
        (|p| p.worker_key = [0; 32], exit::TERMS),
        (|p| p.close_delay_s = 0, exit::TERMS),
        (|p| p.close_delay_s = 31 * 86_400, exit::TERMS),
        (|p| p.expire_at = p.open_by, exit::TERMS),
        (|p| p.worker.workchain = -1, exit::TERMS),
        (|p| p.open_by += 8 * 86_400, exit::OPEN_WINDOW),
    ];
    for (change, expected) in cases {
        let mut network = Network::new();
        change(&mut network.params);
        // `address` refuses such terms, so the test computes it from the state init.
        let init = network.params.state_init().unwrap();
        let address = Address::base(cocoon_payments::cell::hash(&init));
        let call = Outgoing::call(address, NanoTon(TON), channel::open().unwrap()).with_state_init(init);
        network.send(Who::Client, &[call]);
        let last = wait(network.api.transactions(&address, 1)).unwrap().pop().unwrap();
        assert_eq!(last.exit_code, expected, "{:?}", network.params);
        assert_eq!(network.balance(&address), 0, "the deposit bounced");
    }
}

#[test]
fn anybody_settles_and_only_the_worker_is_paid() {
    let mut network = open_network(10 * TON);
    let before = network.channel_balance();
    let stranger = network.balance(&network.wallet(Who::Stranger).address());
    assert_eq!(network.settle(&network.voucher(3 * TON)), exit::OK);
    // Exactly the voucher left the deposit.
    assert_near(network.channel_balance(), before - 3 * TON);
    assert_eq!(network.on_chain().settled, NanoTon(3 * TON));
    // What arrives is what was promised: the fee of bringing it was the caller's.
    let arrived = network.paid();
    assert!(arrived <= 3 * TON && arrived > 3 * TON - TON / 1000, "{arrived}");
    let cost = stranger - network.balance(&network.wallet(Who::Stranger).address());
    assert!(cost < SETTLE_VALUE.0 / 5, "the caller got the rest back: it paid {cost}");
    network.assert_conserved();
}

#[test]
fn a_replayed_or_stale_voucher_pays_nothing() {
    let mut network = open_network(10 * TON);
    assert_eq!(network.settle(&network.voucher(3 * TON)), exit::OK);
    let (paid, held) = (network.paid(), network.channel_balance());
    for cumulative in [3 * TON, 2 * TON, 0] {
        assert_eq!(network.settle(&network.voucher(cumulative)), exit::NOT_NEWER);
    }
    assert_eq!(network.paid(), paid);
    assert_near(network.channel_balance(), held);
    assert_eq!(network.settle(&network.voucher(4 * TON)), exit::OK);
    assert_near(network.channel_balance(), held - TON);
}

#[test]
fn an_overdraft_pays_what_there_is_and_the_rest_after_a_top_up() {
    let mut network = open_network(2 * TON);
    let capacity = network.on_chain().capacity().0;
    let big = network.voucher(5 * TON);
    assert_eq!(network.settle(&big), exit::OK);
    assert_near(network.on_chain().settled.0, capacity);
    assert_eq!(network.channel_balance(), RESERVE.0, "the reserve for storage stays");
    assert_eq!(network.settle(&big), exit::OK, "lack of deposit is no error");
    assert_near(network.on_chain().settled.0, capacity);
    // A plain transfer raises the deposit; the same voucher then draws the rest.
    network.send(Who::Stranger, &[Outgoing::payment(network.address(), NanoTon(4 * TON))]);
    assert_eq!(network.settle(&big), exit::OK);
    assert_eq!(network.on_chain().settled, NanoTon(5 * TON));
    network.assert_conserved();
}

#[test]
fn vouchers_for_another_network_channel_or_key_are_worthless() {
    let mut network = open_network(10 * TON);
    let good = network.voucher(TON).voucher;
    let sign = |voucher: Voucher| voucher.sign(&key(1));
    let cases = [
        (sign(Voucher { global_id: good.global_id + 1, ..good }), exit::NETWORK),
        (sign(Voucher { channel: Address::base([9; 32]), ..good }), exit::CHANNEL),
        (sign(Voucher { channel_id: 8, ..good }), exit::CHANNEL),
        (good.sign(&key(2)), exit::CLIENT_SIGNATURE),
    ];
    for (signed, expected) in cases {
        assert_eq!(network.settle(&signed), expected);
    }
    let mut changed = network.voucher(TON);
    changed.voucher.cumulative = NanoTon(2 * TON);
    assert_eq!(network.settle(&changed), exit::CLIENT_SIGNATURE);
    assert_eq!(network.paid(), 0);
}

#[test]
fn a_caller_that_attaches_too_little_changes_nothing() {
    let mut network = open_network(10 * TON);
    let body = || channel::settle(&network.voucher(TON)).unwrap();
    let (held, body) = (network.channel_balance(), body());
    for value in [20_000, 200_000, 400_000, 500_000, 600_000] {
        network.call(Who::Stranger, value, body.clone());
        let settled = network.on_chain().settled.0;
        assert_near(network.channel_balance().min(held - settled), held - settled);
        assert!(settled == 0 || settled == TON);
        if settled > 0 {
            break;
        }
    }
    network.assert_conserved();
}

#[test]
fn a_top_up_raises_deposit_and_expiry_and_never_lowers_it() {
    let mut network = open_network(TON);
    let expire_at = network.params.expire_at;
    let top_up = |expire_at| channel::top_up(expire_at).unwrap();
    assert_eq!(network.call(Who::Client, 2 * TON, top_up(expire_at + 10)), exit::OK);
    assert_eq!(network.on_chain().expire_at, expire_at + 10);
    assert!(network.channel_balance() > 3 * TON - TON / 100);
    assert_eq!(network.call(Who::Client, TON, top_up(expire_at + 9)), exit::EXPIRY_LOWERED);
    assert_eq!(network.call(Who::Stranger, TON, top_up(expire_at + 99)), exit::SENDER);
    network.now = expire_at + 10;
    assert_eq!(network.call(Who::Client, TON, top_up(u32::MAX)), exit::EXPIRED);
    network.assert_conserved();
}

#[test]
fn a_cooperative_close_pays_both_sides_at_once() {
    let mut network = open_network(10 * TON);
    assert_eq!(network.settle(&network.voucher(TON)), exit::OK);
    let client = network.wallet(Who::Client).address();
    let deadline = network.params.open_by + 1000;
    let agreement = network.agreement(4 * TON, deadline);
    assert_eq!(network.coop_close(&agreement), exit::TOO_EARLY, "not before openBy");
    network.now = network.params.open_by;
    let lower = network.agreement(TON - 1, deadline);
    assert_eq!(network.coop_close(&lower), exit::NOT_NEWER);
    let lapsed = network.agreement(4 * TON, network.now);
    assert_eq!(network.coop_close(&lapsed), exit::DEADLINE);
    let (before, held) = (network.balance(&client), network.channel_balance());
    assert_eq!(network.coop_close(&agreement), exit::OK);
    assert!(network.paid() > 4 * TON - TON / 1000);
    let refund = network.balance(&client) - before;
    assert!(refund > held - 3 * TON - TON / 1000, "the client got {refund}");
    assert_eq!(network.on_chain().stage, Stage::Absent);
    network.assert_conserved();
}

#[test]
fn a_cooperative_close_needs_both_signatures_of_a_close() {
    let mut network = open_network(10 * TON);
    network.now = network.params.open_by;
    let agreement = network.agreement(TON, network.now + 1000);
    let [client, worker] = [key(1), key(2)].map(|key| agreement.sign(&key).unwrap());
    let close =
        |client: &[u8; 64], worker: &[u8; 64]| channel::coop_close(&agreement, client, worker).unwrap();
    let send = |network: &mut Network, body| network.call(Who::Client, SETTLE_VALUE.0, body);
    assert_eq!(send(&mut network, close(&worker, &worker)), exit::CLIENT_SIGNATURE);
    assert_eq!(send(&mut network, close(&client, &client)), exit::WORKER_SIGNATURE);
    // A voucher in the place of the agreement, with both signatures, closes nothing.
    let voucher = network.voucher(TON);
    let by_worker = voucher.voucher.sign(&key(2)).signature;
    let mut body = CellBuilder::new();
    let second = CellBuilder::new().store_slice(&by_worker).unwrap().build().unwrap().to_arc();
    body.store_u32(32, 0x434f_4f50).unwrap().store_slice(&voucher.signature).unwrap();
    body.store_reference(&second).unwrap().store_reference(&voucher.voucher.cell().unwrap()).unwrap();
    let tag_mismatch = Some(63);
    assert_eq!(send(&mut network, body.build().unwrap().to_arc()), tag_mismatch);
    assert_eq!(network.on_chain().stage, Stage::Open);
}

#[test]
fn an_asker_alone_gets_its_rest_after_the_delay_and_the_worker_is_paid_until_then() {
    let mut network = open_network(10 * TON);
    network.now = network.params.open_by;
    let request = || channel::request_close().unwrap();
    assert_eq!(network.call(Who::Stranger, SETTLE_VALUE.0, request()), exit::SENDER);
    assert_eq!(network.finalize(), exit::TOO_EARLY);
    assert_eq!(network.call(Who::Client, SETTLE_VALUE.0, request()), exit::OK);
    let at = network.on_chain().close_at().unwrap();
    assert_eq!(at, network.now + network.params.close_delay_s);
    assert_eq!(network.call(Who::Client, SETTLE_VALUE.0, request()), exit::CLOSING);
    let top_up = channel::top_up(u32::MAX).unwrap();
    assert_eq!(network.call(Who::Client, TON, top_up), exit::CLOSING);
    network.now = at - 2;
    assert_eq!(network.finalize(), exit::TOO_EARLY);
    // Past the delay and not finalized: a voucher still pays.
    network.now = at + 5;
    assert_eq!(network.settle(&network.voucher(6 * TON)), exit::OK);
    let client = network.wallet(Who::Client).address();
    let (before, held) = (network.balance(&client), network.channel_balance());
    assert_eq!(network.finalize(), exit::OK);
    assert!(network.balance(&client) - before > held - TON / 1000);
    assert_eq!(network.on_chain().stage, Stage::Absent);
    network.assert_conserved();
}

#[test]
fn an_expired_channel_can_be_finalized_by_anybody() {
    let mut network = open_network(10 * TON);
    network.now = network.params.expire_at - 2;
    assert_eq!(network.finalize(), exit::TOO_EARLY);
    network.now = network.params.expire_at;
    assert_eq!(network.finalize(), exit::OK);
    assert_eq!(network.channel_balance(), 0);
    network.assert_conserved();
}

#[test]
fn a_destroyed_channel_cannot_be_revived_and_its_address_keeps_no_coins() {
    let mut network = open_network(10 * TON);
    let voucher = network.voucher(6 * TON);
    assert_eq!(network.settle(&voucher), exit::OK);
    network.now = network.params.open_by;
    let agreement = network.agreement(6 * TON, network.now + 1000);
    assert_eq!(network.coop_close(&agreement), exit::OK);
    let paid = network.paid();
    // The client deploys the same address again and funds it; the old voucher stays worthless.
    assert_eq!(network.open(10 * TON), exit::OPEN_WINDOW);
    let init = network.params.state_init().unwrap();
    let plain = Outgoing::payment(network.address(), NanoTon(5 * TON)).with_state_init(init);
    assert_eq!(network.deliver(Who::Stranger, plain), exit::OK);
    assert_eq!(network.on_chain().stage, Stage::Unopened);
    assert_eq!(network.settle(&voucher), exit::NOT_OPEN);
    assert_eq!(network.coop_close(&network.agreement(6 * TON, network.now + 1000)), exit::NOT_OPEN);
    assert_eq!(network.paid(), paid);
    // What was sent there goes to the client.
    let client = network.wallet(Who::Client).address();
    let before = network.balance(&client);
    assert_eq!(network.finalize(), exit::OK);
    assert!(network.balance(&client) - before > 5 * TON - TON / 1000);
    assert_eq!(network.channel_balance(), 0);
    network.assert_conserved();
}

#[test]
fn coins_sent_before_open_join_the_deposit_or_go_back_to_the_client() {
    let mut network = Network::new();
    network.send(Who::Stranger, &[Outgoing::payment(network.address(), NanoTon(2 * TON))]);
    assert_eq!(network.on_chain().stage, Stage::Absent);
    assert_eq!(network.on_chain().capacity(), NanoTon::ZERO, "not open, so nothing is covered");
    assert_eq!(network.open(TON), exit::OK);
    assert!(network.on_chain().capacity().0 > 3 * TON - TON / 50);

    let mut never = Network::new();
    never.send(Who::Stranger, &[Outgoing::payment(never.address(), NanoTon(2 * TON))]);
    let finalize = || channel::finalize().unwrap();
    assert_eq!(never.call_with_init(Who::Stranger, SETTLE_VALUE.0, finalize()), exit::TOO_EARLY);
    never.now = never.params.open_by;
    let client = never.wallet(Who::Client).address();
    let before = never.balance(&client);
    assert_eq!(never.call_with_init(Who::Stranger, SETTLE_VALUE.0, finalize()), exit::OK);
    assert!(never.balance(&client) - before > 2 * TON - TON / 1000);
    assert_eq!(never.channel_balance(), 0);
    never.assert_conserved();
}

#[test]
fn nothing_but_open_works_before_open() {
    let mut network = Network::new();
    let voucher = network.voucher(TON);
    let bodies = [
        channel::settle(&voucher).unwrap(),
        channel::top_up(u32::MAX).unwrap(),
        channel::request_close().unwrap(),
    ];
    for body in bodies {
        assert_eq!(network.call_with_init(Who::Client, TON, body), exit::NOT_OPEN);
        assert_eq!(network.channel_balance(), 0);
    }
}

#[test]
fn an_unknown_message_bounces_with_its_coins() {
    let mut network = open_network(TON);
    let held = network.channel_balance();
    let comment = CellBuilder::new().store_u32(32, 0).unwrap().build().unwrap().to_arc();
    assert_eq!(network.call(Who::Stranger, TON, comment), exit::UNKNOWN);
    assert_near(network.channel_balance(), held);
}

#[test]
fn an_account_read_from_the_chain_is_checked_against_the_terms() {
    let network = open_network(TON);
    let account = network.account(&network.address());
    assert_eq!(account.unixtime, u64::from(network.now));
    let code = cocoon_payments::cell::parse(account.code.as_deref().unwrap()).unwrap();
    assert_eq!(cocoon_payments::cell::hash(&code), code_hash());
    assert_eq!(to_boc(&code).unwrap().len(), account.code.as_ref().unwrap().len() + 4, "checksum");
    let mut other = network.params;
    other.channel_id += 1;
    assert!(channel::read_account(&other, &account).is_err());
}

/// Gas of each operation. The file holds budgets: a change that needs more fails here, and one that
/// needs much less should lower the budget.
#[test]
fn gas_stays_within_its_budget() {
    let mut network = Network::new();
    let mut gas = Vec::new();
    let mut note = |network: &Network, name: &str| {
        let last = network.last().unwrap();
        assert!(last.succeeded(), "{name}: {last:?}");
        gas.push((name.to_owned(), last.gas_used.unwrap(), last.fees.0));
    };
    network.open(10 * TON);
    note(&network, "open");
    let top_up = channel::top_up(network.params.expire_at).unwrap();
    network.call(Who::Client, TON, top_up);
    note(&network, "top_up");
    network.settle(&network.voucher(TON));
    note(&network, "settle");
    network.now = network.params.open_by;
    network.call(Who::Client, SETTLE_VALUE.0, channel::request_close().unwrap());
    note(&network, "request_close");
    network.now += network.params.close_delay_s;
    network.finalize();
    note(&network, "finalize");
    let mut coop = open_network(10 * TON);
    coop.now = coop.params.open_by;
    let agreement = coop.agreement(TON, coop.now + 1000);
    coop.coop_close(&agreement);
    note(&coop, "coop_close");

    let mut report = String::new();
    let budgets = include_str!("../golden/gas.txt");
    for (name, used, fees) in &gas {
        writeln!(report, "{name}: {used} gas, {fees} nanoTON in fees").unwrap();
        let budget =
            budgets.lines().find_map(|line| line.strip_prefix(name.as_str())?.trim().parse::<u64>().ok());
        let budget = budget.unwrap_or_else(|| panic!("tests/golden/gas.txt has no budget for {name}"));
        assert!(*used <= budget, "{name} takes {used} gas, its budget is {budget}");
        assert!(*used * 5 >= budget * 4, "{name} takes only {used} gas; lower its budget of {budget}");
    }
    println!("{report}");
}
