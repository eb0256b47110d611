//! The request as it travels inside the attested channel.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::tools::ToolCall;
use crate::{RequestError, Sampling, Structure};

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
    /// What came of a call.
    Tool,
}

impl ChatRole {
    /// The name that chat templates and the OpenAI API use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Message {
    /// Who said it.
    pub role: ChatRole,
    /// What was said; for [`ChatRole::Tool`], what came of the call.
    pub content: String,
    /// What the assistant thought, for models that want to be reminded.
    pub reasoning: Option<String>,
    /// Calls that the assistant asked for.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a message of [`ChatRole::Tool`] answers.
    pub tool_call_id: Option<String>,
    /// The function that a message of [`ChatRole::Tool`] is from.
    pub name: Option<String>,
}

impl Message {
    /// A message that is text alone.
    pub fn new(role: ChatRole, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }

    /// All texts of the message with the path of their field, the message's own being `at`.
    pub(crate) fn texts(&self, at: String) -> impl Iterator<Item = (String, &str)> {
        let own = [
            ("content", Some(&self.content)),
            ("reasoning_content", self.reasoning.as_ref()),
            ("tool_call_id", self.tool_call_id.as_ref()),
            ("name", self.name.as_ref()),
        ];
        let own = own.into_iter().filter_map(|(field, text)| Some((field.to_owned(), text?.as_str())));
        let calls = self.tool_calls.iter().enumerate().flat_map(|(i, call)| {
            let path = |field| format!("tool_calls[{i}].{field}");
            [
                (path("id"), call.id.as_str()),
                (path("function.name"), call.name.as_str()),
                (path("function.arguments"), call.arguments.as_str()),
            ]
        });
        own.chain(calls).map(move |(field, text)| (format!("{at}.{field}"), text))
    }

    fn validate(&self, at: &str) -> Result<(), RequestError> {
        if !self.tool_calls.is_empty() && self.role != ChatRole::Assistant {
            let why = "only a message of the assistant has calls";
            return Err(RequestError::invalid(format!("{at}.tool_calls"), why));
        }
        let mut calls = self.tool_calls.iter().enumerate();
        calls.try_for_each(|(i, call)| call.validate(&format!("{at}.tool_calls[{i}]")))
    }
}

impl fmt::Debug for Message {
    /// Prompts do not belong in logs: shows the role and the length only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes)", self.role.as_str(), self.content.len())
    }
}

/// Longest key under which askers share cached prompts.
pub const MAX_CACHE_KEY_BYTES: usize = 128;

/// A request for one answer.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct GenerateRequest {
    /// Digest of the model's manifest.
    pub model: [u8; 32],
    /// The conversation.
    pub messages: Vec<Message>,
    /// How to pick tokens.
    pub sampling: Sampling,
    /// What the answer may be, and what the model is told beside the conversation.
    pub structure: Structure,
    /// Output tokens already received from another worker of the same model: generation goes on
    /// after them. Ids, not text, since text would tokenise differently.
    pub prefix: Vec<u32>,
    /// Askers who name the same key may find each other's prompts in a worker's cache, and by how long an answer takes
    /// learn that somebody with the key asked alike. Without one, an asker finds its own only.
    pub cache_key: Option<String>,
}

impl GenerateRequest {
    /// A request for an answer of any form.
    pub fn new(model: [u8; 32], messages: Vec<Message>, sampling: Sampling) -> Self {
        Self {
            model,
            messages,
            sampling,
            structure: Structure::default(),
            prefix: Vec::new(),
            cache_key: None,
        }
    }

    /// Bytes of all text that the model is told.
    pub fn text_bytes(&self) -> usize {
        let messages = self.messages.iter().flat_map(|message| message.texts(String::new()));
        messages.chain(self.structure.texts()).map(|(_, text)| text.len()).sum()
    }

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
        let bytes = self.text_bytes();
        if bytes > MAX_CONTENT_BYTES {
            return Err(RequestError::invalid(
                "messages",
                format!("{bytes} bytes of text, at most {MAX_CONTENT_BYTES} are allowed"),
            ));
        }
        for (i, message) in self.messages.iter().enumerate() {
            message.validate(&format!("messages[{i}]"))?;
        }
        if self.prefix.len() > MAX_PREFIX_TOKENS {
            return Err(RequestError::invalid(
                "prefix",
                format!("{} tokens, at most {MAX_PREFIX_TOKENS} are allowed", self.prefix.len()),
            ));
        }
        if let Some(key) = &self.cache_key
            && !(1..=MAX_CACHE_KEY_BYTES).contains(&key.len())
        {
            let why = format!("{} bytes long, 1 to {MAX_CACHE_KEY_BYTES} are allowed", key.len());
            return Err(RequestError::invalid("cache_key", why));
        }
        self.structure.validate()?;
        self.sampling.validate()
    }
}
