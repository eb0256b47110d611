//! Text to ids, and ids to bytes.
//!
//! Encoding is the `tokenizers` crate's. Decoding is a table: a byte-level vocabulary writes every
//! byte as one printable character (GPT-2's alphabet), so each token has fixed bytes and text can be
//! rebuilt token by token, which a stateful text decoder cannot promise. Vocabularies of another
//! kind are refused.

use std::collections::{BTreeMap, BTreeSet};

use tokenizers::{DecoderWrapper, ModelWrapper, Tokenizer};

/// Why a tokenizer file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// Not a tokenizer file.
    #[error("not a tokenizer of the `tokenizers` library: {0}")]
    Json(String),
    /// The vocabulary is of another kind.
    #[error("field `{field}` must be `{expected}`: only byte-level BPE vocabularies are decoded")]
    Kind {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// More tokens than the model has rows for.
    #[error("token {token:?} has id {id}, but config.json's `vocab_size` is {vocab}")]
    Id {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding table.
        vocab: usize,
    },
    /// A token that stands for no bytes.
    #[error("token {token:?} (id {id}) has characters outside the byte-level alphabet")]
    Alphabet {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
    },
    /// The library failed on a text.
    #[error("cannot tokenise: {0}")]
    Encode(String),
}

/// A byte-level tokenizer.
#[derive(Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    /// Bytes of each id; control tokens and unused rows have none.
    pieces: Vec<Box<[u8]>>,
    /// Text of control tokens, such as `<|im_end|>`.
    control: BTreeSet<String>,
}

impl TextTokenizer {
    /// Parses `tokenizer.json` for a model of `vocab` rows.
    pub fn parse(bytes: &[u8], vocab: usize) -> Result<Self, TokenizerError> {
        let mut inner = Tokenizer::from_bytes(bytes).map_err(|e| TokenizerError::Json(e.to_string()))?;
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(TokenizerError::Kind { field: "decoder.type", expected: "ByteLevel" });
        }
        let ModelWrapper::BPE(model) = inner.get_model() else {
            return Err(TokenizerError::Kind { field: "model.type", expected: "BPE" });
        };
        // The library would keep pieces of prompts in a cache.
        let mut model = model.clone();
        model.resize_cache(0);
        inner.with_model(model);
        // Truncating or padding a prompt silently is never wanted.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| TokenizerError::Json(e.to_string()))?;

        let alphabet = alphabet();
        let added = inner.get_added_tokens_decoder();
        let mut pieces = vec![Box::<[u8]>::default(); vocab];
        let mut control = BTreeSet::new();
        for (token, id) in inner.get_vocab(true) {
            let Some(piece) = pieces.get_mut(id as usize) else {
                return Err(TokenizerError::Id { token, id, vocab });
            };
            match added.get(&id) {
                Some(added) if added.special => {
                    control.insert(token);
                }
                Some(_) => *piece = token.into_bytes().into(),
                None => {
                    let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
                    *piece = bytes.ok_or(TokenizerError::Alphabet { token, id })?.into();
                }
            }
        }
        Ok(Self { inner, pieces, control })
    }

    /// Ids of a text in which control tokens are meant as such.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Bytes of a token; none for control tokens and unknown ids.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize).map_or(&[], |piece| piece)
    }

    /// The control token that a text contains, if any. Inside a message it would be read as the
    /// conversation's structure, so a message must not contain one.
    pub fn control_token_in(&self, text: &str) -> Option<&str> {
        self.control.iter().map(String::as_str).find(|token| text.contains(token))
    }
}

/// GPT-2's printable stand-ins for bytes: printable ASCII and Latin-1 stand for themselves, the
/// other bytes for the characters from U+0100 on.
fn alphabet() -> BTreeMap<char, u8> {
    let mut spare = (0x100u32..).filter_map(char::from_u32);
    (0..=255u8)
        .filter_map(|byte| {
            let stands_for_itself = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let symbol = if stands_for_itself { Some(char::from(byte)) } else { spare.next() };
            symbol.map(|symbol| (symbol, byte))
        })
        .collect()
}
