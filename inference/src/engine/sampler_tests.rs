//! Properties of the sampler.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
    of(&Sampling { temperature, top_p, seed, ..Sampling::default() })
}

fn of(sampling: &Sampling) -> Sampler {
    sampling.validate().unwrap();
    Sampler::new(sampling, &[], &[])
}

fn pick(mut sampler: Sampler, logits: &[f32], position: u32) -> Option<u32> {
    let mut scratch = logits.to_vec();
    let picked = sampler.pick(&mut scratch, position);
    let same = logits.iter().zip(&scratch).all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(same, "the logits are not left as they were");
    picked
}

/// The logits as penalties and bias make them.
fn adjusted(mut sampler: Sampler, logits: &[f32]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    sampler.adjust(&mut logits);
    logits
}

#[test]
fn greedy_ties_go_to_the_lowest_id() {
    assert_eq!(pick(sampler(0.0, 1.0, 1), &[0.0, 2.0, 2.0, 1.0], 0), Some(1));
}

#[test]
fn nothing_is_picked_where_nothing_is() {
    assert_eq!(sampler(1.0, 1.0, 1).pick(&mut [], 0), None);
    assert_eq!(sampler(0.0, 1.0, 1).pick_among(&mut [1.0, 2.0], Some(&[false, false]), 0), None);
}

#[test]
fn only_what_is_allowed_is_picked_and_the_logits_stay() {
    let mut logits = [3.0, 2.0, 1.0, 0.0];
    let allowed = [false, true, false, true];
    assert_eq!(sampler(0.0, 1.0, 1).pick_among(&mut logits, Some(&allowed), 0), Some(1));
    for position in 0..50 {
        let picked = sampler(2.0, 1.0, 1).pick_among(&mut logits, Some(&allowed), position);
        assert!(matches!(picked, Some(1 | 3)), "{picked:?}");
    }
    assert_eq!(logits, [3.0, 2.0, 1.0, 0.0]);
}

#[test]
fn frequencies_follow_the_probabilities() {
    let mut logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
    let mut sampler = sampler(1.0, 1.0, 42);
    let mut counts = [0u32; 3];
    for position in 0..20_000 {
        counts[sampler.pick(&mut logits, position).unwrap() as usize] += 1;
    }
    for (count, expected) in counts.into_iter().zip([12_000.0f64, 6_000.0, 2_000.0]) {
        assert!((f64::from(count) - expected).abs() < 6.0 * expected.sqrt(), "{counts:?}");
    }
}

#[test]
fn penalties_are_what_their_definitions_say() {
    let sampling = Sampling {
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        ..Sampling::default()
    };
    // 0 is in the prompt, 1 twice in the answer, 2 in both, 3 in neither.
    let sampler = Sampler::new(&sampling, &[0, 2, 0], &[1, 2, 1]);
    let found = adjusted(sampler, &[4.0, 4.0, -4.0, 4.0]);
    assert_eq!(found, [2.0, 2.0 - 1.0 - 0.25, -8.0 - 0.5 - 0.25, 4.0]);
    // Frequency and presence do not look at the prompt.
    let sampling = Sampling { repetition_penalty: 1.0, ..sampling };
    let sampler = Sampler::new(&sampling, &[0, 2, 0], &[1]);
    assert_eq!(adjusted(sampler, &[4.0, 4.0, -4.0, 4.0]), [4.0, 3.25, -4.0, 4.0]);
}

#[test]
fn extreme_logits_stay_finite_under_extreme_penalties() {
    let sampling = Sampling {
        repetition_penalty: 0.1,
        frequency_penalty: 2.0,
        presence_penalty: -2.0,
        logit_bias: BTreeMap::from([(0, 100.0), (1, -99.0)]),
        ..Sampling::default()
    };
    let sampler = Sampler::new(&sampling, &[], &[0, 1]);
    assert!(adjusted(sampler.clone(), &[f32::MAX, f32::MIN]).iter().all(|l| l.is_finite()));
    let sampler = Sampler::new(&Sampling { repetition_penalty: 10.0, ..sampling }, &[], &[0, 1]);
    assert!(adjusted(sampler, &[f32::MAX, f32::MIN]).iter().all(|l| l.is_finite()));
}

#[test]
fn a_vocabulary_that_is_banned_as_a_whole_yields_nothing() {
    let sampling = Sampling { logit_bias: BTreeMap::from([(0, -100.0), (1, -100.0)]), ..Sampling::default() };
    assert_eq!(pick(of(&sampling), &[1.0, 2.0], 0), None);
}

fn vocabulary() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-9f32..9.0, 2..50)
}

/// Any valid sampling that draws.
fn sampling() -> impl Strategy<Value = Sampling> {
    let cuts = (0.01f32..=1.0, 0u32..60, prop_oneof![Just(0f32), 0f32..=1.0]);
    let penalties = (prop_oneof![Just(1f32), 0.1f32..10.0], -2f32..=2.0, -2f32..=2.0);
    let bias = prop::collection::btree_map(0u32..50, -99f32..=100.0, 0..5);
    (0f32..=2.0, cuts, penalties, bias, any::<u64>()).prop_map(
        |(temperature, (top_p, top_k, min_p), (repetition, frequency, presence), logit_bias, seed)| {
            Sampling {
                temperature,
                top_p,
                top_k,
                min_p,
                repetition_penalty: repetition,
                frequency_penalty: frequency,
                presence_penalty: presence,
                logit_bias,
                seed,
                ..Sampling::default()
            }
        },
    )
}

proptest! {
    /// Whatever a sampler did before, and whether the ids so far came one by one or as a prefix.
    #[test]
    fn the_pick_is_a_function_of_ids_seed_and_position(
        logits in vocabulary(),
        sampling in sampling(),
        prompt in prop::collection::vec(0u32..50, 0..20),
        answer in prop::collection::vec(0u32..50, 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let position = answer.len() as u32;
        let resumed = pick(Sampler::new(&sampling, &prompt, &answer), &logits, position);
        let (prefix, rest) = answer.split_at(cut.index(answer.len() + 1));
        let mut other = Sampler::new(&sampling, &prompt, prefix);
        for (at, &id) in (prefix.len()..).zip(rest) {
            other.pick(&mut logits.clone(), at as u32);
            other.observe(id);
        }
        prop_assert_eq!(pick(other, &logits, position), resumed);
        prop_assert!((resumed.unwrap() as usize) < logits.len());
    }

    #[test]
    fn the_pick_is_in_the_nucleus(
        logits in vocabulary(),
        (top_p, seed, position) in (0.01f32..1.0, any::<u64>(), any::<u32>()),
    ) {
        let picked = pick(sampler(1.0, top_p, seed), &logits, position).unwrap() as usize;
        // The tokens strictly more likely than the pick must not reach top_p by themselves.
        let weight = |l: &f32| f64::from(*l).exp();
        let total: f64 = logits.iter().map(weight).sum();
        let above: f64 = logits.iter().filter(|l| **l > logits[picked]).map(weight).sum();
        prop_assert!(above / total < f64::from(top_p) + 1e-6);
    }

    #[test]
    fn one_candidate_is_greedy(logits in vocabulary(), sampling in sampling(), position in any::<u32>()) {
        let greedy = pick(of(&Sampling { temperature: 0.0, ..sampling.clone() }), &logits, position);
        let one = pick(of(&Sampling { top_k: 1, ..sampling.clone() }), &logits, position);
        prop_assert_eq!(one, greedy);
    }

    #[test]
    fn the_pick_is_among_the_k_most_likely(
        logits in vocabulary(),
        (k, seed, position) in (1u32..50, any::<u64>(), any::<u32>()),
    ) {
        let sampling = Sampling { temperature: 2.0, top_k: k, seed, ..Sampling::default() };
        let picked = pick(of(&sampling), &logits, position).unwrap() as usize;
        let above = logits.iter().filter(|l| **l > logits[picked]).count();
        prop_assert!(above < k as usize, "{} tokens are more likely", above);
    }

    /// The most likely token always stays, and nothing below the share of its probability does.
    #[test]
    fn min_p_keeps_the_maximum_and_cuts_what_is_far_below(
        logits in vocabulary(),
        (min_p, seed, position) in (0.001f32..=1.0, any::<u64>(), any::<u32>()),
    ) {
        let sampling = Sampling { temperature: 1.0, min_p, seed, ..Sampling::default() };
        let picked = pick(of(&sampling), &logits, position).unwrap() as usize;
        let greatest = logits.iter().copied().fold(f32::MIN, f32::max);
        let share = (f64::from(logits[picked]) - f64::from(greatest)).exp();
        prop_assert!(share >= f64::from(min_p) - 1e-9, "{share}");
        let strict = Sampling { min_p: 1.0, ..sampling };
        let best = pick(of(&strict), &logits, position).unwrap() as usize;
        prop_assert_eq!(logits[best], greatest);
    }

    /// Positive penalties lower the tokens that were there, and no others.
    #[test]
    fn penalties_lower_exactly_the_tokens_seen(
        logits in vocabulary(),
        prompt in prop::collection::vec(0u32..50, 0..9),
        answer in prop::collection::vec(0u32..50, 0..9),
        (repetition, frequency, presence) in (1.1f32..10.0, 0.1f32..=2.0, 0.1f32..=2.0),
    ) {
        let sampling = Sampling { repetition_penalty: repetition, ..Sampling::default() };
        let found = adjusted(Sampler::new(&sampling, &prompt, &answer), &logits);
        for (id, (before, after)) in (0u32..).zip(logits.iter().zip(&found)) {
            let seen = prompt.contains(&id) || answer.contains(&id);
            prop_assert_eq!(after < before, seen && *before != 0.0, "token {}", id);
            prop_assert!(after <= before);
        }
        for sampling in [
            Sampling { frequency_penalty: frequency, ..Sampling::default() },
            Sampling { presence_penalty: presence, ..Sampling::default() },
        ] {
            let found = adjusted(Sampler::new(&sampling, &prompt, &answer), &logits);
            for (id, (before, after)) in (0u32..).zip(logits.iter().zip(&found)) {
                prop_assert_eq!(after < before, answer.contains(&id), "token {}", id);
                prop_assert!(after <= before);
            }
        }
    }

    #[test]
    fn a_bias_of_minus_100_bans(
        logits in vocabulary(),
        banned in prop::collection::btree_set(0u32..50, 0..49),
        (temperature, top_p, seed, position) in (0f32..=2.0, 0.01f32..=1.0, any::<u64>(), any::<u32>()),
    ) {
        let all = (0..logits.len() as u32).all(|id| banned.contains(&id));
        let logit_bias = banned.iter().map(|&id| (id, -100.0)).collect();
        let sampling = Sampling { temperature, top_p, seed, logit_bias, ..Sampling::default() };
        let picked = pick(of(&sampling), &logits, position);
        prop_assert_eq!(picked.is_none(), all);
        prop_assert!(picked.is_none_or(|id| !banned.contains(&id)));
    }

    #[test]
    fn a_bias_of_100_decides(logits in vocabulary(), id in any::<prop::sample::Index>(), seed in any::<u64>()) {
        let id = id.index(logits.len()) as u32;
        let logit_bias = BTreeMap::from([(id, 100.0)]);
        let sampling = Sampling { temperature: 1.0, seed, logit_bias, ..Sampling::default() };
        prop_assert_eq!(pick(of(&sampling), &logits, 0), Some(id));
    }
}
