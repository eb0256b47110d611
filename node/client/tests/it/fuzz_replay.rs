//! Replays the corpora of the fuzz targets, each file as it is and with seeded mutations.

use std::{fs, path::PathBuf};

use cocoon_client::fuzz;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Mutations per target, spread over its corpus.
const MUTATIONS: usize = 20_000;

fn replay(name: &str, body: fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let mut rng = StdRng::seed_from_u64(0x00c0_c001);
    let each = MUTATIONS / files.len();
    for file in files {
        let seed = fs::read(file).unwrap();
        body(&seed);
        for _ in 0..each {
            body(&mutate(&seed, &mut rng));
        }
    }
}

fn mutate(seed: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes.insert(at, rng.random()),
            3 => bytes.truncate(at),
            // Lengths and tags sit at varint boundaries.
            _ if at < bytes.len() => bytes[at] = [0, 1, 250, 251, 252, 253, 255][rng.random_range(0..7)],
            _ => {}
        }
    }
    bytes
}

#[test]
fn genesis() {
    replay("genesis", fuzz::genesis);
}

#[test]
fn to_host() {
    replay("to_host", fuzz::to_host);
}

#[test]
fn to_client() {
    replay("to_client", fuzz::to_client);
}

#[test]
fn to_enclave() {
    replay("to_enclave", fuzz::to_enclave);
}

#[test]
fn to_asker() {
    replay("to_asker", fuzz::to_asker);
}
