//! One answer at a time, in the caller's thread.

// An engine's pace is wall-clock time, and the caller's thread waits for it.
#![allow(clippy::disallowed_methods)]

use std::time::Instant;

use super::{Engine, EngineError, Next, Resources, Started};
use crate::scheduler::{Config, JobId, Over, Plan, Refused, Salt, Sampled, Scheduler, Terms};
use crate::{FinishReason, GenerateRequest, RequestError, Token, Usage};

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
    let Started { sequence, mut answer, .. } = engine.start(request)?;
    let shape = engine.shape();
    let prompt = sequence.prompt.len() + sequence.prefix.len();
    let tokens = (sequence.prompt.len() as u64).saturating_add(u64::from(sequence.limit));
    let blocks = u32::try_from(tokens.div_ceil(u64::from(shape.block_tokens.max(1)))).unwrap_or(u32::MAX);
    let mut executor = engine.executor(Resources { blocks, threads: 0 })?;
    let mut config = Config::new(blocks, 1, 0);
    (config.block_tokens, config.step_tokens) = (shape.block_tokens, shape.prefill);
    let mut scheduler = Scheduler::new(config, Instant::now());
    let id = JobId(0);
    let terms = Terms { asker: 0, salt: Salt::SHARED, priority: 0, deadline: None };
    // There is room for one job, and for all its tokens.
    let _ = scheduler.submit(id, terms, Instant::now());
    scheduler
        .prepared(id, sequence, Instant::now())
        .map_err(|refused: Refused| RequestError::invalid("messages", refused.to_string()))?;
    scheduler.allow(id, u32::MAX, Instant::now());

    let (mut text, mut ids) = (String::new(), Vec::new());
    let mut plan = Plan::default();
    let mut due = None;
    let reason = loop {
        scheduler.plan(Instant::now(), &mut plan);
        executor.wipe(&plan.wipe);
        if let Some(ended) = plan.over.first() {
            break match ended.over {
                Over::End => FinishReason::Stop,
                Over::Length => FinishReason::Length,
                Over::Cancelled | Over::Deadline => FinishReason::Cancelled,
            };
        }
        for run in plan.runs.iter().filter(|run| run.samples) {
            answer.order(run.ahead, &terms.salt);
        }
        let mut logits = executor.run(&plan, &plan.runs)?;
        if !plan.runs.iter().any(|run| run.samples) {
            scheduler.sampled(&[]);
            continue;
        }
        if let Some(due) = due {
            std::thread::sleep(Instant::saturating_duration_since(&due, Instant::now()));
        }
        let next = answer.next(logits.row(0))?;
        if next == Next::Later {
            scheduler.sampled(&[]);
            continue;
        }
        due = engine.interval().map(|interval| Instant::now() + interval);
        let (Next::Token(token) | Next::Last(token)) = &next else {
            break FinishReason::Stop;
        };
        on_token(token);
        text.push_str(&token.text);
        ids.push(token.id);
        if matches!(next, Next::Last(_)) {
            break FinishReason::Stop;
        }
        scheduler.sampled(&[(id, Sampled::Token(token.id))]);
    };
    text.push_str(&answer.finish());
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let usage = Usage { prompt_tokens: count(prompt), cached_tokens: 0, completion_tokens: count(ids.len()) };
    Ok(Completion { text, ids, reason, usage })
}
