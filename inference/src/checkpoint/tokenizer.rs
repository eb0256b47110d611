//! Text to ids, and ids to bytes.
//!
//! Encoding is the `tokenizers` crate's. Decoding is a table: in both kinds of vocabulary that are read,
//! each token has fixed bytes, so that text can be rebuilt token by token, which a stateful text decoder
//! cannot promise. Vocabularies of another kind are refused.
//!
//! * A byte-level vocabulary (Qwen, Llama 3) writes every byte as one printable character, by GPT-2's
//!   table.
//! * A SentencePiece vocabulary (Llama 2, Mistral, Gemma) writes text as it is, but a space as U+2581,
//!   and single bytes as `<0x0A>`. Some of them begin every text with a space, and their decoder strips
//!   one at the start. An answer is no start of a text: its first token keeps its space.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

/// Why a tokenizer file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// Not a tokenizer file.
    #[error("not a tokenizer of the `tokenizers` library: {0}")]
    Json(String),
    /// The vocabulary is of another kind.
    #[error(
        "field `{field}` must be {expected}: byte-level and SentencePiece vocabularies with BPE are decoded"
    )]
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

/// How a vocabulary writes bytes.
enum Spelling {
    /// Each character stands for one byte.
    ByteLevel(BTreeMap<char, u8>),
    /// Text, U+2581 for a space, `<0x0A>` for a byte.
    SentencePiece,
}

impl Spelling {
    fn of(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let decoder =
            serde_json::to_value(tokenizer.get_decoder()).map_err(|e| TokenizerError::Json(e.to_string()))?;
        let kind = |part: &Value, kind: &str| part.get("type").is_some_and(|t| t == kind);
        if kind(&decoder, "ByteLevel") {
            return Ok(Self::ByteLevel(alphabet()));
        }
        let spaces = |part: &Value| {
            kind(part, "Replace")
                && part.pointer("/pattern/String").is_some_and(|p| p == "\u{2581}")
                && part.get("content").is_some_and(|c| c == " ")
        };
        let parts = decoder.get("decoders").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let known = |part: &Value| {
            // What is stripped can only be a space at the very start.
            let strip = kind(part, "Strip") && part.get("content").is_some_and(|c| c == " ");
            spaces(part)
                || ["ByteFallback", "Fuse"].iter().any(|k| kind(part, k))
                || strip && part.get("stop").is_some_and(|n| n == 0)
        };
        if !parts.iter().all(known) || !parts.iter().any(spaces) {
            let expected =
                "`ByteLevel`, or a sequence of U+2581 replaced by a space, `ByteFallback` and `Fuse`";
            return Err(TokenizerError::Kind { field: "decoder", expected });
        }
        Ok(Self::SentencePiece)
    }

    /// The bytes of a token of the vocabulary, if it is written as it should be.
    fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        match self {
            Self::ByteLevel(alphabet) => token.chars().map(|c| alphabet.get(&c).copied()).collect(),
            Self::SentencePiece => match byte_token(token) {
                Some(byte) => Some(vec![byte]),
                None => Some(text(token)),
            },
        }
    }

    /// The bytes of a token that was added to the vocabulary: it is written as text.
    fn added(&self, token: String) -> Vec<u8> {
        match self {
            Self::ByteLevel(_) => token.into_bytes(),
            Self::SentencePiece => text(&token),
        }
    }
}

/// SentencePiece's text of a token.
fn text(token: &str) -> Vec<u8> {
    token.replace('\u{2581}', " ").into_bytes()
}

/// The byte of a token such as `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let fits = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// A tokenizer with a table of bytes.
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
        let spelling = Spelling::of(&inner)?;
        let ModelWrapper::BPE(model) = inner.get_model() else {
            return Err(TokenizerError::Kind { field: "model.type", expected: "`BPE`" });
        };
        // The library would keep pieces of prompts in a cache.
        let mut model = model.clone();
        model.resize_cache(0);
        inner.with_model(model);
        // Truncating or padding a prompt silently is never wanted.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| TokenizerError::Json(e.to_string()))?;

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
                Some(_) => *piece = spelling.added(token).into(),
                None => {
                    let bytes = spelling.bytes(&token);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentencepiece_tokens_are_text_spaces_or_single_bytes() {
        let bytes = |token: &str| Spelling::SentencePiece.bytes(token).unwrap();
        assert_eq!(bytes("\u{2581}the"), b" the");
        assert_eq!(bytes("<0x0A>"), b"\n");
        assert_eq!(bytes("<0xfF>"), [0xFF]);
        for text in ["<0x0A", "<0x+A>", "<0x0AB>", "<0xé>"] {
            assert_eq!(bytes(text), text.as_bytes());
        }
    }
}
