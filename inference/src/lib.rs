//! What a job is, and the engine that runs it.
//!
//! The crate has two halves. The first is always there and small enough for the light client:
//! [`GenerateRequest`] and its [`codec`], [`Sampling`], [`Token`], [`Usage`], the typed
//! [`RequestError`], the [`text`] state machine that turns token bytes into text, and the
//! [`manifest`] by which a model is named (`name@digest`). Structure is data there too: what an answer must
//! look like ([`constraint`]), the functions it may call ([`tools`]), and what of it was thought
//! ([`reasoning`]).
//!
//! The second half, behind the feature `engine`, loads an ordinary Hugging Face checkpoint
//! directory ([`checkpoint`]) into a decoder written in burn ([`decoder`]: Qwen3, Llama, Mistral,
//! Gemma 3), and runs it ([`engine`], [`runner`]). [`embedder`] makes vectors of texts, with a checkpoint of the
//! BERT class. [`train`] makes the model that is built in ([`embedded`]).
//!
//! Two rules hold everywhere, because an answer may be continued by another worker:
//!
//! * The next token is a function of the token ids before it, the seed and the output position; so are
//!   penalties and log-probabilities.
//! * The text released so far is a function of the output ids so far. A request resumed with
//!   [`GenerateRequest::prefix`] therefore emits exactly the text that was not yet emitted.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod codec;
pub mod constraint;
mod error;
mod info;
mod job;
pub mod manifest;
mod reader;
pub mod reasoning;
mod sampling;
mod structure;
pub mod text;
mod tokens;
pub mod tools;

#[cfg(feature = "engine")]
pub mod checkpoint;
#[cfg(feature = "engine")]
pub mod decoder;
#[cfg(feature = "engine")]
pub mod device;
#[cfg(feature = "engine")]
pub mod embedded;
#[cfg(feature = "engine")]
pub mod embedder;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "engine")]
pub mod kernels;
#[cfg(feature = "engine")]
pub mod runner;
#[cfg(feature = "engine")]
pub mod scheduler;
#[cfg(feature = "engine")]
pub mod train;

#[doc(hidden)]
pub mod fuzz;

pub use error::RequestError;
pub use info::{ModelDigest, ModelInfo, ModelRef, ModelRefError};
pub use job::{ChatRole, GenerateRequest, Message};
pub use reader::{AnswerPart, AnswerReader};
pub use sampling::Sampling;
pub use structure::{AnswerForm, Structure, Thinking};
pub use tokens::{Alternative, FinishReason, Logprobs, Token, Usage};

/// Bounds on what a request may hold.
pub mod limits {
    pub use crate::codec::MAX_REQUEST_BYTES;
    pub use crate::info::MAX_NAME_BYTES;
    pub use crate::job::{MAX_CACHE_KEY_BYTES, MAX_CONTENT_BYTES, MAX_MESSAGES, MAX_PREFIX_TOKENS};
    pub use crate::sampling::{
        MAX_BIAS, MAX_LOGIT_BIAS, MAX_PENALTY, MAX_REPETITION_PENALTY, MAX_STOP_BYTES, MAX_STOP_TOKENS,
        MAX_STOPS, MAX_TEMPERATURE, MAX_TOP_LOGPROBS,
    };
    pub use crate::structure::{MAX_VARIABLES, MAX_VARIABLES_BYTES};
    pub use crate::tokens::{LOWEST_LOGPROB, MAX_PIECE_BYTES};
}

#[cfg(feature = "engine")]
pub use embedder::{EmbedError, Embedder, Embedding};
#[cfg(feature = "engine")]
pub use engine::{BurnEngine, Completion, EchoEngine, Engine, EngineError, LoadError, Paced, complete};
