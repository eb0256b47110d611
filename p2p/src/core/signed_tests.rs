use proptest::prelude::*;

use super::*;
use crate::core::{
    AdError, MAX_AD_BYTES, MAX_ADDRESSES, MAX_CLOCK_SKEW_S, MAX_MODELS, MAX_PRICE,
    testkit::{NET, NOW, ad, keypair, offer, sign},
};

fn field_of(error: AdError) -> String {
    match error {
        AdError::Field { field, .. } => field,
        other => panic!("not a field error: {other}"),
    }
}

#[test]
fn a_signed_ad_verifies_and_survives_the_wire() {
    let signed = sign(1, &ad(1));
    let bytes = signed.encode().unwrap();
    assert!(bytes.len() < 512, "an ordinary ad is small: {}", bytes.len());
    assert_eq!(SignedAd::decode(&bytes).unwrap().verify(&NET, NOW).unwrap(), ad(1));
}

#[test]
fn an_ad_is_only_signed_by_the_peer_it_names() {
    assert!(matches!(SignedAd::sign(&ad(1), &keypair(2)), Err(AdError::PeerMismatch { .. })));
    // A thief replaces key and signature of somebody else's ad with its own.
    let mut stolen = sign(1, &ad(1));
    let thief = keypair(2);
    stolen.public_key = thief.public().encode_protobuf();
    stolen.signature = thief.sign(&message(&stolen.ad)).unwrap();
    assert!(matches!(stolen.verify(&NET, NOW), Err(AdError::PeerMismatch { .. })));
}

#[test]
fn the_signature_is_bound_to_its_purpose() {
    let mut signed = sign(1, &ad(1));
    signed.signature = keypair(1).sign(&signed.ad).unwrap();
    assert!(matches!(signed.verify(&NET, NOW), Err(AdError::Signature(_))));
}

#[test]
fn time_and_network_are_checked_in_both_directions() {
    let signed = sign(1, &ad(1));
    assert!(signed.verify(&NET, NOW + 89).is_ok());
    assert!(matches!(signed.verify(&NET, NOW + 90), Err(AdError::Expired { ago_s: 0 })));
    assert!(signed.verify(&NET, NOW - MAX_CLOCK_SKEW_S).is_ok());
    assert!(matches!(signed.verify(&NET, NOW - MAX_CLOCK_SKEW_S - 1), Err(AdError::FromTheFuture { .. })));
    assert!(matches!(signed.verify(&[1; 32], NOW), Err(AdError::WrongNetwork { .. })));
}

#[test]
fn every_bound_names_its_field() {
    type Break = fn(&mut Ad);
    let cases: Vec<(&str, Break)> = vec![
        ("peer", |ad| ad.peer.0 = vec![1, 2, 3]),
        ("expires_at", |ad| ad.expires_at = ad.issued_at),
        ("expires_at", |ad| ad.expires_at = ad.issued_at + 121),
        ("expires_at", |ad| ad.expires_at = ad.issued_at - 1),
        ("addresses", |ad| ad.addresses.clear()),
        ("addresses", |ad| ad.addresses = vec!["/ip4/1.1.1.1/tcp/1".into(); MAX_ADDRESSES + 1]),
        ("addresses[0]", |ad| ad.addresses[0] = "nowhere".into()),
        ("addresses[0]", |ad| ad.addresses[0] = "/ip4/1.1.1.1/tcp/1".repeat(20)),
        ("models", |ad| ad.models.clear()),
        ("models", |ad| ad.models = (0..=MAX_MODELS as u8).map(offer).collect()),
        ("models[1].digest", |ad| ad.models.push(ad.models[0].clone())),
        ("models[0].name", |ad| ad.models[0].name = "a\u{1b}[2Jb".into()),
        ("models[0].name", |ad| ad.models[0].name.clear()),
        ("models[0].quantisation", |ad| ad.models[0].quantisation = "q".repeat(65)),
        ("models[0].context", |ad| ad.models[0].context = 0),
        ("models[0].price_input", |ad| ad.models[0].price_input = MAX_PRICE + 1),
        ("models[0].price_output", |ad| ad.models[0].price_output = u64::MAX),
        ("queue_delay_ms", |ad| ad.queue_delay_ms = u32::MAX),
        ("assurance", |ad| ad.assurance = 3),
        ("payout", |ad| ad.payout[0] = 7),
        ("close_delay_s", |ad| ad.close_delay_s = u32::MAX),
    ];
    for (field, spoil) in cases {
        let mut broken = ad(1);
        spoil(&mut broken);
        assert_eq!(field_of(SignedAd::sign(&broken, &keypair(1)).unwrap_err()), field);
    }
}

#[test]
fn the_largest_allowed_fields_together_are_refused_as_too_large_not_truncated() {
    let mut big = ad(1);
    big.models = (0..MAX_MODELS as u8).map(offer).collect();
    for offer in &mut big.models {
        offer.name = "n".repeat(64);
        offer.quantisation = "q".repeat(64);
    }
    big.addresses =
        (0..MAX_ADDRESSES).map(|i| format!("/dns4/{}.example.org/tcp/{i}", "a".repeat(200))).collect();
    assert!(
        matches!(SignedAd::sign(&big, &keypair(1)), Err(AdError::TooLarge { found }) if found > MAX_AD_BYTES)
    );
    assert!(matches!(SignedAd::decode(&vec![1; MAX_AD_BYTES + 1]), Err(AdError::TooLarge { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_changed_byte_of_a_signed_ad_verifies(at in 0usize..4096, bit in 0u8..8) {
        let mut bytes = sign(1, &ad(1)).encode().unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let verified = SignedAd::decode(&bytes).and_then(|signed| signed.verify(&NET, NOW));
        prop_assert!(verified.is_err(), "bit {bit} of byte {at} is not covered");
    }

    #[test]
    fn any_bytes_decode_or_fail_without_panicking(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(signed) = SignedAd::decode(&bytes) {
            let _ = signed.verify(&NET, NOW);
        }
    }
}
