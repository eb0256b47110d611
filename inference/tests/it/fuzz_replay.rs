//! Replays the corpora of the fuzz targets with seeded mutations, on stable Rust.

use std::path::Path;

use cocoon_inference::fuzz;

const MUTATIONS: u32 = 20_000;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn mutate(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    const TOKENS: [&[u8]; 14] = [
        b"null",
        b"-1",
        b"1e99",
        b"18446744073709551616",
        b"[]",
        b"{}",
        b"\"\"",
        b"true",
        b"\xFF",
        b"\0",
        b"\xFB\xFF\xFF",
        b"\xFD\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
        b"[[[[[[[[",
        b"0",
    ];
    let mut bytes = seeds[rng.below(seeds.len())].clone();
    for _ in 0..=rng.below(6) {
        let at = rng.below(bytes.len() + 1);
        match rng.below(6) {
            0 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1 << rng.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] = rng.next() as u8;
            }
            2 => bytes.truncate(at),
            3 => {
                let token = TOKENS[rng.below(TOKENS.len())];
                bytes.splice(at..at, token.iter().copied());
            }
            4 => {
                let to = at + rng.below(bytes.len() - at + 1);
                let token = TOKENS[rng.below(TOKENS.len())];
                bytes.splice(at..to, token.iter().copied());
            }
            _ => {
                let other = &seeds[rng.below(seeds.len())];
                let from = rng.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

fn replay(name: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| body(seed));
    let mut rng = Rng(0xC0C0_0217);
    for _ in 0..MUTATIONS {
        body(&mutate(&mut rng, &seeds));
    }
}

#[test]
fn generate_request() {
    replay("generate_request", fuzz::generate_request);
}

#[test]
fn manifest() {
    replay("manifest", fuzz::manifest);
}

#[cfg(feature = "engine")]
#[test]
fn hf_config() {
    replay("hf_config", fuzz::hf_config);
}

#[cfg(feature = "engine")]
#[test]
fn shard_index() {
    replay("shard_index", fuzz::shard_index);
}

#[cfg(feature = "engine")]
#[test]
fn weights_header() {
    replay("weights_header", fuzz::weights_header);
}

#[cfg(feature = "engine")]
#[test]
fn encoder_config() {
    replay("encoder_config", fuzz::encoder_config);
}

#[cfg(feature = "engine")]
#[test]
fn embedder_modules() {
    replay("embedder_modules", fuzz::embedder_modules);
}
