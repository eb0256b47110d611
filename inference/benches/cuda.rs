//! A decoder of eight thousand million weights on an NVIDIA GPU, against the limits that the same GPU is measured at.
//!
//! `cargo bench -p cocoon-inference --features cuda --bench cuda -- --help`
//!
//! The weights are those of no model: values of a fixed sequence in the shapes of Qwen3-8B, made on the machine. What a step
//! costs does not depend on them. Printed are tokens per second and the ratio to the limit:
//!
//! * *decode*: each step needs every weight once, and the keys and values of every sequence; the limit is the speed at
//!   which the GPU reads as many bytes.
//! * *prefill*: the limit is the speed of a large product by the GPU's matrix units.
//!
//! With `--graphs` steps that repeat are recorded and replayed; without, each kernel is launched.

// A shell: measuring is what it is for.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::time::Instant;

use cocoon_inference::decoder::{Attention, DecoderConfig, Family, RopeScaling, Rotary};
use cocoon_inference::device::{
    Choose, DeviceChoice, DeviceDecoder, DeviceError, DeviceOptions, DevicePools, Processor, Spot,
};
use cocoon_inference::kernels::{BLOCK, Precision};
use rayon::prelude::*;

const USAGE: &str = "options: --device cuda|cuda:N  --precision f32|f16|int8  --layers N  --batch N,N,…  \
                     --context TOKENS  --tokens N  --prompt TOKENS  --chunk TOKENS  --graphs";

#[derive(Debug)]
struct Options {
    device: DeviceChoice,
    precision: Precision,
    layers: usize,
    batches: Vec<usize>,
    /// Tokens of each sequence before the measured ones.
    context: usize,
    tokens: usize,
    prompt: usize,
    chunk: usize,
    graphs: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        device: DeviceChoice::Cuda(0),
        precision: Precision::F16,
        layers: 36,
        batches: vec![1, 8, 32, 128],
        context: 512,
        tokens: 64,
        prompt: 4096,
        chunk: 2048,
        graphs: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value"));
        let number = |text: String| text.parse::<usize>().map_err(|_| format!("{text} is no number"));
        match name.as_str() {
            // What cargo adds.
            "--bench" => {}
            "--graphs" => options.graphs = true,
            "--device" => options.device = value()?.parse()?,
            "--precision" => options.precision = value()?.parse()?,
            "--layers" => options.layers = number(value()?)?.max(1),
            "--context" => options.context = number(value()?)?.max(1),
            "--tokens" => options.tokens = number(value()?)?.max(1),
            "--prompt" => options.prompt = number(value()?)?.max(1),
            "--chunk" => options.chunk = number(value()?)?.max(1),
            "--batch" => {
                let batches = value()?;
                options.batches = batches
                    .split(',')
                    .map(|n| number(n.to_owned()).map(|n| n.max(1)))
                    .collect::<Result<_, _>>()?;
            }
            _ => return Err(format!("{name} is unknown; {USAGE}")),
        }
    }
    Ok(options)
}

/// Qwen3-8B as its `config.json` describes it.
fn qwen3_8b(layers: usize) -> DecoderConfig {
    let rotary = Rotary { theta: 1e6, scaling: RopeScaling::None };
    DecoderConfig {
        family: Family::Qwen3,
        vocab_size: 151_936,
        hidden_size: 4096,
        layers: vec![Attention { window: None, rotary }; layers],
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 128,
        intermediate_size: 12_288,
        max_position_embeddings: 40_960,
        rms_norm_eps: 1e-6,
        query_scale: 1.0 / 128f64.sqrt(),
        embed_scale: 1.0,
        attention_bias: false,
        tie_word_embeddings: false,
    }
}

/// Values small enough for nothing to overflow, the same for a name on every machine.
fn tensor(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed =
        name.bytes().fold(0x9e37_79b9u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let count = shape.iter().product::<usize>();
    if shape.len() == 1 {
        return vec![1.0; count];
    }
    let scale = 1.0 / (shape[1] as f32).sqrt();
    let value = |i: usize| {
        let mixed = (i as u32 ^ seed).wrapping_mul(0x85eb_ca6b);
        let mixed = (mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35);
        ((mixed >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    (0..count).into_par_iter().map(value).collect()
}

/// Sequences of one length, each with blocks of its own.
struct Batch {
    tables: Vec<Vec<u32>>,
    len: usize,
}

impl Batch {
    fn new(count: usize, capacity: usize) -> Self {
        let blocks = capacity.div_ceil(BLOCK) as u32;
        let tables = (0..count as u32).map(|i| (i * blocks..(i + 1) * blocks).collect()).collect();
        Self { tables, len: 0 }
    }

    fn blocks(&self) -> usize {
        self.tables.iter().map(Vec::len).sum()
    }

    /// Makes one token of each.
    fn step(&mut self, decoder: &DeviceDecoder, ids: &mut [u32], pools: &mut DevicePools) {
        let spots: Vec<Spot<'_>> =
            self.tables.iter().map(|table| Spot { position: self.len, table }).collect();
        let wanted: Vec<usize> = (0..ids.len()).collect();
        let greedy = vec![Choose { temperature: 0.0, share: 0.0 }; ids.len()];
        let found = decoder.tokens(ids, &spots, &wanted, &greedy, pools).unwrap();
        ids.iter_mut().zip(found).for_each(|(id, found)| *id = found.unwrap());
        self.len += 1;
    }

    /// Reads a prompt into one of them.
    fn read(&self, decoder: &DeviceDecoder, of: usize, tokens: usize, chunk: usize, pools: &mut DevicePools) {
        for from in (0..tokens).step_by(chunk) {
            let range = from..tokens.min(from + chunk);
            let ids: Vec<u32> =
                range.clone().map(|i| (i * 7919 % decoder.config().vocab_size) as u32).collect();
            let spots: Vec<Spot<'_>> =
                range.map(|position| Spot { position, table: &self.tables[of] }).collect();
            decoder.logits(&ids, &spots, &[ids.len() - 1], pools).unwrap();
        }
    }
}

fn main() {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(2);
        }
    };
    let index = match options.device.resolve() {
        Ok(Processor::Cuda(index)) => index,
        Ok(Processor::Cpu) => return println!("not measured: `--device` names no GPU"),
        Err(why) => return println!("not measured: {why}"),
    };
    let config = qwen3_8b(options.layers);
    let started = Instant::now();
    let device = DeviceOptions { weights: options.precision, graphs: options.graphs };
    let fetch = |name: &str, shape: &[usize]| Ok::<_, DeviceError>(tensor(name, shape));
    let decoder = DeviceDecoder::cuda(index, config, device, fetch).unwrap();
    let limits = decoder.limits().unwrap();
    println!(
        "{} layers of Qwen3-8B in {}: {:.2} GB, made and loaded in {:.1} s",
        options.layers,
        decoder.format(),
        decoder.bytes() as f64 / 1e9,
        started.elapsed().as_secs_f64()
    );
    println!(
        "limits: {:.0} GB/s read, {:.0} TFLOP/s multiplied",
        limits.read_bytes / 1e9,
        limits.product_operations / 1e12
    );
    for &count in &options.batches {
        decode(&options, &decoder, limits.read_bytes, count);
    }
    prefill(&options, &decoder, limits.product_operations);
}

fn decode(options: &Options, decoder: &DeviceDecoder, read_bytes: f64, count: usize) {
    // Some steps compile kernels, and with `--graphs` record.
    const WARM: usize = 4;
    let mut batch = Batch::new(count, options.context + WARM + options.tokens);
    let mut pools = match DevicePools::new(decoder, batch.blocks()) {
        Ok(pools) => pools,
        Err(why) => return println!("decode, {count} at once: not measured: {why}"),
    };
    for of in 0..count {
        batch.read(decoder, of, options.context, options.chunk, &mut pools);
    }
    batch.len = options.context;
    let mut ids = vec![1; count];
    (0..WARM).for_each(|_| batch.step(decoder, &mut ids, &mut pools));
    let started = Instant::now();
    (0..options.tokens).for_each(|_| batch.step(decoder, &mut ids, &mut pools));
    let step = started.elapsed().as_secs_f64() / options.tokens as f64;
    let of_token = pools.bytes() as f64 / (pools.blocks() * BLOCK) as f64;
    let seen = (options.context + WARM + options.tokens / 2) as f64;
    let bytes = decoder.bytes() as f64 + count as f64 * seen * of_token;
    println!(
        "decode, {count} at once: {:.0} tokens/s, {:.2} ms a step, {:.2} of the limit",
        count as f64 / step,
        step * 1e3,
        bytes / read_bytes / step
    );
}

fn prefill(options: &Options, decoder: &DeviceDecoder, operations: f64) {
    let batch = Batch::new(1, options.prompt);
    let mut pools = match DevicePools::new(decoder, batch.blocks()) {
        Ok(pools) => pools,
        Err(why) => return println!("prefill: not measured: {why}"),
    };
    batch.read(decoder, 0, options.prompt, options.chunk, &mut pools);
    let started = Instant::now();
    batch.read(decoder, 0, options.prompt, options.chunk, &mut pools);
    let speed = options.prompt as f64 / started.elapsed().as_secs_f64();
    let limit = operations / (2.0 * decoder.layer_weights() as f64);
    println!("prefill, {} tokens: {speed:.0} tokens/s, {:.2} of the limit", options.prompt, speed / limit);
}
