//! The request as it travels inside the attested channel.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{RequestError, Sampling};

/// Longest conversation, in messages.
pub const MAX_MESSAGES: usize = 1024;
/// All message texts together. Far above what any context of this network holds, far below what
/// would hurt a worker.
pub const MAX_CONTENT_BYTES: usize = 192 * 1024;
/// Longest prefix of a resumed request.
pub const MAX_PREFIX_TOKENS: usize = 64 * 1024;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// Instructions of the application.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

impl ChatRole {
    /// The name that chat templates and the OpenAI API use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Message {
    /// Who said it.
    pub role: ChatRole,
    /// What was said.
    pub content: String,
}

impl fmt::Debug for Message {
    /// Prompts do not belong in logs: shows the role and the length only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes)", self.role.as_str(), self.content.len())
    }
}

/// A request for one answer.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct GenerateRequest {
    /// Digest of the model's manifest.
    pub model: [u8; 32],
    /// The conversation.
    pub messages: Vec<Message>,
    /// How to pick tokens.
    pub sampling: Sampling,
    /// Output tokens already received from another worker of the same model: generation goes on
    /// after them. Ids, not text, since text would tokenise differently.
    pub prefix: Vec<u32>,
}

impl GenerateRequest {
    /// Checks every bound that does not need the model; the error names the field.
    pub fn validate(&self) -> Result<(), RequestError> {
        if self.messages.is_empty() {
            return Err(RequestError::invalid("messages", "empty; send at least one message"));
        }
        if self.messages.len() > MAX_MESSAGES {
            return Err(RequestError::invalid(
                "messages",
                format!("{} messages, at most {MAX_MESSAGES} are allowed", self.messages.len()),
            ));
        }
        let bytes: usize = self.messages.iter().map(|m| m.content.len()).sum();
        if bytes > MAX_CONTENT_BYTES {
            return Err(RequestError::invalid(
                "messages",
                format!("{bytes} bytes of text, at most {MAX_CONTENT_BYTES} are allowed"),
            ));
        }
        if self.prefix.len() > MAX_PREFIX_TOKENS {
            return Err(RequestError::invalid(
                "prefix",
                format!("{} tokens, at most {MAX_PREFIX_TOKENS} are allowed", self.prefix.len()),
            ));
        }
        self.sampling.validate()
    }
}
