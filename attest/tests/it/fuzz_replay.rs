//! Replays each fuzz body's corpus with seeded mutations, on stable Rust.
//!
//! `tests/corpus/<body>/*` holds inputs worth keeping; a crash found by `cargo fuzz` goes there. The
//! valid inputs are made afresh, since they expire and change with the formats.

use std::path::Path;

use cocoon_attest::{fuzz, live::LiveProof};
use rand::{Rng as _, RngExt as _, SeedableRng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::testkit::{self, IMAGE, platform};

const MUTATIONS: usize = 20_000;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn replay(name: &str, made: Vec<Vec<u8>>, mutations: usize, body: fn(&[u8])) {
    let mut seeds = corpus(name);
    seeds.extend(made);
    seeds.iter().for_each(|seed| body(seed));
    let mut rng = ChaCha8Rng::seed_from_u64(0x00C0_C001);
    for _ in 0..mutations {
        let mut input = seeds.choose(&mut rng).unwrap().clone();
        for _ in 0..rng.random_range(1..4) {
            mutate(&mut input, &seeds, &mut rng);
        }
        body(&input);
    }
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) {
    const INTERESTING: [u8; 9] = [0, 1, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xff];
    let at = rng.random_range(0..=input.len());
    match rng.random_range(0..6) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = *INTERESTING.choose(rng).unwrap(),
        2 => input.insert(at, rng.random()),
        3 => input.truncate(at),
        4 if at < input.len() => {
            let end = rng.random_range(at..input.len().min(at + 64));
            rng.fill_bytes(&mut input[at..end]);
        }
        _ => {
            let other = seeds.choose(rng).unwrap();
            let from = rng.random_range(0..=other.len());
            let to = rng.random_range(from..=other.len().min(from + 256));
            input.splice(at.., other[from..to].iter().copied());
        }
    }
}

#[test]
fn evidence() {
    let made = testkit::evidence(platform(), IMAGE, &testkit::claims()).encode();
    replay("evidence", vec![made], MUTATIONS, fuzz::evidence);
}

#[test]
fn claims() {
    replay("claims", vec![testkit::claims().encode()], MUTATIONS, fuzz::claims);
}

#[test]
fn live_proof() {
    let proof = LiveProof { quote: vec![1; 40], index: 2, leaves: 5, path: vec![[7; 32]; 3] };
    replay("live_proof", vec![proof.encode()], MUTATIONS, fuzz::live_proof);
}

#[test]
fn noise_record() {
    replay("noise_record", vec![vec![0; 128], vec![0; 144], vec![0; 48]], MUTATIONS, fuzz::noise_record);
}

#[test]
fn platform_json() {
    let made = platform().to_json().as_bytes().to_vec();
    // Fewer: each is 20 KB of JSON.
    replay("platform_json", vec![made], MUTATIONS / 4, fuzz::platform_json);
}
