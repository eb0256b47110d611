//! Picking the next token.
//!
//! The random number for output position `p` is the first one of ChaCha8 keyed with the request's
//! seed, on stream `p`. It has no state: a worker that resumes an answer at position `p` draws what the
//! first worker would have drawn.
//!
//! Penalties depend on the ids so far. The repetition penalty counts prompt and answer, as in CTRL
//! (Keskar et al., 2019) and `transformers`; the frequency and presence penalties count the answer only,
//! as vLLM does. A resumed request's prefix is part of the answer, so that the counts at position `p` are
//! the same for whoever computes it.

use std::cmp::Ordering;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Sampling;
use crate::sampling::is_ban;

/// The sampler of one request.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    top_k: usize,
    min_p: f64,
    seed: u64,
    penalties: Penalties,
    /// By rising id.
    bias: Vec<(u32, f32)>,
    /// Scratch, kept so that a token costs no allocation: the tokens to draw from, with their weights.
    candidates: Vec<(u32, f64)>,
    /// Scratch: logits that penalties and bias replaced, in that order.
    replaced: Vec<(u32, f32)>,
    /// Scratch: the logits of allowed tokens.
    masked: Vec<f32>,
}

impl Sampler {
    /// A sampler for validated parameters, of an answer to `prompt` that so far has `prefix`.
    pub fn new(sampling: &Sampling, prompt: &[u32], prefix: &[u32]) -> Self {
        let mut sampler = Self {
            temperature: f64::from(sampling.temperature),
            top_p: f64::from(sampling.top_p),
            top_k: usize::try_from(sampling.top_k).unwrap_or(usize::MAX),
            min_p: f64::from(sampling.min_p),
            seed: sampling.seed,
            penalties: Penalties::new(sampling, prompt),
            bias: sampling.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect(),
            candidates: Vec::new(),
            replaced: Vec::new(),
            masked: Vec::new(),
        };
        prefix.iter().for_each(|&id| sampler.observe(id));
        sampler
    }

    /// Takes note of a token of the answer.
    pub fn observe(&mut self, id: u32) {
        self.penalties.observe(id);
    }

    /// The token for an output position, or `None` if every token is banned. The logits are finite; they are changed
    /// meanwhile and left as they were.
    pub fn pick(&mut self, logits: &mut [f32], position: u32) -> Option<u32> {
        self.pick_among(logits, None, position)
    }

    /// The same among those tokens that are `allowed`, by id.
    pub fn pick_among(&mut self, logits: &mut [f32], allowed: Option<&[bool]>, position: u32) -> Option<u32> {
        self.adjust(logits);
        let picked = match allowed {
            None => self.draw(logits, position),
            Some(allowed) => {
                let mut masked = std::mem::take(&mut self.masked);
                masked.clear();
                let mask = |(&logit, &allowed)| if allowed { logit } else { f32::NEG_INFINITY };
                masked.extend(logits.iter().zip(allowed).map(mask));
                let picked = self.draw(&masked, position);
                self.masked = masked;
                picked
            }
        };
        // Backwards, since a token may have a penalty and a bias.
        for (id, logit) in self.replaced.drain(..).rev() {
            if let Some(adjusted) = logits.get_mut(id as usize) {
                *adjusted = logit;
            }
        }
        picked
    }

    /// Applies penalties and bias. A banned token gets minus infinity.
    fn adjust(&mut self, logits: &mut [f32]) {
        let Self { penalties, bias, replaced, .. } = self;
        let mut replace = |id: u32, to: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                replaced.push((id, *logit));
                *logit = to(*logit);
            }
        };
        for seen in &penalties.seen {
            replace(seen.id, &|logit| penalties.apply(logit, seen.count));
        }
        for &(id, bias) in bias.iter() {
            replace(id, &|logit| if is_ban(bias) { f32::NEG_INFINITY } else { finite(logit + bias) });
        }
    }

    fn draw(&mut self, logits: &[f32], position: u32) -> Option<u32> {
        // Ties go to the lowest id: only a greater logit replaces an earlier one.
        let best = logits.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
        let (best, &greatest) = best.filter(|best| best.1.is_finite())?;
        // Asked for one token, the logits decide: weights may be equal where logits are not.
        if self.temperature <= 0.0 || self.top_k == 1 {
            return u32::try_from(best).ok();
        }
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        candidates.extend(
            (0u32..)
                .zip(logits)
                .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
                .map(|(id, &l)| (id, ((f64::from(l) - f64::from(greatest)) / self.temperature).exp())),
        );
        if self.min_p > 0.0 {
            // The greatest weight is 1, so that it always stays.
            candidates.retain(|c| c.1 >= self.min_p);
        }
        if self.top_k > 0 && self.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.top_k - 1, likelier);
            candidates.truncate(self.top_k);
            // What the selection leaves is in no order that another build must share.
            candidates.sort_unstable_by(likelier);
        }
        if self.top_p < 1.0 {
            keep_nucleus(&mut candidates, self.top_p);
        }
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = self.uniform(position) * total;
        let mut picked = None;
        for &(id, weight) in &candidates {
            // Rounding may leave a little after the last one; it then gets it.
            picked = Some(id);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        self.candidates = candidates;
        picked
    }

    /// In [0, 1).
    fn uniform(&self, position: u32) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(u64::from(position));
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// By falling weight and rising id.
fn likelier(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the most likely tokens until they reach `top_p` of all of them.
fn keep_nucleus(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    // All tokens below this weight together cannot make up what the nucleus leaves out, so none
    // of them is in it. It spares sorting a whole vocabulary.
    let floor = total * (1.0 - top_p) / candidates.len() as f64;
    candidates.retain(|c| c.1 >= floor);
    candidates.sort_unstable_by(likelier);
    let mut sum = 0.0;
    let enough = candidates.iter().position(|c| {
        sum += c.1;
        sum >= top_p * total
    });
    candidates.truncate(enough.map_or(candidates.len(), |i| i + 1));
}

/// Finite logits stay so whatever is done to them.
fn finite(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

/// What makes tokens that were there before less likely, or more.
#[derive(Debug, Clone)]
struct Penalties {
    repetition: f32,
    frequency: f32,
    presence: f32,
    /// The tokens to penalise, by rising id; empty if no penalty does anything.
    seen: Vec<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    id: u32,
    /// How often the answer has it; 0 for a token of the prompt alone.
    count: u32,
}

impl Penalties {
    fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let mut penalties = Self {
            repetition: sampling.repetition_penalty,
            frequency: sampling.frequency_penalty,
            presence: sampling.presence_penalty,
            seen: Vec::new(),
        };
        if penalties.repetition != 1.0 {
            penalties.seen.extend(prompt.iter().map(|&id| Seen { id, count: 0 }));
            penalties.seen.sort_unstable_by_key(|seen| seen.id);
            penalties.seen.dedup_by_key(|seen| seen.id);
        }
        penalties
    }

    fn observe(&mut self, id: u32) {
        if self.repetition == 1.0 && self.frequency == 0.0 && self.presence == 0.0 {
            return;
        }
        match self.seen.binary_search_by_key(&id, |seen| seen.id) {
            Ok(at) => {
                if let Some(seen) = self.seen.get_mut(at) {
                    seen.count = seen.count.saturating_add(1);
                }
            }
            Err(at) => self.seen.insert(at, Seen { id, count: 1 }),
        }
    }

    fn apply(&self, logit: f32, count: u32) -> f32 {
        let logit = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        let presence = if count > 0 { self.presence } else { 0.0 };
        finite(logit - self.frequency * count as f32 - presence)
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
