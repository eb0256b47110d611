//! Embeddings: one vector for each text, by an encoder of the BERT class.
//!
//! ```text
//! config.json                         dimensions     → EncoderConfig            (config)
//! *.safetensors                       weights        → Encoder                  (weights, encoder)
//! tokenizer.json                      vocabulary     → ids                      (tokenizer)
//! modules.json                        steps          → Recipe                   (modules)
//! 1_Pooling/config.json               rows → vector  → Pooling                  (pooling)
//! sentence_bert_config.json           longest text
//! tokenizer_config.json               longest text, where the file above has none
//! config_sentence_transformers.json   prompts, which must not be needed
//! ```
//!
//! The folder is what sentence-transformers publishes, and the vectors are those that its `encode` gives. All these
//! files are in the [manifest](crate::manifest), since each can change the vectors.
//!
//! Texts are read together up to [`STEP_TOKENS`] tokens at a time, so that memory is bounded; what a text gives does
//! not depend on the others. A text that is longer than the model reads is cut, and its [`Embedding`] says so.

mod config;
mod encoder;
mod modules;
mod pooling;
mod tokenizer;
mod weights;

use std::path::Path;

pub(crate) use config::EncoderConfig;
use encoder::Encoder;
pub(crate) use modules::Recipe;
use tokenizer::{EncoderTokenizer, Tokens};

use crate::checkpoint::{Contents, Fields, LoadError, read_config};
use crate::kernels::Precision;
use crate::manifest::Manifest;
use crate::{ModelDigest, ModelInfo};

/// Most texts of one call: as many as OpenAI's endpoint takes.
pub const MAX_TEXTS: usize = 2048;
/// Longest text in bytes, the same as of a conversation: far above what any encoder reads.
pub const MAX_TEXT_BYTES: usize = crate::limits::MAX_CONTENT_BYTES;
/// Tokens that are computed side by side: enough for matrix products at full speed. A longer text is computed alone.
pub const STEP_TOKENS: usize = 1024;

/// The vector of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As many values as [`Embedder::dimension`] says.
    pub values: Vec<f32>,
    /// Tokens that were read, those that the tokenizer adds among them.
    pub tokens: u32,
    /// Whether the text was longer than the model reads, so that its end had no effect.
    pub truncated: bool,
}

/// Why there are no embeddings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// No text at all.
    #[error("there is no text; name at least one")]
    NoTexts,
    /// More texts than one call takes.
    #[error("{found} texts, at most {MAX_TEXTS} are taken at once; send them in several parts")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// A text that says nothing to the model.
    #[error("text {index} holds no token, so it has no embedding; leave it out")]
    Empty {
        /// Its place, counted from 0.
        index: usize,
    },
    /// A text far beyond what any model reads.
    #[error("text {index} has {found} bytes, at most {MAX_TEXT_BYTES} are taken; cut it into pieces")]
    TooLong {
        /// Its place, counted from 0.
        index: usize,
        /// Its bytes.
        found: usize,
    },
    /// The library failed on a text.
    #[error("cannot tokenise text {index}: {why}")]
    Tokenizer {
        /// Its place, counted from 0.
        index: usize,
        /// What the library reported.
        why: String,
    },
    /// The tokenizer speaks of a row that a table has not.
    #[error(
        "text {index}: the tokenizer gives {table} {id}, but the model has {rows} of them; fetch tokenizer.json and \
         config.json of one model"
    )]
    Foreign {
        /// The text's place, counted from 0.
        index: usize,
        /// Which table.
        table: &'static str,
        /// The row.
        id: u32,
        /// How many rows there are.
        rows: usize,
    },
    /// The model computed something that is no number.
    #[error(
        "the embedding of text {index} holds NaN or infinity; the weights are too large for this precision, or do not \
         fit their configuration: try f32"
    )]
    NotFinite {
        /// The text's place, counted from 0.
        index: usize,
    },
}

/// Whether a folder holds an embedder, by its `config.json`, and not a model that generates.
pub fn is_embedder(dir: &Path) -> Result<bool, LoadError> {
    let fields = Fields::parse(&read_config(dir)?)?;
    Ok(fields.get("model_type").is_some_and(|kind| kind == config::FAMILY))
}

/// A model that makes embeddings.
#[derive(Debug)]
pub struct Embedder {
    info: ModelInfo,
    manifest: Manifest,
    tokenizer: EncoderTokenizer,
    encoder: Encoder,
    recipe: Recipe,
}

impl Embedder {
    /// Loads a checkpoint directory on the CPU, its weights in single precision. With `expected`, the files must be
    /// those of that digest. `progress` gets bytes read and bytes in all.
    pub fn load(
        dir: &Path,
        expected: Option<ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        Self::load_as(dir, Precision::F32, expected, progress)
    }

    /// The same, with the weights in another precision.
    pub fn load_as(
        dir: &Path,
        precision: Precision,
        expected: Option<ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let parameters = |config: &[u8]| Ok(EncoderConfig::parse(config)?.parameters_on_disk());
        Contents::open(dir, expected.as_ref(), parameters, progress, |files| Self::parse(files, precision))
    }

    fn parse(files: Contents, precision: Precision) -> Result<Self, LoadError> {
        let config = EncoderConfig::parse(files.need("config.json")?)?;
        let recipe = Recipe::read(|name| files.find(name), config.hidden_size, config.positions)?;
        let tokenizer = EncoderTokenizer::parse(files.need("tokenizer.json")?, &config, recipe.max_tokens)?;
        let (name, manifest) = (files.name.clone(), files.manifest.clone());
        let info = ModelInfo {
            name,
            digest: manifest.digest(),
            context: count(recipe.max_tokens),
            parameters: config.parameters(),
            family: config::FAMILY.into(),
            quantisation: precision.name().into(),
        };
        let encoder = Encoder::read(config, precision, &files.into_tensors()?)?;
        Ok(Self { info, manifest, tokenizer, encoder, recipe })
    }

    /// What it is; its context is the number of tokens of a text that are read.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The files that were loaded.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Values in an embedding.
    pub fn dimension(&self) -> usize {
        self.encoder.width()
    }

    /// The embedding of each text, in order. Either all texts have one, or the error names the first that has none.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, EmbedError> {
        match texts.len() {
            0 => return Err(EmbedError::NoTexts),
            found if found > MAX_TEXTS => return Err(EmbedError::TooMany { found }),
            _ => {}
        }
        let texts: Vec<Tokens> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| self.tokenizer.encode(i, text))
            .collect::<Result<_, _>>()?;
        let mut all = Vec::with_capacity(texts.len());
        let mut rest = &texts[..];
        while !rest.is_empty() {
            let (step, later) = rest.split_at(step(rest));
            self.embed_step(step, &mut all)?;
            rest = later;
        }
        Ok(all)
    }

    fn embed_step(&self, texts: &[Tokens], all: &mut Vec<Embedding>) -> Result<(), EmbedError> {
        let width = self.encoder.width();
        let rows = self.encoder.run(texts);
        let mut from = 0;
        for text in texts {
            let rows = &rows[from..][..text.ids.len() * width];
            from += rows.len();
            let mut values = self.recipe.pooling.pool(rows, width);
            if self.recipe.normalise {
                pooling::normalise(&mut values);
            }
            if !values.iter().all(|x| x.is_finite()) {
                return Err(EmbedError::NotFinite { index: all.len() });
            }
            all.push(Embedding { values, tokens: count(text.ids.len()), truncated: text.truncated });
        }
        Ok(())
    }
}

/// How many of the next texts are computed together: at least one.
fn step(texts: &[Tokens]) -> usize {
    let mut tokens = 0;
    let fits = texts.iter().take_while(|text| {
        tokens += text.ids.len();
        tokens <= STEP_TOKENS
    });
    fits.count().max(1)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
