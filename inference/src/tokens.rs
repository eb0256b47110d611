//! What comes out of a generation.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// One generated token.
///
/// `text` is what this token *released*, which may be empty (half a character, or the beginning of
/// what could become a stop string) and may hold text of tokens before it. The concatenation of all
/// `text`s and of the final tail is the answer.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct Token {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// Text released by this token.
    pub text: String,
    /// How likely the model found it, if the request asked. Boxed, since most requests do not.
    pub logprobs: Option<Box<Logprobs>>,
}

impl Token {
    /// A token without log-probabilities.
    #[must_use]
    pub fn new(id: u32, text: impl Into<String>) -> Self {
        Self { id, text: text.into(), logprobs: None }
    }

    /// About what it takes on the wire, so that batches of tokens can be kept within a record.
    #[must_use]
    pub fn size(&self) -> usize {
        let logprobs = self.logprobs.as_ref().map_or(0, |logprobs| {
            // An id has up to five bytes, a logprob four, a length up to three.
            let top: usize = logprobs.top.iter().map(|alternative| 12 + alternative.bytes.len()).sum();
            7 + logprobs.bytes.len() + top
        });
        self.text.len() + logprobs
    }
}

/// Longest piece of a token that is reported; the rest of a longer one is cut. Vocabularies hold runs
/// of a few hundred spaces, and 21 pieces must fit a record.
pub const MAX_PIECE_BYTES: usize = 1024;
/// Stands for every log-probability below it, minus infinity included, as in the OpenAI API.
pub const LOWEST_LOGPROB: f32 = -9999.0;

/// How likely the model found a token, by its own distribution: before penalties, bias, temperature
/// and the cuts of sampling.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct Logprobs {
    /// Natural logarithm of the token's probability, from [`LOWEST_LOGPROB`] to 0.
    pub logprob: f32,
    /// The token's own bytes, which may be part of a character. Control tokens have none.
    pub bytes: Vec<u8>,
    /// The most likely tokens at this position, most likely first (ties: lowest id first).
    pub top: Vec<Alternative>,
}

/// A token that could have been picked.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct Alternative {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// As [`Logprobs::logprob`].
    pub logprob: f32,
    /// As [`Logprobs::bytes`].
    pub bytes: Vec<u8>,
}

impl Logprobs {
    /// Whether what another peer sent is what a worker may say when `top` alternatives were asked for.
    #[must_use]
    pub fn is_sound(&self, top: u8) -> bool {
        let value = |logprob: f32| (LOWEST_LOGPROB..=0.0).contains(&logprob);
        self.top.len() <= usize::from(top)
            && value(self.logprob)
            && self.bytes.len() <= MAX_PIECE_BYTES
            && self.top.iter().all(|a| value(a.logprob) && a.bytes.len() <= MAX_PIECE_BYTES)
            && self.top.is_sorted_by(|a, b| a.logprob >= b.logprob)
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string was completed.
    Stop,
    /// `max_tokens` or the model's context was reached.
    Length,
    /// The asker cancelled.
    Cancelled,
}

/// Exact token counts of one leg of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the rendered prompt, a resumed request's `prefix` included.
    pub prompt_tokens: u32,
    /// Those among them that the worker still had in its cache.
    pub cached_tokens: u32,
    /// Tokens emitted by this leg. The end-of-turn token is neither emitted nor counted.
    pub completion_tokens: u32,
}
