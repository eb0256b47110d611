//! Replays each corpus with seeded mutations through its fuzz body, which must not panic.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Mutations of each seed.
const ROUNDS: usize = 20_000;

fn replay(name: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut seeds: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "the corpus {name} is empty");
    for (index, path) in seeds.iter().enumerate() {
        let seed = std::fs::read(path).unwrap();
        body(&seed);
        let mut rng = StdRng::seed_from_u64(index as u64);
        // Configuration files are parsed at a few hundred microseconds each.
        let rounds = if seed.len() > 1000 { ROUNDS / 20 } else { ROUNDS };
        for _ in 0..rounds {
            body(&mutate(&seed, &mut rng));
        }
    }
}

/// A few random edits: flipped bits, overwritten, inserted, removed and repeated stretches.
fn mutate(seed: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => {
                bytes[at] = *[0, 1, 0x7f, 0xfb, 0xfc, 0xfd, 0xff].get(rng.random_range(0..7)).unwrap()
            }
            2 => bytes.insert(at, rng.random()),
            3 => bytes.truncate(at),
            _ => {
                let end = rng.random_range(at..=bytes.len());
                let stretch = bytes[at..end].to_vec();
                bytes.splice(at..at, stretch);
            }
        }
        bytes.truncate(64 * 1024);
    }
    bytes
}

#[test]
fn link_frames() {
    replay("link_frame", cocoon_node::fuzz::link_frame);
}

#[test]
fn server_events() {
    replay("server_events", cocoon_node::fuzz::server_events);
}

#[test]
fn configuration_files() {
    replay("config_file", cocoon_node::fuzz::config_file);
}
