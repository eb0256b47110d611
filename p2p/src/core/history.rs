//! An asker's own experience with one worker.
//!
//! Counts of successes and failures halve every [`HALF_LIFE_S`], so that a worker that was repaired is
//! forgiven and one that used to be good is not trusted for ever. Latency and speed are exponential
//! averages. All arithmetic is in integers: the same outcomes give the same choice on every machine.

/// Experience this old counts half.
const HALF_LIFE_S: u64 = 600;
/// Fixed-point one.
const ONE: u64 = 1024;
/// Counts saturate here, so that no history takes longer than a few half-lives to change.
const MAX_COUNT: u64 = 64 * ONE;

/// How one request at a worker ended, as the asker saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the answer completed.
    pub success: bool,
    /// Time to the first token; ignored for failures.
    pub ttft_ms: u32,
    /// Output tokens per second after the first; ignored for failures, 0 means not measured.
    pub tokens_per_second: u32,
}

/// See the module page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct History {
    successes: u64,
    failures: u64,
    failed_in_a_row: u32,
    ttft_ms: Option<u32>,
    tokens_per_second: Option<u32>,
    updated_at: u64,
}

fn decay(count: u64, elapsed: u64) -> u64 {
    let halved = count.checked_shr((elapsed / HALF_LIFE_S).min(63) as u32).unwrap_or(0);
    // Linear between the halvings: close enough, and exact in integers.
    halved - halved * (elapsed % HALF_LIFE_S) / (2 * HALF_LIFE_S)
}

fn average(old: Option<u32>, new: u32) -> Option<u32> {
    let mean = match old {
        None => u64::from(new),
        Some(old) => (u64::from(old) * 3 + u64::from(new)) / 4,
    };
    Some(mean.min(u64::from(u32::MAX)) as u32)
}

impl History {
    /// Adds one outcome. `now` is unix seconds.
    pub fn record(&mut self, outcome: Outcome, now: u64) {
        let elapsed = now.saturating_sub(self.updated_at);
        self.successes = decay(self.successes, elapsed);
        self.failures = decay(self.failures, elapsed);
        self.updated_at = self.updated_at.max(now);
        if outcome.success {
            self.successes = (self.successes + ONE).min(MAX_COUNT);
            self.failed_in_a_row = 0;
            self.ttft_ms = average(self.ttft_ms, outcome.ttft_ms);
            if outcome.tokens_per_second > 0 {
                self.tokens_per_second = average(self.tokens_per_second, outcome.tokens_per_second);
            }
        } else {
            self.failures = (self.failures + ONE).min(MAX_COUNT);
            self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
        }
    }

    /// Expected success rate in 1/1024, at least 1. One imagined success is the prior: a stranger is
    /// tried, and one failure halves its rate.
    pub fn success_rate(&self, now: u64) -> u64 {
        let elapsed = now.saturating_sub(self.updated_at);
        let (s, f) = (decay(self.successes, elapsed), decay(self.failures, elapsed));
        ((s + ONE) * ONE / (s + f + ONE)).max(1)
    }

    /// Failures since the last success, forgotten one by one with time.
    pub fn failed_in_a_row(&self, now: u64) -> u32 {
        let forgiven = now.saturating_sub(self.updated_at) / (HALF_LIFE_S / 4);
        self.failed_in_a_row.saturating_sub(forgiven.min(u64::from(u32::MAX)) as u32)
    }

    /// Measured time to the first token.
    pub fn ttft_ms(&self) -> Option<u32> {
        self.ttft_ms
    }

    /// Measured output speed.
    pub fn tokens_per_second(&self) -> Option<u32> {
        self.tokens_per_second
    }

    /// Unix seconds of the latest outcome.
    pub fn updated_at(&self) -> u64 {
        self.updated_at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(success: bool) -> Outcome {
        Outcome { success, ttft_ms: 100, tokens_per_second: 10 }
    }

    #[test]
    fn a_stranger_is_trusted_and_one_failure_halves_that() {
        let mut history = History::default();
        assert_eq!(history.success_rate(1000), ONE);
        history.record(outcome(false), 1000);
        assert_eq!(history.success_rate(1000), ONE / 2);
    }

    proptest! {
        #[test]
        fn failure_never_helps_success_never_hurts_and_time_forgives(
            steps in prop::collection::vec((any::<bool>(), 0u64..2000), 0..100)
        ) {
            let (mut history, mut now) = (History::default(), 1_000_000u64);
            for (success, wait) in steps {
                let settled = history.success_rate(now);
                now += wait;
                let before = history.success_rate(now);
                // Decay moves towards the prior of 1; integer rounding may cost a few 1/1024.
                prop_assert!(before + 4 >= settled);
                history.record(outcome(success), now);
                let after = history.success_rate(now);
                prop_assert!((1..=ONE).contains(&after));
                if success { prop_assert!(after + 4 >= before) } else { prop_assert!(after <= before) }
            }
        }
    }
}
