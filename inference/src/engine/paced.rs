//! An engine slowed down to a steady pace.

use std::sync::Arc;
use std::time::Duration;

use super::{Engine, EngineError, Executor, Resources, Shape, Started};
use crate::{GenerateRequest, ModelInfo, RequestError};

/// Lets another engine make at most one token per interval and answer. It never blocks: whoever drives it waits.
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

    fn start(&self, request: &GenerateRequest) -> Result<Started, RequestError> {
        self.inner.start(request)
    }

    fn shape(&self) -> Shape {
        self.inner.shape()
    }

    fn executor(&self, resources: Resources) -> Result<Box<dyn Executor>, EngineError> {
        self.inner.executor(resources)
    }

    fn interval(&self) -> Option<Duration> {
        Some(self.interval)
    }

    fn ready(&self) -> bool {
        self.inner.ready()
    }
}
