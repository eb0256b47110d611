use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::core::testkit::{NET, NOW, ad, model, offer, sign};

fn directory() -> Directory {
    Directory::new(NET, DirectoryLimits::default())
}

#[test]
fn a_newer_ad_replaces_an_older_one_and_never_the_other_way_round() {
    let mut dir = directory();
    let (first, mut newer) = (ad(1), ad(1));
    newer.sequence = 2;
    newer.models = vec![offer(2)];
    assert!(matches!(dir.insert(sign(1, &first), NOW), Ok(Inserted::New(_))));
    assert_eq!(dir.insert(sign(1, &first), NOW), Ok(Inserted::Known));
    assert!(matches!(dir.insert(sign(1, &newer), NOW), Ok(Inserted::Updated(_))));
    assert_eq!(dir.insert(sign(1, &first), NOW), Err(AdError::Stale { found: 1, newest: 2 }));
    assert_eq!(dir.for_model(&model(1)).count(), 0);
    assert_eq!(dir.for_model(&model(2)).count(), 1);
    // Two different ads with one sequence number: the first stays.
    newer.free_slots = 9;
    assert_eq!(dir.insert(sign(1, &newer), NOW), Err(AdError::Stale { found: 2, newest: 2 }));
}

#[test]
fn a_forged_ad_changes_nothing_and_does_not_use_up_the_victims_allowance() {
    let mut dir = directory();
    dir.insert(sign(1, &ad(1)), NOW).unwrap();
    for sequence in 2..100 {
        let mut forged = ad(1);
        forged.sequence = sequence;
        let mut bytes = sign(1, &forged).encode().unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        assert!(dir.insert(SignedAd::decode(&bytes).unwrap(), NOW).unwrap_err().is_fault());
    }
    let mut genuine = ad(1);
    genuine.sequence = 2;
    assert!(matches!(dir.insert(sign(1, &genuine), NOW), Ok(Inserted::Updated(_))));
}

#[test]
fn chatter_is_refused_but_not_held_against_the_forwarder() {
    let mut dir = directory();
    let announce = |dir: &mut Directory, sequence, now| {
        let mut next = ad(1);
        next.sequence = sequence;
        dir.insert(sign(1, &next), now)
    };
    for sequence in 1..=u64::from(ANNOUNCE_RATE.burst) {
        announce(&mut dir, sequence, NOW).unwrap();
    }
    let error = announce(&mut dir, 50, NOW).unwrap_err();
    assert!(matches!(error, AdError::TooFrequent { .. }) && !error.is_fault());
    announce(&mut dir, 51, NOW + ANNOUNCE_RATE.every).unwrap();
}

#[test]
fn ads_leave_when_they_expire_and_the_model_stays_known() {
    let mut dir = directory();
    dir.insert(sign(1, &ad(1)), NOW).unwrap();
    assert_eq!(dir.next_expiry(), Some(NOW + 90));
    assert!(dir.expire(NOW + 89).is_empty());
    assert_eq!(dir.expire(NOW + 90), vec![ad(1).peer]);
    assert!(dir.is_empty() && dir.models().is_empty() && dir.has_known(&model(1)));
}

#[test]
fn a_full_directory_refuses_newcomers_and_keeps_serving_incumbents() {
    let limits = DirectoryLimits { peers: 3, known_models: 2, ..DirectoryLimits::default() };
    let mut dir = Directory::new(NET, limits);
    for n in 1..=3 {
        dir.insert(sign(n, &ad(n)), NOW).unwrap();
    }
    assert_eq!(dir.insert(sign(4, &ad(4)), NOW), Err(AdError::Full { limit: 3 }));
    let mut renewed = ad(1);
    renewed.sequence = 2;
    assert!(matches!(dir.insert(sign(1, &renewed), NOW), Ok(Inserted::Updated(_))));
    // Expired entries make room by themselves.
    let mut late = ad(4);
    (late.issued_at, late.expires_at) = (NOW + 100, NOW + 190);
    assert!(matches!(dir.insert(sign(4, &late), NOW + 100), Ok(Inserted::New(_))));
}

#[test]
fn one_public_prefix_holds_only_its_share() {
    let limits = DirectoryLimits { peers_per_prefix: 2, ..DirectoryLimits::default() };
    let mut dir = Directory::new(NET, limits);
    let at = |n: u16, ip: &str| {
        let mut placed = ad(n);
        placed.addresses = vec![format!("/ip4/{ip}/tcp/1")];
        sign(n, &placed)
    };
    dir.insert(at(1, "9.9.9.1"), NOW).unwrap();
    dir.insert(at(2, "9.9.9.2"), NOW).unwrap();
    assert_eq!(dir.insert(at(3, "9.9.9.3"), NOW), Err(AdError::Full { limit: 2 }));
    dir.insert(at(3, "9.9.8.3"), NOW).unwrap();
    dir.remove(&ad(1).peer);
    dir.insert(at(4, "9.9.9.4"), NOW).unwrap();
}

#[test]
fn an_ad_of_two_models_is_new_once_on_each_topic() {
    let mut dir = directory();
    dir.insert(sign(1, &ad(1)), NOW).unwrap();
    let peer = ad(1).peer;
    assert!(dir.first_on(&peer, 3) && dir.first_on(&peer, 4));
    assert!(!dir.first_on(&peer, 3) && !dir.first_on(&peer, 40));
    let mut next = ad(1);
    next.sequence = 2;
    dir.insert(sign(1, &next), NOW).unwrap();
    assert!(dir.first_on(&peer, 3));
}

#[test]
fn the_view_of_a_model_shows_the_common_name_and_the_best_prices() {
    let mut dir = directory();
    for (n, name, price) in [(1, "liar", 5), (2, "tiny", 7), (3, "tiny", 9)] {
        let mut named = ad(n);
        named.models[0].name = name.into();
        named.models[0].price_output = price;
        dir.insert(sign(n, &named), NOW).unwrap();
    }
    let view = dir.model(&model(1)).unwrap();
    assert_eq!((view.name.as_str(), view.workers, view.price_output), ("tiny", 3, 5));
}

/// Signing is slow in debug builds: all ads that the property test draws from are made once.
static POOL: LazyLock<Vec<SignedAd>> = LazyLock::new(|| {
    let mut pool = Vec::new();
    for n in 1..6u16 {
        for sequence in 1..5u64 {
            let mut one = ad(n);
            one.sequence = sequence;
            one.issued_at = NOW + 20 * sequence;
            one.expires_at = one.issued_at + 30 + u64::from(n) * 10;
            one.models = (0..=(n as u8 + sequence as u8) % 3).map(offer).collect();
            if n % 2 == 0 {
                one.addresses = vec![format!("/ip4/9.9.{}.1/tcp/1", sequence)];
            }
            pool.push(sign(n, &one));
        }
    }
    pool
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_comes_in_the_invariants_hold(
        steps in prop::collection::vec((0usize..20, 0u64..25, 0u8..8), 1..60)
    ) {
        let limits = DirectoryLimits { peers: 4, peers_per_prefix: 1, histories: 3, known_models: 2 };
        let mut dir = Directory::new(NET, limits);
        let mut now = NOW;
        let mut sequences: BTreeMap<PeerKey, u64> = BTreeMap::new();
        for (pick, wait, action) in steps {
            now += wait;
            let signed = POOL[pick].clone();
            let claims = signed.claims().unwrap();
            match action {
                0 => { for gone in dir.expire(now) { sequences.remove(&gone); } }
                1 => { dir.remove(&claims.peer); sequences.remove(&claims.peer); }
                2 => dir.record_outcome(&claims.peer, Outcome { success: true, ttft_ms: 1, tokens_per_second: 1 }, now),
                _ => {
                    let before = sequences.get(&claims.peer).copied();
                    match dir.insert(signed, now) {
                        Ok(Inserted::New(ad) | Inserted::Updated(ad)) => {
                            prop_assert!(ad.expires_at > now);
                            prop_assert!(before.is_none_or(|before| ad.sequence > before) || dir.len() <= 4);
                            sequences.insert(ad.peer.clone(), ad.sequence);
                        }
                        Ok(Inserted::Known) => prop_assert_eq!(dir.get(&claims.peer).map(|a| a.sequence), Some(claims.sequence)),
                        Err(_) => {}
                    }
                }
            }
            // Bounds.
            prop_assert!(dir.len() <= limits.peers);
            prop_assert!(dir.histories.len() <= limits.histories);
            prop_assert!(dir.known_models.len() <= limits.known_models);
            prop_assert!(dir.by_prefix.values().all(|count| *count >= 1 && *count <= limits.peers));
            // The indices say what the table says.
            prop_assert_eq!(dir.by_expiry.len(), dir.entries.len());
            for (digest, peers) in &dir.by_model {
                prop_assert!(!peers.is_empty());
                for peer in peers { prop_assert!(dir.entries[peer].ad.offer(digest).is_some()); }
            }
            for (peer, entry) in &dir.entries {
                for offered in &entry.ad.models { prop_assert!(dir.by_model[&offered.digest].contains(peer)); }
            }
            let placed: usize = dir.by_prefix.values().sum();
            prop_assert_eq!(placed, dir.entries.values().filter(|e| !e.prefixes.is_empty()).count());
        }
        dir.expire(u64::MAX);
        prop_assert!(dir.is_empty() && dir.by_model.is_empty() && dir.by_prefix.is_empty());
    }
}
