//! Checking and tokenising requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::job::{Event, Job, Sink, Slot, tell};
use super::{Shared, State};
use crate::engine::Started;
use crate::scheduler::{JobId, Salt};
use crate::{FinishReason, GenerateRequest, RequestError, Usage};

/// Prepares one request after the other until the runner stops.
pub(super) fn run(shared: &Shared) {
    while let Some(Asked { id, request, salt, mut sink }) = next(shared) {
        let started = catch_unwind(AssertUnwindSafe(|| start(shared, &request)));
        let refusal = match started {
            Ok(Ok((started, prompt_tokens))) => {
                hand_over(shared, id, started, prompt_tokens, salt, sink);
                continue;
            }
            Ok(Err(error)) => Event::Rejected(error),
            // What is wrong with one request must not take the thread and all others with it.
            Err(_) => Event::Failed("the engine broke off unexpectedly; ask another worker".into()),
        };
        let mut state = shared.lock();
        state.scheduler.finish(id);
        let cancelled = matches!(state.slots.remove(&id), Some(Slot::Cancelled));
        drop(state);
        tell(sink.as_mut(), if cancelled { cancellation() } else { refusal });
    }
}

/// What ends a job of which nothing is known but that nobody wants it.
pub(super) fn cancellation() -> Event {
    Event::Finished { reason: FinishReason::Cancelled, text: String::new(), usage: Usage::default() }
}

/// A request that is to be prepared.
struct Asked {
    id: JobId,
    request: Box<GenerateRequest>,
    salt: Salt,
    sink: Box<dyn Sink>,
}

fn next(shared: &Shared) -> Option<Asked> {
    let mut state = shared.lock();
    loop {
        if state.stopping {
            return None;
        }
        if let Some(asked) = take(&mut state) {
            return Some(asked);
        }
        state = shared.requests.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

fn take(state: &mut State) -> Option<Asked> {
    while let Some(id) = state.asked.pop_front() {
        // Those that were cancelled meanwhile are not there any more.
        let Some(slot) = state.slots.get_mut(&id) else { continue };
        match std::mem::replace(slot, Slot::Preparing) {
            Slot::Asked { request, salt, sink } => return Some(Asked { id, request, salt, sink }),
            other => *slot = other,
        }
    }
    None
}

/// The sequence of a request, no longer than the cache holds, and its tokens of prompt and prefix.
fn start(shared: &Shared, request: &GenerateRequest) -> Result<(Started, u32), RequestError> {
    let mut started = shared.engine.start(request)?;
    let sequence = &mut started.sequence;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (prompt, prefix) = (count(sequence.prompt.len()), count(sequence.prefix.len()));
    let total = prompt.saturating_add(prefix);
    // Nothing follows the last token, so it takes no place.
    let room = shared.capacity.saturating_add(1).saturating_sub(prompt);
    if room <= prefix && !sequence.at_end && prefix < sequence.limit {
        let limit = shared.capacity.min(shared.info().context);
        return Err(RequestError::ContextExceeded { prompt: total, limit });
    }
    sequence.limit = sequence.limit.min(room.max(prefix));
    Ok((started, total))
}

fn hand_over(
    shared: &Shared,
    id: JobId,
    started: Started,
    prompt_tokens: u32,
    salt: Salt,
    mut sink: Box<dyn Sink>,
) {
    let Started { sequence, form, answer } = started;
    // Before anything else can happen to the job.
    tell(sink.as_mut(), Event::Prepared { prompt_tokens, form });
    let mut job = Box::new(Job::new(sink, answer, salt, prompt_tokens));
    let mut state = shared.lock();
    let cancelled = matches!(state.slots.remove(&id), Some(Slot::Cancelled));
    let refused = state.scheduler.prepared(id, sequence, Instant::now());
    let last = match (cancelled, refused) {
        (true, _) => Some(cancellation()),
        (_, Err(refused)) => Some(Event::Rejected(RequestError::invalid("messages", refused.to_string()))),
        (false, Ok(())) => None,
    };
    match last {
        Some(last) => {
            drop(state);
            tell(job.sink.as_mut(), last);
        }
        None => {
            state.slots.insert(id, Slot::Ready(job));
            // A job that waits for money is nothing to wake up for.
            if state.scheduler.wants(id) || !state.scheduler.knows(id) {
                shared.wake(&mut state);
            }
        }
    }
}
