//! The decoder of a device against the one of a processor, which is itself compared with `transformers`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cubecl::logging::{LaunchObservation, LaunchObserver};

use super::kernels::matvec::TILE;
use super::{Choose, DeviceDecoder, DeviceError, DeviceOptions, DevicePools, Spot, testing};
use crate::checkpoint::{Checkpoint, LoadError};
use crate::decoder::weights::layout;
use crate::decoder::{KvCache, Packing, ServingDecoder};
use crate::kernels::{BLOCK, Precision};

/// The fixtures of the comparison with `transformers`: every family, in shapes that need filling.
const FIXTURES: [&str; 6] = ["untied", "tied", "llama3", "llama-linear", "mistral", "gemma3"];

/// What kernels multiply with.
const DEVICE_PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::Int8];

fn checkpoint(fixture: &str) -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(fixture);
    Checkpoint::open(&folder, None, &mut |_, _| {}).unwrap()
}

/// A fixture on the device, if there is one, and on the processor, with the device's rounding of weights left out.
fn load(fixture: &str, options: DeviceOptions) -> Option<(DeviceDecoder, ServingDecoder)> {
    let Checkpoint { config, tensors, .. } = checkpoint(fixture);
    let Some(client) = testing::client() else {
        println!("skipped: no device that this build could use");
        return None;
    };
    let dimensions = config.dimensions;
    let fetch = |name: &str, shape: &[usize]| Ok::<_, LoadError>(tensors.get(name, shape)?);
    let device = DeviceDecoder::on(client, dimensions.clone(), options, fetch).unwrap();
    let mut packing = Packing::new(dimensions.clone(), options.weights).unwrap();
    let places = packing.places();
    for (tensor, (name, shape)) in layout(&dimensions).iter().enumerate() {
        places.put(tensor, 0, &fetch(name, shape).unwrap());
    }
    places.finish();
    Some((device, packing.finish()))
}

fn ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + 13) % vocab) as u32).collect()
}

/// A sequence with blocks of its own.
struct Sequence {
    table: Vec<u32>,
    len: usize,
}

impl Sequence {
    fn new(first_block: u32, blocks: u32) -> Self {
        // Backwards, so that a table that is not looked at would show.
        Self { table: (first_block..first_block + blocks).rev().collect(), len: 0 }
    }

    fn append(&mut self, decoder: &DeviceDecoder, ids: &[u32], pools: &mut DevicePools) -> Vec<Vec<f32>> {
        let spots: Vec<Spot<'_>> =
            (self.len..self.len + ids.len()).map(|position| Spot { position, table: &self.table }).collect();
        let wanted: Vec<usize> = (0..ids.len()).collect();
        self.len += ids.len();
        rows(decoder, decoder.logits(ids, &spots, &wanted, pools).unwrap())
    }
}

fn rows(decoder: &DeviceDecoder, logits: Vec<f32>) -> Vec<Vec<f32>> {
    logits.chunks(decoder.config().vocab_size).map(<[f32]>::to_vec).collect()
}

fn by_processor(decoder: &ServingDecoder, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut cache = KvCache::new(decoder.config(), ids.len());
    let data = decoder.forward(ids, &mut cache).into_data();
    data.as_slice::<f32>().unwrap().chunks(decoder.config().vocab_size).map(<[f32]>::to_vec).collect()
}

fn difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let at = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        assert_eq!(a.len(), b.len());
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(a.iter().all(|v| v.is_finite()));
        worst / b.iter().map(|b| b.abs()).fold(0.0, f32::max)
    };
    found.iter().zip(expected).map(at).fold(0.0, f32::max)
}

#[test]
fn every_family_computes_what_it_does_on_a_processor_in_any_chunks() {
    let _alone = testing::alone();
    for fixture in FIXTURES {
        let Some((device, processor)) = load(fixture, DeviceOptions::new(Precision::F32)) else { return };
        let ids = ids(70, device.config().vocab_size);
        let expected = by_processor(&processor, &ids);
        let mut pools = DevicePools::new(&device, 24).unwrap();
        for chunk in [1, 7, 70] {
            let mut sequence = Sequence::new(chunk as u32 % 8, 5);
            let found: Vec<Vec<f32>> =
                ids.chunks(chunk).flat_map(|ids| sequence.append(&device, ids, &mut pools)).collect();
            let worst = difference(&found, &expected);
            assert!(worst < 2e-5, "{fixture} in chunks of {chunk}: {worst}");
        }
    }
}

#[test]
fn fewer_bits_change_logits_by_little() {
    let _alone = testing::alone();
    for (precision, bound) in [(Precision::F16, 0.06), (Precision::Int8, 0.1)] {
        for fixture in ["untied", "gemma3", "llama-linear"] {
            let Some((device, _)) = load(fixture, DeviceOptions::new(precision)) else { return };
            let Some((_, exact)) = load(fixture, DeviceOptions::new(Precision::F32)) else { return };
            let ids = ids(20, device.config().vocab_size);
            let mut pools = DevicePools::new(&device, 2).unwrap();
            let found = Sequence::new(0, 2).append(&device, &ids, &mut pools);
            let worst = difference(&found, &by_processor(&exact, &ids));
            assert!(worst < bound, "{fixture} in {precision}: {worst}");
            // Some fixtures are published in bfloat16, which two bytes keep as they are.
            assert!(precision == Precision::F16 || device.rounding_error().rms > 0.0);
        }
    }
}

#[test]
fn a_row_of_a_small_step_has_the_same_bits_alone_and_among_others() {
    let _alone = testing::alone();
    for precision in DEVICE_PRECISIONS {
        let Some((device, _)) = load("mistral", DeviceOptions::new(precision)) else { return };
        let vocab = device.config().vocab_size;
        let mut pools = DevicePools::new(&device, 3 * TILE).unwrap();
        let prompts: Vec<Vec<u32>> = (0..TILE).map(|i| ids(20 + 3 * i, vocab)[i..].to_vec()).collect();
        let mut sequences: Vec<Sequence> = (0..TILE).map(|i| Sequence::new(3 * i as u32, 3)).collect();
        for (sequence, prompt) in sequences.iter_mut().zip(&prompts) {
            for ids in prompt.chunks(TILE) {
                sequence.append(&device, ids, &mut pools);
            }
        }
        let next = ids(TILE, vocab);
        let spots: Vec<Spot<'_>> =
            sequences.iter().map(|s| Spot { position: s.len, table: &s.table }).collect();
        let all: Vec<usize> = (0..TILE).collect();
        let together = rows(&device, device.logits(&next, &spots, &all, &mut pools).unwrap());
        for (i, expected) in together.iter().enumerate() {
            let alone = device.logits(&next[i..=i], &spots[i..=i], &[0], &mut pools).unwrap();
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&alone), bits(expected), "row {i} in {precision}");
        }
    }
}

#[test]
fn a_token_chosen_on_the_device_is_the_one_of_its_logits() {
    let _alone = testing::alone();
    let Some((device, _)) = load("tied", DeviceOptions::new(Precision::F16)) else { return };
    let mut pools = DevicePools::new(&device, 2).unwrap();
    let table = [1, 0];
    let ids = ids(5, device.config().vocab_size);
    let spots: Vec<Spot<'_>> = (0..5).map(|position| Spot { position, table: &table }).collect();
    let logits = rows(&device, device.logits(&ids, &spots, &[4, 1], &mut pools).unwrap());
    let greedy = Choose { temperature: 0.0, share: 0.0 };
    let found = device.tokens(&ids, &spots, &[4, 1], &[greedy; 2], &mut pools).unwrap();
    let best = |row: &Vec<f32>| {
        (0..row.len()).reduce(|a, b| if row[b] > row[a] { b } else { a }).map(|id| id as u32)
    };
    assert_eq!(found, [best(&logits[0]), best(&logits[1])]);
    let error = device.tokens(&ids, &spots, &[4], &[], &mut pools).unwrap_err();
    assert!(matches!(error, DeviceError::Step { .. }), "{error}");
}

struct Counter(AtomicUsize);

impl LaunchObserver for Counter {
    fn launched(&self, _: &'static str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_decode_step_launches_eight_kernels_for_each_layer_and_three_beside_them() {
    let _alone = testing::alone();
    for fixture in FIXTURES {
        let Some((device, _)) = load(fixture, DeviceOptions::new(Precision::F32)) else { return };
        let mut pools = DevicePools::new(&device, 1).unwrap();
        let counter = Arc::new(Counter(AtomicUsize::new(0)));
        let observation = LaunchObservation::new(counter.clone());
        Sequence::new(0, 1).append(&device, &[1], &mut pools);
        drop(observation);
        assert_eq!(counter.0.load(Ordering::Relaxed), 8 * device.config().layers.len() + 3, "{fixture}");
    }
}

#[test]
fn replayed_steps_give_the_bits_of_launched_ones() {
    let _alone = testing::alone();
    let launched = DeviceOptions::new(Precision::F16);
    let Some((eager, _)) = load("gemma3", launched) else { return };
    let Some((replaying, _)) = load("gemma3", DeviceOptions { graphs: true, ..launched }) else { return };
    let run = |decoder: &DeviceDecoder| {
        let vocab = decoder.config().vocab_size;
        let mut pools = DevicePools::new(decoder, 8).unwrap();
        let (mut a, mut b) = (Sequence::new(0, 4), Sequence::new(4, 4));
        let mut found = a.append(decoder, &ids(30, vocab), &mut pools);
        for (i, id) in ids(24, vocab).into_iter().enumerate() {
            found.extend(a.append(decoder, &[id], &mut pools));
            // Prompts and steps of other sizes come between.
            if i % 5 == 3 {
                found.extend(b.append(decoder, &[id, 1, 2], &mut pools));
            }
        }
        found.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(run(&replaying), run(&eager));
    assert_eq!((replaying.recorded() > 0, eager.recorded()), (true, 0));
}

#[test]
fn wiped_blocks_are_like_new_ones_and_others_stay() {
    let _alone = testing::alone();
    let Some((device, _)) = load("untied", DeviceOptions::new(Precision::F32)) else { return };
    let mut pools = DevicePools::new(&device, 2).unwrap();
    assert_eq!(pools.bytes(), 2 * device.config().layers.len() * device.heads().block_bytes());
    let ids = ids(BLOCK + 3, device.config().vocab_size);
    let first = Sequence::new(0, 2).append(&device, &ids, &mut pools);
    pools.wipe(&[0, 1]).unwrap();
    for layer in &pools.layers {
        assert!(device.gpu().read::<u32>(layer).unwrap().iter().all(|word| *word == 0));
    }
    assert_eq!(Sequence::new(0, 2).append(&device, &ids, &mut pools), first);
    assert!(pools.wipe(&[2]).unwrap_err().to_string().contains("no block 2"));
}

#[test]
fn a_step_that_would_read_beyond_its_pools_is_refused_and_the_next_one_runs() {
    let _alone = testing::alone();
    let Some((device, _)) = load("tied", DeviceOptions::new(Precision::F32)) else { return };
    let mut pools = DevicePools::new(&device, 1).unwrap();
    let error = device.logits(&[1], &[Spot { position: 0, table: &[1] }], &[0], &mut pools).unwrap_err();
    assert!(error.to_string().contains("no block 1 among 1"), "{error}");
    assert!(device.logits(&[1], &[Spot { position: 0, table: &[0] }], &[0], &mut pools).is_ok());
}
