//! Engines: what turns a request into tokens, one step at a time.
//!
//! [`Engine::start`] checks a request against the model and returns a [`Generation`]; each
//! [`Generation::step`] does a bounded piece of work: a chunk of the prompt, or one token. Nothing
//! is computed between steps, so whoever drives a generation decides how far it may run: the
//! [`runner`](crate::runner) stops exactly where an asker's credit ends.
//!
//! * [`BurnEngine`] serves a checkpoint.
//! * [`EchoEngine`] repeats the question at no cost, to measure everything around an engine.
//! * [`Paced`] slows another engine down to a given interval, to give tests time to interfere.

mod burn;
mod echo;
mod logprobs;
mod model;
mod paced;
mod sampler;

use std::time::Instant;

pub use burn::{BurnEngine, TokenSequence};
pub use echo::EchoEngine;
pub use paced::Paced;
pub use sampler::Sampler;

pub use crate::checkpoint::LoadError;
use crate::{FinishReason, GenerateRequest, ModelInfo, RequestError, Token, Usage};

/// A model that is ready to serve.
pub trait Engine: Send + Sync {
    /// What it serves.
    fn info(&self) -> &ModelInfo;

    /// Checks and tokenises a request. Cheap: nothing of the model runs.
    fn start(&self, request: &GenerateRequest) -> Result<Box<dyn Generation>, RequestError>;
}

/// One answer in the making. Dropping it frees its memory.
pub trait Generation: Send {
    /// Tokens of the prompt, a resumed request's prefix included.
    fn prompt_tokens(&self) -> u32;

    /// Does the next bounded piece of work. After [`Step::Finished`] it goes on returning that,
    /// with an empty text.
    fn step(&mut self) -> Result<Step, EngineError>;

    /// Whether the next step is sure to be [`Step::Finished`] and to cost nothing, so that it needs
    /// no credit.
    fn at_end(&self) -> bool;
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Worked on the prompt; no token yet.
    Prefilling {
        /// Prompt tokens done.
        done: u32,
        /// Prompt tokens in all.
        total: u32,
    },
    /// Did nothing; there is nothing to do before this instant.
    Wait(Instant),
    /// Made a token.
    Token(Token),
    /// The answer is complete.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Text that was held back until now.
        text: String,
    },
}

/// Why a generation broke off. The request was fine; the worker is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model computed something that is no number.
    #[error(
        "the model's logits at position {position} hold NaN or infinity; its weights do not fit its configuration"
    )]
    NotFinite {
        /// Position in the sequence.
        position: u32,
    },
    /// The tensor backend failed.
    #[error("the tensor backend failed: {0}")]
    Backend(String),
}

/// An answer as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// The ids, without the end-of-turn token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
}

/// Why [`complete`] failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompleteError {
    /// The request is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Runs a request to its end in the caller's thread, handing each token on as it is made.
pub fn complete(
    engine: &dyn Engine,
    request: &GenerateRequest,
    mut on_token: impl FnMut(&Token),
) -> Result<Completion, CompleteError> {
    let mut generation = engine.start(request)?;
    let (mut text, mut ids) = (String::new(), Vec::new());
    loop {
        match generation.step()? {
            Step::Prefilling { .. } => {}
            Step::Wait(until) => paced::sleep_until(until),
            Step::Token(token) => {
                on_token(&token);
                text.push_str(&token.text);
                ids.push(token.id);
            }
            Step::Finished { reason, text: tail } => {
                text.push_str(&tail);
                let usage = Usage {
                    prompt_tokens: generation.prompt_tokens(),
                    completion_tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
                };
                return Ok(Completion { text, ids, reason, usage });
            }
        }
    }
}
