//! How the next token is picked: the parameters, and their bounds.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::RequestError;

/// At most this many stop strings, as in the OpenAI API.
pub const MAX_STOPS: usize = 4;
/// Longest stop string. Bounds the text that may be held back.
pub const MAX_STOP_BYTES: usize = 256;
/// At most this many stop tokens; each is compared with every token made.
pub const MAX_STOP_TOKENS: usize = 64;
/// Above this temperature an answer is noise; OpenAI's bound too.
pub const MAX_TEMPERATURE: f32 = 2.0;
/// Most biased tokens: as many as ban a long list of words, few beside a step of the model.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Largest bias either way, as in the OpenAI API.
pub const MAX_BIAS: f32 = 100.0;
/// Bound of the frequency and presence penalties either way, as in the OpenAI API.
pub const MAX_PENALTY: f32 = 2.0;
/// Repetition penalties below its inverse or above it leave no trace of the model's own judgement.
pub const MAX_REPETITION_PENALTY: f32 = 10.0;
/// Most alternatives reported for each token, as in the OpenAI API.
pub const MAX_TOP_LOGPROBS: u8 = 20;

/// Sampling parameters of one request.
///
/// Randomness is a function of `seed` and the output position alone, and penalties are functions of
/// the ids before it, so the same request gives the same answer on every worker that computes the same
/// logits, also when it is resumed half-way.
///
/// The logits go through these in order: `repetition_penalty`, `frequency_penalty` and
/// `presence_penalty`, `logit_bias`, `temperature`, `min_p`, `top_k`, `top_p`. What `logprobs` reports
/// is the model's own distribution, before all of them.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 picks the most likely token (ties: the lowest id); otherwise logits are divided by it.
    pub temperature: f32,
    /// Samples from the smallest set of most likely tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// Samples from this many most likely tokens (ties: the lowest ids); 0 from all.
    pub top_k: u32,
    /// Samples from tokens at least this probable, relative to the most likely one; 0 from all.
    pub min_p: f32,
    /// Divides the positive logits of tokens in prompt or answer by this, and multiplies the negative
    /// ones (Keskar et al., 2019). 1 changes nothing, more discourages repetition.
    pub repetition_penalty: f32,
    /// Taken off a token's logit for each time that the answer has it.
    pub frequency_penalty: f32,
    /// Taken off a token's logit once if the answer has it.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens. -100 bans a token altogether.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the sampler.
    pub seed: u64,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer, as the model's own end of turn does; they are neither part of it nor
    /// counted.
    pub stop_token_ids: Vec<u32>,
    /// Limit on output positions. A resumed request's prefix counts, so that it ends where the
    /// uninterrupted one would have.
    pub max_tokens: Option<u32>,
    /// Reports the log-probability of every token, and of this many most likely ones at its position.
    pub logprobs: Option<u8>,
}

impl Default for Sampling {
    /// Greedy, without limits other than the model's context.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            max_tokens: None,
            logprobs: None,
        }
    }
}

impl Sampling {
    /// Checks every bound that does not need the model; the error names the field.
    pub fn validate(&self) -> Result<(), RequestError> {
        within("temperature", self.temperature, 0.0, MAX_TEMPERATURE, "0 is greedy, 1 the model's own")?;
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(RequestError::invalid(
                "top_p",
                format!("{} is not above 0 and at most 1; 1 keeps all tokens", self.top_p),
            ));
        }
        within("min_p", self.min_p, 0.0, 1.0, "0 keeps all tokens")?;
        let (low, high) = (1.0 / MAX_REPETITION_PENALTY, MAX_REPETITION_PENALTY);
        within("repetition_penalty", self.repetition_penalty, low, high, "1 changes nothing")?;
        for (field, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            within(field, penalty, -MAX_PENALTY, MAX_PENALTY, "0 changes nothing")?;
        }
        at_most("logit_bias", self.logit_bias.len(), MAX_LOGIT_BIAS, "tokens")?;
        let allowed = -MAX_BIAS..=MAX_BIAS;
        if let Some((id, &bias)) = self.logit_bias.iter().find(|(_, bias)| !allowed.contains(*bias)) {
            within(&format!("logit_bias.{id}"), bias, -MAX_BIAS, MAX_BIAS, "0 changes nothing, -100 bans")?;
        }
        if self.max_tokens == Some(0) {
            return Err(RequestError::invalid(
                "max_tokens",
                "0 leaves nothing to generate; ask for at least 1",
            ));
        }
        at_most("stop_token_ids", self.stop_token_ids.len(), MAX_STOP_TOKENS, "tokens")?;
        at_most("stop", self.stop.len(), MAX_STOPS, "stop strings")?;
        for (i, stop) in self.stop.iter().enumerate() {
            if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
                return Err(RequestError::invalid(
                    format!("stop[{i}]"),
                    format!("{} bytes long, 1 to {MAX_STOP_BYTES} are allowed", stop.len()),
                ));
            }
        }
        match self.logprobs {
            Some(top) if top > MAX_TOP_LOGPROBS => Err(RequestError::invalid(
                "logprobs",
                format!("{top} alternatives, at most {MAX_TOP_LOGPROBS} are allowed; ask for fewer"),
            )),
            _ => Ok(()),
        }
    }

    /// Checks the ids against a vocabulary of `vocab` tokens.
    pub fn validate_ids(&self, vocab: usize) -> Result<(), RequestError> {
        let known = |field: &str, id: u32| match (id as usize) < vocab {
            true => Ok(()),
            false => {
                let why = format!("token {id} is unknown, the model's ids are below {vocab}; remove it");
                Err(RequestError::invalid(field, why))
            }
        };
        self.logit_bias.keys().try_for_each(|&id| known("logit_bias", id))?;
        self.stop_token_ids.iter().try_for_each(|&id| known("stop_token_ids", id))?;
        if self.logit_bias.values().filter(|bias| is_ban(**bias)).count() >= vocab {
            let why = format!("bans all {vocab} tokens of the model; leave at least one");
            return Err(RequestError::invalid("logit_bias", why));
        }
        Ok(())
    }
}

/// Whether a bias excludes its token whatever the model says. Added to a logit, -100 would do so for
/// ordinary models only; people who write it mean it.
pub(crate) fn is_ban(bias: f32) -> bool {
    bias <= -MAX_BIAS
}

fn within(field: &str, value: f32, low: f32, high: f32, hint: &str) -> Result<(), RequestError> {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(RequestError::invalid(field, format!("{value} is outside {low} to {high}; {hint}"))),
    }
}

fn at_most(field: &str, found: usize, limit: usize, what: &str) -> Result<(), RequestError> {
    match found <= limit {
        true => Ok(()),
        false => {
            let why = format!("{found} {what}, at most {limit} are allowed; remove some");
            Err(RequestError::invalid(field, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(sampling: &Sampling) -> (String, String) {
        match sampling.validate() {
            Err(RequestError::Invalid { field, why }) => (field, why),
            other => panic!("expected a refusal of {sampling:?}, found {other:?}"),
        }
    }

    #[test]
    fn every_value_out_of_bounds_is_refused_with_field_and_bounds() {
        let good = Sampling::default;
        let bias = |id, bias| Sampling { logit_bias: BTreeMap::from([(id, bias)]), ..good() };
        let many = (0..=MAX_LOGIT_BIAS as u32).map(|id| (id, 1.0)).collect();
        for (sampling, field, bound) in [
            (Sampling { temperature: f32::NAN, ..good() }, "temperature", "0 to 2"),
            (Sampling { top_p: 0.0, ..good() }, "top_p", "at most 1"),
            (Sampling { min_p: 1.5, ..good() }, "min_p", "0 to 1"),
            (Sampling { min_p: -0.1, ..good() }, "min_p", "0 to 1"),
            (Sampling { repetition_penalty: 0.0, ..good() }, "repetition_penalty", "0.1 to 10"),
            (Sampling { repetition_penalty: f32::INFINITY, ..good() }, "repetition_penalty", "0.1 to 10"),
            (Sampling { frequency_penalty: 2.5, ..good() }, "frequency_penalty", "-2 to 2"),
            (Sampling { presence_penalty: f32::NAN, ..good() }, "presence_penalty", "-2 to 2"),
            (bias(7, 101.0), "logit_bias.7", "-100 to 100"),
            (bias(8, f32::NAN), "logit_bias.8", "-100 to 100"),
            (Sampling { logit_bias: many, ..good() }, "logit_bias", "at most 1024"),
            (Sampling { max_tokens: Some(0), ..good() }, "max_tokens", "at least 1"),
            (Sampling { stop_token_ids: vec![1; 65], ..good() }, "stop_token_ids", "at most 64"),
            (Sampling { stop: vec!["x".into(); 5], ..good() }, "stop", "at most 4"),
            (Sampling { stop: vec![String::new()], ..good() }, "stop[0]", "1 to 256"),
            (Sampling { logprobs: Some(21), ..good() }, "logprobs", "at most 20"),
        ] {
            let (found, why) = refusal(&sampling);
            assert_eq!(found, field);
            assert!(why.contains(bound), "{field}: {why}");
        }
        assert_eq!(good().validate(), Ok(()));
    }

    #[test]
    fn ids_are_held_against_the_vocabulary() {
        let bans = |ids: std::ops::Range<u32>| Sampling {
            logit_bias: ids.map(|id| (id, -MAX_BIAS)).collect(),
            ..Sampling::default()
        };
        assert_eq!(bans(0..9).validate_ids(10), Ok(()));
        assert!(bans(0..10).validate_ids(10).is_err(), "nothing would be left to pick");
        assert!(bans(10..11).validate_ids(10).is_err());
        let stop = Sampling { stop_token_ids: vec![3, 10], ..Sampling::default() };
        assert_eq!(stop.validate_ids(11), Ok(()));
        assert!(stop.validate_ids(10).is_err());
    }
}
