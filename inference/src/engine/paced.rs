//! An engine slowed down to a steady pace.

// The pace is wall-clock time by definition; `complete` waits for it in the caller's thread.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Engine, EngineError, Generation, Step};
use crate::{GenerateRequest, ModelInfo, RequestError};

/// Lets another engine make at most one token per interval. It never blocks: between tokens it
/// answers [`Step::Wait`].
pub struct Paced {
    inner: Arc<dyn Engine>,
    interval: Duration,
}

impl Paced {
    /// Slows `inner` down to one token per `interval`.
    pub fn new(inner: Arc<dyn Engine>, interval: Duration) -> Self {
        Self { inner, interval }
    }
}

impl std::fmt::Debug for Paced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paced").field("inner", self.inner.info()).field("interval", &self.interval).finish()
    }
}

impl Engine for Paced {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn start(&self, request: &GenerateRequest) -> Result<Box<dyn Generation>, RequestError> {
        let inner = self.inner.start(request)?;
        Ok(Box::new(PacedGeneration { inner, interval: self.interval, due: None }))
    }
}

struct PacedGeneration {
    inner: Box<dyn Generation>,
    interval: Duration,
    /// When the next token may be made; the first one at once.
    due: Option<Instant>,
}

impl Generation for PacedGeneration {
    fn prompt_tokens(&self) -> u32 {
        self.inner.prompt_tokens()
    }

    fn step(&mut self) -> Result<Step, EngineError> {
        let now = Instant::now();
        if let Some(due) = self.due.filter(|due| *due > now && !self.inner.at_end()) {
            return Ok(Step::Wait(due));
        }
        let step = self.inner.step()?;
        if matches!(step, Step::Token(_)) {
            self.due = Some(now + self.interval);
        }
        Ok(step)
    }

    fn at_end(&self) -> bool {
        self.inner.at_end()
    }
}

/// For callers that own their thread.
pub(super) fn sleep_until(until: Instant) {
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}
