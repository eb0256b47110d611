//! What one voucher costs the worker's host, step by step. At 3,000 vouchers a second one core has
//! 333 µs for each.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::hint::black_box;

use cocoon_payments::{
    Address, NanoTon, SignedVoucher, Voucher,
    channel::{ChannelParams, OnChain, Stage},
    lane::{Payee, PayeePolicy},
    store::PayeeStore,
};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ed25519_dalek::SigningKey;

const NOW: u64 = 1_790_001_000;

fn params(key: &SigningKey) -> ChannelParams {
    ChannelParams {
        client: Address::base([0xc1; 32]),
        worker: Address::base([0x33; 32]),
        client_key: key.verifying_key().to_bytes(),
        worker_key: key.verifying_key().to_bytes(),
        channel_id: 7,
        close_delay_s: 3600,
        open_by: 1_790_000_600,
        expire_at: 1_790_086_400,
    }
}

fn vouchers(c: &mut Criterion) {
    let key = SigningKey::from_bytes(&[1; 32]);
    let params = params(&key);
    let voucher = Voucher {
        global_id: -217,
        channel: params.address().unwrap(),
        channel_id: params.channel_id,
        cumulative: NanoTon(1_234_567),
    };
    let signed = voucher.sign(&key);
    let mut payee =
        Payee::new(params, PayeePolicy::new(params.worker, params.worker_key, voucher.global_id)).unwrap();
    let chain = OnChain {
        stage: Stage::Open,
        balance: NanoTon(10_000_000_000),
        settled: NanoTon::ZERO,
        expire_at: params.expire_at,
        read_at: NOW,
    };
    payee.observe(chain, NOW);
    let dir = tempfile::tempdir().unwrap();
    let store = PayeeStore::open(dir.path()).unwrap();
    store.add(&params).unwrap();

    c.bench_function("voucher/hash", |b| b.iter(|| black_box(&voucher).hash()));
    c.bench_function("voucher/sign", |b| b.iter(|| black_box(voucher).sign(&key)));
    let bytes = signed.encode();
    c.bench_function("voucher/decode", |b| b.iter(|| SignedVoucher::decode(black_box(&bytes))));
    c.bench_function("voucher/check", |b| b.iter(|| payee.check(black_box(&signed), NOW)));
    let mut cumulative = 0;
    let mut next = || {
        cumulative += 1;
        Voucher { cumulative: NanoTon(cumulative), ..voucher }.sign(&key)
    };
    c.bench_function("voucher/append", |b| {
        b.iter_batched(&mut next, |signed| store.append(&signed).unwrap(), BatchSize::SmallInput);
    });
}

criterion_group!(benches, vouchers);
criterion_main!(benches);
