//! A token bucket in whole numbers.
//!
//! It holds at most `burst` tokens and gains one every `every` units of time. Time is whatever the
//! caller counts in (unix seconds for ads, milliseconds for sessions); a clock that steps back simply
//! yields nothing.

/// See the module page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    tokens: u32,
    refilled_at: u64,
}

/// How fast a [`TokenBucket`] fills, kept apart so that a table of buckets holds it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a full bucket holds.
    pub burst: u32,
    /// Time units per token.
    pub every: u64,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(rate: Rate, now: u64) -> Self {
        Self { tokens: rate.burst, refilled_at: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, rate: Rate, now: u64) -> bool {
        self.refill(rate, now);
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }

    /// Whether the bucket is full again, that is: indistinguishable from a new one.
    pub fn is_full(&mut self, rate: Rate, now: u64) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst
    }

    /// Time units until [`TokenBucket::take`] succeeds.
    pub fn wait(&mut self, rate: Rate, now: u64) -> u64 {
        self.refill(rate, now);
        match self.tokens {
            0 => (self.refilled_at.saturating_add(rate.every)).saturating_sub(now),
            _ => 0,
        }
    }

    fn refill(&mut self, rate: Rate, now: u64) {
        let every = rate.every.max(1);
        let gained = now.saturating_sub(self.refilled_at) / every;
        if gained == 0 {
            return;
        }
        let room = u64::from(rate.burst.saturating_sub(self.tokens));
        if gained >= room {
            self.tokens = rate.burst;
            self.refilled_at = now;
        } else {
            // `gained < room <= u32::MAX`.
            self.tokens += gained as u32;
            self.refilled_at += gained * every;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_grants_more_than_burst_plus_the_time_that_passed(
            burst in 1u32..20, every in 1u64..50, steps in prop::collection::vec(0u64..30, 1..200)
        ) {
            let rate = Rate { burst, every };
            let mut bucket = TokenBucket::full(rate, 0);
            let (mut now, mut granted) = (0u64, 0u64);
            for step in steps {
                now += step;
                granted += u64::from(bucket.take(rate, now));
                prop_assert!(granted <= u64::from(burst) + now / every);
            }
        }

        #[test]
        fn waiting_as_told_is_enough(burst in 1u32..5, every in 1u64..50, start in 0u64..100) {
            let rate = Rate { burst, every };
            let mut bucket = TokenBucket::full(rate, start);
            while bucket.take(rate, start) {}
            let wait = bucket.wait(rate, start);
            prop_assert!(bucket.take(rate, start + wait));
        }
    }
}
