//! Decoding and prefilling with the embedded model, against the limit that no decoder can pass.
//!
//! One token needs every weight once, so a token cannot take less time than reading the weights
//! does. `limit/read_weights` measures just that (a sum over as many f32, in cache where the model
//! is in cache too); the lines after the run give decode speed, that limit and their ratio.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use cocoon_inference::engine::{BurnEngine, Engine as _, TokenSequence};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const TOKENS: usize = 32;

/// A sequence whose prompt is computed, with room for `TOKENS` more.
fn prefilled(engine: &BurnEngine) -> TokenSequence {
    let prompt: Vec<u32> = (32..48).collect();
    let mut sequence = engine.sequence(prompt.len() + TOKENS);
    sequence.feed(&prompt).unwrap();
    sequence
}

/// Feeds `TOKENS` tokens, one by one.
fn decode(sequence: &mut TokenSequence) {
    for id in 32..32 + TOKENS as u32 {
        black_box(sequence.feed(&[id]).unwrap());
    }
}

fn sum(weights: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    for chunk in weights.as_chunks::<32>().0 {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight;
        }
    }
    lanes.iter().sum()
}

fn benches(c: &mut Criterion) {
    let engine = BurnEngine::embedded().unwrap();
    let weights = vec![1f32; engine.info().parameters as usize];

    let mut group = c.benchmark_group("limit");
    group.throughput(Throughput::Bytes(4 * engine.info().parameters));
    group.bench_function("read_weights", |b| b.iter(|| sum(black_box(&weights))));
    group.finish();

    let mut group = c.benchmark_group("embedded");
    group.throughput(Throughput::Elements(TOKENS as u64));
    group.bench_function("decode_32", |b| {
        b.iter_batched_ref(|| prefilled(&engine), decode, BatchSize::SmallInput);
    });
    let prompt: Vec<u32> = (0..64).collect();
    group.throughput(Throughput::Elements(64));
    group.bench_function("prefill_64", |b| b.iter(|| engine.logits(&prompt, 64).unwrap()));
    group.finish();

    let (mut made, mut took) = (0, Duration::ZERO);
    while took.as_secs_f64() < 1.0 {
        let mut sequence = prefilled(&engine);
        let started = Instant::now();
        decode(&mut sequence);
        took += started.elapsed();
        made += TOKENS;
    }
    let speed = made as f64 / took.as_secs_f64();
    let started = Instant::now();
    let reads = 200;
    for _ in 0..reads {
        black_box(sum(black_box(&weights)));
    }
    let limit = f64::from(reads) / started.elapsed().as_secs_f64();
    println!(
        "decode {speed:.0} tokens/s; limit (one core reading all weights) {limit:.0}; ratio {:.3}",
        speed / limit
    );
}

criterion_group!(decode_benches, benches);
criterion_main!(decode_benches);
