//! Picking the next token.
//!
//! The random number for output position `p` is the first one of ChaCha8 keyed with the request's
//! seed, on stream `p`. There is no state: a worker that resumes an answer at position `p` draws
//! what the first worker would have drawn.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Sampling;

/// The sampler of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    seed: u64,
}

impl Sampler {
    /// A sampler for validated parameters.
    pub fn new(sampling: &Sampling) -> Self {
        Self {
            temperature: f64::from(sampling.temperature),
            top_p: f64::from(sampling.top_p),
            seed: sampling.seed,
        }
    }

    /// The token for an output position, or `None` if the logits hold NaN or infinity.
    pub fn pick(&self, logits: &[f32], position: u32) -> Option<u32> {
        if logits.iter().any(|l| !l.is_finite()) {
            return None;
        }
        // Ties go to the lowest id: only a greater logit replaces an earlier one.
        let best = logits.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
        let (best, &greatest) = best?;
        if self.temperature <= 0.0 {
            return u32::try_from(best).ok();
        }
        let mut candidates: Vec<(u32, f64)> = (0u32..)
            .zip(logits)
            .map(|(id, &l)| (id, (f64::from(l - greatest) / self.temperature).exp()))
            .collect();
        if self.top_p < 1.0 {
            self.keep_nucleus(&mut candidates);
        }
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = self.uniform(position) * total;
        let mut picked = None;
        for (id, weight) in candidates {
            // Rounding may leave a little after the last one; it then gets it.
            picked = Some(id);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        picked
    }

    /// Keeps the most likely tokens, by falling weight and rising id, until they reach `top_p`.
    fn keep_nucleus(&self, candidates: &mut Vec<(u32, f64)>) {
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        // All tokens below this weight together cannot make up what the nucleus leaves out, so none
        // of them is in it. It spares sorting a whole vocabulary.
        let floor = total * (1.0 - self.top_p) / candidates.len() as f64;
        candidates.retain(|c| c.1 >= floor);
        candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut sum = 0.0;
        let enough = candidates.iter().position(|c| {
            sum += c.1;
            sum >= self.top_p * total
        });
        candidates.truncate(enough.map_or(candidates.len(), |i| i + 1));
    }

    /// In [0, 1).
    fn uniform(&self, position: u32) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(u64::from(position));
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
        Sampler::new(&Sampling { temperature, top_p, seed, ..Sampling::default() })
    }

    #[test]
    fn greedy_ties_go_to_the_lowest_id() {
        assert_eq!(sampler(0.0, 1.0, 1).pick(&[0.0, 2.0, 2.0, 1.0], 0), Some(1));
    }

    #[test]
    fn what_is_no_number_is_reported() {
        assert_eq!(sampler(0.0, 1.0, 1).pick(&[0.0, f32::NAN], 0), None);
        assert_eq!(sampler(1.0, 1.0, 1).pick(&[f32::INFINITY], 0), None);
        assert_eq!(sampler(1.0, 1.0, 1).pick(&[], 0), None);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let sampler = sampler(1.0, 1.0, 42);
        let mut counts = [0u32; 3];
        for position in 0..20_000 {
            counts[sampler.pick(&logits, position).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([12_000.0f64, 6_000.0, 2_000.0]) {
            assert!((f64::from(count) - expected).abs() < 6.0 * expected.sqrt(), "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn the_pick_is_a_function_of_seed_and_position(
            logits in prop::collection::vec(-9f32..9.0, 1..50),
            (temperature, top_p, seed, position) in (0f32..2.0, 0.01f32..=1.0, any::<u64>(), any::<u32>()),
        ) {
            let first = sampler(temperature, top_p, seed).pick(&logits, position);
            let other = sampler(temperature, top_p, seed);
            other.pick(&logits, position.wrapping_add(1));
            prop_assert_eq!(first, other.pick(&logits, position));
            prop_assert!((first.unwrap() as usize) < logits.len());
        }

        #[test]
        fn the_pick_is_in_the_nucleus(
            logits in prop::collection::vec(-9f32..9.0, 1..50),
            (top_p, seed, position) in (0.01f32..1.0, any::<u64>(), any::<u32>()),
        ) {
            let picked = sampler(1.0, top_p, seed).pick(&logits, position).unwrap() as usize;
            // The tokens strictly more likely than the pick must not reach top_p by themselves.
            let weight = |l: &f32| f64::from(*l).exp();
            let total: f64 = logits.iter().map(weight).sum();
            let above: f64 = logits.iter().filter(|l| **l > logits[picked]).map(weight).sum();
            prop_assert!(above / total < f64::from(top_p) + 1e-6);
        }
    }
}
