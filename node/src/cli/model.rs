//! `cocoon model`: models on this machine, without a network.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args as ClapArgs, Subcommand};
use cocoon_inference::device::{DeviceChoice, Processor};
use cocoon_inference::kernels::Precision;
use cocoon_inference::{
    BurnEngine, ChatRole, Embedder, Embedding, Engine as _, GenerateRequest, Message, ModelInfo, Sampling,
    complete, embedder::is_embedder, manifest::verify_digest,
};
use serde_json::json;

use super::output;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The embedded model, and every checkpoint under the folders named
    List {
        /// Folders to look in
        folders: Vec<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check a checkpoint's files against a digest
    Verify {
        /// The checkpoint
        folder: PathBuf,
        /// The digest it must have, in hex, or name@digest
        digest: String,
    },
    /// Ask a model on this machine, without a network
    Generate {
        /// A checkpoint folder; absent, the embedded model
        folder: Option<PathBuf>,
        /// The question
        #[arg(short, long)]
        prompt: String,
        /// Randomness, 0 to 2
        #[arg(long, default_value_t = 0.0)]
        temperature: f32,
        /// Most tokens of the answer
        #[arg(long)]
        max_tokens: Option<u32>,
        /// Seed of the randomness
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// How the weights are kept: f32, f16, int8 or int4
        #[arg(long, default_value_t)]
        precision: Precision,
        /// Where it runs: cpu, cuda, cuda:N or auto
        #[arg(long, default_value_t)]
        device: DeviceChoice,
        /// Print {"ids", "text", "usage"}
        #[arg(long)]
        json: bool,
    },
    /// What a model computes after each of some tokens, to compare with another program
    Logits {
        /// A checkpoint folder; absent, the embedded model
        folder: Option<PathBuf>,
        /// Token ids, such as 1,2,3
        #[arg(long, value_delimiter = ',', required = true)]
        ids: Vec<u32>,
        /// How the weights are kept: f32, f16, int8 or int4
        #[arg(long, default_value_t)]
        precision: Precision,
        /// Where it runs: cpu, cuda, cuda:N or auto
        #[arg(long, default_value_t)]
        device: DeviceChoice,
        /// Print {"logits": [[…], …]}, one list for each position; otherwise only the best token of each
        #[arg(long)]
        json: bool,
    },
    /// Embed texts with a model of the BERT class, without a network
    Embed {
        /// A checkpoint folder as sentence-transformers publishes it
        folder: PathBuf,
        /// A text; may be given several times
        #[arg(short, long = "text", required = true)]
        texts: Vec<String>,
        /// How the weights are kept: f32, f16, int8 or int4
        #[arg(long, default_value_t)]
        precision: Precision,
        /// Print {"model", "embedding", "tokens", "truncated"}; for several texts "embeddings", and lists of the others
        #[arg(long)]
        json: bool,
    },
}

/// Tokens per step of `logits`: as a worker computes a prompt.
const CHUNK: usize = 64;

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::List { folders, json } => list(folders, *json),
        Command::Verify { folder, digest } => verify(folder, digest),
        Command::Generate { folder, prompt, temperature, max_tokens, seed, precision, device, json } => {
            let sampling = Sampling {
                temperature: *temperature,
                seed: *seed,
                max_tokens: *max_tokens,
                ..Sampling::default()
            };
            generate(&load_or_embedded(folder.as_deref(), *device, *precision)?, prompt, sampling, *json)
        }
        Command::Logits { folder, ids, precision, device, json } => {
            logits(&load_or_embedded(folder.as_deref(), *device, *precision)?, ids, *json)
        }
        Command::Embed { folder, texts, precision, json } => {
            embed(&load_embedder(folder, *precision)?, texts, *json)
        }
    }
}

fn list(folders: &[PathBuf], json: bool) -> anyhow::Result<()> {
    let describe = |info: &ModelInfo, path: String| {
        json!({
            "name": info.name, "digest": hex::encode(info.digest), "path": path, "family": info.family,
            "parameters": info.parameters, "context": info.context,
        })
    };
    let mut models = vec![describe(BurnEngine::embedded()?.info(), "(embedded)".into())];
    for folder in folders {
        for path in checkpoints(folder)? {
            let info = if is_embedder(&path)? {
                load_embedder(&path, Precision::F32)?.info().clone()
            } else {
                load(&path, Processor::Cpu, Precision::F32)?.info().clone()
            };
            models.push(describe(&info, path.display().to_string()));
        }
    }
    if json {
        output::json(&json!({"models": models}));
        return Ok(());
    }
    for model in &models {
        let text = |field: &str| model[field].as_str().unwrap_or("?").to_owned();
        output::line(format!("{}@{}", text("name"), text("digest")));
        output::line(format!(
            "    {}, {} parameters, context {}, {}",
            text("family"),
            model["parameters"],
            model["context"],
            text("path")
        ));
    }
    Ok(())
}

/// The folder if it is a checkpoint, otherwise those in it. What is inside a checkpoint is part of it, also where it
/// has a `config.json` of its own, as an embedder's pooling has.
fn checkpoints(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_checkpoint = |path: &Path| path.join("config.json").is_file();
    if is_checkpoint(folder) {
        return Ok(vec![folder.to_owned()]);
    }
    let inside = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut all: Vec<PathBuf> = inside.filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.retain(|path| is_checkpoint(path));
    all.sort();
    Ok(all)
}

fn verify(folder: &Path, digest: &str) -> anyhow::Result<()> {
    let hex_digits = digest.rsplit('@').next().unwrap_or(digest);
    let mut expected = [0; 32];
    hex::decode_to_slice(hex_digits, &mut expected)
        .context("the digest must be 64 hex digits, or name@ and 64 hex digits")?;
    verify_digest(folder, &expected)?;
    output::line(format!("{} is {hex_digits}", folder.display()));
    Ok(())
}

fn generate(engine: &BurnEngine, prompt: &str, sampling: Sampling, json: bool) -> anyhow::Result<()> {
    let messages = vec![Message::new(ChatRole::User, prompt)];
    let request = GenerateRequest::new(engine.info().digest, messages, sampling);
    let done = complete(engine, &request, |token| {
        if !json {
            output::piece(&token.text);
        }
    })?;
    if json {
        output::json(&json!({
            "ids": done.ids, "text": done.text,
            "usage": {"prompt_tokens": done.usage.prompt_tokens, "completion_tokens": done.usage.completion_tokens},
        }));
    } else {
        output::line("");
        let _ = std::io::stdout().flush();
    }
    Ok(())
}

fn logits(engine: &BurnEngine, ids: &[u32], json: bool) -> anyhow::Result<()> {
    let rows = engine.logits(ids, CHUNK)?;
    if json {
        output::json(&json!({"logits": rows}));
        return Ok(());
    }
    for (id, row) in ids.iter().zip(&rows) {
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        if let Some((best, logit)) = best {
            output::line(format!("after {id}: best {best} with {logit}"));
        }
    }
    Ok(())
}

fn embed(embedder: &Embedder, texts: &[String], json: bool) -> anyhow::Result<()> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let all = embedder.embed(&texts)?;
    if json {
        let info = embedder.info();
        let model = format!("{}@{}", info.name, hex::encode(info.digest));
        output::json(&match &all[..] {
            [Embedding { values, tokens, truncated }] => {
                json!({"model": model, "embedding": values, "tokens": tokens, "truncated": truncated})
            }
            all => json!({
                "model": model,
                "embeddings": all.iter().map(|one| &one.values).collect::<Vec<_>>(),
                "tokens": all.iter().map(|one| one.tokens).collect::<Vec<_>>(),
                "truncated": all.iter().map(|one| one.truncated).collect::<Vec<_>>(),
            }),
        });
        return Ok(());
    }
    for (i, one) in all.iter().enumerate() {
        let first: Vec<String> = one.values.iter().take(4).map(|x| format!("{x:.4}")).collect();
        let cut = if one.truncated { ", the text was cut" } else { "" };
        output::line(format!(
            "text {i}: {} tokens{cut}, {} values: {} …",
            one.tokens,
            one.values.len(),
            first.join(" ")
        ));
        for (j, other) in all[..i].iter().enumerate() {
            output::line(format!("    similar to text {j}: {:.4}", cosine(&one.values, &other.values)));
        }
    }
    Ok(())
}

/// The cosine of the angle between two vectors; 0 if one of them has no direction.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths > 0.0 { product(a, b) / lengths } else { 0.0 }
}

/// A checkpoint, or without a folder the embedded model, which is small enough for single precision.
pub(super) fn load_or_embedded(
    folder: Option<&Path>,
    device: DeviceChoice,
    precision: Precision,
) -> anyhow::Result<BurnEngine> {
    let processor = device.resolve().with_context(|| format!("cannot use the device `{device}`"))?;
    match folder {
        Some(folder) => load(folder, processor, precision),
        None if precision == Precision::F32 => Ok(BurnEngine::embedded_on(processor)?),
        None => {
            anyhow::bail!("the embedded model is served in f32 only; name a folder, or leave --precision out")
        }
    }
}

fn load(folder: &Path, processor: Processor, precision: Precision) -> anyhow::Result<BurnEngine> {
    Ok(watched(folder, |progress| BurnEngine::load_on(folder, processor, precision, None, progress))?)
}

fn load_embedder(folder: &Path, precision: Precision) -> anyhow::Result<Embedder> {
    Ok(watched(folder, |progress| Embedder::load_as(folder, precision, None, progress))?)
}

/// Shows how far the reading of a folder is.
fn watched<T>(folder: &Path, load: impl FnOnce(&mut (dyn FnMut(u64, u64) + Send)) -> T) -> T {
    let bar = output::bar(0, format!("loading {}", folder.display()));
    let loaded = load(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    loaded
}
