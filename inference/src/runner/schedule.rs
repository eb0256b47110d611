//! Whose turn it is: the runner's core, without threads, clocks or engines.
//!
//! A job is *ready* (in line for a turn), *running*, *parked* (its allowance is used up), *waiting*
//! (paid for, but all slots are taken) or *sleeping* (its engine has nothing to do before some
//! instant). Preparing a job needs no slot; anything beyond does, and the slot is kept to the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A job that was never paid keeps its place this long, whoever else wants it: its asker has to see the price
/// before it can pay.
const GRACE: Duration = Duration::from_secs(1);

/// Names a job.
pub(super) type JobId = u64;

/// No room for another job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {limit} places are taken; try another worker or try again soon")]
pub struct Busy {
    /// Slots and queue together.
    pub limit: usize,
}

/// Leave to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Output tokens that may be released in all.
    pub(super) allowance: u32,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The request was tokenised. `at_end`: nothing remains but to say so.
    Prepared { at_end: bool },
    /// More to do, now or once there is allowance.
    Yield { released: u32 },
    /// Nothing to do before an instant.
    Sleep { until: Instant, released: u32 },
    /// The job is over.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ready,
    Running,
    Parked,
    Waiting,
    Sleeping(Instant),
}

#[derive(Debug)]
struct Job {
    /// When it came, and then when its price was known.
    since: Instant,
    phase: Phase,
    allowance: u32,
    released: u32,
    prepared: bool,
    cancelled: bool,
    slot: bool,
}

impl Job {
    /// Whether it has had time to be paid and was not.
    fn is_unpaid(&self, now: Instant) -> bool {
        self.phase == Phase::Parked
            && self.allowance == 0
            && now.saturating_duration_since(self.since) >= GRACE
    }
}

/// The schedule.
#[derive(Debug)]
pub(super) struct Schedule {
    slots: usize,
    limit: usize,
    jobs: BTreeMap<JobId, Job>,
    active: usize,
    ready: VecDeque<JobId>,
    waiting: VecDeque<JobId>,
    sleeping: BTreeSet<(Instant, JobId)>,
}

impl Schedule {
    pub(super) fn new(slots: usize, queue: usize) -> Self {
        Self {
            slots,
            limit: slots.saturating_add(queue),
            jobs: BTreeMap::new(),
            active: 0,
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            sleeping: BTreeSet::new(),
        }
    }

    /// Jobs with a slot.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// Jobs without one.
    pub(super) fn queued(&self) -> usize {
        self.jobs.len() - self.active
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Adds a job, ready to be prepared. If there is no place, it takes that of the job that has waited longest
    /// for its first payment, beyond [`GRACE`]; returns which, if any. That one is over.
    pub(super) fn submit(&mut self, id: JobId, now: Instant) -> Result<Option<JobId>, Busy> {
        let mut displaced = None;
        if self.jobs.len() >= self.limit {
            // Ids count up, so the first is the oldest.
            let idle = self.jobs.iter().find(|(_, job)| job.is_unpaid(now)).map(|(&id, _)| id);
            displaced = Some(idle.ok_or(Busy { limit: self.limit })?);
        }
        if let Some(idle) = displaced {
            // Parked jobs are in no list and have no slot.
            self.jobs.remove(&idle);
        }
        let (since, phase) = (now, Phase::Ready);
        let (allowance, released) = (0, 0);
        let (prepared, cancelled, slot) = (false, false, false);
        self.jobs.insert(id, Job { since, phase, allowance, released, prepared, cancelled, slot });
        self.ready.push_back(id);
        Ok(displaced)
    }

    /// Raises an allowance. True if the job has become ready.
    pub(super) fn allow(&mut self, id: JobId, total: u32) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        job.allowance = job.allowance.max(total);
        job.phase == Phase::Parked && self.settle(id, false)
    }

    /// Cancels a job. True if it has become ready, to end.
    pub(super) fn cancel(&mut self, id: JobId) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        job.cancelled = true;
        match job.phase {
            Phase::Ready | Phase::Running => return false,
            Phase::Sleeping(until) => {
                self.sleeping.remove(&(until, id));
            }
            Phase::Waiting => self.waiting.retain(|&other| other != id),
            Phase::Parked => {}
        }
        job.phase = Phase::Ready;
        self.ready.push_back(id);
        true
    }

    /// The next turn, if any job is ready.
    pub(super) fn next(&mut self, now: Instant) -> Option<(JobId, Turn)> {
        while let Some(&(until, id)) = self.sleeping.first().filter(|(until, _)| *until <= now) {
            self.sleeping.remove(&(until, id));
            if let Some(job) = self.jobs.get_mut(&id) {
                job.phase = Phase::Ready;
                self.ready.push_back(id);
            }
        }
        let id = self.ready.pop_front()?;
        let job = self.jobs.get_mut(&id)?;
        job.phase = Phase::Running;
        Some((id, Turn { allowance: job.allowance }))
    }

    /// When a sleeping job wakes.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.sleeping.first().map(|(until, _)| *until)
    }

    /// Takes a running job back.
    pub(super) fn turn_ended(&mut self, id: JobId, outcome: Outcome, now: Instant) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match outcome {
            Outcome::Done => {
                let freed = self.jobs.remove(&id).is_some_and(|job| job.slot);
                if freed {
                    self.active -= 1;
                    self.admit();
                }
            }
            Outcome::Prepared { at_end } => {
                job.prepared = true;
                // Nobody can pay before the price is known.
                job.since = now;
                self.settle(id, at_end);
            }
            Outcome::Yield { released } => {
                job.released = released;
                self.settle(id, false);
            }
            Outcome::Sleep { until, released } => {
                job.released = released;
                if job.cancelled {
                    self.settle(id, false);
                } else {
                    job.phase = Phase::Sleeping(until);
                    self.sleeping.insert((until, id));
                }
            }
        }
    }

    /// Finds the place of a job that is not running. True if it is ready.
    fn settle(&mut self, id: JobId, at_end: bool) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        let may_run = job.cancelled || at_end || !job.prepared || job.released < job.allowance;
        let needs_slot = job.prepared && !job.slot && !job.cancelled && !at_end;
        job.phase = match (may_run, needs_slot) {
            (false, _) => Phase::Parked,
            (true, true) if self.active >= self.slots => Phase::Waiting,
            (true, needs_slot) => {
                job.slot |= needs_slot;
                self.active += usize::from(needs_slot);
                Phase::Ready
            }
        };
        let phase = job.phase;
        match phase {
            Phase::Ready => self.ready.push_back(id),
            Phase::Waiting => self.waiting.push_back(id),
            _ => {}
        }
        phase == Phase::Ready
    }

    /// Gives free slots to those who wait.
    fn admit(&mut self) {
        while self.active < self.slots {
            let Some(id) = self.waiting.pop_front() else { return };
            self.settle(id, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// What a job would release if nothing stopped it.
    const LENGTH: u32 = 12;

    #[derive(Debug, Clone)]
    enum Input {
        Submit,
        Allow(usize, u32),
        Cancel(usize),
        Turn {
            tokens: u32,
            sleep: bool,
        },
        Tick,
        /// Long enough for jobs to have been paid.
        Pass,
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Submit),
            (0usize..8, 0u32..14).prop_map(|(job, total)| Input::Allow(job, total)),
            (0usize..8).prop_map(Input::Cancel),
            (0u32..5, any::<bool>()).prop_map(|(tokens, sleep)| Input::Turn { tokens, sleep }),
            Just(Input::Tick),
            Just(Input::Pass),
        ]
    }

    #[derive(Default, Debug)]
    struct Model {
        since: Option<Instant>,
        prepared: bool,
        allowed: u32,
        released: u32,
        cancelled: bool,
        over: bool,
    }

    impl Model {
        fn is_unpaid(&self, now: Instant) -> bool {
            let waited = self.since.is_some_and(|since| now - since >= GRACE);
            waited && self.prepared && !self.cancelled && self.allowed == 0
        }
    }

    /// Plays the part of the runner: one turn.
    fn turn(schedule: &mut Schedule, model: &mut [Model], now: Instant, tokens: u32, sleep: bool) -> bool {
        let Some((id, turn)) = schedule.next(now) else { return false };
        let job = &mut model[id as usize];
        assert!(!job.over, "a job that is over got a turn");
        let outcome = if job.cancelled {
            job.over = true;
            Outcome::Done
        } else if !job.prepared {
            job.prepared = true;
            job.since = Some(now);
            Outcome::Prepared { at_end: false }
        } else {
            assert!(schedule.active() <= schedule.slots);
            assert!(turn.allowance <= job.allowed, "a turn allows what was never allowed");
            job.released = (job.released + tokens).min(turn.allowance).min(LENGTH);
            if job.released == LENGTH {
                job.over = true;
                Outcome::Done
            } else if sleep && job.released < turn.allowance {
                Outcome::Sleep { until: now + Duration::from_millis(1), released: job.released }
            } else {
                Outcome::Yield { released: job.released }
            }
        };
        schedule.turn_ended(id, outcome, now);
        true
    }

    proptest! {
        #[test]
        fn nothing_is_released_beyond_the_allowance_and_nothing_is_forgotten(
            inputs in prop::collection::vec(input(), 1..200),
            slots in 1usize..4,
            queue in 0usize..4,
        ) {
            let mut now = Instant::now();
            let mut schedule = Schedule::new(slots, queue);
            let mut model: Vec<Model> = Vec::new();
            for input in inputs {
                match input {
                    Input::Submit => {
                        let alive = model.iter().filter(|j| !j.over).count();
                        let unpaid = model.iter().any(|j| !j.over && j.is_unpaid(now));
                        let taken = schedule.submit(model.len() as u64, now);
                        prop_assert_eq!(taken.is_ok(), alive < slots + queue || unpaid);
                        if let Ok(displaced) = taken {
                            prop_assert!(displaced.is_none() || alive == slots + queue);
                            if let Some(job) = displaced.map(|id| &mut model[id as usize]) {
                                prop_assert!(!job.over && job.is_unpaid(now));
                                job.over = true;
                            }
                            model.push(Model::default());
                        }
                    }
                    Input::Allow(job, total) => {
                        schedule.allow(job as u64, total);
                        if let Some(job) = model.get_mut(job) {
                            job.allowed = job.allowed.max(total);
                        }
                    }
                    Input::Cancel(job) => {
                        schedule.cancel(job as u64);
                        if let Some(job) = model.get_mut(job) {
                            job.cancelled = true;
                        }
                    }
                    Input::Turn { tokens, sleep } => {
                        turn(&mut schedule, &mut model, now, tokens, sleep);
                    }
                    Input::Tick => now += Duration::from_millis(1),
                    Input::Pass => now += GRACE,
                }
                prop_assert!(schedule.active() <= slots);
                prop_assert!(model.iter().all(|j| j.released <= j.allowed));
                prop_assert_eq!(schedule.active() + schedule.queued(), model.iter().filter(|j| !j.over).count());
            }
            // With everything paid for, everything ends, and a cancelled job within one turn of its own.
            for (id, job) in (0..).zip(&mut model) {
                schedule.allow(id, LENGTH);
                job.allowed = job.allowed.max(LENGTH);
            }
            for _ in 0..10_000 {
                now += Duration::from_millis(1);
                if !turn(&mut schedule, &mut model, now, 3, false) && schedule.next_timer().is_none() {
                    break;
                }
            }
            prop_assert!(model.iter().all(|j| j.over), "{model:?} {schedule:?}");
            prop_assert_eq!(schedule.active(), 0);
        }
    }

    #[test]
    fn a_full_queue_gives_the_place_of_who_did_not_pay_to_who_may() {
        let start = Instant::now();
        let mut schedule = Schedule::new(1, 2);
        for id in 0..3 {
            assert_eq!(schedule.submit(id, start), Ok(None));
        }
        let busy = Err(Busy { limit: 3 });
        assert_eq!(schedule.submit(9, start + GRACE), busy, "none has a price yet");
        for _ in 0..3 {
            let (id, _) = schedule.next(start).unwrap();
            schedule.turn_ended(id, Outcome::Prepared { at_end: false }, start + GRACE);
        }
        schedule.allow(0, 5);
        assert_eq!(schedule.submit(9, start + GRACE * 3 / 2), busy, "there was no time to pay");
        let late = start + GRACE * 2;
        assert_eq!(schedule.submit(3, late), Ok(Some(1)), "the oldest that did not pay");
        assert!(!schedule.allow(1, 5), "it is over, whatever comes late");
        assert_eq!(schedule.submit(4, late), Ok(Some(2)));
        assert_eq!(schedule.submit(5, late), busy);
        assert_eq!((schedule.active(), schedule.queued()), (1, 2));
    }

    #[test]
    fn ready_jobs_take_turns() {
        let now = Instant::now();
        let mut schedule = Schedule::new(3, 0);
        for id in 0..3 {
            schedule.submit(id, now).unwrap();
            schedule.allow(id, 9);
        }
        let mut order = Vec::new();
        for _ in 0..9 {
            let (id, _) = schedule.next(now).unwrap();
            order.push(id);
            let prepared = order.iter().filter(|&&o| o == id).count() == 1;
            let outcome =
                if prepared { Outcome::Prepared { at_end: false } } else { Outcome::Yield { released: 1 } };
            schedule.turn_ended(id, outcome, now);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }
}
