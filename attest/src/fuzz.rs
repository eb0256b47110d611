//! Fuzz bodies: each takes any bytes and must neither panic nor allocate much. Shared by `cargo fuzz`
//! targets and the corpus replay of the integration tests.

use std::collections::BTreeSet;

use crate::{
    Assurance, Claims, Evidence, Expect, Live, Policy, TrustRoot, live,
    noise::{self, Initiator, Prologue, StaticKey, default_crypto},
    software_tee::Platform,
    verify, verify_quote,
};

const NOW: u64 = 1_795_000_000;

/// Evidence through decoding and the whole verification; what decodes must encode to the same bytes.
pub fn evidence(data: &[u8]) {
    let policy = policy();
    let expect = Expect { peer_id: &[1], model_digest: None, evidence_digest: None };
    let _ = verify(data, &expect, &policy, NOW);
    if let Ok(evidence) = Evidence::decode(data) {
        assert_eq!(evidence.encode(), data);
        // Behind the claims, whose hash a mutation rarely survives.
        let _ = verify_quote(&evidence.quote, &evidence.collateral, &policy, NOW);
    }
}

/// Claims; what decodes must encode to the same bytes.
pub fn claims(data: &[u8]) {
    if let Ok(claims) = Claims::decode(data) {
        assert_eq!(claims.encode(), data);
    }
}

/// Live proofs, and the path of those that decode.
pub fn live_proof(data: &[u8]) {
    if let Ok(proof) = live::LiveProof::decode(data) {
        assert_eq!(proof.encode(), data);
        let _ = live::path_leads_somewhere(&proof);
    }
}

/// What arrives on the channel: padding after decryption, and one input in 64 as a handshake message.
pub fn noise_record(data: &[u8]) {
    let mut padded = data.to_vec();
    if noise::unpad(&mut padded).is_ok() {
        assert!(noise::record_len(padded.len()).is_some_and(|len| len > data.len()));
    }
    // A handshake costs three key agreements.
    if data.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)) % 64 == 0 {
        handshake(data);
    }
}

/// The JSON of a software TEE's platform.
pub fn platform_json(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Platform::from_json(text);
    }
}

fn handshake(data: &[u8]) {
    let prologue = Prologue { wire_version: 1, network_id: [0; 32], evidence_digest: [0; 32], policy: 0 };
    let Ok(key) = StaticKey::generate() else { return };
    let _ = noise::respond(default_crypto, &key, &prologue, data);
    if let Ok((initiator, first)) = Initiator::start(default_crypto, &prologue, &key.public()) {
        let _ = initiator.finish(data);
        if let Ok((mut channel, _)) = noise::respond(default_crypto, &key, &prologue, &first) {
            let _ = channel.open(data);
        }
    }
}

fn policy() -> Policy {
    Policy {
        network_id: [1; 32],
        roots: vec![TrustRoot::intel()],
        minimum: Assurance::Open,
        measurements: BTreeSet::new(),
        config_digests: BTreeSet::new(),
        model_digests: BTreeSet::new(),
        min_tcb_evaluation: 0,
        clock_skew_s: u64::MAX,
        live: Live::Off,
    }
}
