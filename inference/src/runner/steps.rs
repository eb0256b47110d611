//! The thread that computes.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::job::{Job, Sink, Slot, Then, tell};
use super::prepare::cancellation;
use super::{Shared, State};
use crate::engine::{EngineError, Executor, Logits};
use crate::scheduler::{Ended, JobId, Plan, Run, Sampled};

/// Computes until the runner stops.
pub(super) fn run(shared: &Shared, executor: Box<dyn Executor>) {
    let steps = Steps {
        shared,
        executor,
        interval: shared.engine.interval(),
        jobs: BTreeMap::new(),
        holding: BTreeSet::new(),
        paused: BTreeSet::new(),
        started: Instant::now(),
        speed: None,
    };
    steps.run();
}

struct Steps<'a> {
    shared: &'a Shared,
    executor: Box<dyn Executor>,
    /// The engine's pace.
    interval: Option<Duration>,
    /// Jobs that were paid for.
    jobs: BTreeMap<JobId, Box<Job>>,
    /// Those among them with tokens that were not handed over yet.
    holding: BTreeSet<JobId>,
    /// Those that the engine's pace keeps waiting, and until when.
    paused: BTreeSet<(Instant, JobId)>,
    /// When the current step began.
    started: Instant,
    /// Of the answer that ended last.
    speed: Option<f64>,
}

/// A job that is over before anything was computed for it.
enum Leaving {
    Sink(Box<dyn Sink>),
    Job(Box<Job>, Ended),
}

impl Steps<'_> {
    fn run(mut self) {
        let mut plan = Plan::default();
        let mut results = Vec::new();
        while let Some(leaving) = self.plan(&mut plan) {
            for leaving in leaving {
                match leaving {
                    Leaving::Sink(mut sink) => tell(sink.as_mut(), cancellation()),
                    Leaving::Job(mut job, ended) => {
                        job.over(ended.over);
                        job.close();
                    }
                }
            }
            // Whoever held a block is gone, or gives it to somebody else: in either case before the next step.
            self.executor.wipe(&plan.wipe);
            if plan.runs.is_empty() {
                continue;
            }
            results.clear();
            let mut over = Vec::new();
            self.started = Instant::now();
            for run in plan.runs.iter().filter(|run| run.samples) {
                if let Some(job) = self.jobs.get_mut(&run.job) {
                    job.order(run.ahead);
                }
            }
            match self.compute(&plan, &plan.runs) {
                Ok(mut logits) => self.sample(&plan.runs, &mut logits, &mut results, &mut over),
                // One of them is at fault. The others' answers shall not suffer, so each gets a step of its own.
                Err(error) if plan.runs.len() > 1 => {
                    tracing::warn!(%error, jobs = plan.runs.len(), "a step failed; taking its jobs one by one");
                    for run in &plan.runs {
                        let run = std::slice::from_ref(run);
                        match self.compute(&plan, run) {
                            Ok(mut logits) => self.sample(run, &mut logits, &mut results, &mut over),
                            Err(error) => self.fail(run[0].job, &error, &mut over),
                        }
                    }
                }
                Err(error) => self.fail(plan.runs[0].job, &error, &mut over),
            }
            self.report(&plan, &results, &over);
        }
    }

    /// Waits for something to do. What is over before it began; none when the runner stops.
    fn plan(&mut self, plan: &mut Plan) -> Option<Vec<Leaving>> {
        let shared = self.shared;
        let mut state = shared.lock();
        loop {
            if state.stopping {
                return None;
            }
            let now = Instant::now();
            while let Some(&(_, id)) = self.paused.first().filter(|(due, _)| *due <= now) {
                self.paused.pop_first();
                state.scheduler.resume(id, now);
            }
            state.scheduler.plan(now, plan);
            if !plan.is_empty() {
                break;
            }
            if self.holding.is_empty() {
                state = self.sleep(state);
            } else {
                // Sinks are called outside the lock.
                drop(state);
                self.flush(None);
                state = shared.lock();
            }
        }
        for run in &plan.runs {
            if !self.jobs.contains_key(&run.job)
                && let Some(Slot::Ready(mut job)) = state.slots.remove(&run.job)
            {
                job.begin(state.scheduler.cached_tokens(run.job).unwrap_or(0));
                self.jobs.insert(run.job, job);
            }
        }
        let mut leaving = Vec::new();
        for &ended in &plan.over {
            let id = ended.job;
            let own = self.jobs.remove(&id);
            self.forget(id);
            match own.map(Slot::Ready).or_else(|| state.slots.remove(&id)) {
                Some(Slot::Ready(job)) => {
                    self.speed = job.speed().or(self.speed);
                    leaving.push(Leaving::Job(job, ended));
                }
                Some(Slot::Asked { sink, .. }) => leaving.push(Leaving::Sink(sink)),
                // Whoever prepares it finds this and tells.
                Some(Slot::Preparing | Slot::Cancelled) => {
                    state.slots.insert(id, Slot::Cancelled);
                }
                None => {}
            }
        }
        Some(leaving)
    }

    fn sleep<'s>(&self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let shared = self.shared;
        state.resting = true;
        let paused = self.paused.first().map(|(due, _)| *due);
        let due = [paused, state.scheduler.next_timer()].into_iter().flatten().min();
        let mut state = match due {
            None => shared.steps.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(due) => {
                let wait = due.saturating_duration_since(Instant::now());
                shared.steps.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.resting = false;
        state
    }

    /// Runs the engine. One that panics must not take the thread and all other jobs with it.
    fn compute(&mut self, plan: &Plan, runs: &[Run]) -> Result<Logits, EngineError> {
        let executor = &mut self.executor;
        catch_unwind(AssertUnwindSafe(|| executor.run(plan, runs)))
            .unwrap_or_else(|_| Err(EngineError::Backend("it broke off unexpectedly".into())))
    }

    fn sample(
        &mut self,
        runs: &[Run],
        logits: &mut Logits,
        results: &mut Vec<(JobId, Sampled)>,
        over: &mut Vec<JobId>,
    ) {
        let now = Instant::now();
        for (row, run) in runs.iter().filter(|run| run.samples).enumerate() {
            let Some(job) = self.jobs.get_mut(&run.job) else { continue };
            let (row, started) = (logits.row(row), self.started);
            let then = catch_unwind(AssertUnwindSafe(|| job.step(row, started, now))).unwrap_or_else(|_| {
                job.fail("the engine broke off unexpectedly; ask another worker");
                Then::Over
            });
            match then {
                Then::On(id) => {
                    results.push((run.job, Sampled::Token(id)));
                    self.holding.insert(run.job);
                    if let Some(interval) = self.interval {
                        self.paused.insert((now + interval, run.job));
                    }
                }
                Then::Again => {}
                Then::Over => over.push(run.job),
            }
        }
    }

    fn fail(&mut self, id: JobId, error: &EngineError, over: &mut Vec<JobId>) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.fail(error.to_string());
        }
        over.push(id);
    }

    /// Tells the scheduler what came of a step, and hands tokens over.
    fn report(&mut self, plan: &Plan, results: &[(JobId, Sampled)], over: &[JobId]) {
        let shared = self.shared;
        let mut state = shared.lock();
        for &id in over {
            state.scheduler.finish(id);
        }
        state.scheduler.sampled(results);
        if self.interval.is_some() {
            results.iter().for_each(|(id, _)| state.scheduler.pause(*id));
        }
        // Whoever has to pay before the next token wants to see this one first.
        let waits: Vec<JobId> =
            plan.runs.iter().map(|run| run.job).filter(|id| !state.scheduler.wants(*id)).collect();
        if let Some(speed) = self.speed.take() {
            let old = state.tokens_per_second;
            state.tokens_per_second = if old == 0.0 { speed } else { 0.8 * old + 0.2 * speed };
        }
        drop(state);
        for id in over {
            if let Some(mut job) = self.jobs.remove(id) {
                self.speed = job.speed().or(self.speed);
                job.close();
            }
            self.forget(*id);
        }
        for id in waits {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.flush();
                if self.interval.is_none() {
                    job.rest();
                }
            }
            self.holding.remove(&id);
        }
        self.flush(Some(Instant::now()));
    }

    /// Hands over tokens that waited long enough, or all.
    fn flush(&mut self, now: Option<Instant>) {
        let jobs = &mut self.jobs;
        self.holding.retain(|id| {
            let Some(job) = jobs.get_mut(id) else { return false };
            match now {
                Some(now) => job.flush_due(now),
                None => {
                    job.flush();
                    false
                }
            }
        });
    }

    fn forget(&mut self, id: JobId) {
        self.holding.remove(&id);
        self.paused.retain(|(_, paused)| *paused != id);
    }
}
