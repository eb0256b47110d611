//! Vouchers in, credit out, with a real store on disk and lanes that have read the chain.

use cocoon_client::session::outer::Open;
use cocoon_payments::Voucher as Terms;
use cocoon_payments::chain::Toncenter;
use cocoon_payments::lane::Payer;
use ed25519_dalek::SigningKey;

use super::*;

const GLOBAL_ID: i32 = -4242;
const SESSION: u64 = 7;
/// This host.
const PEER: [u8; 38] = [9; 38];

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

fn open_at(now: u64) -> OnChain {
    OnChain {
        stage: Stage::Open,
        balance: NanoTon(1_000_000_000),
        settled: NanoTon::ZERO,
        expire_at: params().expire_at,
        read_at: now,
    }
}

fn observe(money: &Money, channel: &Address) {
    let now = unix_ms() / 1000;
    money.lanes().get_mut(channel).unwrap().observe(open_at(now), now);
}

/// The chain shows no account at these moments.
fn observe_absent(money: &Money, channel: &Address, moments: &[u64]) {
    for &now in moments {
        let state = OnChain { stage: Stage::Absent, ..open_at(now) };
        money.lanes().get_mut(channel).unwrap().observe(state, now);
    }
}

/// An asker's `open`, signed with `key`, whose handshake message is `noise`.
fn open_with(params: &ChannelParams, key: SigningKey, noise: u8) -> Open {
    let mut open = Open {
        wire_version: 1,
        network_id: [1; 32],
        evidence_digest: [2; 32],
        policy: 1,
        noise: vec![noise; 48],
        channel: params.encode(),
        proof: [0; 64],
    };
    let named = ChannelParams { client_key: key.verifying_key().to_bytes(), ..*params };
    let payer = Payer::new(named, GLOBAL_ID, key, NanoTon::ZERO).unwrap();
    open.proof = payer.sign_session(&open.statement(&PEER, &params.address().unwrap()));
    open
}

fn claim(params: &ChannelParams, noise: u8) -> Claim {
    Claim::verify(&open_with(params, key(1), noise), &PEER).unwrap()
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let money = money(dir.path());
        let params = params();
        let payee = Payee::new(params, policy()).unwrap();
        let channel = payee.address();
        money.store.add(&params).unwrap();
        let mut lane = Lane::new(payee);
        lane.owner = Some((SESSION, CancellationToken::new()));
        money.lanes().insert(channel, lane);
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
    let stop = world.money.admit(&claim(&unknown, 1)).await.unwrap_err();
    assert_eq!(stop.code, RefusalCode::ChannelUnknown, "{}", stop.message);
    assert_eq!(world.money.lanes().len(), 1, "terms that anybody can make up take no place");
    let mut short = world.params;
    short.close_delay_s = 60;
    let stop = world.money.admit(&claim(&short, 1)).await.unwrap_err();
    assert_eq!(stop.code, RefusalCode::ChannelTerms);
    assert!(stop.message.contains("close_delay_s"), "{}", stop.message);
    let mut junk = open_with(&world.params, key(1), 1);
    junk.channel = b"junk".to_vec();
    assert_eq!(Claim::verify(&junk, &PEER).unwrap_err().code, RefusalCode::ChannelTerms);
}

#[tokio::test]
async fn a_new_session_takes_the_channel_over() {
    let world = World::new();
    assert!(world.pay(&[world.voucher(50, &[(1, 50)])]).refused.is_none());
    let (one, two) = (claim(&world.params, 1), claim(&world.params, 2));
    world.money.admit(&one).await.unwrap();
    let first = world.money.take_over(&one, 8).unwrap();
    assert_eq!(first.newest.unwrap().voucher.cumulative, NanoTon(50), "the asker goes on from here");
    world.money.admit(&two).await.unwrap();
    assert!(!first.superseded.is_cancelled(), "the enclave may still refuse the new one");
    let second = world.money.take_over(&two, 9).unwrap();
    assert!(first.superseded.is_cancelled());
    assert!(!second.superseded.is_cancelled());
    // The late end of the old session does not take the channel from the new one.
    world.money.detach(8);
    assert!(world.money.pay(&world.channel, 9, &[world.voucher(60, &[(1, 10)])]).refused.is_none());
}

#[test]
fn only_the_channels_key_can_claim_it() {
    let params = params();
    assert!(Claim::verify(&open_with(&params, key(1), 1), &PEER).is_ok());
    let code = |open: &Open, peer: &[u8]| Claim::verify(open, peer).unwrap_err().code;
    // The terms are public; the key is not.
    assert_eq!(code(&open_with(&params, key(3), 1), &PEER), RefusalCode::ChannelProof);
    let good = open_with(&params, key(1), 1);
    assert_eq!(code(&good, &[8; 38]), RefusalCode::ChannelProof, "captured by another worker");
    let mut other = good.clone();
    other.noise[0] ^= 1;
    assert_eq!(code(&other, &PEER), RefusalCode::ChannelProof, "with a handshake of its own");
    let mut elsewhere = good;
    elsewhere.channel = ChannelParams { channel_id: 10, ..params }.encode();
    assert_eq!(code(&elsewhere, &PEER), RefusalCode::ChannelProof, "on another channel");
}

#[tokio::test]
async fn an_open_that_is_sent_again_takes_nothing_from_a_live_session() {
    let world = World::new();
    let (one, two) = (claim(&world.params, 1), claim(&world.params, 2));
    // Both copies are admitted before either is through; the second comes too late.
    world.money.admit(&one).await.unwrap();
    world.money.admit(&claim(&world.params, 1)).await.unwrap();
    let live = world.money.take_over(&one, 8).unwrap();
    assert_eq!(world.money.take_over(&one, 9).unwrap_err().code, RefusalCode::ChannelProof);
    assert_eq!(world.money.admit(&one).await.unwrap_err().code, RefusalCode::ChannelProof);
    assert!(!live.superseded.is_cancelled());
    // Nor when it was superseded since.
    world.money.admit(&two).await.unwrap();
    let newer = world.money.take_over(&two, 10).unwrap();
    assert_eq!(world.money.admit(&one).await.unwrap_err().code, RefusalCode::ChannelProof);
    assert!(!newer.superseded.is_cancelled());
}

#[test]
fn a_channel_that_is_over_is_forgotten_here_and_on_disk() {
    let world = World::new();
    assert!(world.pay(&[world.voucher(123, &[(1, 123)])]).refused.is_none());
    let now = unix_ms() / 1000;
    let here = || (world.money.lanes().len(), world.money.store.channels().len());
    let closes = now + 100;
    let closing = Stage::Closing { at: u32::try_from(closes).unwrap() };
    let observe =
        |state: OnChain, at| world.money.lanes().get_mut(&world.channel).unwrap().observe(state, at);
    observe(OnChain { stage: closing, ..open_at(now + 1) }, now + 1);
    world.money.detach(SESSION);
    observe_absent(&world.money, &world.channel, &[now + 2, now + 3, closes - 1]);
    world.money.sweep();
    assert_eq!(here(), (1, 1), "the contract cannot end before its close delay");

    observe_absent(&world.money, &world.channel, &[closes, closes]);
    world.money.sweep();
    assert_eq!(here(), (1, 1), "one moment is not enough");

    observe_absent(&world.money, &world.channel, &[closes + 1]);
    world.money.sweep();
    assert_eq!(here(), (0, 0));
    assert_eq!(world.money.totals(), (NanoTon(123), NanoTon::ZERO), "it was earned all the same");
}

#[test]
fn an_open_channel_keeps_its_vouchers_however_often_the_chain_shows_nothing() {
    let world = World::new();
    assert!(world.pay(&[world.voucher(123, &[(1, 123)])]).refused.is_none());
    world.money.detach(SESSION);
    let now = unix_ms() / 1000;
    observe_absent(&world.money, &world.channel, &[now + 1, now + 2, now + 3]);
    world.money.sweep();
    let due = world.money.to_settle(true);
    assert_eq!(due.len(), 1, "it is still worth redeeming");
    assert_eq!(due[0].1.voucher.cumulative, NanoTon(123));
    // Not even when this process has never seen it open.
    world.money.lanes().get_mut(&world.channel).unwrap().opened = None;
    observe_absent(&world.money, &world.channel, &[now + 4, now + 5]);
    world.money.sweep();
    assert_eq!(world.money.store.channels().len(), 1);
}

#[test]
fn a_channel_that_may_still_be_opened_is_kept() {
    let world = World::new();
    let now = unix_ms() / 1000;
    let params = ChannelParams { channel_id: 10, open_by: u32::try_from(now + 100).unwrap(), ..world.params };
    let payee = Payee::new(params, policy()).unwrap();
    let address = payee.address();
    world.money.lanes().insert(address, Lane::new(payee));
    observe_absent(&world.money, &address, &[now + 1, now + 2, now + 3]);
    world.money.sweep();
    assert_eq!(world.money.lanes().len(), 2);
    observe_absent(&world.money, &address, &[now + 101, now + 102]);
    world.money.sweep();
    assert_eq!(world.money.lanes().len(), 1);
}

#[test]
fn dust_does_not_fill_the_memory_but_what_is_worth_redeeming_stays() {
    let world = World::new();
    let now = unix_ms() / 1000;
    let cost = NanoTon(1_000);
    let lane = |cumulative: u64| {
        let mut lane = Lane::new(Payee::new(world.params, policy()).unwrap());
        lane.payee.restore(Some(world.voucher(cumulative, &[]).signed), None);
        lane.observe(open_at(now), now);
        lane
    };
    let mut lanes: BTreeMap<Address, Lane> = BTreeMap::new();
    for n in 0..MAX_CHANNELS {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_be_bytes());
        lanes.insert(Address::base(hash), lane(1_001));
    }
    assert_eq!(make_room(&mut lanes, cost).unwrap_err().code, RefusalCode::Busy);
    // Of two with dust, one is in use, the other is not.
    let (used, unused) = (Address::base([0; 32]), *lanes.keys().nth(1).unwrap());
    lanes.insert(used, Lane { owner: Some((1, CancellationToken::new())), ..lane(10) });
    assert!(make_room(&mut lanes, cost).is_err());
    lanes.insert(unused, lane(1_000));
    make_room(&mut lanes, cost).unwrap();
    assert!(lanes.contains_key(&used) && !lanes.contains_key(&unused));
    // What was promised and never compared with the chain may be worth anything.
    let mut unread = Lane::new(Payee::new(world.params, policy()).unwrap());
    assert!(unread.is_idle(cost));
    unread.payee.restore(Some(world.voucher(10, &[]).signed), None);
    assert!(!unread.is_idle(cost));
}

/// Lanes named by their channel id, each in one of the states that a refresh tells apart.
fn with_lane(world: &World, channel_id: u128, change: impl FnOnce(&mut Lane, u64)) {
    let now = unix_ms() / 1000;
    let params = ChannelParams { channel_id, ..world.params };
    let mut lane = Lane::new(Payee::new(params, policy()).unwrap());
    lane.observe(open_at(now), now);
    change(&mut lane, now);
    world.money.lanes().insert(lane.payee.address(), lane);
}

#[test]
fn what_is_urgent_is_read_first_and_what_is_dormant_now_and_then() {
    let world = World::new();
    let voucher = |id: u128, cumulative| {
        let params = ChannelParams { channel_id: id, ..world.params };
        let channel = params.address().unwrap();
        Terms { global_id: GLOBAL_ID, channel, channel_id: id, cumulative: NanoTon(cumulative) }.sign(&key(1))
    };
    with_lane(&world, 20, |lane, _| lane.payee.restore(Some(voucher(20, 100)), None));
    with_lane(&world, 21, |lane, _| lane.payee.restore(Some(voucher(21, 20_000_000)), None));
    with_lane(&world, 22, |lane, now| {
        let closing = Stage::Closing { at: u32::MAX };
        lane.observe(OnChain { stage: closing, ..open_at(now) }, now);
    });
    with_lane(&world, 23, |lane, _| {
        let end = u64::from(params().expire_at);
        lane.observe(OnChain { stage: Stage::Absent, ..open_at(end) }, end);
    });
    let ids = |now| world.money.to_read(now).iter().map(|params| params.channel_id).collect::<Vec<_>>();
    assert_eq!(ids(Instant::now()), [9, 22, 21, 23], "in use, closing, owing, and one that may be over");
    assert_eq!(ids(Instant::now() + DORMANT), [9, 22, 21, 20, 23], "and in the end all");
}

#[test]
fn what_ends_soonest_is_redeemed_first_and_then_what_is_worth_most() {
    let world = World::new();
    let voucher = |id: u128, cumulative| {
        let params = ChannelParams { channel_id: id, ..world.params };
        let channel = params.address().unwrap();
        Terms { global_id: GLOBAL_ID, channel, channel_id: id, cumulative: NanoTon(cumulative) }.sign(&key(1))
    };
    for (id, cumulative, closes_in) in
        [(20, 500, None), (21, 900, None), (22, 100, Some(500)), (23, 50, Some(100))]
    {
        with_lane(&world, id, |lane, now| {
            lane.payee.restore(Some(voucher(id, cumulative)), None);
            if let Some(seconds) = closes_in {
                let at = u32::try_from(now).unwrap() + seconds;
                lane.observe(OnChain { stage: Stage::Closing { at }, ..open_at(now) }, now);
            }
        });
    }
    let due: Vec<u128> = world.money.to_settle(true).iter().map(|(params, _)| params.channel_id).collect();
    assert_eq!(due, [23, 22, 21, 20]);
}

#[test]
fn a_channel_of_another_key_of_ours_is_redeemed_but_not_served() {
    let world = World::new();
    assert!(world.pay(&[world.voucher(123, &[(1, 123)])]).refused.is_none());
    let World { dir, money: old, params, channel } = world;
    drop(old);
    let chain = Toncenter::new("http://127.0.0.1:9", None).unwrap();
    let view = Arc::new(ChainView::unchecked(Arc::new(chain)));
    let store = PayeeStore::open(dir.path()).unwrap();
    let renewed = PayeePolicy { worker_key: key(5).verifying_key().to_bytes(), ..policy() };
    let money = Money::open(store, renewed, NanoTon(10), view, Arc::new(Counters::default()));
    observe(&money, &channel);
    assert_eq!(money.to_settle(true).len(), 1);
    assert!(matches!(Payee::new(params, renewed), Err(Refusal::NotOurs)), "what `admit` asks first");
}
