//! Running many generations on a few threads.
//!
//! A job is a request, an *allowance* and a [`Sink`]. The allowance is the number of output tokens
//! that the asker has paid for so far; the runner releases no token beyond it and computes none, so
//! a job that waits for money costs nothing but its memory. [`schedule`](self) decides whose turn
//! it is (a pure state machine); this module owns the threads, the generations and the sinks.
//!
//! Jobs take turns of a few milliseconds, first come first served. A turn hands its tokens to the
//! sink in one event, so that a fast engine does not wake the consumer once per token; only the very
//! first token of an answer is handed over at once. A thread is woken only when there is work for it.
//!
//! ```text
//! submit ─► prepare (tokenise) ─► Prepared ─► parked ◄──────────────┐    (never paid, others wait: Displaced)
//!                                               │ allow             │ allowance used up
//!                                               ▼                   │
//!                                       wait for a slot ─► turns ───┴─► Finished │ Failed
//! ```

// Turns are measured in wall-clock time: this is a shell, the core beside it reads no clock.
#![allow(clippy::disallowed_methods)]

mod schedule;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use schedule::Busy;
use schedule::{JobId, Outcome, Schedule, Turn};

use crate::engine::{Engine, Generation, Step};
use crate::{FinishReason, GenerateRequest, RequestError, Token, Usage};

/// Longest turn. Long enough to make hand-overs rare, short enough to go unnoticed by a reader.
const TURN: Duration = Duration::from_millis(2);
/// Most tokens of one event.
const TURN_TOKENS: u32 = 64;

/// Bounds of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerLimits {
    /// Generations in progress, each with a key/value cache.
    pub slots: usize,
    /// Jobs beyond them.
    pub queue: usize,
    /// Threads that run the engine.
    pub threads: usize,
}

/// What a job reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request is fine. Its input can be priced.
    Prepared {
        /// Tokens of prompt and prefix.
        prompt_tokens: u32,
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

impl<F: FnMut(Event) + Send> Sink for F {
    fn event(&mut self, event: Event) {
        self(event);
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
}

/// Runs jobs on an engine.
pub struct Runner {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    schedule: Schedule,
    /// Jobs whose turn it is not.
    jobs: BTreeMap<JobId, Job>,
    cancelled: BTreeMap<JobId, Arc<AtomicBool>>,
    next_id: JobId,
    idle: usize,
    stopping: bool,
    tokens_per_second: f64,
}

struct Job {
    work: Work,
    sink: Box<dyn Sink>,
    cancelled: Arc<AtomicBool>,
    released: u32,
    prompt_tokens: u32,
    /// Time spent on tokens after the first, for the speed estimate.
    streamed: Duration,
}

enum Work {
    Request(Box<GenerateRequest>),
    Generation(Box<dyn Generation>),
}

/// A submitted job. Dropping it cancels the job.
#[derive(Debug)]
pub struct JobHandle {
    id: JobId,
    shared: Arc<Shared>,
}

impl Runner {
    /// Starts the threads. Every limit is at least one.
    pub fn spawn(engine: Arc<dyn Engine>, limits: RunnerLimits) -> Self {
        let state = State {
            schedule: Schedule::new(limits.slots.max(1), limits.queue),
            jobs: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            next_id: 0,
            idle: 0,
            stopping: false,
            tokens_per_second: 0.0,
        };
        let shared = Arc::new(Shared { engine, state: Mutex::new(state), wake: Condvar::new() });
        let threads = (0..limits.threads.max(1))
            .filter_map(|i| {
                let shared = Arc::clone(&shared);
                let thread = std::thread::Builder::new().name(format!("engine-{i}"));
                let spawned = thread.spawn(move || shared.work());
                spawned.inspect_err(|e| tracing::error!("cannot start engine thread {i}: {e}")).ok()
            })
            .collect();
        Self { shared, threads }
    }

    /// Takes a job with an allowance of 0: it is tokenised and priced, and waits for
    /// [`JobHandle::allow`]. If all places are taken, one that nobody has paid for in good time gives way.
    pub fn submit(&self, request: GenerateRequest, sink: Box<dyn Sink>) -> Result<JobHandle, Busy> {
        let mut state = self.shared.lock();
        let id = state.next_id;
        let displaced = state.schedule.submit(id, Instant::now())?;
        let displaced = displaced.and_then(|idle| {
            state.cancelled.remove(&idle);
            state.jobs.remove(&idle)
        });
        state.next_id += 1;
        let cancelled = Arc::new(AtomicBool::new(false));
        state.cancelled.insert(id, Arc::clone(&cancelled));
        let job = Job {
            work: Work::Request(Box::new(request)),
            sink,
            cancelled,
            released: 0,
            prompt_tokens: 0,
            streamed: Duration::ZERO,
        };
        state.jobs.insert(id, job);
        self.shared.wake_one(&state);
        // A sink is called, and a generation freed, outside the lock.
        drop(state);
        if let Some(mut displaced) = displaced {
            displaced.sink.event(Event::Displaced);
        }
        Ok(JobHandle { id, shared: Arc::clone(&self.shared) })
    }

    /// How busy it is.
    pub fn load(&self) -> RunnerLoad {
        let state = self.shared.lock();
        RunnerLoad {
            active: state.schedule.active(),
            queued: state.schedule.queued(),
            tokens_per_second: state.tokens_per_second.round() as u32,
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
        self.shared.wake.notify_all();
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
        if state.schedule.allow(self.id, total_output_tokens) {
            self.shared.wake_one(&state);
        }
    }

    /// Ends the job with [`FinishReason::Cancelled`] within one step.
    pub fn cancel(&self) {
        let mut state = self.shared.lock();
        if let Some(flag) = state.cancelled.get(&self.id) {
            flag.store(true, Ordering::Relaxed);
        }
        if state.schedule.cancel(self.id) {
            self.shared.wake_one(&state);
        }
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// How a turn ended, beside what the schedule needs to know.
struct Ended {
    outcome: Outcome,
    /// Last event of the job.
    last: Option<Event>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves at worst one job in the wrong list.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_one(&self, state: &State) {
        if state.idle > 0 {
            self.wake.notify_one();
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let Some((id, turn)) = state.schedule.next(Instant::now()) else {
                state = self.sleep(state);
                continue;
            };
            if state.schedule.has_ready() {
                self.wake_one(&state);
            }
            let Some(mut job) = state.jobs.remove(&id) else {
                state.schedule.turn_ended(id, Outcome::Done, Instant::now());
                continue;
            };
            drop(state);
            let ended = job.turn(turn, self.engine.as_ref());
            let done = matches!(ended.outcome, Outcome::Done);
            let speed = done.then(|| job.speed()).flatten();
            if let Some(event) = ended.last {
                job.sink.event(event);
            }
            let mut finished = None;
            state = self.lock();
            state.schedule.turn_ended(id, ended.outcome, Instant::now());
            if let Some(speed) = speed {
                let old = state.tokens_per_second;
                state.tokens_per_second = if old == 0.0 { speed } else { 0.8 * old + 0.2 * speed };
            }
            match done {
                true => {
                    state.cancelled.remove(&id);
                    finished = Some(job);
                }
                false => {
                    state.jobs.insert(id, job);
                }
            }
            if finished.is_some() {
                // A cache is freed, and a sink dropped, outside the lock.
                drop(state);
                drop(finished);
                state = self.lock();
            }
        }
    }

    fn sleep<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.idle += 1;
        let mut state = match state.schedule.next_timer() {
            None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(due) => {
                let wait = due.saturating_duration_since(Instant::now());
                self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.idle -= 1;
        state
    }
}

impl Job {
    fn turn(&mut self, turn: Turn, engine: &dyn Engine) -> Ended {
        // An engine or a sink that panics must not take the thread and all other jobs with it.
        catch_unwind(AssertUnwindSafe(|| self.run(turn, engine))).unwrap_or_else(|_| {
            Ended::last(Event::Failed("the engine broke off unexpectedly; ask another worker".into()))
        })
    }

    fn run(&mut self, turn: Turn, engine: &dyn Engine) -> Ended {
        if self.is_cancelled() {
            return self.finished(FinishReason::Cancelled, String::new());
        }
        match &mut self.work {
            Work::Request(request) => match engine.start(request) {
                Err(error) => Ended::last(Event::Rejected(error)),
                Ok(generation) => {
                    self.prompt_tokens = generation.prompt_tokens();
                    self.sink.event(Event::Prepared { prompt_tokens: self.prompt_tokens });
                    let at_end = generation.at_end();
                    self.work = Work::Generation(generation);
                    Ended { outcome: Outcome::Prepared { at_end }, last: None }
                }
            },
            Work::Generation(_) => self.generate(turn),
        }
    }

    fn generate(&mut self, turn: Turn) -> Ended {
        let started = Instant::now();
        let mut streaming_since = (self.released > 0).then_some(started);
        let mut tokens = Vec::new();
        let ended = loop {
            if self.is_cancelled() {
                break Err((FinishReason::Cancelled, String::new()));
            }
            let Work::Generation(generation) = &mut self.work else {
                break Ok(Outcome::Done);
            };
            if self.released >= turn.allowance && !generation.at_end() {
                break Ok(Outcome::Yield { released: self.released });
            }
            match generation.step() {
                Err(error) => return Ended::last(Event::Failed(error.to_string())),
                Ok(Step::Finished { reason, text }) => break Err((reason, text)),
                Ok(Step::Wait(until)) => break Ok(Outcome::Sleep { until, released: self.released }),
                Ok(Step::Prefilling { .. }) => {}
                Ok(Step::Token(token)) => {
                    tokens.push(token);
                    self.released += 1;
                    if self.released == 1 {
                        self.sink.event(Event::Tokens(std::mem::take(&mut tokens)));
                        streaming_since = Some(Instant::now());
                    }
                }
            }
            if tokens.len() >= TURN_TOKENS as usize || started.elapsed() >= TURN {
                break Ok(Outcome::Yield { released: self.released });
            }
        };
        if let Some(since) = streaming_since {
            self.streamed += since.elapsed();
        }
        if !tokens.is_empty() {
            self.sink.event(Event::Tokens(tokens));
        }
        match ended {
            Ok(outcome) => Ended { outcome, last: None },
            Err((reason, text)) => self.finished(reason, text),
        }
    }

    fn finished(&mut self, reason: FinishReason, text: String) -> Ended {
        let usage = Usage { prompt_tokens: self.prompt_tokens, completion_tokens: self.released };
        Ended::last(Event::Finished { reason, text, usage })
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Tokens per second of the stream after its first token.
    fn speed(&self) -> Option<f64> {
        let seconds = self.streamed.as_secs_f64();
        (self.released >= 8 && seconds > 0.0).then(|| f64::from(self.released - 1) / seconds)
    }
}

impl Ended {
    fn last(event: Event) -> Self {
        Self { outcome: Outcome::Done, last: Some(event) }
    }
}
