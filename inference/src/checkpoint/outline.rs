//! A checkpoint without its weights, whatever its architecture.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use super::config::{ConfigError, Fields, MAX_PARAMETERS};
use super::files::{Files, Texts, WeightFile};
use super::{ChatTemplate, LoadError, TextTokenizer, blame};
use crate::ModelDigest;
use crate::manifest::{self, Entry, Manifest};

/// What is known of a model that somebody else computes.
#[derive(Debug)]
pub struct Outline {
    /// Name of its folder.
    pub name: String,
    /// `model_type` of its configuration.
    pub family: String,
    /// The number format of most of its weights, such as `bf16`.
    pub format: String,
    /// Values in its weight files.
    pub parameters: u64,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Positions.
    pub context: usize,
    /// Tokens that end an answer.
    pub end_tokens: BTreeSet<u32>,
    /// Vocabulary.
    pub tokenizer: TextTokenizer,
    /// Chat template.
    pub template: ChatTemplate,
    /// The files as they were read.
    pub manifest: Manifest,
}

impl Outline {
    /// Reads a folder. Weight files are hashed; of what they hold, only the headers are looked at. `progress` gets
    /// bytes read and bytes in all.
    ///
    /// # Errors
    /// If a file is missing or damaged, or is not the one that `expected` names.
    pub fn open(
        dir: &Path,
        expected: Option<&ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let opened = Files::open(dir, |_| Ok(MAX_PARAMETERS));
        let outline = opened.and_then(|files| Self::read(files, expected, progress));
        outline.map_err(|error| blame(dir, expected, error))
    }

    fn read(
        files: Files,
        expected: Option<&ModelDigest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let mut formats = BTreeMap::<String, u64>::new();
        for (format, values) in files.index()?.formats() {
            *formats.entry(format).or_default() += values;
        }
        let parameters = formats.values().sum();
        let format = formats.into_iter().max_by_key(|(_, values)| *values).map(|(format, _)| format);
        let Files { name, texts, weights } = files;
        let manifest = hash(&texts, &weights, progress)?;
        if let Some(digest) = expected {
            manifest::expect(&manifest, digest)?;
        }
        let limits = Limits::parse(texts.need("config.json")?, texts.find("generation_config.json"))?;
        let Limits { family, vocab_size, context, end_tokens } = limits;
        Ok(Self {
            name,
            family,
            format: format.unwrap_or_default(),
            parameters,
            vocab_size,
            context,
            end_tokens,
            tokenizer: texts.tokenizer(vocab_size)?,
            template: texts.template()?,
            manifest,
        })
    }
}

/// What files are, each read once from beginning to end.
fn hash(
    texts: &Texts,
    weights: &[WeightFile],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Manifest, LoadError> {
    let total = texts.bytes() + weights.iter().map(|file| file.size).sum::<u64>();
    let mut done = texts.bytes();
    let mut manifest = texts.manifest();
    for file in weights {
        let content = file.rest().map(|rest| file.head.chain(rest));
        let entry = content.and_then(|content| Entry::of(content, |read| progress(done + read, total)));
        let entry = entry.map_err(|e| file.error(e))?;
        done += entry.size;
        manifest.put(file.name.clone(), entry);
    }
    Ok(manifest)
}

/// What `config.json` says of a model of any architecture.
struct Limits {
    family: String,
    vocab_size: usize,
    context: usize,
    end_tokens: BTreeSet<u32>,
}

impl Limits {
    fn parse(config: &[u8], generation: Option<&[u8]>) -> Result<Self, ConfigError> {
        let whole = Fields::parse(config)?;
        // Models that read more than text keep what is about text in an object of its own.
        let text = whole.inside("text_config")?;
        let fields = text.as_ref().filter(|text| text.get("vocab_size").is_some()).unwrap_or(&whole);
        let vocab_size = fields.integer("vocab_size", 1..=4_194_304, None)?;
        let context = fields.integer("max_position_embeddings", 2..=4_194_304, None)?;
        let mut end_tokens = whole.end_tokens(vocab_size)?;
        end_tokens.extend(fields.end_tokens(vocab_size)?);
        if let Some(bytes) = generation {
            end_tokens.extend(Fields::parse(bytes)?.end_tokens(vocab_size)?);
        }
        if end_tokens.is_empty() {
            let expected = "the id of the token that ends a turn, here or in generation_config.json";
            return Err(fields.missing("eos_token_id", expected));
        }
        let family = whole.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("unknown");
        let family = family.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(32);
        Ok(Self { family: family.collect(), vocab_size, context, end_tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn an_outline_is_the_checkpoint_without_its_weights() {
        let dir = tempfile::tempdir().unwrap();
        crate::embedded::write_to(dir.path()).unwrap();
        let whole = Checkpoint::open(dir.path(), None, &mut |_, _| ()).unwrap();
        let mut last = (0, 0);
        let outline = Outline::open(dir.path(), None, &mut |done, total| last = (done, total)).unwrap();
        assert_eq!(outline.manifest.digest(), whole.manifest.digest());
        assert_eq!(outline.end_tokens, whole.config.end_tokens);
        assert_eq!(outline.context, whole.config.dimensions.max_position_embeddings);
        assert_eq!(outline.parameters, whole.config.dimensions.parameters());
        assert_eq!(last.0, last.1);
        let wrong = Outline::open(dir.path(), Some(&[7; 32]), &mut |_, _| ()).unwrap_err();
        assert!(matches!(wrong, LoadError::Manifest(_)), "{wrong}");
    }

    #[test]
    fn architectures_that_nobody_here_computes_have_limits_too() {
        let config = br#"{"model_type": "some_moe", "eos_token_id": [2],
            "text_config": {"vocab_size": 100, "max_position_embeddings": 64, "eos_token_id": 3}}"#;
        let limits = Limits::parse(config, Some(br#"{"eos_token_id": 5}"#)).unwrap();
        assert_eq!((limits.family.as_str(), limits.vocab_size, limits.context), ("some_moe", 100, 64));
        assert_eq!(limits.end_tokens, BTreeSet::from([2, 3, 5]));
        let none = Limits::parse(br#"{"vocab_size": 9, "max_position_embeddings": 9}"#, None).err().unwrap();
        assert!(none.to_string().contains("eos_token_id"), "{none}");
    }
}
