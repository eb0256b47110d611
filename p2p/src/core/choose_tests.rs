use std::sync::LazyLock;

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::core::{
    DirectoryLimits, Outcome,
    testkit::{NET, NOW, ad, model, offer, sign},
};

fn directory(ads: impl IntoIterator<Item = Ad>) -> Directory {
    let mut dir = Directory::new(NET, DirectoryLimits::default());
    for (n, ad) in (1..).zip(ads) {
        dir.insert(sign(n, &ad), NOW).unwrap();
    }
    dir
}

fn first(dir: &Directory, ask: &Ask<'_>, seed: u64) -> PeerKey {
    choose(dir, ask, NOW, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()[0].peer.clone()
}

/// How often each peer is drawn first in `rounds` rounds.
fn shares(dir: &Directory, ask: &Ask<'_>, rounds: u64) -> BTreeMap<PeerKey, u64> {
    let mut shares = BTreeMap::new();
    for seed in 0..rounds {
        *shares.entry(first(dir, ask, seed)).or_default() += 1;
    }
    shares
}

#[test]
fn the_reason_for_an_empty_result_is_the_one_the_asker_can_act_on() {
    let none = BTreeSet::new();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut dir = directory([ad(1), ad(2)]);
    let mut pick = |dir: &Directory, ask: &Ask<'_>, now| choose(dir, ask, now, &mut rng).unwrap_err();

    let stranger = Ask::new(model(9), &none);
    assert!(matches!(pick(&dir, &stranger, NOW), NoCandidate::UnknownModel { .. }));

    let mut poor = Ask::new(model(1), &none);
    poor.max_price_output = 299;
    let error = pick(&dir, &poor, NOW);
    assert_eq!(error, NoCandidate::Policy(Rejections { price: 2, ..Rejections::default() }));
    assert!(error.to_string().contains("2 above the price ceiling"), "{error}");

    let mut strict = Ask::new(model(1), &none);
    strict.min_assurance_claim = 2;
    assert!(matches!(pick(&dir, &strict, NOW), NoCandidate::Policy(Rejections { assurance: 2, .. })));

    let both = BTreeSet::from([ad(1).peer, ad(2).peer]);
    let tried = Ask::new(model(1), &both);
    assert!(matches!(pick(&dir, &tried, NOW), NoCandidate::Exhausted(Rejections { excluded: 2, .. })));

    let asleep = Ask::new(model(1), &none);
    assert!(matches!(pick(&dir, &asleep, NOW + 90), NoCandidate::NoWorkerOnline { .. }));
    dir.expire(NOW + 90);
    assert!(matches!(pick(&dir, &asleep, NOW + 90), NoCandidate::NoWorkerOnline { .. }));
}

#[test]
fn boasting_buys_nothing_until_it_is_measured() {
    let mut boaster = ad(1);
    boaster.tokens_per_second = 1_000_000;
    let dir = directory([boaster, ad(2)]);
    let none = BTreeSet::new();
    let shares = shares(&dir, &Ask::new(model(1), &none), 400);
    assert!(shares.values().all(|share| (150..250).contains(share)), "{shares:?}");
}

#[test]
fn a_slow_claim_is_believed() {
    let mut slow = ad(1);
    slow.tokens_per_second = 2;
    let dir = directory([slow, ad(2)]);
    let none = BTreeSet::new();
    let shares = shares(&dir, &Ask::new(model(1), &none), 400);
    assert!(shares[&ad(2).peer] > 320, "{shares:?}");
}

#[test]
fn a_failing_worker_is_rarely_drawn_and_a_measured_fast_one_often() {
    let mut dir = directory([ad(1), ad(2), ad(3)]);
    for _ in 0..4 {
        dir.record_outcome(&ad(1).peer, Outcome { success: false, ttft_ms: 0, tokens_per_second: 0 }, NOW);
        dir.record_outcome(&ad(2).peer, Outcome { success: true, ttft_ms: 20, tokens_per_second: 50 }, NOW);
    }
    let none = BTreeSet::new();
    let shares = shares(&dir, &Ask::new(model(1), &none), 400);
    assert!(shares.get(&ad(1).peer).copied().unwrap_or(0) < 30, "{shares:?}");
    assert!(shares[&ad(2).peer] > shares[&ad(3).peer], "{shares:?}");
}

#[test]
fn a_dear_worker_is_drawn_less_than_a_cheap_one() {
    let mut dear = ad(1);
    dear.models[0].price_output *= 10;
    let dir = directory([dear, ad(2), ad(3)]);
    let none = BTreeSet::new();
    let shares = shares(&dir, &Ask::new(model(1), &none), 400);
    assert!(shares[&ad(1).peer] < shares[&ad(2).peer], "{shares:?}");
}

#[test]
fn one_operator_has_one_place_in_the_shortlist() {
    let none = BTreeSet::new();
    let ask = Ask::new(model(1), &none);
    let same = |change: fn(&mut Ad)| {
        directory((1..=12).map(|n| {
            let mut one = ad(n);
            change(&mut one);
            one
        }))
    };
    let length = |dir: &Directory| choose(dir, &ask, NOW, &mut ChaCha8Rng::seed_from_u64(3)).unwrap().len();
    assert_eq!(length(&same(|_| ())), SHORTLIST);
    assert_eq!(length(&same(|ad| ad.payout = [0; 33])), 1);
    assert_eq!(length(&same(|ad| ad.platform = Some([1; 16]))), 1);
    assert_eq!(length(&same(|ad| ad.addresses = vec!["/ip4/9.9.9.9/tcp/1".into()])), 1);
    // On one machine or one LAN the prefix says nothing.
    assert_eq!(length(&same(|ad| ad.addresses = vec!["/ip4/10.0.0.1/tcp/1".into()])), SHORTLIST);
}

/// Checking signatures is slow in debug builds, so that all cases start from one full directory.
static FULL: LazyLock<(Vec<Ad>, Directory)> = LazyLock::new(|| {
    let ads: Vec<Ad> = varied();
    let dir = directory(ads.iter().cloned());
    (ads, dir)
});

fn varied() -> Vec<Ad> {
    (1..=24u16)
        .map(|n| {
            let mut one = ad(n);
            let b = n as u8;
            one.models = vec![offer(1), offer(2 + b % 3)];
            one.models[0].price_output = u64::from(n % 7) * 100;
            one.models[0].context = 1024 * u32::from(1 + n % 4);
            one.assurance = b % 3;
            one.free_slots = n % 2;
            one.queue_delay_ms = u32::from(n % 5) * 400;
            one.tokens_per_second = u32::from(n) * 3;
            one.platform = (n % 4 == 0).then_some([b / 8; 16]);
            one.payout[1] = b / 2;
            one.payout[2] = 0;
            if n % 3 == 0 {
                one.addresses = vec![format!("/ip4/9.9.{}.7/tcp/1", b / 6)];
            }
            one
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn candidates_obey_the_policy_share_nothing_and_come_back_the_same_for_a_seed(
        present in prop::collection::vec(any::<bool>(), 24),
        outcomes in prop::collection::vec((0usize..24, any::<bool>(), 1u32..2000, 1u32..200), 0..40),
        excluded in prop::collection::btree_set(0usize..24, 0..8),
        max_price in prop_oneof![Just(u64::MAX), 0u64..700],
        floor in 0u8..3, context in 0u32..4096, weight in 0u16..2000, seed in any::<u64>(),
    ) {
        let (ads, mut dir) = (&FULL.0, FULL.1.clone());
        for (ad, present) in ads.iter().zip(&present) {
            if !present { dir.remove(&ad.peer); }
        }
        for (n, success, ttft_ms, tokens_per_second) in outcomes {
            dir.record_outcome(&ads[n].peer, Outcome { success, ttft_ms, tokens_per_second }, NOW);
        }
        let exclude: BTreeSet<PeerKey> = excluded.iter().map(|n| ads[*n].peer.clone()).collect();
        let mut ask = Ask::new(model(1), &exclude);
        ask.max_price_output = max_price;
        ask.min_assurance_claim = floor;
        ask.min_context = context;
        ask.price_weight = weight;

        let once = choose(&dir, &ask, NOW, &mut ChaCha8Rng::seed_from_u64(seed));
        let twice = choose(&dir, &ask, NOW, &mut ChaCha8Rng::seed_from_u64(seed));
        let fits = |ad: &Ad| ad.models[0].price_output <= max_price && ad.assurance >= floor
            && ad.models[0].context >= context && !exclude.contains(&ad.peer);
        let eligible = ads.iter().zip(&present).filter(|(ad, present)| **present && fits(ad)).count();
        match (once, twice) {
            (Ok(once), Ok(twice)) => {
                let peers = |c: &[Candidate]| c.iter().map(|c| c.peer.clone()).collect::<Vec<_>>();
                prop_assert_eq!(peers(&once), peers(&twice));
                prop_assert!(!once.is_empty() && once.len() <= SHORTLIST.min(eligible));
                let (mut platforms, mut payouts, mut seen) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
                for candidate in &once {
                    prop_assert!(fits(&candidate.ad));
                    prop_assert!(candidate.score > 0);
                    prop_assert!(seen.insert(candidate.peer.clone()));
                    prop_assert!(payouts.insert(candidate.ad.payout));
                    if let Some(platform) = candidate.ad.platform { prop_assert!(platforms.insert(platform)); }
                }
            }
            (Err(a), Err(b)) => { prop_assert_eq!(a, b); prop_assert_eq!(eligible, 0); }
            _ => prop_assert!(false, "the same seed gave two answers"),
        }
    }
}
