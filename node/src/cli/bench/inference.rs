//! `cocoon bench inference`: how fast a model reads and writes on this machine, against what the machine can do.
//!
//! * *Decode*: one sequence, token after token. Each token needs every weight once, so the limit is the speed at
//!   which all threads together read as many bytes.
//! * *Prefill*: a prompt in the engine's chunks. The limit is the speed of products whose weights stay in the cache
//!   of each core.
//! * *Askers*: several answers at once through the runner, as a worker makes them. One asker's speed, taken the same
//!   way, is what theirs together is compared with.
//!
//! On a GPU the limits are those of its memory and of its matrix units.

// A shell: measuring is what it is for.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::{
    hint::black_box,
    path::PathBuf,
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use cocoon_inference::{
    BurnEngine, ChatRole, Engine as _, GenerateRequest, Message, Sampling,
    device::DeviceChoice,
    kernels::{Matrix, Precision, matmul},
    runner::{Event, JobHandle, Runner, RunnerLimits, Terms},
};
use serde::Serialize;
use serde_json::json;

use crate::cli::{model::load_or_embedded, output};

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// A checkpoint folder; absent, the embedded model
    folder: Option<PathBuf>,
    /// How the weights are kept, one row each: f32, f16, int8, int4
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    precision: Vec<Precision>,
    /// Where it runs: cpu, cuda, cuda:N or auto
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 641)]
    prompt: usize,
    /// Tokens of the answer
    #[arg(long, default_value_t = 100)]
    tokens: usize,
    /// Askers at once
    #[arg(long, default_value_t = 8)]
    askers: usize,
    /// Repetitions; the best counts, and the median is shown beside it
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Of repetitions, in tokens per second.
#[derive(Debug, Serialize)]
struct Speed {
    best: f64,
    median: f64,
    limit: f64,
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Row {
    precision: Precision,
    weight_bytes: usize,
    load_s: f64,
    rounding_max: f64,
    rounding_rms: f64,
    prefill: Speed,
    /// After one token.
    decode: Speed,
    /// After the prompt.
    decode_after_prompt: Speed,
    /// Of one asker, through the runner.
    one_asker: f64,
    /// Of several, together; the limit is what one asker reaches, times their number.
    askers: Speed,
}

pub(in crate::cli) fn run(args: &Args) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut name = String::new();
    for &precision in &args.precision {
        let started = Instant::now();
        let engine = load_or_embedded(args.folder.as_deref(), args.device, precision)?;
        let load_s = started.elapsed().as_secs_f64();
        name = format!("{} ({} parameters)", engine.info().name, engine.info().parameters);
        let bar = output::spinner(format!("measuring {precision}"));
        let row = measure(&engine, precision, load_s, args);
        bar.finish_and_clear();
        rows.push(row?);
    }
    if args.json {
        output::json(&json!({"model": name, "prompt": args.prompt, "tokens": args.tokens, "rows": rows}));
        return Ok(());
    }
    output::line(format!(
        "{name}, prompt of {} tokens, answer of {}; best (median) tokens/s",
        args.prompt, args.tokens
    ));
    for row in &rows {
        let speed = |what: &str, s: &Speed| {
            output::line(format!(
                "  {what:<22}{:>8.0} ({:.0})   limit {:.0}, ratio {:.2}",
                s.best, s.median, s.limit, s.ratio
            ));
        };
        let mib = row.weight_bytes as f64 / f64::from(1 << 20);
        output::line(format!("{}: {mib:.1} MiB of weights, loaded in {:.2} s", row.precision, row.load_s));
        speed("prefill", &row.prefill);
        speed("decode", &row.decode);
        speed("decode after prompt", &row.decode_after_prompt);
        speed(&format!("{} askers together", args.askers), &row.askers);
        output::line(format!(
            "  {:<22}{:>8.1} x one asker's {:.0}",
            "",
            row.askers.best / row.one_asker,
            row.one_asker
        ));
        if row.rounding_max > 0.0 {
            output::line(format!(
                "  rounding of weights: at most {:.2e} of the largest, {:.2e} RMS",
                row.rounding_max, row.rounding_rms
            ));
        }
    }
    Ok(())
}

fn measure(engine: &BurnEngine, precision: Precision, load_s: f64, args: &Args) -> anyhow::Result<Row> {
    let context = engine.info().context as usize;
    let prompt = args.prompt.clamp(1, context - 1);
    let tokens = args.tokens.clamp(1, context - prompt);
    // Any ids will do: the work does not depend on them.
    let vocab = engine.sequence(1).feed(&[0])?.len();
    let ids: Vec<u32> = (0..prompt).map(|i| ((i * 7919) % vocab) as u32).collect();
    let (mut prefill, mut decode, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.repeat.max(1) {
        let mut sequence = engine.sequence(prompt + tokens);
        let started = Instant::now();
        let mut logits = sequence.feed(&ids)?;
        prefill.push(prompt as f64 / started.elapsed().as_secs_f64());
        let started = Instant::now();
        for _ in 0..tokens {
            logits = sequence.feed(&[best(&logits)])?;
        }
        after.push(tokens as f64 / started.elapsed().as_secs_f64());
        let mut sequence = engine.sequence(tokens + 1);
        logits = sequence.feed(&ids[..1])?;
        let started = Instant::now();
        for _ in 0..tokens {
            logits = sequence.feed(&[best(&logits)])?;
        }
        decode.push(tokens as f64 / started.elapsed().as_secs_f64());
    }
    let of_askers = |askers: usize| -> anyhow::Result<Vec<f64>> {
        (0..args.repeat.max(1)).map(|_| together(engine, askers.max(1), tokens)).collect()
    };
    let one_asker = of_askers(1)?.into_iter().fold(0.0, f64::max);
    let askers = of_askers(args.askers)?;
    let operations = 2.0 * engine.layer_weights() as f64;
    let (read, product) = match engine.device_limits().transpose()? {
        Some(limits) => {
            (limits.read_bytes / engine.weight_bytes() as f64, limits.product_operations / operations)
        }
        None => (read_limit(engine.weight_bytes()), product_limit(precision) / operations),
    };
    let error = engine.rounding_error();
    Ok(Row {
        precision,
        weight_bytes: engine.weight_bytes(),
        load_s,
        rounding_max: error.max,
        rounding_rms: error.rms,
        prefill: speed(prefill, product),
        decode: speed(decode, read),
        decode_after_prompt: speed(after, read),
        one_asker,
        askers: speed(askers, one_asker * args.askers as f64),
    })
}

/// Tokens per second of several answers at once, from the first payment to the last end.
fn together(engine: &BurnEngine, askers: usize, tokens: usize) -> anyhow::Result<f64> {
    let limits = RunnerLimits { slots: askers, ..RunnerLimits::default() };
    let runner = Runner::spawn(Arc::new(engine.clone()), limits)?;
    let (sender, events) = channel();
    let ask = |asker: usize| -> anyhow::Result<JobHandle> {
        let sampling =
            Sampling { temperature: 0.0, max_tokens: u32::try_from(tokens).ok(), ..Sampling::default() };
        let messages = vec![Message::new(ChatRole::User, format!("Tell {asker}"))];
        let request = GenerateRequest::new(engine.info().digest, messages, sampling);
        let sender = sender.clone();
        let sink = move |event| drop(sender.send(event));
        Ok(runner.submit(request, Terms::of(asker as u64, [asker as u8; 32]), Box::new(sink))?)
    };
    let handles: Vec<JobHandle> = (0..askers).map(ask).collect::<anyhow::Result<_>>()?;
    let (mut prepared, mut made, mut ended) = (0, 0, 0);
    let mut started = Instant::now();
    while ended < askers {
        match events.recv()? {
            Event::Prepared { .. } => {
                prepared += 1;
                if prepared == askers {
                    started = Instant::now();
                    handles.iter().for_each(|handle| handle.allow(u32::MAX));
                }
            }
            Event::Tokens(tokens) => made += tokens.len(),
            Event::Finished { .. } => ended += 1,
            Event::Rejected(error) => return Err(error.into()),
            Event::Failed(why) => anyhow::bail!(why),
            Event::Displaced => anyhow::bail!("displaced"),
        }
    }
    Ok(made as f64 / started.elapsed().as_secs_f64())
}

fn speed(mut found: Vec<f64>, limit: f64) -> Speed {
    found.sort_by(f64::total_cmp);
    let best = found.last().copied().unwrap_or(0.0);
    let median = found.get(found.len() / 2).copied().unwrap_or(0.0);
    Speed { best, median, limit, ratio: best / limit }
}

fn best(logits: &[f32]) -> u32 {
    (0u32..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id)
}

/// How often per second all threads together read `bytes`. Each reads several runs of memory at a time, which is
/// more than the processor's own prefetching makes of one.
fn read_limit(bytes: usize) -> f64 {
    const RUNS: usize = 8;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let words = vec![[1u64; 8]; (bytes / 64).max(threads * RUNS)];
    let sum = |part: &[[u64; 8]]| {
        let length = part.len() / RUNS;
        let mut sums = [[0u64; 8]; RUNS];
        for i in 0..length {
            for (run, sum) in sums.iter_mut().enumerate() {
                for (sum, word) in sum.iter_mut().zip(&part[run * length + i]) {
                    *sum = sum.wrapping_add(*word);
                }
            }
        }
        sums.iter().flatten().fold(0u64, |a, b| a.wrapping_add(*b))
    };
    let rounds = ((256 << 20) / bytes.max(1)).clamp(3, 4096) as u32;
    let took = best_of(|| {
        std::thread::scope(|scope| {
            for part in words.chunks(words.len() / threads) {
                scope.spawn(move || {
                    for _ in 0..rounds {
                        black_box(sum(black_box(part)));
                    }
                });
            }
        });
    });
    f64::from(rounds) / took.as_secs_f64()
}

/// Operations per second of a product whose weights stay in the cache of each core, on all threads.
fn product_limit(precision: Precision) -> f64 {
    const ROUNDS: usize = 40;
    let (rows, width) = (256, 512);
    let weight = Matrix::from_slice(width, width, precision, &vec![0.5; width * width]);
    let x = vec![0.25; rows * width];
    let mut out = vec![0.0; rows * width];
    let took = best_of(|| {
        for _ in 0..ROUNDS {
            matmul(black_box(&x), rows, &weight, &mut out);
        }
    });
    (2 * rows * width * width * ROUNDS) as f64 / took.as_secs_f64()
}

fn best_of(mut run: impl FnMut()) -> Duration {
    let once = |_| {
        let started = Instant::now();
        run();
        started.elapsed()
    };
    (0..5).map(once).min().unwrap_or(Duration::MAX)
}
