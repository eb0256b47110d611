//! Why a request is refused before any token is made.

use bincode::{Decode, Encode};

/// Why a request cannot be run. Travels to the asker, so it never quotes the prompt.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum RequestError {
    /// Prompt (and prefix) leave no room for an answer.
    #[error(
        "the prompt has {prompt} tokens and the model's context holds {limit}, \
         of which the answer needs at least one; shorten the messages"
    )]
    ContextExceeded {
        /// Tokens of prompt and prefix.
        prompt: u32,
        /// The model's context.
        limit: u32,
    },
    /// The request names a model that this engine does not serve.
    #[error("this worker does not serve the model the request names; ask for a digest it advertises")]
    UnknownModel,
    /// A field has a value that cannot be used.
    #[error("field `{field}`: {why}")]
    Invalid {
        /// Path of the field, such as `messages[2].content`.
        field: String,
        /// What was found, and what would be accepted.
        why: String,
    },
    /// The model's own files cannot render this conversation.
    #[error("the model's chat template refuses this conversation: {why}")]
    Template {
        /// What the template engine reported.
        why: String,
    },
}

impl RequestError {
    /// A refusal that names a field and what is wrong with it.
    pub fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), why: why.into() }
    }
}
