//! How likely the model found a token and its rivals.
//!
//! Computed from the logits as the model made them, before penalties, bias, temperature and cuts: the
//! numbers say what the model believed, not how it was sampled, as in the OpenAI API.

use crate::limits::{LOWEST_LOGPROB, MAX_PIECE_BYTES};
use crate::{Alternative, Logprobs};

/// The log-probability of `id` and of the `top` most likely tokens. `piece` gives a token's bytes.
pub(super) fn logprobs<'a>(logits: &[f32], id: u32, top: usize, piece: impl Fn(u32) -> &'a [u8]) -> Logprobs {
    let bytes = |id| {
        let piece = piece(id);
        piece.get(..MAX_PIECE_BYTES).unwrap_or(piece).to_vec()
    };
    let greatest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    // At least 1, the greatest one's own part, so that the logarithm is finite and not negative.
    let total: f64 = logits.iter().map(|&logit| (f64::from(logit) - greatest).exp()).sum();
    let logprob = |logit: f32| {
        let exact = (f64::from(logit) - greatest) - total.ln();
        exact.clamp(f64::from(LOWEST_LOGPROB), 0.0) as f32
    };
    Logprobs {
        logprob: logits.get(id as usize).map_or(LOWEST_LOGPROB, |&logit| logprob(logit)),
        bytes: bytes(id),
        top: greatest_of(logits, top)
            .into_iter()
            .map(|(id, logit)| Alternative { id, logprob: logprob(logit), bytes: bytes(id) })
            .collect(),
    }
}

/// The greatest logits, by falling value and rising id. Insertion into a short list costs one comparison
/// for nearly every token of a vocabulary; sorting it would cost more than a small model's step.
fn greatest_of(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in (0u32..).zip(logits) {
        if best.len() == count && best.last().is_none_or(|worst| logit <= worst.1) {
            continue;
        }
        best.insert(best.partition_point(|better| better.1 >= logit), (id, logit));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_probabilities_come_out() {
        let logits = [0.25f32.ln(), 0.5f32.ln(), 0.25f32.ln()];
        let found = logprobs(&logits, 2, 2, |id| if id == 1 { b"one".as_slice() } else { &[] });
        assert!((found.logprob - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|a| a.id).collect::<Vec<_>>(), [1, 0], "ties: the lowest id first");
        assert_eq!(found.top[0].bytes, b"one");
    }

    #[test]
    fn the_hopeless_have_the_lowest_value_and_long_pieces_are_cut() {
        let long = [b'x'; 2 * MAX_PIECE_BYTES];
        let found = logprobs(&[f32::MIN, f32::MAX], 0, 0, |_| &long);
        assert_eq!((found.logprob, found.bytes.len()), (LOWEST_LOGPROB, MAX_PIECE_BYTES));
        assert!(found.top.is_empty());
    }

    proptest! {
        #[test]
        fn alternatives_are_sorted_and_sum_to_at_most_one(
            logits in prop::collection::vec(-30f32..30.0, 1..80),
            (picked, top) in (any::<prop::sample::Index>(), 0u8..=20),
        ) {
            let picked = picked.index(logits.len());
            let found = logprobs(&logits, picked as u32, top.into(), |_| &[]);
            prop_assert!(found.is_sound(top));
            prop_assert_eq!(found.top.len(), usize::from(top).min(logits.len()));
            let sum: f64 = found.top.iter().map(|a| f64::from(a.logprob).exp()).sum();
            prop_assert!(sum <= 1.0 + 1e-5, "{}", sum);
            // Nothing that was left out is more likely than what is in it.
            let worst = found.top.last().map(|a| logits[a.id as usize]);
            let in_it = |id: usize| found.top.iter().any(|a| a.id as usize == id);
            for (id, logit) in logits.iter().enumerate().filter(|(id, _)| !in_it(*id)) {
                prop_assert!(worst.is_none_or(|worst| *logit <= worst), "token {} is missing", id);
            }
            if let Some(same) = found.top.iter().find(|a| a.id as usize == picked) {
                prop_assert_eq!(same.logprob, found.logprob);
            }
        }

        #[test]
        fn a_whole_vocabulary_sums_to_one(logits in prop::collection::vec(-9f32..9.0, 1..=20)) {
            let found = logprobs(&logits, 0, 20, |_| &[]);
            let sum: f64 = found.top.iter().map(|a| f64::from(a.logprob).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-4, "{}", sum);
        }
    }
}
