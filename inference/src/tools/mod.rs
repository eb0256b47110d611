//! Functions that a model may ask to be called.
//!
//! A request describes functions ([`ToolDefinition`]) and says whether they are to be used
//! ([`ToolChoice`]). The chat template writes the descriptions into the prompt; the model answers with
//! calls, written as text in the [`ToolFormat`] that its family was trained on. [`ToolParser`] takes the
//! calls out of the text as it is generated. Where a call is demanded, [`grammar`](grammar::required) makes
//! the answer one. Nothing is ever called here: a call goes to the asker, who sends back what came of it as
//! a message of the role `tool`.
//!
//! | format | written as | families |
//! |---|---|---|
//! | [`Hermes`](ToolFormat::Hermes) | `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, several in a row, after text | Qwen 2.5, Qwen 3, Hermes |
//! | [`Llama3`](ToolFormat::Llama3) | `{"name": …, "parameters": {…}}` and nothing else, several separated by `;` | Llama 3.1 to 3.3 |
//!
//! What a parser says depends on the text alone, not on how it was cut into pieces, so that a resumed
//! answer has the same calls.

mod envelope;
mod format;
pub mod grammar;
mod json;
mod parser;
mod types;

pub use format::ToolFormat;
pub use parser::{MAX_CALLS, MAX_HELD_BYTES, ToolEvent, ToolParser};
pub use types::{
    MAX_ARGUMENTS_BYTES, MAX_CALL_ID_BYTES, MAX_DESCRIPTION_BYTES, MAX_TOOL_NAME_BYTES, MAX_TOOLS,
    MAX_TOOLS_BYTES, ToolCall, ToolChoice, ToolDefinition, call_id, validate_tools,
};
