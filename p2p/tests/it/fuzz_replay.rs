//! Replays each fuzz body's corpus with seeded mutations, so that CI fuzzes on a stable compiler.

use std::{fs, path::PathBuf};

use cocoon_p2p::fuzz;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::golden::sample;

/// Signature checks dominate; without optimisation they are some thirty times slower.
const MUTATIONS: usize = if cfg!(debug_assertions) { 1_000 } else { 20_000 };

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (file, bytes) in seeds(name) {
            fs::write(folder.join(file), bytes).unwrap();
        }
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no corpus in {}", folder.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// What the corpus starts from.
fn seeds(name: &str) -> Vec<(&'static str, Vec<u8>)> {
    let ad = sample().1.encode().unwrap();
    let frame = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
    match name {
        "ad" => vec![("valid", ad.clone()), ("cut", ad[..ad.len() / 2].to_vec()), ("empty", Vec::new())],
        "frame" => vec![
            ("three", [frame(b"one"), frame(&[0; 300]), frame(b"")].concat()),
            ("oversize", u32::MAX.to_be_bytes().to_vec()),
            ("truncated", frame(&[7; 40])[..20].to_vec()),
        ],
        "snapshot" => {
            // version, variant 1 (ads), two blobs of `u16` length
            let blob = [&[251][..], &(ad.len() as u16).to_le_bytes(), &ad].concat();
            vec![
                ("two-ads", [&[1, 1, 2][..], &blob, &blob].concat()),
                ("no-ads", vec![1, 1, 0]),
                ("evidence", vec![1, 0, 4, 1, 2, 3, 4]),
                ("request", [&[1, 0][..], &[9; 32]].concat()),
            ]
        }
        _ => Vec::new(),
    }
}

fn mutate(seed: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => {
                bytes[at] = [0, 1, 127, 128, 250, 251, 252, 253, 254, 255][rng.random_range(0..10)]
            }
            2 => bytes.insert(at, rng.random_range(0..=255)),
            3 if at < bytes.len() => {
                bytes.remove(at);
            }
            4 => bytes.truncate(at),
            _ => {
                let mut noise = vec![0; rng.random_range(0..64)];
                rng.fill_bytes(&mut noise);
                bytes.splice(at..at, noise);
            }
        }
    }
    bytes
}

fn replay(name: &str, body: fn(&[u8])) {
    let seeds = corpus(name);
    for seed in &seeds {
        body(seed);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0x5eed);
    for turn in 0..MUTATIONS {
        body(&mutate(&seeds[turn % seeds.len()], &mut rng));
    }
}

#[test]
fn ads_never_panic() {
    replay("ad", fuzz::ad);
}

#[test]
fn frames_never_panic() {
    replay("frame", fuzz::frame);
}

#[test]
fn snapshots_never_panic() {
    replay("snapshot", fuzz::snapshot);
}
