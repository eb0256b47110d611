//! Texts to the rows of three tables: words, positions and token types.
//!
//! Any kind of vocabulary that the `tokenizers` library reads will do, since nothing is decoded. What its file says
//! about padding and truncation is how it was once used, and is replaced: texts are never padded, and cut where the
//! [`Recipe`](super::modules::Recipe) says.

use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

use super::config::EncoderConfig;
use super::{EmbedError, MAX_TEXT_BYTES};
use crate::checkpoint::{ConfigError, LoadError, TokenizerError};

/// A text as the encoder reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tokens {
    /// Rows of the table of words, at least one.
    pub(super) ids: Vec<u32>,
    /// As many rows of the table of token types.
    pub(super) types: Vec<u32>,
    /// Whether there was more text.
    pub(super) truncated: bool,
}

/// The vocabulary of an encoder.
#[derive(Debug)]
pub(super) struct EncoderTokenizer {
    inner: Tokenizer,
    vocab: usize,
    types: usize,
}

impl EncoderTokenizer {
    /// Parses `tokenizer.json` for texts of at most `max_tokens`.
    pub(super) fn parse(bytes: &[u8], config: &EncoderConfig, max_tokens: usize) -> Result<Self, LoadError> {
        let json = |why: &dyn std::fmt::Display| TokenizerError::Json(why.to_string());
        let mut inner = Tokenizer::from_bytes(bytes).map_err(|e| json(&e))?;
        // The library would keep pieces of texts in a cache.
        let mut model = inner.get_model().clone();
        model.resize_cache(0);
        inner.with_model(model);
        inner.with_padding(None);
        let added = inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        if max_tokens <= added {
            let expected =
                format!("above {added}, the number of tokens that the tokenizer adds to every text");
            let field = "max_seq_length".to_owned();
            let why = ConfigError::Value { field, found: max_tokens.to_string(), expected };
            return Err(LoadError::Module { file: super::modules::ENCODER_FILE, why: Box::new(why) });
        }
        let cut = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        inner.with_truncation(Some(cut)).map_err(|e| json(&e))?;
        let vocab = config.vocab_size;
        if let Some((token, id)) = inner.get_vocab(true).into_iter().find(|(_, id)| *id as usize >= vocab) {
            return Err(TokenizerError::Id { token, id, vocab }.into());
        }
        Ok(Self { inner, vocab, types: config.token_types })
    }

    /// The tokens of a text, which has this index among those that were asked for.
    pub(super) fn encode(&self, index: usize, text: &str) -> Result<Tokens, EmbedError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(EmbedError::TooLong { index, found: text.len() });
        }
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|e| EmbedError::Tokenizer { index, why: e.to_string().chars().take(200).collect() })?;
        // What the tokenizer adds by itself says nothing about the text.
        if encoding.get_special_tokens_mask().iter().all(|special| *special == 1) {
            return Err(EmbedError::Empty { index });
        }
        let within =
            |table: &'static str, rows: usize, ids: &[u32]| match ids.iter().find(|id| **id as usize >= rows)
            {
                Some(&id) => Err(EmbedError::Foreign { index, table, id, rows }),
                None => Ok(ids.to_vec()),
            };
        Ok(Tokens {
            ids: within("token", self.vocab, encoding.get_ids())?,
            types: within("token type", self.types, encoding.get_type_ids())?,
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }
}
