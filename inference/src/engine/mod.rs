//! Engines: what turns a request into tokens, one step at a time.
//!
//! An engine has two halves, so that many answers can share one model:
//!
//! * [`Engine::start`] checks and tokenises a request. What comes of it is a [`Sequence`] to compute and an
//!   [`Answer`], which picks tokens from what the model computed and turns them into text.
//! * [`Engine::executor`] owns keys and values of all sequences. An [`Executor`] computes what a
//!   [`Plan`] of the [`scheduler`](crate::scheduler) says, and nothing else: whoever plans decides how far an
//!   answer may run. The [`runner`](crate::runner) stops exactly where an asker's credit ends.
//!
//! Three engines:
//!
//! * [`BurnEngine`] serves a checkpoint.
//! * [`EchoEngine`] repeats the question at no cost, to measure everything around an engine.
//! * [`Paced`] slows another engine down to a given interval, to give tests time to interfere.

mod burn;
mod complete;
mod echo;
pub mod frontend;
mod logprobs;
mod paced;
mod sampler;

use std::time::Duration;

pub use burn::{BurnEngine, TokenSequence};
pub use complete::{CompleteError, Completion, complete};
pub use echo::EchoEngine;
pub use paced::Paced;
pub use sampler::Sampler;

pub use crate::checkpoint::LoadError;
use crate::constraint::ConstraintError;
use crate::scheduler::{BlockId, Plan, Run, Salt, Sequence};
use crate::{AnswerForm, GenerateRequest, ModelInfo, RequestError, Token};

/// A model that is ready to serve.
pub trait Engine: Send + Sync {
    /// What it serves.
    fn info(&self) -> &ModelInfo;

    /// Checks and tokenises a request. Cheap: nothing of the model runs.
    fn start(&self, request: &GenerateRequest) -> Result<Started, RequestError>;

    /// How it wants its work cut.
    fn shape(&self) -> Shape;

    /// Memory for sequences, and leave to compute them.
    fn executor(&self, resources: Resources) -> Result<Box<dyn Executor>, EngineError>;

    /// The least time between two tokens of an answer, if there is one.
    fn interval(&self) -> Option<Duration> {
        None
    }

    /// Whether a request that comes now can be answered.
    fn ready(&self) -> bool {
        true
    }
}

/// A request that was found good.
pub struct Started {
    /// What to compute.
    pub sequence: Sequence,
    /// How its text is to be read.
    pub form: AnswerForm,
    /// What to make of it.
    pub answer: Box<dyn Answer>,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// How an engine wants its work cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Positions of a block of keys and values.
    pub block_tokens: u32,
    /// Memory of a block, in bytes.
    pub block_bytes: u64,
    /// Prompt tokens that a step computes: enough for matrix products to run at full speed, few enough that a long
    /// prompt does not keep other answers waiting.
    pub prefill: u32,
    /// Most positions of a sequence.
    pub context: u32,
}

/// What an executor may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Blocks of keys and values.
    pub blocks: u32,
    /// Threads that compute; 0 for one per core.
    pub threads: usize,
}

/// One answer in the making.
pub trait Answer: Send {
    /// The next token, from the logits after the last one. They may be changed. Called again with the same logits
    /// after a step was repeated, it gives the same token only if the first call's was discarded with the answer.
    fn next(&mut self, logits: &mut [f32]) -> Result<Next, EngineError>;

    /// Text that was held back until now.
    fn finish(&mut self) -> String;

    /// Called before each step that is to make a token, with how many may be made from here on, that one included.
    /// For engines that must order tokens elsewhere before they can have one. What is cached there is for those of the
    /// same `salt` alone.
    fn order(&mut self, tokens: u32, salt: &Salt) {
        let _ = (tokens, salt);
    }
}

/// What follows in an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// A token.
    Token(Token),
    /// A token that completes the answer.
    Last(Token),
    /// The model ended its turn.
    End,
    /// There is none yet. The step is planned again; the executor is what waits, not this thread.
    Later,
}

/// Computes sequences. Dropping it overwrites what it keeps of them.
pub trait Executor: Send {
    /// Overwrites blocks, whose next owner must not learn what was in them.
    fn wipe(&mut self, blocks: &[BlockId]);

    /// Computes some runs of a plan; the logits of those that sample, in their order.
    fn run(&mut self, plan: &Plan, runs: &[Run]) -> Result<Logits, EngineError>;
}

/// Logits, a row for each token to be sampled.
#[derive(Clone, Default)]
pub struct Logits {
    values: Vec<f32>,
    width: usize,
}

impl Logits {
    /// Rows of `width` values. An engine that has none gives rows without values.
    pub fn new(values: Vec<f32>, width: usize) -> Self {
        Self { values, width }
    }

    /// A row; empty if it is not there.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        let from = row.saturating_mul(self.width);
        self.values.get_mut(from..from.saturating_add(self.width)).unwrap_or_default()
    }
}

impl std::fmt::Debug for Logits {
    /// Without the values: what an asker gets has no place in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logits").field("values", &self.values.len()).field("width", &self.width).finish()
    }
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
    /// The answer cannot go on within its grammar.
    #[error("the answer cannot follow its grammar any further: {0}")]
    Constraint(#[from] ConstraintError),
    /// Another process computes, and did not.
    #[error("the inference server failed: {0}")]
    Server(String),
    /// Every token that may follow is banned by the request's own `logit_bias`.
    #[error("`logit_bias` bans every token that may follow; allow more")]
    Banned,
}
