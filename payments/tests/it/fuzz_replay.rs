//! Replays each fuzz body's corpus with seeded mutations, on stable Rust.
//!
//! `tests/corpus/<body>/*` holds inputs worth keeping; a crash found by `cargo fuzz` goes there. Valid
//! inputs are made afresh, so that they follow the formats.

use std::path::Path;

use cocoon_payments::{cell, channel, fuzz, store::PayeeStore};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use crate::testkit::{GLOBAL_ID, params, receipt, voucher};

/// Signature checks and hashes are much slower without optimisation.
const MUTATIONS: usize = if cfg!(debug_assertions) { 4_000 } else { 20_000 };

fn replay(name: &str, made: Vec<Vec<u8>>, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let mut seeds = made;
    seeds.extend(files.iter().map(|file| std::fs::read(file).unwrap()));
    seeds.iter().for_each(|seed| body(seed));
    let mut random = ChaCha8Rng::seed_from_u64(0x00C0_C002);
    for _ in 0..MUTATIONS {
        let mut input = seeds[below(&mut random, seeds.len())].clone();
        for _ in 0..=below(&mut random, 3) {
            mutate(&mut input, &seeds, &mut random);
        }
        body(&input);
    }
}

fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    random.next_u32() as usize % bound
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut ChaCha8Rng) {
    /// Where bincode's varints and signed numbers change their mind.
    const INTERESTING: [u8; 9] = [0, 1, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xff];
    let at = below(random, input.len() + 1);
    match below(random, 5) {
        0 if at < input.len() => input[at] ^= 1 << below(random, 8),
        1 if at < input.len() => input[at] = INTERESTING[below(random, INTERESTING.len())],
        2 => input.insert(at, random.next_u32().to_le_bytes()[0]),
        3 => input.truncate(at),
        _ => {
            let other = &seeds[below(random, seeds.len())];
            let from = below(random, other.len() + 1);
            input.truncate(at);
            input.extend(other[from..].iter().take(256));
        }
    }
}

#[test]
fn vouchers() {
    let made = [0, 1, 250, 251, 65_536, u64::MAX].map(|n| voucher(&params(), GLOBAL_ID, n).encode());
    replay("voucher", made.into(), fuzz::voucher);
}

#[test]
fn channel_params() {
    replay("channel_params", vec![params().encode()], fuzz::channel_params);
}

#[test]
fn receipts() {
    replay("receipt", vec![receipt().encode()], fuzz::receipt);
}

#[test]
fn journals() {
    let dir = tempfile::tempdir().unwrap();
    let store = PayeeStore::open(dir.path()).unwrap();
    store.add(&params()).unwrap();
    for cumulative in 1..5 {
        store.append(&voucher(&params(), GLOBAL_ID, cumulative)).unwrap();
    }
    store.mark_closing(&params().address().unwrap(), 9).unwrap();
    store.forget(&params().address().unwrap()).unwrap();
    let journal = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
    let journal = journal.filter(|path| path.extension().is_none()).map(|path| std::fs::read(path).unwrap());
    replay("journal", journal.collect(), fuzz::journal);
}

#[test]
fn bags_of_cells() {
    let signed = voucher(&params(), GLOBAL_ID, 7);
    let made = [params().state_init().unwrap(), channel::settle(&signed).unwrap()];
    replay("boc", made.map(|cell| cell::to_boc(&cell).unwrap()).into(), fuzz::boc);
}

#[test]
fn addresses_and_amounts() {
    let address = params().address().unwrap();
    let made = [address.to_string(), address.friendly(true, false), "1.234567 TON".to_owned()];
    replay("text", made.map(String::into_bytes).into(), fuzz::text);
}
