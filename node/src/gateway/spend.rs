//! What the gateway's key may spend, and what it has spent since the gateway started.
//!
//! A request takes a [`Reservation`] before it asks anybody and may cost no more than that, so that
//! requests at the same time cannot each spend the same remainder. What was really signed away is counted
//! whichever way the answer ends, also when it fails or its client hangs up; the rest of the reservation
//! is free again when it is dropped. At every moment, spent and reserved together stay within the cap.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use cocoon_payments::NanoTon;

use super::openai::error::ApiError;

/// A request reserves this part of the cap, unless it may need more: then as many go on at once.
const SHARES: u64 = 8;

/// The running total of one key.
#[derive(Debug)]
pub(super) struct Spend {
    cap: Option<NanoTon>,
    spent: AtomicU64,
    /// What was spent, and what running requests may still spend.
    committed: AtomicU64,
}

impl Spend {
    pub(super) fn new(cap: Option<NanoTon>) -> Self {
        Self { cap, spent: AtomicU64::new(0), committed: AtomicU64::new(0) }
    }

    pub(super) fn is_capped(&self) -> bool {
        self.cap.is_some()
    }

    /// Takes what one request may cost out of what is left, or says why there may be no request. A
    /// request that may cost `likely` gets that much if it is there, however small its share. If running
    /// requests hold so much that less than half of that is left, it is better to wait for them.
    pub(super) fn reserve(self: &Arc<Self>, likely: NanoTon) -> Result<Reservation, ApiError> {
        let open = |reserved| Reservation { spend: self.clone(), reserved, counted: NanoTon::ZERO };
        let Some(cap) = self.cap else { return Ok(open(None)) };
        let share = (cap.0 / SHARES).max(likely.0).max(1);
        let part = |committed: u64| cap.0.saturating_sub(committed).min(share);
        let taken = self.committed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |committed| {
            let part = part(committed);
            let comes_back = committed > self.spent().0;
            let enough = part >= likely.0.div_ceil(2) || !comes_back;
            (part > 0 && enough).then(|| committed.saturating_add(part))
        });
        match taken {
            Ok(before) => Ok(open(Some(NanoTon(part(before))))),
            Err(_) if self.spent() >= cap => Err(ApiError::spend_cap(self.spent(), cap)),
            Err(_) => Err(ApiError::spend_reserved(self.spent(), cap)),
        }
    }

    pub(super) fn spent(&self) -> NanoTon {
        NanoTon(self.spent.load(Ordering::Relaxed))
    }
}

/// One request's part of what the key may spend.
#[derive(Debug)]
pub(super) struct Reservation {
    spend: Arc<Spend>,
    reserved: Option<NanoTon>,
    counted: NanoTon,
}

impl Reservation {
    /// What each of the request's answers may cost, so that together they cost no more than was reserved;
    /// without a cap, the light peer's own ceiling holds.
    pub(super) fn share(&self, answers: usize) -> Result<Option<NanoTon>, ApiError> {
        let Some(reserved) = self.reserved else { return Ok(None) };
        match reserved.0 / (answers as u64).max(1) {
            0 => {
                let cap = self.spend.cap.unwrap_or(NanoTon::MAX);
                Err(ApiError::spend_reserved(self.spend.spent(), cap))
            }
            share => Ok(Some(NanoTon(share))),
        }
    }

    /// Counts what the request has cost so far. Repeating a total, or a lower one, changes nothing.
    pub(super) fn count(&mut self, total: NanoTon) {
        if total <= self.counted {
            return;
        }
        let beyond = |amount: NanoTon| amount.saturating_sub(self.reserved.unwrap_or(NanoTon::ZERO));
        add(&self.spend.spent, total.saturating_sub(self.counted));
        add(&self.spend.committed, beyond(total).saturating_sub(beyond(self.counted)));
        self.counted = total;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let unused = self.reserved.unwrap_or(NanoTon::ZERO).saturating_sub(self.counted);
        update(&self.spend.committed, |committed| committed.saturating_sub(unused.0));
    }
}

/// Saturating: a total that no longer counts upward must not wrap to "nothing spent".
fn add(total: &AtomicU64, more: NanoTon) {
    update(total, |total| total.saturating_add(more.0));
}

fn update(total: &AtomicU64, to: impl Fn(u64) -> u64) {
    let _ = total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| Some(to(total)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capped(cap: u64) -> Arc<Spend> {
        Arc::new(Spend::new(Some(NanoTon(cap))))
    }

    impl Reservation {
        fn max_cost(&self) -> Option<NanoTon> {
            self.share(1).unwrap()
        }
    }

    fn code(spend: &Arc<Spend>) -> Option<&'static str> {
        spend.reserve(NanoTon::ZERO).unwrap_err().code
    }

    #[test]
    fn a_key_at_its_cap_is_refused_and_told_the_numbers() {
        let spend = capped(10);
        let mut all = spend.reserve(NanoTon(10)).unwrap();
        assert_eq!(all.max_cost(), Some(NanoTon(10)));
        all.count(NanoTon(10));
        drop(all);
        let refused = spend.reserve(NanoTon::ZERO).unwrap_err();
        assert_eq!((refused.code, refused.retry_after), (Some("spend_cap_reached"), None));
        assert!(refused.message.contains(&NanoTon(10).to_string()), "{}", refused.message);
    }

    #[test]
    fn a_remainder_too_small_for_an_answer_is_given_only_when_nothing_comes_back() {
        let spend = capped(100);
        let mut first = spend.reserve(NanoTon(49)).unwrap();
        let second = spend.reserve(NanoTon(49)).unwrap();
        assert_eq!(spend.reserve(NanoTon(49)).unwrap_err().code, Some("spend_cap_reserved"));
        first.count(NanoTon(49));
        drop(first);
        drop(second);
        let mut third = spend.reserve(NanoTon(49)).unwrap();
        third.count(NanoTon(49));
        drop(third);
        assert_eq!(spend.reserve(NanoTon(49)).unwrap().max_cost(), Some(NanoTon(2)), "it is all there is");
    }

    #[test]
    fn requests_at_the_same_time_share_what_is_left() {
        let spend = capped(80);
        let running: Vec<_> = (0..8).map(|_| spend.reserve(NanoTon(3)).unwrap()).collect();
        assert!(running.iter().all(|one| one.max_cost() == Some(NanoTon(10))));
        // Nothing is spent yet, so that trying again may help.
        assert!(spend.reserve(NanoTon(3)).unwrap_err().retry_after.is_some());
        drop(running);
        // A request that may cost more than a share gets it, and the next one what is left.
        let large = spend.reserve(NanoTon(70)).unwrap();
        assert_eq!(large.max_cost(), Some(NanoTon(70)));
        assert_eq!(spend.reserve(NanoTon(20)).unwrap().max_cost(), Some(NanoTon(10)));
    }

    #[test]
    fn several_answers_share_one_reservation() {
        let spend = capped(80);
        let request = spend.reserve(NanoTon(22)).unwrap();
        assert_eq!(request.share(4).unwrap(), Some(NanoTon(5)), "four times that is within the 22");
        assert_eq!(spend.reserve(NanoTon(3)).unwrap().share(8).unwrap(), Some(NanoTon(1)));
        let little = capped(3).reserve(NanoTon::ZERO).unwrap();
        assert_eq!(little.share(8).unwrap_err().code, Some("spend_cap_reserved"), "a share of nothing");
        let free = Arc::new(Spend::new(None)).reserve(NanoTon(5)).unwrap();
        assert_eq!(free.share(8).unwrap(), None);
    }

    #[test]
    fn what_was_signed_away_counts_whichever_way_the_answer_ends() {
        let spend = capped(10);
        let mut abandoned = spend.reserve(NanoTon(6)).unwrap();
        abandoned.count(NanoTon(4));
        abandoned.count(NanoTon(4));
        abandoned.count(NanoTon(1));
        assert_eq!(spend.spent(), NanoTon(4));
        drop(abandoned);
        assert_eq!(spend.reserve(NanoTon(10)).unwrap().max_cost(), Some(NanoTon(6)));
    }

    #[test]
    fn a_request_that_cost_more_than_it_reserved_is_counted_in_full() {
        let spend = capped(10);
        let mut request = spend.reserve(NanoTon(5)).unwrap();
        request.count(NanoTon(4));
        request.count(NanoTon(7));
        drop(request);
        assert_eq!((spend.spent(), spend.committed.load(Ordering::Relaxed)), (NanoTon(7), 7));
        let mut request = spend.reserve(NanoTon(5)).unwrap();
        request.count(NanoTon(u64::MAX));
        drop(request);
        assert_eq!(code(&spend), Some("spend_cap_reached"));
    }

    #[test]
    fn without_a_cap_spending_is_counted_and_not_limited() {
        let spend = Arc::new(Spend::new(None));
        let mut request = spend.reserve(NanoTon(5)).unwrap();
        assert_eq!(request.max_cost(), None);
        request.count(NanoTon(7));
        drop(request);
        assert_eq!(spend.spent(), NanoTon(7));
    }

    #[test]
    fn threads_that_spend_all_they_may_stay_within_the_cap() {
        let spend = capped(1_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Ok(mut request) = spend.reserve(NanoTon(13)) {
                        let all = request.max_cost().unwrap();
                        request.count(all);
                    }
                });
            }
        });
        // One that was refused while others still held the rest may have stopped early; the last cannot.
        assert_eq!(spend.spent(), NanoTon(1_000));
        assert_eq!(code(&spend), Some("spend_cap_reached"));
    }
}
