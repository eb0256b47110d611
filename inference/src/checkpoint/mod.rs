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
//! What an [`embedder`](crate::embedder) reads beside these is said there.
//!
//! Every file is read once into memory, hashed there, and parsed from the same bytes: whoever owns
//! the disk cannot show one file to the hash and another to the parser. (A memory map would, and a
//! truncated map kills the process.) The manifest's digest is compared before anything else is
//! believed; the weights' size is bounded by what the configuration needs.
//!
//! Weights are f32 in memory whatever the file holds: burn-flex converts a whole bf16 matrix on
//! every product, which costs more than the memory it saves.

mod config;
mod files;
mod template;
mod tensors;
mod tokenizer;

use std::path::Path;

pub use config::{ConfigError, ModelConfig, parse_config, parse_dimensions};
pub(crate) use config::{Fields, MAX_PARAMETERS};
pub(crate) use files::{Files, read_config};
pub use template::{ChatTemplate, Prompt, TemplateError};
pub use tensors::{INDEX_FILE, TensorError, Tensors};
pub use tokenizer::{TextTokenizer, TokenizerError};

use crate::ModelDigest;
use crate::manifest::{Manifest, ManifestError};

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
        let parameters = |config: &[u8]| Ok(parse_dimensions(config)?.parameters());
        Files::open(dir, expected, parameters, progress, Self::parse)
    }

    /// Parses files that are in memory already. Those that no engine reads are ignored.
    pub fn from_files(
        name: String,
        files: Vec<(String, Vec<u8>)>,
        expected: Option<&ModelDigest>,
    ) -> Result<Self, LoadError> {
        Self::parse(Files::new(name, files, expected)?)
    }

    fn parse(files: Files) -> Result<Self, LoadError> {
        let config = parse_config(files.need("config.json")?, files.find("generation_config.json"))?;
        let tokenizer = TextTokenizer::parse(files.need("tokenizer.json")?, config.dimensions.vocab_size)?;
        let template =
            ChatTemplate::parse(files.find("tokenizer_config.json"), files.find("chat_template.jinja"))?;
        let (name, manifest) = (files.name.clone(), files.manifest.clone());
        Ok(Self { name, config, tensors: files.into_tensors()?, tokenizer, template, manifest })
    }
}
