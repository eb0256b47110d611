//! Vouchers in, credit out, with a real store on disk and lanes that have read the chain.

use cocoon_payments::Voucher as Terms;
use cocoon_payments::chain::Toncenter;
use cocoon_payments::channel::Stage;
use ed25519_dalek::SigningKey;

use super::*;

const GLOBAL_ID: i32 = -4242;
const SESSION: u64 = 7;

struct World {
    dir: tempfile::TempDir,
    money: Money,
    params: ChannelParams,
    channel: Address,
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn policy() -> PayeePolicy {
    PayeePolicy::new(Address::base([2; 32]), key(2).verifying_key().to_bytes(), GLOBAL_ID)
}

fn params() -> ChannelParams {
    let now = u32::try_from(unix_ms() / 1000).unwrap();
    ChannelParams {
        client: Address::base([1; 32]),
        worker: policy().worker,
        client_key: key(1).verifying_key().to_bytes(),
        worker_key: policy().worker_key,
        channel_id: 9,
        close_delay_s: 3600,
        open_by: now - 10,
        expire_at: now + 86_400,
    }
}

/// A chain endpoint that nobody answers: what is known of the chain is what the test says.
fn money(dir: &std::path::Path) -> Money {
    let chain = Toncenter::new("http://127.0.0.1:9", None).unwrap();
    let view = Arc::new(ChainView::unchecked(Arc::new(chain)));
    let store = PayeeStore::open(dir).unwrap();
    Money::open(store, policy(), NanoTon(10_000_000), view, Arc::new(Counters::default()))
}

fn observe(money: &Money, channel: &Address) {
    let now = unix_ms() / 1000;
    let state = OnChain {
        stage: Stage::Open,
        balance: NanoTon(1_000_000_000),
        settled: NanoTon::ZERO,
        expire_at: params().expire_at,
        read_at: now,
    };
    money.lanes().get_mut(channel).unwrap().observe(state, now);
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let money = money(dir.path());
        let params = params();
        let payee = Payee::new(params, policy()).unwrap();
        let channel = payee.address();
        money.store.add(&params).unwrap();
        let owner = Some((SESSION, CancellationToken::new()));
        money.lanes().insert(channel, Lane { payee, read: None, owner });
        observe(&money, &channel);
        Self { dir, money, params, channel }
    }

    fn voucher(&self, cumulative: u64, allocations: &[(u32, u64)]) -> Voucher {
        let terms = Terms {
            global_id: GLOBAL_ID,
            channel: self.channel,
            channel_id: self.params.channel_id,
            cumulative: NanoTon(cumulative),
        };
        Voucher { signed: terms.sign(&key(1)), allocations: allocations.to_vec() }
    }

    fn pay(&self, vouchers: &[Voucher]) -> Paid {
        self.money.pay(&self.channel, SESSION, vouchers)
    }
}

fn credits(paid: &Paid) -> Vec<(u32, u64)> {
    paid.credits.iter().map(|(stream, amount)| (*stream, amount.0)).collect()
}

#[test]
fn vouchers_that_came_together_are_credited_together() {
    let world = World::new();
    let paid = world.pay(&[
        world.voucher(100, &[(1, 100)]),
        world.voucher(250, &[(1, 50), (2, 100)]),
        world.voucher(300, &[(2, 40)]),
    ]);
    assert!(paid.refused.is_none());
    assert_eq!(credits(&paid), [(1, 100), (1, 50), (2, 100), (2, 40), (0, 10)], "what is over is the pool's");
    assert_eq!(world.money.totals(), (NanoTon(300), NanoTon(300)));
}

#[test]
fn a_bad_voucher_at_the_end_costs_the_good_ones_nothing() {
    let world = World::new();
    let mut bad = world.voucher(300, &[(1, 50)]);
    bad.signed.signature[5] ^= 1;
    let paid = world.pay(&[world.voucher(100, &[(1, 100)]), world.voucher(250, &[(1, 150)]), bad]);
    assert_eq!(credits(&paid), [(1, 100), (1, 150)]);
    assert_eq!(paid.refused.unwrap().code, RefusalCode::VoucherInvalid);
}

#[test]
fn a_voucher_with_any_changed_byte_is_refused_by_the_name_of_the_check() {
    let world = World::new();
    let honest = world.voucher(100, &[(1, 100)]);
    let bytes = honest.signed.encode();
    let mut seen = std::collections::BTreeSet::new();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let Ok(signed) = SignedVoucher::decode(&changed) else {
            seen.insert("unreadable");
            continue;
        };
        let refused = world.pay(&[Voucher { signed, allocations: honest.allocations.clone() }]).refused;
        let refused = refused.unwrap_or_else(|| panic!("byte {at} may be changed"));
        assert_eq!(refused.code, RefusalCode::VoucherInvalid, "byte {at}: {}", refused.message);
        let named =
            ["signature", "global_id", "channel_id"].into_iter().find(|n| refused.message.contains(n));
        seen.insert(named.unwrap_or_else(|| panic!("byte {at}: {}", refused.message)));
    }
    assert!(["signature", "global_id", "channel_id"].iter().all(|check| seen.contains(check)), "{seen:?}");
    assert!(world.pay(&[honest]).refused.is_none(), "the refusals changed the lane");
}

#[test]
fn allocations_never_exceed_what_the_voucher_adds() {
    let world = World::new();
    let paid = world.pay(&[world.voucher(100, &[(1, 60), (2, 41)])]);
    assert!(paid.credits.is_empty());
    assert_eq!(paid.refused.unwrap().code, RefusalCode::VoucherAllocation);
    assert_eq!(world.money.totals().0, NanoTon::ZERO, "nothing was stored");
    let huge = world.pay(&[world.voucher(100, &[(1, u64::MAX), (2, u64::MAX)])]);
    assert_eq!(huge.refused.unwrap().code, RefusalCode::VoucherAllocation);
}

#[test]
fn repeated_overdrawn_and_foreign_vouchers_each_have_their_code() {
    let world = World::new();
    let first = world.voucher(100, &[(1, 100)]);
    assert!(world.pay(std::slice::from_ref(&first)).refused.is_none());
    assert_eq!(world.pay(&[first]).refused.unwrap().code, RefusalCode::VoucherStale);
    let beyond = world.voucher(1_000_000_000, &[]);
    assert_eq!(world.pay(&[beyond]).refused.unwrap().code, RefusalCode::VoucherOverdraft);
    let mut foreign = world.voucher(200, &[]);
    foreign.signed.voucher.channel_id += 1;
    assert_eq!(world.pay(&[foreign]).refused.unwrap().code, RefusalCode::VoucherInvalid);
    let other_session = world.money.pay(&world.channel, SESSION + 1, &[world.voucher(300, &[])]);
    assert_eq!(other_session.refused.unwrap().code, RefusalCode::Busy);
}

#[test]
fn what_was_credited_is_there_after_a_crash() {
    let world = World::new();
    assert!(world.pay(&[world.voucher(123, &[(1, 123)])]).refused.is_none());
    let World { dir, money: old, channel, .. } = world;
    // No sync, no orderly end: only what `append` wrote.
    drop(old);
    let money = money(dir.path());
    assert_eq!(money.totals(), (NanoTon(123), NanoTon(123)));
    observe(&money, &channel);
    let due = money.to_settle(true);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].1.voucher.cumulative, NanoTon(123));
    assert!(money.to_settle(false).is_empty(), "123 nanoTON are not worth a transaction");
}

#[tokio::test]
async fn a_channel_that_the_chain_does_not_show_is_not_served() {
    let world = World::new();
    let mut unknown = world.params;
    unknown.channel_id += 1;
    let stop = world.money.attach(&unknown.encode(), 8).await.unwrap_err();
    assert_eq!(stop.code, RefusalCode::ChannelUnknown, "{}", stop.message);
    let mut short = world.params;
    short.close_delay_s = 60;
    let stop = world.money.attach(&short.encode(), 8).await.unwrap_err();
    assert_eq!(stop.code, RefusalCode::ChannelTerms);
    assert!(stop.message.contains("close_delay_s"), "{}", stop.message);
    assert_eq!(world.money.attach(b"junk", 8).await.unwrap_err().code, RefusalCode::ChannelTerms);
}

#[tokio::test]
async fn a_new_session_takes_the_channel_over() {
    let world = World::new();
    assert!(world.pay(&[world.voucher(50, &[(1, 50)])]).refused.is_none());
    let first = world.money.attach(&world.params.encode(), 8).await.unwrap();
    assert_eq!(first.newest.unwrap().voucher.cumulative, NanoTon(50), "the asker goes on from here");
    let second = world.money.attach(&world.params.encode(), 9).await.unwrap();
    assert!(first.superseded.is_cancelled());
    assert!(!second.superseded.is_cancelled());
    // The late end of the old session does not take the channel from the new one.
    world.money.detach(8);
    assert!(world.money.pay(&world.channel, 9, &[world.voucher(60, &[(1, 10)])]).refused.is_none());
}
