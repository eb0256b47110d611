//! Loading a Hugging Face checkpoint directory.
//!
//! ```text
//! config.json                    dimensions     → DecoderConfig, end-of-turn tokens (config)
//! *.safetensors                  weights        → Decoder                           (index, tensors, stream)
//! model.safetensors.index.json   tensor → shard                                     (index)
//! tokenizer.json                 vocabulary     → ids ⇄ bytes                       (tokenizer)
//! tokenizer_config.json          chat template  → messages → prompt text            (template)
//! ```
//!
//! An [`Outline`] is all of it but the weights, for models that somebody else computes. What an
//! [`embedder`](crate::embedder) reads beside these is said there.
//!
//! Whoever owns the disk must not be able to show one file to the hash and another to the parser. So every byte is
//! read once into memory of the process, and is hashed there and used from the same copy: small files as a whole, and
//! so the weights in [`Checkpoint::open`]; in [`Unread::read`] the weights a few megabytes at a time, straight into
//! the form in which they serve (`stream.rs` says how). With a digest, the configuration and the headers of the weight
//! files are all that is parsed before it is compared. The size of the weights is bounded by what the configuration
//! needs.

mod config;
mod files;
mod index;
mod outline;
mod stream;
mod template;
mod tensors;
mod tokenizer;

use std::path::Path;

use files::Files;
use stream::Plan;

pub use config::{ConfigError, ModelConfig, parse_config, parse_dimensions};
pub(crate) use config::{Fields, MAX_PARAMETERS};
pub(crate) use files::{Contents, read_config};
pub use index::{INDEX_FILE, TensorError};
pub use outline::Outline;
pub use template::{ChatTemplate, Prompt, TemplateError};
pub use tensors::Tensors;
pub use tokenizer::{TextTokenizer, TokenizerError};

use crate::ModelDigest;
use crate::decoder::weights::layout;
use crate::manifest::{self, Manifest, ManifestError};

/// Largest `config.json`; a real one has about a kilobyte.
pub const MAX_CONFIG_BYTES: u64 = 256 * 1024;
/// Largest tokenizer file; Gemma 3's has 33 MB. The index of the shards stays far below.
pub const MAX_TOKENIZER_BYTES: u64 = 64 * 1024 * 1024;

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
    /// A file that says what becomes of an encoder's output.
    #[error("{file}: {why}")]
    Module {
        /// Its name.
        file: &'static str,
        /// What is wrong in it. Boxed, since it and a name would make every result of loading larger.
        why: Box<ConfigError>,
    },
    /// The device cannot take the model.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The packed weights are too large.
    #[error(
        "no memory for the weights: {0}; choose a precision of fewer bits, or a machine with more memory"
    )]
    Memory(std::io::Error),
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
        Contents::open(dir, expected, parameters, progress, Self::parse)
    }

    /// Parses files that are in memory already. Those that no engine reads are ignored.
    pub fn from_files(
        name: String,
        files: Vec<(String, Vec<u8>)>,
        expected: Option<&ModelDigest>,
    ) -> Result<Self, LoadError> {
        Self::parse(Contents::new(name, files, expected)?)
    }

    fn parse(contents: Contents) -> Result<Self, LoadError> {
        let config = contents.texts.config()?;
        let (tokenizer, template) =
            (contents.texts.tokenizer(config.dimensions.vocab_size)?, contents.texts.template()?);
        let (name, manifest) = (contents.name.clone(), contents.manifest.clone());
        Ok(Self { name, config, tensors: contents.into_tensors()?, tokenizer, template, manifest })
    }
}

/// Values in the weight files of a decoder.
fn parameters(config: &[u8]) -> Result<u64, ConfigError> {
    Ok(parse_dimensions(config)?.parameters())
}

/// A checkpoint whose weights are still to be read.
#[derive(Debug)]
pub struct Unread {
    config: ModelConfig,
    expected: Option<ModelDigest>,
    files: Files,
    plan: Plan,
}

/// A checkpoint without its weights.
#[derive(Debug)]
pub struct Description {
    /// Name of its folder.
    pub name: String,
    /// Dimensions and end-of-turn tokens.
    pub config: ModelConfig,
    /// Vocabulary.
    pub tokenizer: TextTokenizer,
    /// Chat template.
    pub template: ChatTemplate,
    /// The files as they were read.
    pub manifest: Manifest,
}

impl Unread {
    /// Opens a folder, and looks for all tensors that the configuration asks for.
    pub fn open(dir: &Path, expected: Option<ModelDigest>) -> Result<Self, LoadError> {
        Self::new(Files::open(dir, parameters)?, expected)
    }

    /// The same with files that are in memory. Those that no engine reads are ignored.
    pub fn in_memory(name: String, files: Vec<(String, Vec<u8>)>) -> Result<Self, LoadError> {
        Self::new(Files::in_memory(name, files), None)
    }

    fn new(files: Files, expected: Option<ModelDigest>) -> Result<Self, LoadError> {
        let config = files.texts.config()?;
        let plan = files.index().and_then(|index| Plan::new(&index, layout(&config.dimensions)));
        if plan.is_err() && expected.is_none() {
            // A vocabulary that does not fit the configuration is the better answer.
            files.texts.tokenizer(config.dimensions.vocab_size)?;
        }
        Ok(Self { config, expected, files, plan: plan? })
    }

    /// Dimensions and end-of-turn tokens.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Reads the weights, once. `put` gets all rows of all tensors that [`layout`] lists: the number of the tensor
    /// there, that of the first row, and the values. It is called from several threads, in any order. What it was
    /// given is the model only if this succeeds. `progress` gets bytes read and bytes in all.
    pub fn read(
        self,
        progress: &mut (dyn FnMut(u64, u64) + Send),
        put: &(dyn Fn(usize, usize, &[f32]) + Sync),
    ) -> Result<Description, LoadError> {
        let Self { config, expected, files: Files { name, texts, weights }, plan } = self;
        let before = texts.bytes();
        let total = before + weights.iter().map(|file| file.size).sum::<u64>();
        let mut tell = |done: u64| progress(before + done, total);
        tell(0);
        let mut read = || plan.read(&weights, &mut tell, put);
        let parse = || Ok((texts.tokenizer(config.dimensions.vocab_size)?, texts.template()?));
        let (entries, parsed): (_, Option<Result<_, LoadError>>) = match expected {
            // A large vocabulary takes as long as some hundred megabytes of weights.
            None => rayon::join(read, || Some(parse())),
            Some(_) => (read(), None),
        };
        let mut manifest = texts.manifest();
        for (name, entry) in entries? {
            manifest.put(name, entry);
        }
        if let Some(digest) = expected {
            manifest::expect(&manifest, &digest)?;
        }
        let (tokenizer, template) = parsed.unwrap_or_else(parse)?;
        Ok(Description { name, config, tokenizer, template, manifest })
    }
}

/// The error of a folder that was to have a digest. Whatever is wrong inside a file, that it is not the expected file
/// is the better answer.
pub(crate) fn blame(dir: &Path, expected: Option<&ModelDigest>, error: LoadError) -> LoadError {
    let inside = !matches!(
        error,
        LoadError::Manifest(_) | LoadError::Memory(_) | LoadError::Backend(_) | LoadError::Device(_)
    );
    match expected.filter(|_| inside).map(|digest| manifest::verify_digest(dir, digest)) {
        Some(Err(other)) => other.into(),
        _ => error,
    }
}
