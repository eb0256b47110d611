//! `cocoon model`: models on this machine, without a network.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args as ClapArgs, Subcommand};
use cocoon_inference::{
    BurnEngine, ChatRole, Engine as _, GenerateRequest, Message, Sampling, complete, embedded,
    manifest::verify_digest,
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
        /// Print {"ids", "text", "usage"}
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::List { folders, json } => list(folders, *json),
        Command::Verify { folder, digest } => verify(folder, digest),
        Command::Generate { folder, prompt, temperature, max_tokens, seed, json } => {
            let sampling = Sampling {
                temperature: *temperature,
                top_p: 1.0,
                seed: *seed,
                stop: Vec::new(),
                max_tokens: *max_tokens,
            };
            generate(folder.as_deref(), prompt, sampling, *json)
        }
    }
}

fn list(folders: &[PathBuf], json: bool) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let embedded_dir = scratch.path().join(embedded::NAME);
    embedded::write_to(&embedded_dir).context("cannot unpack the embedded model")?;
    let mut found = vec![("(embedded)".to_owned(), embedded_dir)];
    for folder in folders {
        let inside =
            std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut all: Vec<PathBuf> = inside.filter_map(|entry| Some(entry.ok()?.path())).collect();
        all.push(folder.clone());
        all.sort();
        found.extend(
            all.into_iter()
                .filter(|path| path.join("config.json").is_file())
                .map(|path| (path.display().to_string(), path)),
        );
    }
    let mut models = Vec::new();
    for (shown, path) in found {
        let engine = load(&path)?;
        let info = engine.info();
        models.push(json!({
            "name": info.name, "digest": hex::encode(info.digest), "path": shown, "family": info.family,
            "parameters": info.parameters, "context": info.context,
        }));
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

fn generate(folder: Option<&Path>, prompt: &str, sampling: Sampling, json: bool) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = match folder {
        Some(folder) => folder.to_owned(),
        None => {
            let dir = scratch.path().join(embedded::NAME);
            embedded::write_to(&dir).context("cannot unpack the embedded model")?;
            dir
        }
    };
    let engine = load(&folder)?;
    let request = GenerateRequest {
        model: engine.info().digest,
        messages: vec![Message { role: ChatRole::User, content: prompt.to_owned() }],
        sampling,
        prefix: Vec::new(),
    };
    let done = complete(&engine, &request, |token| {
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

fn load(folder: &Path) -> anyhow::Result<BurnEngine> {
    let bar = output::bar(0, format!("loading {}", folder.display()));
    let engine = BurnEngine::load(folder, None, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(engine?)
}
