//! What the attested channel costs: handshake, records, verification.
//!
//! Records are measured beside ring's bare ChaCha20-Poly1305 over the same bytes, in place: the
//! difference is padding, the copy into a buffer and the allocation of the record.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeSet, hint::black_box};

use cocoon_attest::{
    Assurance, Beacon, Claims, Evidence, Expect, Live, Measurement, Policy, Quoter as _, Role,
    noise::{Channel, Initiator, Prologue, StaticKey, default_crypto, record_len, respond},
    software_tee::Platform,
    verify,
};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

const NOW: u64 = 1_795_000_000;
const PROLOGUE: Prologue =
    Prologue { wire_version: 1, network_id: [1; 32], evidence_digest: [2; 32], policy: 0 };

fn pair(key: &StaticKey) -> (Channel, Channel) {
    let (initiator, first) = Initiator::start(default_crypto, &PROLOGUE, &key.public()).unwrap();
    let (enclave, second) = respond(default_crypto, key, &PROLOGUE, &first).unwrap();
    (initiator.finish(&second).unwrap(), enclave)
}

fn handshake(c: &mut Criterion) {
    let key = StaticKey::generate().unwrap();
    c.bench_function("handshake, both sides", |b| b.iter(|| black_box(pair(&key))));
}

fn records(c: &mut Criterion) {
    let key = StaticKey::generate().unwrap();
    let mut group = c.benchmark_group("record");
    for size in [100, 1000, 16_000, 61_000] {
        let (mut asker, mut enclave) = pair(&key);
        let message = vec![7; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("seal and open", size), |b| {
            b.iter(|| enclave.open(&asker.seal(&message).unwrap()).unwrap());
        });

        let bare = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[3; 32]).unwrap());
        let mut buffer = vec![7; record_len(size).unwrap() - 16];
        group.bench_function(BenchmarkId::new("bare ring, same bytes", size), |b| {
            b.iter(|| {
                let nonce = || Nonce::assume_unique_for_key([0; 12]);
                let tag = bare.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut buffer).unwrap();
                bare.open_in_place_separate_tag(nonce(), Aad::empty(), tag, &mut buffer, 0..).unwrap();
            });
        });
    }
    group.finish();
}

fn attestation(c: &mut Criterion) {
    let platform = Platform::generate(NOW).unwrap();
    let tee = platform.quoter(Measurement([1; 48]));
    let claims = Claims {
        network_id: [2; 32],
        role: Role::Worker,
        noise_key: [3; 32],
        receipt_key: [4; 32],
        peer_id: vec![5; 38],
        image: Measurement([1; 48]),
        config_digest: [6; 32],
        model_digest: [7; 32],
        gpu_evidence: None,
        not_before: NOW,
        not_after: NOW + 3600,
        beacon: Beacon { seqno: 1, hash: [8; 32] },
    };
    let evidence = Evidence {
        claims: claims.encode(),
        quote: tee.quote(&claims.report_data()).unwrap(),
        collateral: tee.collateral().unwrap(),
    }
    .encode();
    let policy = Policy {
        network_id: claims.network_id,
        roots: vec![platform.trust_root()],
        minimum: Assurance::Test,
        measurements: BTreeSet::from([claims.image]),
        config_digests: BTreeSet::from([claims.config_digest]),
        model_digests: BTreeSet::from([claims.model_digest]),
        min_tcb_evaluation: 0,
        clock_skew_s: 30,
        live: Live::Off,
    };
    let expect = Expect { peer_id: &claims.peer_id, model_digest: None, evidence_digest: None };
    c.bench_function("verify evidence", |b| {
        b.iter(|| verify(&evidence, &expect, &policy, NOW).unwrap());
    });
    c.bench_function("software quote", |b| b.iter(|| tee.quote(&claims.report_data()).unwrap()));
    c.bench_function("generate platform", |b| {
        b.iter_batched(|| NOW, |now| Platform::generate(now).unwrap(), BatchSize::SmallInput);
    });
}

criterion_group!(benches, handshake, records, attestation);
criterion_main!(benches);
