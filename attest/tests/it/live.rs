//! From handshake to live proof, with real channels and quotes.

use cocoon_attest::{
    Claims, Live, Measurement, Policy, Quoter, Role, Verified, VerifyError,
    live::{Batcher, LiveProof, verify_live},
    noise::{Channel, Initiator, Prologue, StaticKey, default_crypto, respond},
    verify,
};

use crate::testkit::{IMAGE, NOW, claims, evidence, expect, platform, policy};

struct Worker {
    key: StaticKey,
    verified: Verified,
    collateral: Vec<u8>,
    policy: Policy,
}

impl Worker {
    fn new() -> Self {
        let key = StaticKey::generate().unwrap();
        let claims = Claims { noise_key: key.public(), ..claims() };
        let evidence = evidence(platform(), IMAGE, &claims);
        let policy = Policy { live: Live::Required, ..policy(platform().trust_root()) };
        let verified = verify(&evidence.encode(), &expect(), &policy, NOW).unwrap();
        Self { key, verified, collateral: evidence.collateral, policy }
    }

    fn session(&self) -> (Channel, Channel) {
        let prologue = Prologue {
            wire_version: 1,
            network_id: self.policy.network_id,
            evidence_digest: self.verified.evidence_digest,
            policy: self.policy.live.id(),
        };
        let responder = &self.verified.claims.noise_key;
        let (initiator, first) = Initiator::start(default_crypto, &prologue, responder).unwrap();
        let (enclave, second) = respond(default_crypto, &self.key, &prologue, &first).unwrap();
        (initiator.finish(&second).unwrap(), enclave)
    }

    fn batcher(&self) -> Batcher {
        Batcher::new(Role::Worker, self.key.public())
    }

    fn check(&self, proof: &LiveProof, hash: &[u8; 32], nonce: &[u8; 32]) -> Result<(), VerifyError> {
        verify_live(proof, hash, nonce, &self.verified, &self.collateral, &self.policy, NOW)
    }

    /// A proof for one session alone, quoted by the TEE of `image`.
    fn prove(&self, image: Measurement, hash: &[u8; 32], nonce: &[u8; 32]) -> LiveProof {
        let mut batcher = self.batcher();
        batcher.push(1, hash, nonce).unwrap();
        let report_data = batcher.start().unwrap();
        let quote = platform().quoter(image).quote(&report_data).unwrap();
        batcher.finish(&quote).remove(0).1
    }
}

#[test]
fn one_quote_binds_many_sessions() {
    let worker = Worker::new();
    let sessions: Vec<_> = (0..7u8).map(|i| (worker.session(), [i; 32])).collect();
    let mut batcher = worker.batcher();
    for (id, ((_, enclave), nonce)) in (0..).zip(&sessions) {
        batcher.push(id, &enclave.handshake_hash(), nonce).unwrap();
    }
    let report_data = batcher.start().unwrap();
    let quote = platform().quoter(IMAGE).quote(&report_data).unwrap();
    let proofs = batcher.finish(&quote);
    assert_eq!(proofs.len(), sessions.len());
    for (id, proof) in proofs {
        let proof = LiveProof::decode(&proof.encode()).unwrap();
        for (other, ((asker, _), nonce)) in (0..).zip(&sessions) {
            let verdict = worker.check(&proof, &asker.handshake_hash(), nonce);
            assert_eq!(verdict.is_ok(), other == id, "proof {id}, session {other}");
        }
    }
}

/// The relay of CVE-2026-33697: the attacker holds the leaked key and answers handshakes with it, but
/// the enclave quotes only handshakes of its own.
#[test]
fn a_relayed_session_does_not_verify() {
    let worker = Worker::new();
    let (victim, _attacker) = worker.session();
    let (_, genuine) = worker.session();
    let nonce = [5; 32];
    let relayed = worker.prove(IMAGE, &genuine.handshake_hash(), &nonce);
    let error = worker.check(&relayed, &victim.handshake_hash(), &nonce).unwrap_err();
    assert_eq!(error.check(), "live-binding");
}

#[test]
fn a_proof_holds_for_its_nonce_code_key_and_role_only() {
    let worker = Worker::new();
    let (asker, _) = worker.session();
    let hash = asker.handshake_hash();
    let proof = worker.prove(IMAGE, &hash, &[5; 32]);
    worker.check(&proof, &hash, &[5; 32]).unwrap();
    assert_eq!(worker.check(&proof, &hash, &[6; 32]).unwrap_err().check(), "live-binding");

    let other_code = worker.prove(Measurement([9; 48]), &hash, &[5; 32]);
    assert_eq!(worker.check(&other_code, &hash, &[5; 32]).unwrap_err().check(), "live-binding");

    let other_enclave = Worker::new().prove(IMAGE, &hash, &[5; 32]);
    assert_eq!(worker.check(&other_enclave, &hash, &[5; 32]).unwrap_err().check(), "live-binding");

    // The evidence's own quote is no live quote: the domains differ.
    let stale = LiveProof {
        quote: platform().quoter(IMAGE).quote(&worker.verified.claims.report_data()).unwrap(),
        ..proof
    };
    assert_eq!(worker.check(&stale, &hash, &[5; 32]).unwrap_err().check(), "live-binding");
}

#[test]
fn impossible_places_and_broken_quotes_are_told_apart() {
    let worker = Worker::new();
    let (asker, _) = worker.session();
    let hash = asker.handshake_hash();
    let proof = worker.prove(IMAGE, &hash, &[5; 32]);
    for (index, leaves, path) in [
        (1, 1, vec![]),
        (0, 0, vec![]),
        (0, 2, vec![]),
        (0, 1, vec![[0; 32]]),
        (0, u32::MAX, vec![[0; 32]; 32]),
    ] {
        let moved = LiveProof { index, leaves, path, ..proof.clone() };
        assert_eq!(worker.check(&moved, &hash, &[5; 32]).unwrap_err().check(), "live-binding");
    }
    let mut broken = proof;
    broken.quote[600] ^= 1;
    assert_eq!(worker.check(&broken, &hash, &[5; 32]).unwrap_err().check(), "quote-signature");
}
