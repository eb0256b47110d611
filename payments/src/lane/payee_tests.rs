use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    Voucher,
    channel::{
        RESERVE,
        tests_support::{key, params},
    },
};

const NOW: u64 = 1_790_001_000;
const GLOBAL_ID: i32 = -217;

fn policy() -> PayeePolicy {
    PayeePolicy::new(params().worker, params().worker_key, GLOBAL_ID)
}

fn open(balance: u64) -> OnChain {
    OnChain {
        stage: Stage::Open,
        balance: NanoTon(balance),
        settled: NanoTon::ZERO,
        expire_at: params().expire_at,
        read_at: NOW,
    }
}

/// A lane on an open channel of one TON.
fn payee() -> Payee {
    let mut payee = Payee::new(params(), policy()).unwrap();
    payee.observe(open(1_000_000_000), NOW);
    payee
}

fn voucher(cumulative: u64) -> Voucher {
    Voucher {
        global_id: GLOBAL_ID,
        channel: params().address().unwrap(),
        channel_id: params().channel_id,
        cumulative: NanoTon(cumulative),
    }
}

fn signed(cumulative: u64) -> SignedVoucher {
    voucher(cumulative).sign(&key(1))
}

#[test]
fn a_voucher_is_worth_what_it_adds() {
    let mut payee = payee();
    assert_eq!(payee.accept(&signed(100), NOW), Ok(NanoTon(100)));
    assert_eq!(payee.accept(&signed(250), NOW), Ok(NanoTon(150)));
    assert_eq!(payee.newest(), Some(&signed(250)));
    assert_eq!(payee.unsettled(), NanoTon(250));
}

#[test]
fn terms_that_do_not_pay_this_worker_are_refused() {
    let mut other = policy();
    other.worker_key = key(9).verifying_key().to_bytes();
    assert_eq!(Payee::new(params(), other).unwrap_err(), Refusal::NotOurs);
    let mut slow = policy();
    slow.min_close_delay_s = 7200;
    assert_eq!(Payee::new(params(), slow).unwrap_err().code(), "channel-close-delay");
}

#[test]
fn a_channel_is_served_only_while_it_is_safe() {
    let fresh = Payee::new(params(), policy()).unwrap();
    assert_eq!(fresh.ready(NOW), Err(Refusal::Unconfirmed));

    let with = |change: fn(&mut OnChain)| {
        let mut chain = open(1_000_000_000);
        change(&mut chain);
        let mut payee = Payee::new(params(), policy()).unwrap();
        payee.observe(chain, NOW);
        payee.check(&signed(1), NOW).map(|ok| ok.delta())
    };
    assert_eq!(with(|_| {}), Ok(NanoTon(1)));
    assert_eq!(with(|c| c.stage = Stage::Absent), Err(Refusal::NotOpen));
    assert_eq!(with(|c| c.stage = Stage::Unopened), Err(Refusal::NotOpen));
    assert_eq!(with(|c| c.stage = Stage::Closing { at: u32::MAX }), Err(Refusal::Closing));
    let soon = NOW as u32 + 600;
    assert!(matches!(
        {
            let mut chain = open(1_000_000_000);
            chain.expire_at = soon;
            let mut payee = Payee::new(params(), policy()).unwrap();
            payee.observe(chain, NOW);
            payee.ready(NOW)
        },
        Err(Refusal::NearExpiry { expire_at }) if expire_at == soon
    ));
}

#[test]
fn an_old_read_stops_service_at_half_the_close_delay() {
    let payee = payee();
    assert_eq!(payee.ready(NOW + 1800), Ok(()));
    assert_eq!(payee.ready(NOW + 1801), Err(Refusal::StaleRead { age: 1801, max: 1800 }));
}

#[test]
fn an_endpoint_cannot_keep_itself_fresh_with_a_fast_clock() {
    let mut payee = payee();
    let mut future = open(1_000_000_000);
    future.read_at = NOW + 1_000_000;
    payee.observe(future, NOW);
    assert!(payee.ready(NOW + 1801).is_err());
    // And an older read does not replace a newer one.
    let mut old = open(5);
    old.read_at = NOW - 1;
    payee.observe(old, NOW);
    assert!(payee.check(&signed(1000), NOW).is_ok());
}

#[test]
fn each_fault_of_a_voucher_has_its_name() {
    let mut payee = payee();
    assert_eq!(payee.accept(&signed(100), NOW), Ok(NanoTon(100)));
    let code = |signed: &SignedVoucher| payee.check(signed, NOW).unwrap_err().code();
    assert_eq!(code(&signed(100)), "voucher-not-newer");
    assert_eq!(code(&signed(99)), "voucher-not-newer");
    let covered = 1_000_000_000 - RESERVE.0 - HEADROOM.0;
    assert!(payee.check(&signed(covered), NOW).is_ok());
    assert_eq!(code(&signed(covered + 1)), "voucher-beyond-deposit");
    assert_eq!(
        code(&voucher(101).sign(&key(2))),
        "voucher-signature",
        "the worker's own key signs no vouchers"
    );
    let mut elsewhere = voucher(101);
    elsewhere.channel.hash[0] ^= 1;
    assert_eq!(code(&elsewhere.sign(&key(1))), "voucher-channel");
    let mut mainnet = voucher(101);
    mainnet.global_id = -239;
    assert_eq!(code(&mainnet.sign(&key(1))), "voucher-network");
    assert_eq!(payee.cumulative(), NanoTon(100));
}

#[test]
fn unsettled_value_is_capped_until_the_chain_has_paid() {
    let mut policy = policy();
    policy.max_unsettled = NanoTon(1000);
    let mut payee = Payee::new(params(), policy).unwrap();
    payee.observe(open(1_000_000_000), NOW);
    assert_eq!(payee.accept(&signed(1000), NOW), Ok(NanoTon(1000)));
    assert_eq!(payee.accept(&signed(1001), NOW).unwrap_err().code(), "voucher-unsettled-cap");
    let mut settled = open(1_000_000_000 - 1000);
    settled.settled = NanoTon(1000);
    payee.observe(settled, NOW);
    assert_eq!(payee.accept(&signed(1001), NOW), Ok(NanoTon(1)));
}

#[test]
fn what_the_chain_has_paid_is_never_credited_again() {
    // The vouchers up to 700 were credited and settled, and then the disk was lost.
    let mut settled = open(1_000_000_000);
    settled.settled = NanoTon(700);
    let mut payee = Payee::new(params(), policy()).unwrap();
    payee.observe(settled, NOW);
    let refused = Refusal::NotNewer { got: NanoTon(700), newest: NanoTon(700) };
    assert_eq!(payee.accept(&signed(700), NOW), Err(refused));
    assert_eq!(payee.accept(&signed(750), NOW), Ok(NanoTon(50)), "only what is new");
    // The same between a check and its commit.
    let accepted = payee.check(&signed(800), NOW).unwrap();
    settled.settled = NanoTon(790);
    settled.read_at = NOW + 1;
    payee.observe(settled, NOW + 1);
    assert_eq!(payee.commit(accepted), NanoTon(10));
    assert_eq!(payee.newest(), Some(&signed(800)));
}

#[test]
fn the_nearest_end_counts() {
    let mut payee = payee();
    assert_eq!(payee.ends_soon(NOW), None);
    let expiry = u64::from(params().expire_at);
    assert_eq!(payee.ends_soon(expiry - 100), Some(expiry));
    let mut closing = open(1_000_000_000);
    closing.stage = Stage::Closing { at: NOW as u32 + 50 };
    payee.observe(closing, NOW);
    assert_eq!(payee.ends_soon(NOW), Some(NOW + 50));
    payee.begin_closing(u32::MAX);
    assert_eq!(payee.ends_soon(NOW), Some(NOW), "an agreement can be carried out at once");
}

#[test]
fn settling_pays_when_it_is_worth_it_or_the_end_is_near() {
    let cost = NanoTon(1_000_000);
    let mut payee = payee();
    assert!(!payee.should_settle(NOW, cost), "nothing to collect");
    payee.accept(&signed(cost.0 * 100), NOW).unwrap();
    assert!(!payee.should_settle(NOW, cost), "not yet worth it");
    payee.accept(&signed(cost.0 * 100 + 1), NOW).unwrap();
    assert!(payee.should_settle(NOW, cost));

    let mut ending = self::payee();
    ending.accept(&signed(cost.0 + 1), NOW).unwrap();
    assert!(!ending.should_settle(NOW, cost));
    let mut closing = open(1_000_000_000);
    closing.stage = Stage::Closing { at: u32::MAX };
    let mut closed = ending.clone();
    closed.observe(closing, NOW);
    assert!(closed.should_settle(NOW, cost));
    assert!(ending.should_settle(u64::from(params().expire_at) - 1200, cost));
    ending.begin_closing(u32::MAX);
    assert!(ending.should_settle(NOW, cost));
}

#[test]
fn a_channel_that_agreed_to_close_resumes_only_after_the_agreement_lapsed() {
    let mut payee = payee();
    payee.begin_closing(NOW as u32 + 60);
    assert_eq!(payee.accept(&signed(1), NOW), Err(Refusal::Closing));
    assert_eq!(payee.ready(NOW + 660), Err(Refusal::Closing));
    assert_eq!(payee.ready(NOW + 661), Ok(()));
}

proptest! {
    /// Whatever vouchers arrive, in whatever order: the total only rises, the credits add up to it,
    /// and it never exceeds what the deposit covers.
    #[test]
    fn a_stale_voucher_never_lowers(
        cumulative in vec(0u64..1_100_000_000, 1..24),
        commit_late in vec(any::<bool>(), 24),
    ) {
        let mut payee = payee();
        let mut credited = 0;
        let mut waiting = Vec::new();
        for (cumulative, late) in cumulative.into_iter().zip(commit_late) {
            let before = payee.cumulative();
            match payee.check(&signed(cumulative), NOW) {
                Ok(accepted) if late => waiting.push(accepted),
                Ok(accepted) => credited += payee.commit(accepted).0,
                Err(_) => {}
            }
            prop_assert!(payee.cumulative() >= before);
            prop_assert!(payee.cumulative().0 <= 1_000_000_000 - RESERVE.0 - HEADROOM.0);
        }
        for accepted in waiting {
            credited += payee.commit(accepted).0;
        }
        prop_assert_eq!(payee.cumulative().0, credited);
    }
}
