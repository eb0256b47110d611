//! How the next token is picked: the parameters, and their bounds.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::RequestError;

/// At most this many stop strings, as in the OpenAI API.
pub const MAX_STOPS: usize = 4;
/// Longest stop string. Bounds the text that may be held back.
pub const MAX_STOP_BYTES: usize = 256;
/// Above this temperature an answer is noise; OpenAI's bound too.
pub const MAX_TEMPERATURE: f32 = 2.0;

/// Sampling parameters of one request.
///
/// Randomness is a function of `seed` and the output position alone, so the same request gives the
/// same answer on every worker that computes the same logits, also when it is resumed half-way.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 picks the most likely token (ties: the lowest id); otherwise logits are divided by it.
    pub temperature: f32,
    /// Samples from the smallest set of most likely tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// Seed of the sampler.
    pub seed: u64,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Limit on output positions. A resumed request's prefix counts, so that it ends where the
    /// uninterrupted one would have.
    pub max_tokens: Option<u32>,
}

impl Default for Sampling {
    /// Greedy, without limits other than the model's context.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0, stop: Vec::new(), max_tokens: None }
    }
}

impl Sampling {
    /// Checks every bound; the error names the field.
    pub fn validate(&self) -> Result<(), RequestError> {
        if !(0.0..=MAX_TEMPERATURE).contains(&self.temperature) {
            return Err(RequestError::invalid(
                "temperature",
                format!("{} is outside 0 to {MAX_TEMPERATURE}", self.temperature),
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(RequestError::invalid(
                "top_p",
                format!("{} is not above 0 and at most 1", self.top_p),
            ));
        }
        if self.max_tokens == Some(0) {
            return Err(RequestError::invalid(
                "max_tokens",
                "0 leaves nothing to generate; ask for at least 1",
            ));
        }
        if self.stop.len() > MAX_STOPS {
            return Err(RequestError::invalid(
                "stop",
                format!("{} stop strings, at most {MAX_STOPS} are allowed", self.stop.len()),
            ));
        }
        for (i, stop) in self.stop.iter().enumerate() {
            if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
                return Err(RequestError::invalid(
                    format!("stop[{i}]"),
                    format!("{} bytes long, 1 to {MAX_STOP_BYTES} are allowed", stop.len()),
                ));
            }
        }
        Ok(())
    }
}
