//! What comes out of a generation.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// One generated token.
///
/// `text` is what this token *released*, which may be empty (half a character, or the beginning of
/// what could become a stop string) and may hold text of tokens before it. The concatenation of all
/// `text`s and of the final tail is the answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Token {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// Text released by this token.
    pub text: String,
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
    /// Tokens emitted by this leg. The end-of-turn token is neither emitted nor counted.
    pub completion_tokens: u32,
}
