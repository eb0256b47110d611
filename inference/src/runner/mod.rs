//! Running many answers on one engine.
//!
//! A job is a request, an *allowance* and a [`Sink`]. The allowance is the number of output tokens
//! that the asker has paid for so far; the runner releases no token beyond it and computes none, so
//! a job that waits for money costs nothing but its memory. The [`scheduler`](crate::scheduler) decides what is
//! computed (a pure state machine); this module owns the threads, the answers and the sinks.
//!
//! Requests are checked and tokenised on threads of their own (`prepare`). One thread computes (`steps`): each
//! step makes one token for every job that may have one, and reads a piece of the prompts of others. Tokens go to the
//! sink in events of a few milliseconds, so that a fast engine does not wake the consumer once per token; only the
//! very first token of an answer, and the last before it has to be paid on, are handed over at once.
//!
//! ```text
//! submit ─► prepare (tokenise) ─► Prepared ─► unpaid ── allow ─► steps ─► Finished │ Failed
//!              │                                │
//!              ▼ Rejected                       ▼ others wait: Displaced
//! ```

// Waits and events are measured in wall-clock time: this is a shell, the core beside it reads no clock.
#![allow(clippy::disallowed_methods)]

mod job;
mod prepare;
mod steps;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use job::Slot;
pub use job::{Event, Sink};

use crate::engine::{Engine, EngineError, Resources, Shape};
pub use crate::scheduler::{Busy, Salt, Terms};
use crate::scheduler::{Config, JobId, Load, Scheduler};
use crate::{GenerateRequest, ModelInfo};

/// Threads that check and tokenise. Two, so that one enormous prompt does not keep a short one waiting.
const PREPARERS: usize = 2;

/// Bounds of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerLimits {
    /// Answers in progress.
    pub slots: usize,
    /// Jobs beyond them.
    pub queue: usize,
    /// Threads that compute; 0 for one per core.
    pub threads: usize,
    /// Most memory for keys and values, in bytes. It is taken as it is needed, and no more than `slots` answers of
    /// the whole context can need.
    pub cache_bytes: u64,
}

impl Default for RunnerLimits {
    fn default() -> Self {
        Self { slots: 4, queue: 256, threads: 0, cache_bytes: 2 << 30 }
    }
}

/// How busy a runner is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunnerLoad {
    /// Slots in use.
    pub active: usize,
    /// Jobs without a slot.
    pub queued: usize,
    /// Speed at which recent answers streamed, waits for money left out. 0 before the first answer.
    pub tokens_per_second: u32,
    /// Blocks of keys and values.
    pub cache: CacheLoad,
}

/// What is in the cache of keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheLoad {
    /// All blocks.
    pub blocks: usize,
    /// Blocks with nothing worth keeping in them.
    pub free: usize,
    /// Blocks that nobody holds, but whose asker may want them again.
    pub kept: usize,
    /// How often a job gave way to another, since the start.
    pub preempted: u64,
}

/// Runs jobs on an engine.
pub struct Runner {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    /// Most tokens of a sequence.
    capacity: u32,
    blocks: u32,
    state: Mutex<State>,
    /// For the thread that computes.
    steps: Condvar,
    /// For those that tokenise.
    requests: Condvar,
}

struct State {
    scheduler: Scheduler,
    /// Jobs that nobody has paid for yet. Those that were belong to the thread that computes.
    slots: BTreeMap<JobId, Slot>,
    /// Those among them that were not tokenised yet, in order.
    asked: VecDeque<JobId>,
    next_id: u64,
    /// The thread that computes has nothing to do.
    resting: bool,
    stopping: bool,
    tokens_per_second: f64,
}

/// A submitted job. Dropping it cancels the job.
#[derive(Debug)]
pub struct JobHandle {
    id: JobId,
    shared: Arc<Shared>,
}

impl Runner {
    /// Takes memory and starts the threads. Every limit is at least one.
    ///
    /// # Errors
    /// If the engine cannot have its memory or threads.
    pub fn spawn(engine: Arc<dyn Engine>, limits: RunnerLimits) -> Result<Self, EngineError> {
        let shape = engine.shape();
        let config = config(shape, limits);
        let executor = engine.executor(Resources { blocks: config.blocks, threads: limits.threads })?;
        let scheduler = Scheduler::new(config, Instant::now());
        let (capacity, blocks) = (scheduler.capacity(), config.blocks);
        let state = State {
            scheduler,
            slots: BTreeMap::new(),
            asked: VecDeque::new(),
            next_id: 0,
            resting: false,
            stopping: false,
            tokens_per_second: 0.0,
        };
        let (state, steps, requests) = (Mutex::new(state), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { engine, capacity, blocks, state, steps, requests });
        let mut runner = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        runner.start("engine", move || steps::run(&shared, executor))?;
        for _ in 0..PREPARERS {
            let shared = Arc::clone(&runner.shared);
            runner.start("tokenizer", move || prepare::run(&shared))?;
        }
        Ok(runner)
    }

    fn start(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        self.threads.push(thread.map_err(|e| EngineError::Backend(format!("no thread {name}: {e}")))?);
        Ok(())
    }

    /// Takes a job with an allowance of 0: it is tokenised and priced, and waits for
    /// [`JobHandle::allow`]. If all places are taken, one that nobody has paid for in good time gives way.
    ///
    /// # Errors
    /// If nobody gives way.
    pub fn submit(
        &self,
        request: GenerateRequest,
        terms: Terms,
        sink: Box<dyn Sink>,
    ) -> Result<JobHandle, Busy> {
        let mut state = self.shared.lock();
        let id = JobId(state.next_id);
        let displaced = state.scheduler.submit(id, terms, Instant::now())?;
        let displaced = displaced.and_then(|idle| state.slots.remove(&idle));
        state.next_id += 1;
        state.slots.insert(id, Slot::Asked { request: Box::new(request), salt: terms.salt, sink });
        state.asked.push_back(id);
        // A sink is called, and an answer freed, outside the lock.
        drop(state);
        self.shared.requests.notify_one();
        if let Some(Slot::Ready(mut job)) = displaced {
            job.sink.event(Event::Displaced);
        }
        Ok(JobHandle { id, shared: Arc::clone(&self.shared) })
    }

    /// How busy it is.
    pub fn load(&self) -> RunnerLoad {
        let state = self.shared.lock();
        let Load { active, queued, free_blocks, cached_blocks, preempted } = state.scheduler.load();
        let blocks = self.shared.blocks as usize;
        RunnerLoad {
            active,
            queued,
            tokens_per_second: state.tokens_per_second.round() as u32,
            cache: CacheLoad { blocks, free: free_blocks, kept: cached_blocks, preempted },
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.shared.engine
    }
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("threads", &self.threads.len()).field("load", &self.load()).finish()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Drop for Runner {
    /// Stops the threads after their current step. Unfinished jobs' sinks are dropped.
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.steps.notify_all();
        self.shared.requests.notify_all();
        for thread in self.threads.drain(..) {
            // A sink may own the runner: a thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("an engine thread had panicked");
            }
        }
    }
}

impl JobHandle {
    /// Raises the number of output tokens that may be released in all; never lowers it.
    pub fn allow(&self, total_output_tokens: u32) {
        let mut state = self.shared.lock();
        state.scheduler.allow(self.id, total_output_tokens, Instant::now());
        self.shared.wake(&mut state);
    }

    /// Ends the job with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled) within one step.
    pub fn cancel(&self) {
        let mut state = self.shared.lock();
        state.scheduler.cancel(self.id);
        self.shared.wake(&mut state);
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves at worst one job without an end.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread that computes, if it rests.
    fn wake(&self, state: &mut State) {
        if std::mem::take(&mut state.resting) {
            self.steps.notify_one();
        }
    }

    fn info(&self) -> &ModelInfo {
        self.engine.info()
    }
}

/// A scheduler's bounds for an engine.
fn config(shape: Shape, limits: RunnerLimits) -> Config {
    let slots = limits.slots.max(1);
    let per_sequence = shape.context.div_ceil(shape.block_tokens.max(1)).max(1);
    let wanted = u64::from(per_sequence).saturating_mul(slots as u64);
    let fit = limits.cache_bytes / shape.block_bytes.max(1);
    let blocks = u32::try_from(wanted.min(fit)).unwrap_or(u32::MAX).max(1);
    let mut config = Config::new(blocks, slots, limits.queue);
    config.block_tokens = shape.block_tokens;
    // A token for everybody, and beside them a full piece of a prompt.
    config.step_tokens = shape.prefill.saturating_add(u32::try_from(slots).unwrap_or(u32::MAX));
    config
}
