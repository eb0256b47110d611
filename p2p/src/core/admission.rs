//! Admission of sessions at a worker.
//!
//! Every asker owns a token bucket of [`AdmissionLimits::per_asker`]; the worker as a whole owns
//! [`AdmissionLimits::slots`]. A session is admitted, queued with an honest estimate of its wait, or
//! refused with the reason and what to do about it. An asker may hold only a share of the queue, so that
//! one asker cannot make everybody else wait. Nothing here reads a clock: callers pass `now`, and arm a
//! timer for [`Admission::poll_timeout`].

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    ad::PeerKey,
    bucket::{Rate, TokenBucket},
};

/// Who asks: the peer at the other end of the authenticated connection.
pub type AskerId = PeerKey;

/// A session, numbered by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Bounds of an [`Admission`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Sessions at once.
    pub slots: usize,
    /// Sessions that may wait.
    pub queued: usize,
    /// Sessions of one asker that may wait.
    pub queued_per_asker: usize,
    /// Sessions an asker may open; the unit of time is the millisecond.
    pub per_asker: Rate,
    /// Askers remembered; beyond this, strangers wait until someone's bucket is full again.
    pub askers: usize,
    /// Longest wait before a queued session is refused.
    pub max_wait: Duration,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            slots: 64,
            queued: 256,
            queued_per_asker: 8,
            per_asker: Rate { burst: 32, every: 250 },
            askers: 16_384,
            max_wait: Duration::from_secs(20),
        }
    }
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// An asker opened a session stream.
    Opened {
        /// The peer at the other end.
        asker: AskerId,
        /// A number never used before.
        session: SessionId,
    },
    /// A session ended, queued or running, for whatever reason.
    Closed {
        /// The session.
        session: SessionId,
    },
    /// The time of [`Admission::poll_timeout`] has come.
    Timeout,
}

/// What the shell must do. Effects are returned in the order in which they must happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start serving the session.
    Admit(SessionId),
    /// Tell the asker that the session waits.
    Queue {
        /// The session.
        session: SessionId,
        /// Estimated from how long sessions lasted so far.
        expected_wait: Duration,
    },
    /// Close the session and say why.
    Refuse {
        /// The session.
        session: SessionId,
        /// Why.
        reason: Refusal,
    },
}

/// Why a session was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The asker opens sessions faster than it may.
    #[error("this peer opens sessions too fast; wait {} ms", wait.as_millis())]
    TooFast {
        /// When the next one is allowed.
        wait: Duration,
    },
    /// Slots and queue are full.
    #[error("the worker is busy: all slots and queue places are taken; try another worker")]
    Busy,
    /// The asker already has as many waiting sessions as it may.
    #[error("this peer already has {queued} sessions waiting here; try another worker")]
    QueueShare {
        /// Sessions waiting.
        queued: usize,
    },
    /// It waited as long as a session may wait.
    #[error("no slot came free within {} s; try another worker", waited.as_secs())]
    Waited {
        /// How long it waited.
        waited: Duration,
    },
}

#[derive(Debug)]
struct Waiting {
    session: SessionId,
    asker: AskerId,
    since: Instant,
}

/// See the module page.
#[derive(Debug)]
pub struct Admission {
    limits: AdmissionLimits,
    epoch: Instant,
    running: BTreeMap<SessionId, Instant>,
    queue: VecDeque<Waiting>,
    buckets: BTreeMap<AskerId, TokenBucket>,
    /// Exponential average of how long sessions last.
    lasting: Duration,
}

impl Admission {
    /// Nobody running, nobody waiting.
    pub fn new(limits: AdmissionLimits, now: Instant) -> Self {
        Self {
            limits,
            epoch: now,
            running: BTreeMap::new(),
            queue: VecDeque::new(),
            buckets: BTreeMap::new(),
            lasting: Duration::from_secs(5),
        }
    }

    /// Advances by one input. Never holds more than the limits say.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Opened { asker, session } => effects.push(self.open(asker, session, now)),
            Input::Closed { session } => {
                if let Some(started) = self.running.remove(&session) {
                    let lasted = now.saturating_duration_since(started);
                    self.lasting = (self.lasting * 7 + lasted) / 8;
                } else {
                    self.queue.retain(|waiting| waiting.session != session);
                }
                self.promote(now, &mut effects);
            }
            Input::Timeout => self.give_up(now, &mut effects),
        }
        effects
    }

    /// When [`Input::Timeout`] next has something to do, if ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.queue.front().map(|waiting| waiting.since + self.limits.max_wait)
    }

    /// Sessions running.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sessions waiting.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// What a session that arrives now should expect to wait; goes into the ad.
    pub fn expected_wait(&self) -> Duration {
        match self.running.len() < self.limits.slots {
            true => Duration::ZERO,
            false => self.wait_at(self.queue.len()),
        }
    }

    fn wait_at(&self, place: usize) -> Duration {
        let slots = self.limits.slots.max(1).min(u32::MAX as usize) as u32;
        let place = (place + 1).min(u32::MAX as usize) as u32;
        (self.lasting / slots).saturating_mul(place).min(self.limits.max_wait)
    }

    fn open(&mut self, asker: AskerId, session: SessionId, now: Instant) -> Effect {
        if let Err(reason) = self.charge(&asker, now) {
            return Effect::Refuse { session, reason };
        }
        if self.running.len() < self.limits.slots && self.queue.is_empty() {
            self.running.insert(session, now);
            return Effect::Admit(session);
        }
        let queued = self.queue.iter().filter(|waiting| waiting.asker == asker).count();
        if queued >= self.limits.queued_per_asker {
            return Effect::Refuse { session, reason: Refusal::QueueShare { queued } };
        }
        if self.queue.len() >= self.limits.queued {
            return Effect::Refuse { session, reason: Refusal::Busy };
        }
        let expected_wait = self.wait_at(self.queue.len());
        self.queue.push_back(Waiting { session, asker, since: now });
        Effect::Queue { session, expected_wait }
    }

    fn charge(&mut self, asker: &AskerId, now: Instant) -> Result<(), Refusal> {
        let rate = self.limits.per_asker;
        let millis = now.saturating_duration_since(self.epoch).as_millis().min(u128::from(u64::MAX)) as u64;
        if !self.buckets.contains_key(asker) && self.buckets.len() >= self.limits.askers {
            // A full bucket is the same as none.
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, millis));
            if self.buckets.len() >= self.limits.askers {
                return Err(Refusal::Busy);
            }
        }
        let bucket = self.buckets.entry(asker.clone()).or_insert_with(|| TokenBucket::full(rate, millis));
        match bucket.take(rate, millis) {
            true => Ok(()),
            false => Err(Refusal::TooFast { wait: Duration::from_millis(bucket.wait(rate, millis)) }),
        }
    }

    fn promote(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while self.running.len() < self.limits.slots
            && let Some(next) = self.queue.pop_front()
        {
            self.running.insert(next.session, now);
            effects.push(Effect::Admit(next.session));
        }
    }

    fn give_up(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some(first) = self.queue.front() {
            let waited = now.saturating_duration_since(first.since);
            if waited < self.limits.max_wait {
                break;
            }
            effects.push(Effect::Refuse { session: first.session, reason: Refusal::Waited { waited } });
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
