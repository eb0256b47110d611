//! Decoding and prefilling with the embedded model, against the limit that no decoder can pass.
//!
//! One token needs every weight once, so a token cannot take less time than reading the weights
//! does. `limit/read_weights` measures just that (a sum over as many f32, in cache where the model
//! is in cache too); the lines after the run give decode speed, that limit and their ratio.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use cocoon_inference::engine::{Engine, Generation, Step};
use cocoon_inference::{BurnEngine, ChatRole, GenerateRequest, Message, Sampling};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const TOKENS: u32 = 32;

/// An answer whose prompt is computed, ready to make tokens. Sampling hot keeps it from ending soon.
fn prefilled(engine: &BurnEngine, seed: u64) -> Box<dyn Generation> {
    let request = GenerateRequest {
        model: engine.info().digest,
        messages: vec![Message { role: ChatRole::User, content: "What is 17 + 25?".into() }],
        sampling: Sampling { temperature: 2.0, seed, ..Sampling::default() },
        prefix: Vec::new(),
    };
    let mut generation = engine.start(&request).unwrap();
    while let Step::Prefilling { .. } = generation.step().unwrap() {}
    generation
}

/// Makes up to `TOKENS` tokens; how many it were.
fn decode(engine: &BurnEngine, generation: &mut Box<dyn Generation>, seed: &mut u64) -> u32 {
    for made in 0..TOKENS {
        if !matches!(generation.step().unwrap(), Step::Token(_)) {
            *seed += 1;
            *generation = prefilled(engine, *seed);
            return made;
        }
    }
    TOKENS
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
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode_token", |b| {
        let mut seed = 0;
        let mut generation = prefilled(&engine, seed);
        b.iter(|| {
            if !matches!(generation.step().unwrap(), Step::Token(_)) {
                seed += 1;
                generation = prefilled(&engine, seed);
            }
        });
    });
    let prompt: Vec<u32> = (0..64).collect();
    group.throughput(Throughput::Elements(64));
    group.bench_function("prefill_64", |b| b.iter(|| engine.logits(&prompt, 64).unwrap()));
    group.finish();

    let (mut seed, mut made, started) = (0, 0, Instant::now());
    let mut generation = prefilled(&engine, seed);
    while started.elapsed().as_secs_f64() < 1.0 {
        made += decode(&engine, &mut generation, &mut seed);
    }
    let speed = f64::from(made) / started.elapsed().as_secs_f64();
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
