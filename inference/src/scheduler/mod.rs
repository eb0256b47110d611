//! Which tokens are computed next: continuous batching over a paged key/value cache.
//!
//! The engine computes in *steps*. A step is a batch of *runs*, each a few consecutive positions of one job: one
//! position for a job that is answering (decode), many for one whose prompt is being read (prefill, in chunks). All
//! runs of a step share one budget of tokens, so that a long prompt delays nobody's next token by more than a step.
//! Keys and values live in a pool of *blocks*; a job's *table* lists its blocks in the order of positions.
//! [`Scheduler::plan`] decides what a step computes, where its values go, and which blocks are overwritten first.
//!
//! ```text
//! submit ─► (tokenise) ─► prepared ─► unpaid ──── allow ───►  in line  ◄──────────────┐ allow, resume
//!                                       │                    │      ▲                 │
//!              nobody paid, others wait │           admitted │      │ no block left   │
//!                                       ▼                    ▼      │                 │
//!                                   displaced                running ─────────►  gave way
//!                                                            │  ▲  │     while idle, others need its blocks
//!              end, limit, deadline, cancel, finish          │  │  └── allowance used up, paused ──┐
//!                          over  ◄───────────────────────────┘  └───── allow, resume ◄── idle ◄───┘
//! ```
//!
//! What holds:
//!
//! * **Money.** A job's *allowance* is the number of output tokens that are paid for. No token is computed that
//!   could only serve one beyond it. A job that waits for money keeps its blocks while nobody else needs them.
//! * **Answers do not depend on company.** Whoever gives way has its tokens computed again later, in other chunks
//!   and beside other jobs. That is sound because the engine's kernels give the same values for any chunking.
//! * **Privacy.** A block is overwritten before it belongs to anybody else (`blocks`). Only a key that is salted
//!   per asker finds a computed block again (`prefix`).
//! * **Fairness.** Askers share by service received, urgent jobs go first, and waiting makes urgent (`fair`).
//!
//! Nothing here reads a clock, starts a thread or iterates in random order: the same calls give the same plans.
//! Inputs only mark what they change; effects happen in `plan`. A shell is therefore a loop:
//!
//! ```text
//! loop {
//!     apply inputs (submit, prepared, allow, cancel, pause, resume, finish)
//!     plan(now) ─► tell those who are over
//!     if the plan is empty: sleep until an input or next_timer()
//!     else: wipe; run; sample where `samples`; sampled(results)
//! }
//! ```

mod blocks;
mod fair;
mod job;
mod memory;
mod plan;
mod prefix;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub use blocks::BlockId;
use fair::{Line, Rank};
use job::Job;
pub use job::{Ended, Over, Sequence, Terms};
use memory::Memory;
use plan::{Flight, Scratch};
pub use plan::{Plan, Run};
use prefix::Key;
pub use prefix::Salt;

/// A job that was never paid keeps its place this long, whoever else wants it: its asker has to see the price
/// before it can pay.
const GRACE: Duration = Duration::from_secs(1);

/// Names a job. A shell counts them up: the lower of two came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// Bounds of a scheduler. Where zero makes no sense (blocks, say) it counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Positions per block. Small blocks waste less at the end of a sequence and share more at its start; large
    /// ones have shorter tables.
    pub block_tokens: u32,
    /// Blocks of the pool.
    pub blocks: u32,
    /// Most tokens of a step.
    pub step_tokens: u32,
    /// Most jobs that hold blocks. No more than a step has tokens: those beyond belong to the queue.
    pub running: usize,
    /// Most jobs beyond them.
    pub queue: usize,
    /// Waiting this long is worth one class of priority.
    pub age: Duration,
    /// Askers whose service differs by fewer tokens than this count as equally served.
    pub quantum: u32,
    /// How long a prefix that nobody uses can be found again. Zero: nothing is ever reused.
    pub keep: Duration,
}

impl Config {
    /// Usual values beside those that depend on the machine.
    pub fn new(blocks: u32, running: usize, queue: usize) -> Self {
        Self {
            block_tokens: 16,
            blocks,
            step_tokens: 2048,
            running,
            queue,
            // Longer than most answers take to begin, shorter than most people wait for one.
            age: Duration::from_secs(10),
            quantum: 4096,
            // The pause of somebody who reads an answer and asks on.
            keep: Duration::from_secs(300),
        }
    }
}

/// No room for another job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {limit} places are taken; try another worker or try again soon")]
pub struct Busy {
    /// Running and queue together.
    pub limit: usize,
}

/// A sequence that can never be computed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It does not fit the pool, even alone.
    #[error(
        "prompt and answer may take {tokens} tokens, but this worker's cache holds {capacity}; lower `max_tokens` or shorten the conversation"
    )]
    TooLong {
        /// Positions that the sequence may take.
        tokens: u64,
        /// Positions that the pool has.
        capacity: u64,
    },
    /// There is no token to start from.
    #[error("the prompt has no tokens; there is nothing to continue")]
    Empty,
}

/// What the engine made of a run with [`Run::samples`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampled {
    /// The next token.
    Token(u32),
    /// The model ended its turn.
    End,
}

/// How busy a scheduler is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Jobs that hold blocks.
    pub active: usize,
    /// Jobs that do not.
    pub queued: usize,
    /// Blocks with nothing worth keeping in them.
    pub free_blocks: usize,
    /// Blocks that nobody holds, but somebody may want again.
    pub cached_blocks: usize,
    /// How often a job gave way, since the start.
    pub preempted: u64,
}

/// The scheduler. [The module](self) says how it is used.
pub struct Scheduler {
    config: Config,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs with blocks, best first.
    running: Vec<Rank>,
    line: Line,
    memory: Memory,
    deadlines: BTreeSet<(Instant, JobId)>,
    /// Blocks of jobs that are over. A plan frees them, because only it knows the time.
    leaving: Vec<BlockId>,
    /// Jobs that are over and were not reported yet.
    over: Vec<Ended>,
    flight: Vec<Flight>,
    /// Counts jobs that ceased to want to run.
    rests: u64,
    preempted: u64,
    scratch: Scratch,
}

impl std::fmt::Debug for Scheduler {
    /// Without the jobs: what an asker wrote has no place in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("config", &self.config)
            .field("load", &self.load())
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// A scheduler of an engine whose pool is blank.
    pub fn new(config: Config, now: Instant) -> Self {
        let step_tokens = config.step_tokens.max(1);
        let running = config.running.clamp(1, step_tokens as usize);
        let queue = config.queue.saturating_add(config.running.max(1) - running);
        let (block_tokens, blocks) = (config.block_tokens.max(1), config.blocks.max(1));
        let config = Config { block_tokens, blocks, step_tokens, running, queue, ..config };
        // Twice the askers that can have a job at a time.
        let accounts = running.saturating_add(queue).saturating_mul(2);
        Self {
            config,
            jobs: BTreeMap::new(),
            running: Vec::new(),
            line: Line::new(now, config.age, config.quantum, accounts),
            memory: Memory::new(config.blocks, config.keep),
            deadlines: BTreeSet::new(),
            leaving: Vec::new(),
            over: Vec::new(),
            flight: Vec::new(),
            rests: 0,
            preempted: 0,
            scratch: Scratch::default(),
        }
    }

    /// Most positions that one job can have: what bounds `prompt + limit` beside the model's context.
    pub fn capacity(&self) -> u32 {
        self.config.blocks.saturating_mul(self.config.block_tokens)
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        Load {
            active: self.running.len(),
            queued: self.jobs.len() - self.running.len(),
            free_blocks: self.memory.free(),
            cached_blocks: self.memory.kept(),
            preempted: self.preempted,
        }
    }

    /// Adds a job that is about to be tokenised. If there is no place, it takes that of the oldest job that was
    /// not paid for in good time; returns which, if any. That one is over and not reported again.
    pub fn submit(&mut self, id: JobId, terms: Terms, now: Instant) -> Result<Option<JobId>, Busy> {
        let limit = self.config.running.saturating_add(self.config.queue);
        let mut displaced = None;
        if self.jobs.len() >= limit {
            let unpaid = |job: &Job| {
                let waited = now.saturating_duration_since(job.since);
                job.prepared && job.allowance == 0 && waited >= GRACE
            };
            let idle = self.jobs.iter().find(|(_, job)| unpaid(job)).map(|(&id, _)| id);
            displaced = Some(idle.ok_or(Busy { limit })?);
        }
        if let Some(idle) = displaced {
            self.end(idle, None);
        }
        // A name that is used twice must not leave blocks behind.
        self.end(id, None);
        if let Some(deadline) = terms.deadline {
            self.deadlines.insert((deadline, id));
        }
        self.jobs.insert(id, Job::new(terms, now));
        Ok(displaced)
    }

    /// Takes a job's tokens. It can be paid for from now on. A job that is refused is over.
    ///
    /// This hashes the sequence: some 50 million tokens per second on a processor with SHA instructions.
    pub fn prepared(&mut self, id: JobId, sequence: Sequence, now: Instant) -> Result<(), Refused> {
        let Sequence { prompt, prefix, limit, at_end } = sequence;
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.prepared) else { return Ok(()) };
        let output = u32::try_from(prefix.len()).unwrap_or(u32::MAX);
        if at_end || output >= limit {
            self.end(id, Some(if at_end { Over::End } else { Over::Length }));
            return Ok(());
        }
        // Nothing follows the last token, so its own values are never computed.
        let tokens = (prompt.len() as u64).saturating_add(u64::from(limit)).saturating_sub(1);
        let capacity = u64::from(self.config.blocks.saturating_mul(self.config.block_tokens));
        let refused = match prompt.is_empty() {
            true => Some(Refused::Empty),
            false => (tokens > capacity).then_some(Refused::TooLong { tokens, capacity }),
        };
        if let Some(refused) = refused {
            self.end(id, None);
            return Err(refused);
        }
        job.ids = prompt;
        job.ids.extend_from_slice(&prefix);
        if self.memory.reuses() {
            Key::extend(&mut job.keys, &job.terms.salt, &job.ids, self.config.block_tokens as usize);
        }
        job.left = limit - output;
        job.prepared = true;
        // Nobody can pay before the price is known.
        job.since = now;
        self.settle(id, now);
        Ok(())
    }

    /// Raises the number of output tokens that may be released in all, those of `prefix` not counted; never
    /// lowers it.
    pub fn allow(&mut self, id: JobId, total: u32, now: Instant) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.allowance = job.allowance.max(total);
        self.settle(id, now);
    }

    /// Stops a job whose reader does not keep up. It keeps its place, and its blocks while nobody needs them. A
    /// token that is being computed still arrives.
    pub fn pause(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.paused = true;
        self.rest(id);
    }

    /// Takes a paused job up again.
    pub fn resume(&mut self, id: JobId, now: Instant) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.paused = false;
        self.settle(id, now);
    }

    /// Cancels a job: the next plan reports it and computes nothing for it.
    pub fn cancel(&mut self, id: JobId) {
        self.end(id, Some(Over::Cancelled));
    }

    /// Ends a job for a reason its caller knows and the scheduler does not: a stop string, a refusal, an engine
    /// that failed. It is not reported.
    pub fn finish(&mut self, id: JobId) {
        self.end(id, None);
    }

    /// Whether a job is not over.
    pub fn knows(&self, id: JobId) -> bool {
        self.jobs.contains_key(&id)
    }

    /// Whether a job is paid for its next token, and its reader keeps up.
    pub fn wants(&self, id: JobId) -> bool {
        self.jobs.get(&id).is_some_and(|job| job.wants)
    }

    /// Tokens of prompt and prefix that were found in the cache instead of being computed.
    pub fn cached_tokens(&self, id: JobId) -> Option<u32> {
        self.jobs.get(&id).map(Job::cached_tokens)
    }

    /// Takes the results of the last plan: one for each run that samples, in the order of the runs (another order
    /// is slower). What is missing is computed again. Results of jobs that are over are ignored.
    pub fn sampled(&mut self, results: &[(JobId, Sampled)]) {
        let flight = std::mem::take(&mut self.flight);
        let mut next = 0;
        for &Flight { job: id, to, samples } in &flight {
            let mut result = None;
            if samples {
                let at = |i: &usize| results.get(*i).is_some_and(|(job, _)| *job == id);
                let found = Some(next).filter(at).or_else(|| results.iter().position(|(job, _)| *job == id));
                result = found.and_then(|i| results.get(i)).map(|(_, sampled)| *sampled);
                next = found.map_or(next, |i| i + 1);
            }
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            // Without its result the last position is of no use: its logits are gone.
            job.computed = if samples && result.is_none() { to - 1 } else { to };
            self.publish(id);
            match result {
                Some(Sampled::Token(token)) => self.push(id, token),
                Some(Sampled::End) => self.end(id, Some(Over::End)),
                None => {}
            }
        }
        self.flight = flight;
        self.flight.clear();
    }

    /// When there is something to do without any input: a deadline, or a cached prefix whose time is up. (That an
    /// unpaid job may be displaced, and that waiting makes urgent, matters only once something else happens.)
    pub fn next_timer(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(due, _)| *due);
        [deadline, self.memory.next_expiry()].into_iter().flatten().min()
    }

    fn push(&mut self, id: JobId, token: u32) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.ids.push(token);
        job.released = job.released.saturating_add(1);
        job.left = job.left.saturating_sub(1);
        if job.left == 0 {
            self.end(id, Some(Over::Length));
        } else if !job.may_run() {
            self.rest(id);
        }
    }

    /// Makes blocks known that are full.
    fn publish(&mut self, id: JobId) {
        let block_tokens = self.config.block_tokens as usize;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let full = job.computed / block_tokens;
        if full <= job.published || !self.memory.reuses() {
            return;
        }
        Key::extend(&mut job.keys, &job.terms.salt, &job.ids[..full * block_tokens], block_tokens);
        let blocks = job.table.iter().zip(&job.keys).take(full).skip(job.published);
        for (&block, &key) in blocks {
            self.memory.publish(block, key);
        }
        job.published = full;
    }

    /// A job may want to run from now on.
    fn settle(&mut self, id: JobId, now: Instant) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.wants || !job.may_run() {
            return;
        }
        job.wants = true;
        self.line.wants(job.terms.asker);
        // The standing is for good, the wait begins again: nobody gets ahead by paying for a token and waiting.
        let rank = job.rank.map(|(rank, _)| rank);
        job.rank = Some((rank.unwrap_or_else(|| self.line.rank(id, job.terms.priority, now)), now));
        if let Some(claim) = job.claim().filter(|_| !job.running) {
            self.line.join(claim);
        }
    }

    /// A job does not want to run any more.
    fn rest(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if !std::mem::take(&mut job.wants) {
            return;
        }
        self.rests = self.rests.saturating_add(1);
        job.rested = self.rests;
        if let Some(claim) = job.claim().filter(|_| !job.running) {
            self.line.leave(&claim);
        }
        self.line.rests(job.terms.asker);
    }

    /// Forgets a job.
    fn end(&mut self, id: JobId, over: Option<Over>) {
        self.rest(id);
        let Some(mut job) = self.jobs.remove(&id) else { return };
        if let Some((rank, _)) = job.rank.filter(|_| job.running)
            && let Ok(place) = self.running.binary_search(&rank)
        {
            self.running.remove(place);
        }
        if let Some(deadline) = job.terms.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        // The end of a chain is of no use without its start, so it goes first.
        self.leaving.extend(job.table.drain(..).rev());
        if let Some(over) = over {
            self.over.push(Ended { job: id, over, cached: job.cached_tokens() });
        }
    }
}
