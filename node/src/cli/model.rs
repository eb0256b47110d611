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
    BurnEngine, ChatRole, Engine as _, GenerateRequest, Message, Sampling, complete, manifest::verify_digest,
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
        /// How the weights are kept: f32, f16 or int8
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
        /// How the weights are kept: f32, f16 or int8
        #[arg(long, default_value_t)]
        precision: Precision,
        /// Where it runs: cpu, cuda, cuda:N or auto
        #[arg(long, default_value_t)]
        device: DeviceChoice,
        /// Print {"logits": [[…], …]}, one list for each position; otherwise only the best token of each
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
    }
}

fn list(folders: &[PathBuf], json: bool) -> anyhow::Result<()> {
    let describe = |engine: &BurnEngine, path: String| {
        let info = engine.info();
        json!({
            "name": info.name, "digest": hex::encode(info.digest), "path": path, "family": info.family,
            "parameters": info.parameters, "context": info.context,
        })
    };
    let mut models = vec![describe(&BurnEngine::embedded()?, "(embedded)".into())];
    for folder in folders {
        let inside =
            std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut all: Vec<PathBuf> = inside.filter_map(|entry| Some(entry.ok()?.path())).collect();
        all.push(folder.clone());
        all.sort();
        for path in all.into_iter().filter(|path| path.join("config.json").is_file()) {
            models.push(describe(&load(&path, Precision::F32)?, path.display().to_string()));
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
    let request = GenerateRequest {
        model: engine.info().digest,
        messages: vec![Message { role: ChatRole::User, content: prompt.to_owned() }],
        sampling,
        prefix: Vec::new(),
    };
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
    let bar = output::bar(0, format!("loading {}", folder.display()));
    let engine = BurnEngine::load_on(folder, processor, precision, None, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(engine?)
}
