//! What the gateway's key may spend, and what it has spent since the gateway started.

use std::sync::atomic::{AtomicU64, Ordering};

use cocoon_payments::NanoTon;

use super::openai::error::ApiError;

/// The running total of one key.
#[derive(Debug)]
pub(super) struct Spend {
    cap: Option<NanoTon>,
    spent: AtomicU64,
}

impl Spend {
    pub(super) fn new(cap: Option<NanoTon>) -> Self {
        Self { cap, spent: AtomicU64::new(0) }
    }

    /// How much one request may cost at most, or why there may be none.
    pub(super) fn allowance(&self) -> Result<Option<NanoTon>, ApiError> {
        let Some(cap) = self.cap else { return Ok(None) };
        let spent = self.spent();
        match cap.0.checked_sub(spent.0) {
            None | Some(0) => Err(ApiError::spend_cap(&spent.to_string(), &cap.to_string())),
            Some(left) => Ok(Some(NanoTon(left))),
        }
    }

    pub(super) fn add(&self, cost: NanoTon) {
        // Saturating: a total that no longer counts upward must not wrap to "nothing spent".
        let _ = self
            .spent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent| Some(spent.saturating_add(cost.0)));
    }

    pub(super) fn spent(&self) -> NanoTon {
        NanoTon(self.spent.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_at_its_cap_is_refused_and_told_the_numbers() {
        let spend = Spend::new(Some(NanoTon(10)));
        assert_eq!(spend.allowance().unwrap(), Some(NanoTon(10)));
        spend.add(NanoTon(4));
        assert_eq!(spend.allowance().unwrap(), Some(NanoTon(6)));
        spend.add(NanoTon(u64::MAX));
        assert_eq!(spend.allowance().unwrap_err().code, Some("spend_cap_reached"));
        assert_eq!(Spend::new(None).allowance().unwrap(), None);
    }
}
