//! One voucher pays for several streams: which part is whose.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::NanoTon;

/// More streams than one voucher message names; a session has fewer.
pub const MAX_ALLOCATIONS: usize = 64;

/// What one voucher adds, split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Stream and amount, as asked.
    pub streams: Vec<(u32, NanoTon)>,
    /// What no stream was named for: it belongs to the session.
    pub pool: NanoTon,
}

/// Why a split is refused. The voucher itself stays good; its whole value can go to the pool.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AllocationError {
    /// A flood.
    #[error("the voucher names {found} streams, at most {MAX_ALLOCATIONS} are allowed")]
    TooMany {
        /// Streams named.
        found: usize,
    },
    /// The same stream twice.
    #[error("the voucher names stream {stream} twice; send one amount for each stream")]
    Repeated {
        /// The stream.
        stream: u32,
    },
    /// An entry without meaning.
    #[error("the voucher allocates nothing to stream {stream}; leave it out")]
    Empty {
        /// The stream.
        stream: u32,
    },
    /// More is given out than came in.
    #[error("the allocations exceed what the voucher adds ({delta})")]
    Exceeds {
        /// What the voucher adds.
        delta: NanoTon,
    },
}

/// Splits `delta`, what a voucher adds, over streams. The sum may be less than `delta`, never more.
pub fn allocate(delta: NanoTon, allocations: &[(u32, NanoTon)]) -> Result<Allocated, AllocationError> {
    if allocations.len() > MAX_ALLOCATIONS {
        return Err(AllocationError::TooMany { found: allocations.len() });
    }
    let mut seen = BTreeSet::new();
    let mut pool = delta;
    for (stream, amount) in allocations {
        if amount.is_zero() {
            return Err(AllocationError::Empty { stream: *stream });
        }
        if !seen.insert(*stream) {
            return Err(AllocationError::Repeated { stream: *stream });
        }
        pool = pool.checked_sub(*amount).ok_or(AllocationError::Exceeds { delta })?;
    }
    Ok(Allocated { streams: allocations.to_vec(), pool })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_split_gives_out_exactly_what_came_in(
            delta: u64,
            asked in vec((0u32..8, prop_oneof![0u64..50, Just(u64::MAX)]), 0..70),
        ) {
            let asked: Vec<_> = asked.into_iter().map(|(s, a)| (s, NanoTon(a))).collect();
            if let Ok(split) = allocate(NanoTon(delta), &asked) {
                let given = NanoTon::checked_sum(split.streams.iter().map(|(_, a)| *a)).unwrap();
                prop_assert_eq!(given.checked_add(split.pool), Some(NanoTon(delta)));
                prop_assert_eq!(split.streams, asked);
            }
        }
    }

    #[test]
    fn each_rule_has_its_error() {
        let delta = NanoTon(10);
        let split = allocate(delta, &[(1, NanoTon(4)), (2, NanoTon(5))]).unwrap();
        assert_eq!(split.pool, NanoTon(1));
        assert_eq!(
            allocate(delta, &[(1, NanoTon(4)), (2, NanoTon(7))]),
            Err(AllocationError::Exceeds { delta })
        );
        assert_eq!(
            allocate(delta, &[(1, NanoTon(u64::MAX)), (2, NanoTon(u64::MAX))]),
            Err(AllocationError::Exceeds { delta })
        );
        assert_eq!(
            allocate(delta, &[(1, NanoTon(1)), (1, NanoTon(1))]),
            Err(AllocationError::Repeated { stream: 1 })
        );
        assert_eq!(allocate(delta, &[(1, NanoTon(0))]), Err(AllocationError::Empty { stream: 1 }));
        assert_eq!(
            allocate(delta, &[(1, NanoTon(1)); MAX_ALLOCATIONS + 1]),
            Err(AllocationError::TooMany { found: 65 })
        );
    }
}
