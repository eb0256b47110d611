//! Loading a Hugging Face checkpoint directory.
//!
//! ```text
//! config.json                    dimensions     → DecoderConfig, end-of-turn tokens (config)
//! *.safetensors                  weights        → Decoder                           (tensors)
//! model.safetensors.index.json   tensor → shard                                     (tensors)
//! tokenizer.json                 vocabulary     → ids ⇄ bytes                       (tokenizer)
//! tokenizer_config.json          chat template  → messages → prompt text            (template)
//! ```
//!
//! Every file is read once into memory, hashed there, and parsed from the same bytes: whoever owns
//! the disk cannot show one file to the hash and another to the parser. (A memory map would, and a
//! truncated map kills the process.) The manifest's digest is compared before anything else is
//! believed; the weights' size is bounded by what the configuration needs.
//!
//! Weights are f32 in memory whatever the file holds: burn-flex converts a whole bf16 matrix on
//! every product, which costs more than the memory it saves.

mod config;
mod template;
mod tensors;
mod tokenizer;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use config::{ConfigError, ModelConfig, parse_config, parse_dimensions};
pub use template::{ChatTemplate, TemplateError};
pub use tensors::{INDEX_FILE, TensorError, Tensors};
pub use tokenizer::{TextTokenizer, TokenizerError};

use crate::ModelDigest;
use crate::manifest::{self, Manifest, ManifestError};

/// Largest `config.json`; a real one has about a kilobyte.
pub const MAX_CONFIG_BYTES: u64 = 256 * 1024;
/// Largest tokenizer file; Gemma 3's has 33 MB. The index of the shards stays far below.
pub const MAX_TOKENIZER_BYTES: u64 = 64 * 1024 * 1024;
/// Room for a weight file's header and for tensors that are not used, beside the weights themselves.
const WEIGHT_SLACK_BYTES: u64 = 64 * 1024 * 1024;

/// Why a checkpoint cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be read, or the files are not the expected ones.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file that a checkpoint needs is not there.
    #[error("{name} is missing from the checkpoint; copy it from where the model was published")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A file is larger than its content can justify.
    #[error("{name} has {found} bytes, at most {limit} are expected; the file is not what its name says")]
    TooLarge {
        /// Its name.
        name: String,
        /// Its size.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// `config.json`.
    #[error("config.json: {0}")]
    Config(#[from] ConfigError),
    /// `*.safetensors`.
    #[error("weights: {0}")]
    Tensor(#[from] TensorError),
    /// `tokenizer.json`.
    #[error("tokenizer.json: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// The device cannot take the model.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The backend failed while taking the weights.
    #[error("the backend could not take the weights: {0}")]
    Backend(String),
}

/// A checkpoint, parsed and checked; weights are still on the host.
#[derive(Debug)]
pub struct Checkpoint {
    /// Name of its folder.
    pub name: String,
    /// Dimensions and end-of-turn tokens.
    pub config: ModelConfig,
    /// Weights by name.
    pub tensors: Tensors,
    /// Vocabulary.
    pub tokenizer: TextTokenizer,
    /// Chat template.
    pub template: ChatTemplate,
    /// The files as they were read.
    pub manifest: Manifest,
}

impl Checkpoint {
    /// Reads a folder. `progress` gets bytes read and bytes in all.
    pub fn open(
        dir: &Path,
        expected: Option<&ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let opened =
            read_dir(dir, progress).and_then(|files| Self::from_files(folder_name(dir), files, expected));
        match (opened, expected) {
            // Whatever is wrong inside a file, that it is not the expected file is the better
            // answer.
            (Err(error), Some(digest)) if !matches!(error, LoadError::Manifest(_)) => {
                manifest::verify_digest(dir, digest)?;
                Err(error)
            }
            (opened, _) => opened,
        }
    }

    /// Parses files that are in memory already. Those that no engine reads are ignored.
    pub fn from_files(
        name: String,
        files: Vec<(String, Vec<u8>)>,
        expected: Option<&ModelDigest>,
    ) -> Result<Self, LoadError> {
        let files: Vec<_> = files.into_iter().filter(|(name, _)| manifest::is_model_file(name)).collect();
        let manifest = Manifest::of_files(files.iter().map(|(n, b)| (n.as_str(), b.as_slice())));
        if let Some(digest) = expected {
            manifest::expect(&manifest, digest)?;
        }
        let find = |wanted: &str| files.iter().find(|(n, _)| n == wanted).map(|(_, b)| b.as_slice());
        let need = |wanted: &'static str| find(wanted).ok_or(LoadError::Missing { name: wanted });
        let config = parse_config(need("config.json")?, find("generation_config.json"))?;
        let tokenizer = TextTokenizer::parse(need("tokenizer.json")?, config.dimensions.vocab_size)?;
        let template = ChatTemplate::parse(find("tokenizer_config.json"), find("chat_template.jinja"))?;
        let index = find(INDEX_FILE).map(<[u8]>::to_vec);
        let weights = files.into_iter().filter(|(n, _)| n.ends_with(".safetensors")).collect();
        let tensors = Tensors::parse(weights, index.as_deref())?;
        Ok(Self { name, config, tensors, tokenizer, template, manifest })
    }
}

fn folder_name(dir: &Path) -> String {
    let resolved = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let name = resolved.file_name().and_then(|n| n.to_str()).unwrap_or("model");
    name.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(96).collect()
}

fn read_dir(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<(String, Vec<u8>)>, LoadError> {
    let names = manifest::model_files(dir)?;
    let mut total = 0;
    let mut sizes = Vec::new();
    for name in &names {
        let size = std::fs::metadata(dir.join(name)).map_err(|e| io(dir, name, e))?.len();
        total += size;
        sizes.push(size);
    }
    // The configuration first: it bounds everything else.
    let config = read(dir, "config.json", MAX_CONFIG_BYTES)?;
    let weights = parse_dimensions(&config)?.parameters().saturating_mul(4);
    let mut room = weights.saturating_add(WEIGHT_SLACK_BYTES);
    let mut done = 0;
    let mut files = Vec::new();
    for (name, size) in names.into_iter().zip(sizes) {
        progress(done, total);
        let bytes = match name.as_str() {
            "config.json" => config.clone(),
            n if n.ends_with(".safetensors") => {
                let bytes = read(dir, &name, room)?;
                room -= bytes.len() as u64;
                bytes
            }
            _ => read(dir, &name, MAX_TOKENIZER_BYTES)?,
        };
        done += size;
        files.push((name, bytes));
    }
    progress(done, total);
    Ok(files)
}

fn read(dir: &Path, name: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
    let file = File::open(dir.join(name)).map_err(|e| io(dir, name, e))?;
    let found = file.metadata().map_err(|e| io(dir, name, e))?.len();
    if found > limit {
        return Err(LoadError::TooLarge { name: name.to_owned(), found, limit });
    }
    let mut bytes = Vec::with_capacity(found as usize);
    // The file may grow while it is read.
    file.take(limit).read_to_end(&mut bytes).map_err(|e| io(dir, name, e))?;
    Ok(bytes)
}

fn io(dir: &Path, name: &str, source: std::io::Error) -> LoadError {
    ManifestError::Io { path: dir.join(name).display().to_string(), source }.into()
}
