//! The embedded model's tokens: every byte, the common pieces of its own text, and a few markers.
//!
//! The file is an ordinary byte-level BPE without merges, whose vocabulary is looked up by whole pieces
//! (`ignore_merges`, as in Llama 3): text is cut by Qwen's regular expression into words, digits and runs
//! of punctuation; a piece that the vocabulary holds is one token, any other is spelled byte by byte. So
//! what the model reads often is short, while a name, a number or a word to be reversed shows its letters,
//! which merged fragments would hide. Ids below 256 are the bytes themselves.
//!
//! Which pieces are common is counted on the generator's text of a fixed seed ([`Tokens::learn`]).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

use super::chat::Chat;
use super::corpus::{Corpus, Mix, Split};
use super::facts;
use super::wordings::WORDS;

/// Tokens in all.
pub const VOCAB: usize = 1024;
/// The markers, which follow bytes and pieces. Those of the chat are "special"; the others spell text that
/// a reader of the answer takes apart, as in Qwen 3.
const MARKERS: [(&str, bool); 9] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<think>", false),
    ("</think>", false),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<tool_response>", false),
    ("</tool_response>", false),
];
const FIRST_MARKER: usize = VOCAB - MARKERS.len();
/// End of a document; also what padding looks like to other tools.
pub const END_OF_TEXT: u32 = FIRST_MARKER as u32;
/// Closes a message; the model stops here.
pub const IM_END: u32 = FIRST_MARKER as u32 + 2;

/// Rows that are counted: beyond them the choice hardly changes.
const COUNTED_ROWS: usize = 12_000;
/// Their seed.
const COUNTED_SEED: u64 = 0x70c0;
/// A piece seen less often than this in the counted rows would hardly be trained.
const LEAST: usize = 6;

/// Where Qwen 2 and 3 cut text: contractions, words with the character before them, single digits, runs of
/// punctuation, line ends and space.
const PIECES: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| \
                      ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// Why there is no tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer cannot be used: {0}")]
pub struct TokensError(String);

impl TokensError {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// The tokenizer and the file that it is.
#[derive(Debug, Clone)]
pub struct Tokens {
    tokenizer: Tokenizer,
    file: Value,
}

impl Tokens {
    /// Counts pieces of the generator's text and takes those that save most.
    pub fn learn() -> Result<Self, TokensError> {
        let bytes_only = Self::with_pieces(&[])?;
        let chat = Chat::new(bytes_only.clone()).map_err(TokensError::of)?;
        let mut corpus = Corpus::new(COUNTED_SEED, Mix::default(), Split::Trained);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..COUNTED_ROWS {
            let text = chat.text(&corpus.row()).map_err(TokensError::of)?;
            for part in between_markers(&text) {
                for piece in bytes_only.pieces(part)? {
                    *counts.entry(piece).or_default() += 1;
                }
            }
        }
        let spelled = spelled_words();
        let mut ranked: Vec<(usize, String)> = counts
            .into_iter()
            .filter(|(piece, count)| {
                let letters = piece.trim_start_matches('\u{120}').to_lowercase();
                *count >= LEAST
                    && piece.chars().count() > 1
                    && !piece.contains(|c: char| c.is_ascii_digit())
                    && !spelled.contains(letters.as_str())
            })
            .map(|(piece, count)| (count * (piece.chars().count() - 1), piece))
            .collect();
        ranked.sort_by(|(a, one), (b, other)| b.cmp(a).then_with(|| one.cmp(other)));
        let pieces: Vec<String> =
            ranked.into_iter().map(|(_, piece)| piece).take(FIRST_MARKER - 256).collect();
        Self::with_pieces(&pieces)
    }

    /// From a file that [`Tokens::file`] gave.
    pub fn read(file: &[u8]) -> Result<Self, TokensError> {
        let file: Value = serde_json::from_slice(file).map_err(TokensError::of)?;
        let tokenizer = Tokenizer::from_bytes(file.to_string()).map_err(TokensError::of)?;
        Ok(Self { tokenizer, file })
    }

    fn with_pieces(pieces: &[String]) -> Result<Self, TokensError> {
        Self::read(tokenizer_file(pieces).to_string().as_bytes())
    }

    /// What `tokenizer.json` says.
    pub fn file(&self) -> &Value {
        &self.file
    }

    /// Ids of a text, in which markers are meant as such.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(TokensError::of)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Bytes of a token.
    pub fn length(&self, id: u32) -> usize {
        let marker = (id as usize).checked_sub(FIRST_MARKER).and_then(|at| MARKERS.get(at));
        let piece = || self.tokenizer.id_to_token(id).map_or(0, |piece| piece.chars().count());
        marker.map_or_else(piece, |(text, _)| text.len())
    }

    /// Where the text is cut, in the characters that stand for bytes.
    fn pieces(&self, text: &str) -> Result<Vec<String>, TokensError> {
        let mut cut = PreTokenizedString::from(text);
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut cut).map_err(TokensError::of)?;
        }
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(splits.into_iter().map(|(piece, ..)| piece.to_owned()).collect())
    }
}

/// Words that the model reverses and spells, but for those that questions about the network are full of:
/// their letters stay in sight.
fn spelled_words() -> BTreeSet<&'static str> {
    let said = |word: &str| {
        let in_fact = |fact: &facts::Fact| {
            let mut asks = fact.asks.iter().chain(&fact.topics);
            facts::says(fact.answer, word) || asks.any(|ask| facts::says(ask, word))
        };
        facts::facts().iter().filter(|fact| in_fact(fact)).count() > 1
    };
    WORDS.iter().copied().filter(|word| !said(word)).collect()
}

/// The parts of a text around markers.
fn between_markers(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    let next = |text: &str| {
        let found = MARKERS.iter().filter_map(|(marker, _)| Some((text.find(marker)?, marker.len())));
        found.min()
    };
    while let Some((at, length)) = next(rest) {
        parts.push(&rest[..at]);
        rest = &rest[at + length..];
    }
    parts.push(rest);
    parts
}

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's table: printable bytes
/// are themselves, the others follow from U+0100 on).
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or('\u{fffd}')
}

/// The markers as `tokenizer.json` and `tokenizer_config.json` describe them, by id.
pub fn markers() -> impl Iterator<Item = (u32, Value)> {
    MARKERS.iter().zip(FIRST_MARKER as u32..).map(|((text, special), id)| {
        let marker = json!({"content": text, "single_word": false, "lstrip": false, "rstrip": false,
                            "normalized": false, "special": special});
        (id, marker)
    })
}

fn tokenizer_file(pieces: &[String]) -> Value {
    let bytes = (0..=255u8).map(|byte| byte_character(byte).to_string());
    let vocab: serde_json::Map<String, Value> =
        bytes.chain(pieces.iter().cloned()).zip(0u32..).map(|(piece, id)| (piece, json!(id))).collect();
    let added: Vec<Value> = markers()
        .map(|(id, mut marker)| {
            marker["id"] = json!(id);
            marker
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let split =
        json!({"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": vocab, "merges": []},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TextTokenizer;

    #[test]
    fn the_file_is_read_by_the_serving_engine_and_spells_every_text() {
        let tokens = Tokens::learn().unwrap();
        let file = tokens.file().to_string();
        let served = TextTokenizer::parse(file.as_bytes(), VOCAB).unwrap();
        assert_eq!(tokens.tokenizer.get_vocab_size(true), VOCAB, "every id is used");
        for text in [
            "347+589 = ?",
            "  two  spaces\nand\ttabs\u{0}",
            "naïve Ωmega 🦋",
            "{\"name\": \"calculator\", \"arguments\": {\"expression\": \"17 + 25\"}}",
            "<think>1+1=2</think>\n2<tool_call>\n{}\n</tool_call>",
        ] {
            let ids = tokens.encode(text).unwrap();
            assert_eq!(ids, served.encode(text).unwrap());
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| served.bytes(id).to_vec()).collect();
            assert!(ids.iter().all(|&id| served.bytes(id).len() == tokens.length(id)));
            assert_eq!(String::from_utf8(bytes).unwrap(), text);
        }
        assert_eq!(tokens.encode("<|endoftext|><|im_end|>").unwrap(), [END_OF_TEXT, IM_END]);
    }

    #[test]
    fn digits_are_single_and_common_pieces_are_whole() {
        let tokens = Tokens::learn().unwrap();
        let count = |text: &str| tokens.encode(text).unwrap().len();
        assert_eq!(tokens.encode("1776").unwrap(), [49, 55, 55, 54], "bytes have their own ids");
        for whole in [" the", " network", "{\"", "\":", "name", "<think>", "</tool_call>"] {
            assert_eq!(count(whole), 1, "{whole:?}");
        }
        assert_eq!(count(" planet"), 7, "words to be reversed show their letters");
        assert_eq!(count("zqxj"), 4);
    }

    #[test]
    fn the_same_pieces_are_learned_every_time() {
        assert_eq!(Tokens::learn().unwrap().file(), Tokens::learn().unwrap().file());
    }
}
