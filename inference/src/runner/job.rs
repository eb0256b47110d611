//! What a job is to the runner, and what it reports.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::engine::{Answer, Next};
use crate::scheduler::{Over, Salt};
use crate::{AnswerForm, FinishReason, GenerateRequest, RequestError, Token, Usage};

/// Longest time that a token waits for others to share an event with. Long enough to make hand-overs rare, short
/// enough to go unnoticed by a reader.
const EVENT: Duration = Duration::from_millis(2);
/// Most tokens of one event.
const EVENT_TOKENS: usize = 64;

/// What a job reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request is fine. Its input can be priced.
    Prepared {
        /// Tokens of prompt and prefix.
        prompt_tokens: u32,
        /// How the answer is to be read.
        form: AnswerForm,
    },
    /// Tokens, in order.
    Tokens(Vec<Token>),
    /// The answer is complete.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Text that was held back.
        text: String,
        /// Exact counts.
        usage: Usage,
    },
    /// The request is refused; nothing was computed.
    Rejected(RequestError),
    /// The engine failed.
    Failed(String),
    /// Nobody paid for the job, and another one took its place; nothing was computed.
    Displaced,
}

/// Where a job's events go. Called on the runner's threads, and for `Displaced` on the thread that submits what
/// takes its place; one call at a time. It must not block.
pub trait Sink: Send {
    /// Takes one event. After `Finished`, `Rejected`, `Failed` or `Displaced` there is no other.
    fn event(&mut self, event: Event);
}

/// Hands an event over. A sink that panics must not take the thread and all other jobs with it.
pub(super) fn tell(sink: &mut dyn Sink, event: Event) {
    if catch_unwind(AssertUnwindSafe(|| sink.event(event))).is_err() {
        tracing::error!("a reader of an answer broke off unexpectedly");
    }
}

impl<F: FnMut(Event) + Send> Sink for F {
    fn event(&mut self, event: Event) {
        self(event);
    }
}

/// A job that nobody has paid for yet.
pub(super) enum Slot {
    /// Waits to be tokenised.
    Asked { request: Box<GenerateRequest>, salt: Salt, sink: Box<dyn Sink> },
    /// Is being tokenised.
    Preparing,
    /// Was cancelled meanwhile.
    Cancelled,
    /// Has a price.
    Ready(Box<Job>),
}

/// A job with a price.
pub(super) struct Job {
    pub(super) sink: Box<dyn Sink>,
    answer: Box<dyn Answer>,
    salt: Salt,
    usage: Usage,
    /// Tokens that were not handed over yet, and since when.
    tokens: Vec<Token>,
    held_since: Option<Instant>,
    /// Its last event, to be handed over once its place is free.
    end: Option<Event>,
    /// When its last token was made, unless it waited for its asker since.
    last: Option<Instant>,
    /// Time spent on tokens after the first, and how many they are, for the speed estimate.
    streamed: (Duration, u32),
}

/// What to do after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Go on after a token.
    On(u32),
    /// Ask again.
    Again,
    /// Nothing, it is over.
    Over,
}

impl Job {
    pub(super) fn new(sink: Box<dyn Sink>, answer: Box<dyn Answer>, salt: Salt, prompt_tokens: u32) -> Self {
        Self {
            sink,
            answer,
            salt,
            usage: Usage { prompt_tokens, ..Usage::default() },
            tokens: Vec::new(),
            held_since: None,
            end: None,
            last: None,
            streamed: (Duration::ZERO, 0),
        }
    }

    /// It begins, with some of its prompt found in the cache.
    pub(super) fn begin(&mut self, cached_tokens: u32) {
        self.usage.cached_tokens = cached_tokens;
    }

    /// A step is about to make a token, and may make so many from here on.
    pub(super) fn order(&mut self, tokens: u32) {
        self.answer.order(tokens, &self.salt);
    }

    /// Takes the logits of a step that began at `started`.
    pub(super) fn step(&mut self, logits: &mut [f32], started: Instant, now: Instant) -> Then {
        let next = match self.answer.next(logits) {
            Ok(next) => next,
            Err(error) => {
                self.fail(error.to_string());
                return Then::Over;
            }
        };
        let (token, last) = match next {
            Next::Token(token) => (token, false),
            Next::Last(token) => (token, true),
            Next::Later => return Then::Again,
            Next::End => {
                self.finish(FinishReason::Stop);
                return Then::Over;
            }
        };
        if let Some(before) = self.last {
            self.streamed.0 += now.saturating_duration_since(before);
            self.streamed.1 += 1;
        }
        self.last = Some(now);
        let id = token.id;
        self.tokens.push(token);
        // From when its step began: a token that took long to make waits for no others.
        self.held_since.get_or_insert(started);
        self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(1);
        if last {
            self.finish(FinishReason::Stop);
            return Then::Over;
        }
        if self.usage.completion_tokens == 1 || self.tokens.len() >= EVENT_TOKENS {
            self.flush();
        }
        Then::On(id)
    }

    /// Hands over the tokens that have waited long enough. Whether some still wait.
    pub(super) fn flush_due(&mut self, now: Instant) -> bool {
        if self.held_since.is_some_and(|since| now.saturating_duration_since(since) >= EVENT) {
            self.flush();
        }
        self.held_since.is_some()
    }

    /// Hands over all tokens.
    pub(super) fn flush(&mut self) {
        self.held_since = None;
        if !self.tokens.is_empty() {
            let tokens = std::mem::take(&mut self.tokens);
            tell(self.sink.as_mut(), Event::Tokens(tokens));
        }
    }

    /// It waits for its asker: that time is not the engine's.
    pub(super) fn rest(&mut self) {
        self.last = None;
    }

    /// The last word, where the scheduler has it.
    pub(super) fn over(&mut self, over: Over) {
        self.finish(match over {
            Over::End => FinishReason::Stop,
            Over::Length => FinishReason::Length,
            Over::Cancelled | Over::Deadline => FinishReason::Cancelled,
        });
    }

    pub(super) fn fail(&mut self, why: impl Into<String>) {
        self.end = Some(Event::Failed(why.into()));
    }

    fn finish(&mut self, reason: FinishReason) {
        // Held text that the asker did not wait for is of no use.
        let text = if reason == FinishReason::Cancelled { String::new() } else { self.answer.finish() };
        self.end = Some(Event::Finished { reason, text, usage: self.usage });
    }

    /// Hands over what is left, and its last event. Its place is free by now, so that whoever hears of the end may
    /// take it.
    pub(super) fn close(&mut self) {
        self.flush();
        if let Some(end) = self.end.take() {
            tell(self.sink.as_mut(), end);
        }
    }

    /// Tokens per second of the stream after its first token.
    pub(super) fn speed(&self) -> Option<f64> {
        let (time, tokens) = self.streamed;
        (tokens >= 8 && !time.is_zero()).then(|| f64::from(tokens) / time.as_secs_f64())
    }
}
