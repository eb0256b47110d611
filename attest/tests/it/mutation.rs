//! One changed byte anywhere in evidence is refused, with a name.

use cocoon_attest::{Evidence, Policy, verify, verify_quote};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::testkit::{IMAGE, NOW, Tally, claims, evidence, expect, platform, policy};

fn soft_policy() -> Policy {
    policy(platform().trust_root())
}

/// Another value for each byte in turn.
fn altered(bytes: &[u8], seed: u64) -> impl Iterator<Item = (usize, Vec<u8>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..bytes.len()).map(move |at| {
        let mut altered = bytes.to_vec();
        altered[at] ^= rng.random_range(1..=u8::MAX);
        (at, altered)
    })
}

#[test]
fn no_byte_of_the_quote_can_change() {
    let Evidence { quote, collateral, .. } = evidence(platform(), IMAGE, &claims());
    let policy = soft_policy();
    verify_quote(&quote, &collateral, &policy, NOW).unwrap();

    let mut by_region: [Tally; 4] = Default::default();
    for (at, altered) in altered(&quote, 1) {
        let error = verify_quote(&altered, &collateral, &policy, NOW)
            .expect_err(&format!("byte {at} of the quote changed unnoticed"));
        let region = match at {
            0..632 => 0,    // header and TD report
            632..764 => 1,  // length, signature, attestation key
            764..1258 => 2, // QE report, its signature, auth data, and the lengths around them
            _ => 3,         // PCK chain, whose issuer and root the collateral must share
        };
        by_region[region].add(error.check());
    }
    let names = by_region.map(|tally| tally.0.into_keys().collect::<Vec<_>>());
    let allowed: [&[&str]; 4] = [
        &["quote-format", "quote-signature"],
        &["quote-format", "quote-signature"],
        &["quote-format", "quote-signature"],
        &["certificates", "collateral", "trust-root"],
    ];
    for (found, allowed) in names.iter().zip(allowed) {
        assert!(found.iter().all(|name| allowed.contains(name)), "{names:?}");
    }
}

#[test]
fn no_byte_of_the_collateral_can_change() {
    let Evidence { quote, collateral, .. } = evidence(platform(), IMAGE, &claims());
    let policy = soft_policy();
    let mut tally = Tally::default();
    for (at, altered) in altered(&collateral, 2) {
        let error = verify_quote(&quote, &altered, &policy, NOW)
            .expect_err(&format!("byte {at} of the collateral changed unnoticed"));
        tally.add(error.check());
    }
    let allowed = ["certificates", "collateral"];
    assert!(tally.0.keys().all(|name| allowed.contains(name)), "{tally:?}");
}

#[test]
fn no_byte_of_the_claims_can_change() {
    let sound = evidence(platform(), IMAGE, &claims());
    let mut tally = Tally::default();
    for (at, claims) in altered(&sound.claims, 3) {
        let evidence = Evidence { claims, ..sound.clone() };
        let error = verify(&evidence.encode(), &expect(), &soft_policy(), NOW)
            .expect_err(&format!("byte {at} of the claims changed unnoticed"));
        tally.add(error.check());
    }
    let allowed = ["claims", "validity", "report-data"];
    assert!(tally.0.keys().all(|name| allowed.contains(name)), "{tally:?}");
    assert!(tally.0["report-data"] > 200, "{tally:?}");
}

#[test]
fn evidence_cannot_be_cut_or_extended() {
    let bytes = evidence(platform(), IMAGE, &claims()).encode();
    for len in (0..bytes.len()).step_by(97) {
        let error = verify(&bytes[..len], &expect(), &soft_policy(), NOW).unwrap_err();
        assert_eq!(error.check(), "evidence");
    }
    let longer = [&bytes, [0].as_slice()].concat();
    assert_eq!(verify(&longer, &expect(), &soft_policy(), NOW).unwrap_err().check(), "evidence");
    // A quote may be padded with zeros, as configfs-tsm does, but with nothing else.
    let Evidence { mut quote, collateral, .. } = evidence(platform(), IMAGE, &claims());
    quote.resize(8000, 0);
    verify_quote(&quote, &collateral, &soft_policy(), NOW).unwrap();
    quote[7000] = 1;
    let error = verify_quote(&quote, &collateral, &soft_policy(), NOW).unwrap_err();
    assert_eq!(error.check(), "quote-format");
}
