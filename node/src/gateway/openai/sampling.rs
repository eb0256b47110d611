//! The fields of a chat completion that say how tokens are picked, from JSON to [`Sampling`].
//!
//! Types are checked here, bounds by [`Sampling::validate`], so that gateway and engine cannot disagree on
//! them; only what the two name or mean differently is handled field by field.

use std::collections::BTreeMap;

use cocoon_inference::{RequestError, Sampling, limits::MAX_TOP_LOGPROBS};
use serde_json::{Map, Value};

use super::{
    error::ApiError,
    request::{integer, optional, present},
};

/// OpenAI's own limit on stop sequences.
pub const MAX_STOPS: usize = 4;

/// The names of the fields that [`parse`] reads.
pub(super) const KNOWN: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
];

/// Checked sampling fields.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingFields {
    /// Absent: the gateway draws one, so that a failover continues the same random sequence.
    pub seed: Option<u64>,
    /// Everything else, with OpenAI's defaults; its own seed means nothing.
    pub options: Sampling,
}

impl SamplingFields {
    /// The options of one of a request's answers, with `fallback_seed` where the client gave none. The
    /// first answer is that of a request for one; each further one has the next seed.
    #[must_use]
    pub fn of_choice(&self, choice: usize, fallback_seed: u64) -> Sampling {
        let seed = self.seed.unwrap_or(fallback_seed).wrapping_add(choice as u64);
        Sampling { seed, ..self.options.clone() }
    }
}

/// Reads the sampling fields.
///
/// # Errors
/// [`ApiError`] of type `invalid_request_error` that names the field and says what it should be.
pub(super) fn parse(fields: &Map<String, Value>) -> Result<SamplingFields, ApiError> {
    let defaults = Sampling::default();
    let mut options = Sampling {
        temperature: number(fields, "temperature")?.unwrap_or(1.0),
        top_p: number(fields, "top_p")?.unwrap_or(defaults.top_p),
        top_k: top_k(fields)?,
        min_p: number(fields, "min_p")?.unwrap_or(defaults.min_p),
        repetition_penalty: number(fields, "repetition_penalty")?.unwrap_or(defaults.repetition_penalty),
        frequency_penalty: number(fields, "frequency_penalty")?.unwrap_or(defaults.frequency_penalty),
        presence_penalty: number(fields, "presence_penalty")?.unwrap_or(defaults.presence_penalty),
        logit_bias: logit_bias(fields)?,
        seed: 0,
        stop: stop(fields)?,
        stop_token_ids: stop_token_ids(fields)?,
        max_tokens: max_tokens(fields)?,
        logprobs: logprobs(fields)?,
    };
    // OpenAI accepts a nucleus of 0, where only the likeliest token is left; engines call that greedy.
    // Asked of the `f32`: a positive number too small for it has become 0 as well.
    let empty_nucleus = options.top_p == 0.0;
    if empty_nucleus {
        options.top_p = 1.0;
    }
    options.validate().map_err(|error| match &error {
        RequestError::Invalid { field, why } => {
            // The path of one entry belongs to the field.
            let name = field.split(['.', '[']).next().unwrap_or(field);
            ApiError::invalid(Some(name), format!("`{field}`: {why}"))
        }
        _ => ApiError::invalid(None, error.to_string()),
    })?;
    if empty_nucleus {
        options.temperature = 0.0;
    }
    Ok(SamplingFields { seed: seed(fields)?, options })
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<Option<f32>, ApiError> {
    Ok(optional(fields, name, Value::as_f64, "a number")?.map(|value| value as f32))
}

/// 0 and -1 keep all tokens, as with vLLM.
fn top_k(fields: &Map<String, Value>) -> Result<u32, ApiError> {
    match optional(fields, "top_k", Value::as_i64, "an integer")? {
        None | Some(-1) => Ok(0),
        Some(count) => u32::try_from(count).map_err(|_| {
            let why = format!("`top_k` must be between 1 and {}, or 0 for all tokens, not {count}", u32::MAX);
            ApiError::invalid(Some("top_k"), why)
        }),
    }
}

fn logit_bias(fields: &Map<String, Value>) -> Result<BTreeMap<u32, f32>, ApiError> {
    let Some(entries) = optional(fields, "logit_bias", Value::as_object, "an object")? else {
        return Ok(BTreeMap::new());
    };
    let entry = |(id, bias): (&String, &Value)| {
        let id = id.parse().ok()?;
        Some((id, bias.as_f64()? as f32))
    };
    let biases: Option<BTreeMap<u32, f32>> = entries.iter().map(entry).collect();
    // Two spellings of one id (`"7"`, `"+7"`) would say two things.
    biases.filter(|biases| biases.len() == entries.len()).ok_or_else(|| {
        let why = "`logit_bias` must map token ids, as decimal strings, to numbers from -100 to 100";
        ApiError::invalid(Some("logit_bias"), why)
    })
}

fn seed(fields: &Map<String, Value>) -> Result<Option<u64>, ApiError> {
    // OpenAI's seeds are signed; the bits are what matters.
    match present(fields, "seed") {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
            .map(Some)
            .ok_or_else(|| ApiError::invalid(Some("seed"), "`seed` must be a 64-bit integer")),
    }
}

fn stop(fields: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let bad = || {
        ApiError::invalid(
            Some("stop"),
            format!("`stop` must be a string or up to {MAX_STOPS} non-empty strings"),
        )
    };
    match present(fields, "stop") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(many)) => {
            many.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(bad)).collect()
        }
        Some(_) => Err(bad()),
    }
}

fn stop_token_ids(fields: &Map<String, Value>) -> Result<Vec<u32>, ApiError> {
    let list = optional(fields, "stop_token_ids", Value::as_array, "a list")?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    list.map_or(Some(Vec::new()), |ids| ids.iter().map(id).collect()).ok_or_else(|| {
        let why = "`stop_token_ids` must be a list of token ids, integers from 0";
        ApiError::invalid(Some("stop_token_ids"), why)
    })
}

/// `max_completion_tokens` is the newer name of `max_tokens`; no token of an answer is hidden here, so they
/// mean the same.
fn max_tokens(fields: &Map<String, Value>) -> Result<Option<u32>, ApiError> {
    let old = integer(fields, "max_tokens", 1..=u32::MAX)?;
    let new = integer(fields, "max_completion_tokens", 1..=u32::MAX)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let why = format!(
                "`max_tokens` is {old} and `max_completion_tokens` is {new}, which mean the same; send one of them"
            );
            Err(ApiError::invalid(Some("max_completion_tokens"), why))
        }
        (old, new) => Ok(new.or(old)),
    }
}

fn logprobs(fields: &Map<String, Value>) -> Result<Option<u8>, ApiError> {
    let wanted = optional(fields, "logprobs", Value::as_bool, "true or false")?.unwrap_or(false);
    let top = integer(fields, "top_logprobs", 0..=u32::from(MAX_TOP_LOGPROBS))?;
    match (wanted, top) {
        (false, Some(_)) => {
            Err(ApiError::invalid(Some("top_logprobs"), "`top_logprobs` needs `logprobs: true`"))
        }
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.map_or(0, |top| u8::try_from(top).unwrap_or(MAX_TOP_LOGPROBS)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<SamplingFields, ApiError> {
        parse(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap())
    }

    #[test]
    fn every_field_arrives_at_the_engine() {
        let json = r#"{"temperature":0.5,"top_p":0.25,"top_k":40,"min_p":0.125,"repetition_penalty":1.5,
            "frequency_penalty":-0.5,"presence_penalty":0.75,"logit_bias":{"7":-100,"70000":2.5},"seed":-1,
            "stop":["x"],"stop_token_ids":[3,4],"max_tokens":7,"max_completion_tokens":7,"logprobs":true,
            "top_logprobs":5}"#;
        let expected = Sampling {
            temperature: 0.5,
            top_p: 0.25,
            top_k: 40,
            min_p: 0.125,
            repetition_penalty: 1.5,
            frequency_penalty: -0.5,
            presence_penalty: 0.75,
            logit_bias: [(7, -100.0), (70_000, 2.5)].into(),
            seed: u64::MAX,
            stop: vec!["x".into()],
            stop_token_ids: vec![3, 4],
            max_tokens: Some(7),
            logprobs: Some(5),
        };
        let fields = read(json).unwrap();
        assert_eq!(fields.of_choice(0, 9), expected);
        assert_eq!(fields.of_choice(2, 9).seed, 1, "each answer has its own seed");
        assert!(KNOWN.iter().all(|name| json.contains(&format!("\"{name}\""))), "a field is not tested");
    }

    #[test]
    fn without_fields_the_defaults_are_openai_s() {
        let expected = Sampling { temperature: 1.0, seed: 9, ..Sampling::default() };
        for json in ["{}", r#"{"top_k":-1,"logprobs":false,"logit_bias":{},"stop":null,"stop_token_ids":[]}"#]
        {
            assert_eq!(read(json).unwrap().of_choice(0, 9), expected);
        }
        assert_eq!(read(r#"{"logprobs":true}"#).unwrap().options.logprobs, Some(0));
    }

    #[test]
    fn wrong_types_and_ranges_name_their_field() {
        for (json, param) in [
            (r#"{"temperature":3}"#, "temperature"),
            (r#"{"temperature":"hot"}"#, "temperature"),
            (r#"{"temperature":3,"top_p":0}"#, "temperature"),
            (r#"{"top_p":-1}"#, "top_p"),
            (r#"{"top_k":-2}"#, "top_k"),
            (r#"{"top_k":1.5}"#, "top_k"),
            (r#"{"min_p":2}"#, "min_p"),
            (r#"{"repetition_penalty":0}"#, "repetition_penalty"),
            (r#"{"repetition_penalty":1e300}"#, "repetition_penalty"),
            (r#"{"frequency_penalty":2.1}"#, "frequency_penalty"),
            (r#"{"presence_penalty":-2.1}"#, "presence_penalty"),
            (r#"{"logit_bias":{"7":101}}"#, "logit_bias"),
            (r#"{"logit_bias":{"seven":1}}"#, "logit_bias"),
            (r#"{"logit_bias":{"7":1,"+7":2}}"#, "logit_bias"),
            (r#"{"logit_bias":{"-7":1}}"#, "logit_bias"),
            (r#"{"logit_bias":[7]}"#, "logit_bias"),
            (r#"{"seed":1.5}"#, "seed"),
            (r#"{"stop":["a","b","c","d","e"]}"#, "stop"),
            (r#"{"stop":""}"#, "stop"),
            (r#"{"stop":[1]}"#, "stop"),
            (r#"{"stop_token_ids":[-1]}"#, "stop_token_ids"),
            (r#"{"stop_token_ids":3}"#, "stop_token_ids"),
            (r#"{"max_tokens":0}"#, "max_tokens"),
            (r#"{"max_completion_tokens":0}"#, "max_completion_tokens"),
            (r#"{"max_tokens":3,"max_completion_tokens":4}"#, "max_completion_tokens"),
            (r#"{"logprobs":1}"#, "logprobs"),
            (r#"{"logprobs":true,"top_logprobs":21}"#, "top_logprobs"),
            (r#"{"top_logprobs":2}"#, "top_logprobs"),
            (r#"{"logprobs":false,"top_logprobs":0}"#, "top_logprobs"),
        ] {
            let error = read(json).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{json}");
            assert!(error.message.contains(param), "{json}: {}", error.message);
        }
    }

    #[test]
    fn either_name_of_the_token_limit_will_do() {
        for json in [r#"{"max_tokens":3}"#, r#"{"max_completion_tokens":3,"max_tokens":null}"#] {
            assert_eq!(read(json).unwrap().options.max_tokens, Some(3), "{json}");
        }
    }

    #[test]
    fn an_empty_nucleus_is_greedy() {
        let sampling =
            |top_p: &str| read(&format!(r#"{{"temperature":0.7,"top_p":{top_p}}}"#)).unwrap().of_choice(0, 1);
        for zero in ["0", "0.0", "1e-60"] {
            let sampling = sampling(zero);
            assert_eq!((sampling.temperature, sampling.top_p), (0.0, 1.0), "{zero}");
        }
        assert_eq!((sampling("0.1").temperature, sampling("0.1").top_p), (0.7, 0.1));
    }
}
