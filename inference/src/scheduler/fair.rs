//! Who is next in line.
//!
//! Two questions, two rules.
//!
//! *Whose turn is it?* Each asker has an account of the *service* it got: tokens computed for it, divided by the
//! weight of the job's priority. Among askers whose jobs are equally urgent the one with the least service goes
//! first, so a thousand jobs of one asker do not push back the single job of another (Sheng et al., "Fairness in
//! Serving Large Language Models", OSDI 2024: the virtual token counter). An asker that comes back after a pause
//! is lifted to the least service among those who stayed: idleness earns no credit. Services that differ by less
//! than `quantum` count as equal; between those the earlier deadline decides, and then who was served longer ago. The
//! deadline comes second because askers declare it themselves.
//!
//! *Which of its jobs?* The more urgent, then the earlier deadline, then the older.
//!
//! Nobody starves, because waiting makes urgent. A job moves up one class with each `age` that later jobs of its
//! asker arrive behind it; an asker that got no place for `age` moves up one class against other askers. So the
//! most urgent of streams delays a job by a bounded number of places.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::JobId;

/// Service of one token at weight 1. Enough that division by 256 classes' weights keeps precision.
const TOKEN: u64 = 1 << 16;

/// A job's standing in its class: lower is better. It never changes, so nobody can be overtaken for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Counts up with time and down with priority: both in units of one class.
    level: i64,
    pub(super) id: JobId,
}

/// A job's place among its asker's waiting jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    level: i64,
    deadline: Due,
    id: JobId,
}

/// A deadline. None is later than any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due(bool, Option<Instant>);

impl Due {
    fn new(deadline: Option<Instant>) -> Self {
        Self(deadline.is_none(), deadline)
    }
}

/// What the line needs to know of a job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) asker: u64,
    pub(super) priority: u8,
    pub(super) deadline: Option<Instant>,
    pub(super) rank: Rank,
    /// Since when it wants to run.
    pub(super) since: Instant,
}

impl Claim {
    fn place(&self) -> Place {
        Place { level: self.rank.level, deadline: Due::new(self.deadline), id: self.rank.id }
    }
}

/// One asker.
#[derive(Debug, Default)]
struct Account {
    service: u64,
    /// Its jobs that want to run, waiting or running.
    wants: usize,
    waiting: BTreeMap<Place, Claim>,
    /// When one of its jobs last got a place.
    served: Option<Instant>,
}

/// The line.
#[derive(Debug)]
pub(super) struct Line {
    start: Instant,
    age: Duration,
    quantum: u64,
    /// Most accounts of absent askers to remember.
    memory: usize,
    accounts: BTreeMap<u64, Account>,
    waiting: usize,
    /// The least service an asker that comes back is lifted to. Never falls.
    floor: u64,
}

impl Line {
    pub(super) fn new(start: Instant, age: Duration, quantum: u32, memory: usize) -> Self {
        let age = age.max(Duration::from_millis(1));
        let quantum = u64::from(quantum.max(1)) * TOKEN;
        Self { start, age, quantum, memory, accounts: BTreeMap::new(), waiting: 0, floor: 0 }
    }

    /// The standing of a job that wants to run for the first time.
    pub(super) fn rank(&self, id: JobId, priority: u8, now: Instant) -> Rank {
        let level = self.ages(self.start, now).saturating_sub(i64::from(priority));
        Rank { level, id }
    }

    fn ages(&self, since: Instant, now: Instant) -> i64 {
        let ages = now.saturating_duration_since(since).as_millis() / self.age.as_millis().max(1);
        i64::try_from(ages).unwrap_or(i64::MAX)
    }

    /// A job wants to run from now on.
    pub(super) fn wants(&mut self, asker: u64) {
        if self.accounts.get(&asker).is_none_or(|account| account.wants == 0) {
            let present = self.accounts.values().filter(|account| account.wants > 0);
            let least = present.map(|account| account.service).min();
            self.floor = least.map_or(self.floor, |least| self.floor.max(least));
        }
        let account = self.accounts.entry(asker).or_default();
        if account.wants == 0 {
            account.service = account.service.max(self.floor);
        }
        account.wants += 1;
    }

    /// A job does not want to run any more.
    pub(super) fn rests(&mut self, asker: u64) {
        let Some(account) = self.accounts.get_mut(&asker) else { return };
        account.wants = account.wants.saturating_sub(1);
        // An account at the floor says nothing that a new one would not.
        if account.wants == 0 && account.service <= self.floor {
            self.accounts.remove(&asker);
        } else if self.accounts.len() > self.memory {
            let absent = self.accounts.iter().filter(|(_, account)| account.wants == 0);
            let least = absent.min_by_key(|(_, account)| account.service).map(|(&asker, _)| asker);
            least.map(|asker| self.accounts.remove(&asker));
        }
    }

    /// A job that [`wants`](Self::wants) to run waits for a place.
    pub(super) fn join(&mut self, claim: Claim) {
        let account = self.accounts.entry(claim.asker).or_default();
        if account.waiting.insert(claim.place(), claim).is_none() {
            self.waiting += 1;
        }
    }

    /// A job waits no more.
    pub(super) fn leave(&mut self, claim: &Claim) {
        let account = self.accounts.get_mut(&claim.asker);
        if account.is_some_and(|account| account.waiting.remove(&claim.place()).is_some()) {
            self.waiting = self.waiting.saturating_sub(1);
        }
    }

    /// A waiting job gets a place.
    pub(super) fn serve(&mut self, claim: &Claim, now: Instant) {
        self.leave(claim);
        if let Some(account) = self.accounts.get_mut(&claim.asker) {
            account.served = Some(now);
        }
    }

    /// Books tokens that are computed for a job.
    pub(super) fn charge(&mut self, asker: u64, priority: u8, tokens: usize) {
        if let Some(account) = self.accounts.get_mut(&asker) {
            let tokens = u64::try_from(tokens).unwrap_or(u64::MAX);
            let service = tokens.saturating_mul(TOKEN) / (u64::from(priority) + 1);
            account.service = account.service.saturating_add(service);
        }
    }

    /// Who gets the next place.
    pub(super) fn first(&self, now: Instant) -> Option<JobId> {
        if self.waiting == 0 {
            return None;
        }
        let heads = self.accounts.values().filter_map(|account| {
            let head = account.waiting.first_key_value()?.0;
            // As urgent as its most urgent job; whom it sends is its own affair.
            let urgent = account.waiting.values().map(|claim| claim.priority).max()?;
            let oldest = account.waiting.values().map(|claim| claim.since).min()?;
            let since = account.served.map_or(oldest, |served| served.max(oldest));
            let class = i64::from(urgent).saturating_add(self.ages(since, now));
            let share = account.service / self.quantum;
            Some((Reverse(class), share, head.deadline, account.service, account.served, head.id))
        });
        heads.min().map(|(.., id)| id)
    }
}
