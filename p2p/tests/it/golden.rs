//! The encodings of version 1, pinned. If one of these fails, peers of the previous version no longer
//! understand this one: bump the version byte instead. `UPDATE_GOLDEN=1` writes the files anew.

use std::{fs, path::PathBuf};

use cocoon_p2p::{
    Keypair,
    core::{Ad, ModelOffer, PeerKey, SignedAd},
};

pub(crate) const NOW: u64 = 1_800_000_000;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn check(name: &str, bytes: &[u8]) {
    let path = directory().join("golden").join(name);
    let text = hex::encode(bytes) + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap(), "{name} changed");
}

/// The same ad on every run, of network 7…7.
pub(crate) fn sample() -> (Ad, SignedAd) {
    let keypair = Keypair::ed25519_from_bytes([11; 32]).unwrap();
    let ad = Ad {
        network_id: [7; 32],
        peer: PeerKey::from(keypair.public().to_peer_id()),
        sequence: 1_800_000_000_123,
        issued_at: NOW,
        expires_at: NOW + 90,
        addresses: vec!["/ip4/203.0.113.7/udp/4001/quic-v1".into(), "/ip4/203.0.113.7/tcp/4001".into()],
        models: vec![ModelOffer {
            digest: [0xd1; 32],
            name: "cocoon-tiny".into(),
            context: 256,
            quantisation: "f16".into(),
            price_input: 1_000,
            price_cached_input: 100,
            price_output: 250_000_000,
        }],
        free_slots: 3,
        queue_delay_ms: 250,
        tokens_per_second: 42,
        evidence_digest: [0xe1; 32],
        assurance: 1,
        payout: [0; 33],
        payee_key: [0x5a; 32],
        close_delay_s: 3_600,
        platform: Some([0x9a; 16]),
    };
    let signed = SignedAd::sign(&ad, &keypair).unwrap();
    (ad, signed)
}

#[test]
fn the_signed_ad_of_version_1_is_what_it_always_was() {
    let (ad, signed) = sample();
    let bytes = signed.encode().unwrap();
    check("signed-ad-v1.hex", &bytes);
    let stored = fs::read_to_string(directory().join("golden/signed-ad-v1.hex")).unwrap();
    let decoded = SignedAd::decode(&hex::decode(stored.trim()).unwrap()).unwrap();
    assert_eq!(decoded.verify(&[7; 32], NOW).unwrap(), ad);
}
