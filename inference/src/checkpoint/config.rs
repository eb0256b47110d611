//! `config.json`, parsed within bounds.
//!
//! A field that is absent takes the default of `transformers`' `Qwen3Config` only where a published
//! checkpoint may really omit it. A field that asks for something this decoder does not compute is
//! an error: ignoring it would give wrong answers that look right.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::MAX_CONFIG_BYTES;
use crate::qwen3::Qwen3Config;

/// Most parameters that any dimensions may add up to: a terabyte of f32.
const MAX_PARAMETERS: u64 = 1 << 38;

/// What `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Dimensions of the decoder.
    pub dimensions: Qwen3Config,
    /// Tokens that end an answer.
    pub end_tokens: BTreeSet<u32>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Too long to be a configuration.
    #[error("{found} bytes, at most {MAX_CONFIG_BYTES} are expected")]
    TooLarge {
        /// Size found.
        found: usize,
    },
    /// Not a JSON object.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// A field is not there.
    #[error("field `{field}` is missing; it must be {expected}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: String,
    },
    /// A field has a value of another type or outside its bounds.
    #[error("field `{field}` is {found}; it must be {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What was found.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A field asks for something that is not implemented.
    #[error("field `{field}` is {found}, which this engine does not compute; it serves {supported}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// What was found.
        found: String,
        /// What would work.
        supported: &'static str,
    },
}

/// Parses `config.json`, and `generation_config.json` for its end-of-turn tokens.
pub fn parse_config(config: &[u8], generation: Option<&[u8]>) -> Result<ModelConfig, ConfigError> {
    let fields = Fields::parse(config)?;
    fields.supported("model_type", "qwen3", "`qwen3`", |v| v == "qwen3")?;
    fields.supported("architectures", "", "`[\"Qwen3ForCausalLM\"]`", |v| {
        v.as_array().is_some_and(|a| a.iter().any(|x| x == "Qwen3ForCausalLM"))
    })?;
    fields.supported("hidden_act", "silu", "`silu`", |v| v == "silu")?;
    fields.supported("attention_bias", "", "`false`", |v| v == false)?;
    fields.supported("use_sliding_window", "", "`false`", |v| v == false)?;
    fields.supported("layer_types", "", "only `full_attention`", |v| {
        v.as_array().is_some_and(|a| a.iter().all(|x| x == "full_attention"))
    })?;
    fields.supported("rope_scaling", "", "`null`", default_rope)?;
    fields.supported("rope_parameters", "", "`rope_type` `default`", default_rope)?;

    let num_attention_heads = fields.integer("num_attention_heads", 1..=1024, None)?;
    let hidden_size = fields.integer("hidden_size", 1..=65_536, None)?;
    let dimensions = Qwen3Config {
        vocab_size: fields.integer("vocab_size", 1..=4_194_304, None)?,
        hidden_size,
        num_hidden_layers: fields.integer("num_hidden_layers", 1..=1024, None)?,
        num_attention_heads,
        num_key_value_heads: fields.integer("num_key_value_heads", 1..=1024, Some(num_attention_heads))?,
        head_dim: fields.integer("head_dim", 2..=1024, Some(hidden_size / num_attention_heads))?,
        intermediate_size: fields.integer("intermediate_size", 1..=1_048_576, None)?,
        max_position_embeddings: fields.integer("max_position_embeddings", 2..=4_194_304, None)?,
        rms_norm_eps: fields.number("rms_norm_eps", 0.0, 1.0, Some(1e-6))?,
        rope_theta: fields.rope_theta()?,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
    };
    fields.related(&dimensions)?;

    let mut end_tokens = fields.end_tokens(dimensions.vocab_size)?;
    if let Some(bytes) = generation {
        end_tokens.extend(Fields::parse(bytes)?.end_tokens(dimensions.vocab_size)?);
    }
    if end_tokens.is_empty() {
        let expected = "the id of the token that ends a turn, here or in generation_config.json".into();
        return Err(ConfigError::Missing { field: "eos_token_id", expected });
    }
    Ok(ModelConfig { dimensions, end_tokens })
}

fn default_rope(value: &Value) -> bool {
    let kind = ["rope_type", "type"].iter().find_map(|key| value.get(key));
    value.is_object() && kind.is_none_or(|k| k == "default")
}

struct Fields(Map<String, Value>);

impl Fields {
    fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge { found: bytes.len() });
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(ConfigError::Json(format!("found {}", show(&other)))),
            Err(error) => Err(ConfigError::Json(error.to_string())),
        }
    }

    /// `null` counts as absent, as it does for `transformers`.
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|v| !v.is_null())
    }

    /// Checks a field that may be absent, unless `required` says what it must be.
    fn supported(
        &self,
        field: &'static str,
        required: &str,
        supported: &'static str,
        accept: impl Fn(&Value) -> bool,
    ) -> Result<(), ConfigError> {
        match self.get(field) {
            Some(value) if accept(value) => Ok(()),
            Some(value) => Err(ConfigError::Unsupported { field, found: show(value), supported }),
            None if required.is_empty() => Ok(()),
            None => Err(ConfigError::Missing { field, expected: supported.to_owned() }),
        }
    }

    fn integer(
        &self,
        field: &'static str,
        range: RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Result<usize, ConfigError> {
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let fits = |n: &usize| range.contains(n);
        match (self.get(field), default) {
            (Some(value), _) => value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(fits)
                .ok_or_else(|| ConfigError::Value { field, found: show(value), expected: expected() }),
            (None, Some(n)) if fits(&n) => Ok(n),
            (None, _) => Err(ConfigError::Missing { field, expected: expected() }),
        }
    }

    fn number(
        &self,
        field: &'static str,
        above: f64,
        at_most: f64,
        default: Option<f64>,
    ) -> Result<f64, ConfigError> {
        let expected = || format!("a number above {above} and at most {at_most}");
        match (self.get(field), default) {
            (Some(value), _) => value
                .as_f64()
                .filter(|n| *n > above && *n <= at_most)
                .ok_or_else(|| ConfigError::Value { field, found: show(value), expected: expected() }),
            (None, Some(n)) => Ok(n),
            (None, None) => Err(ConfigError::Missing { field, expected: expected() }),
        }
    }

    fn flag(&self, field: &'static str, default: bool) -> Result<bool, ConfigError> {
        self.get(field).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| ConfigError::Value {
                field,
                found: show(value),
                expected: "`true` or `false`".into(),
            })
        })
    }

    /// Either at the top (transformers 4) or in `rope_parameters` (transformers 5).
    fn rope_theta(&self) -> Result<f64, ConfigError> {
        const FIELD: &str = "rope_theta";
        let nested = self.get("rope_parameters").and_then(|p| p.get(FIELD)).filter(|v| !v.is_null());
        match nested {
            Some(value) if self.get(FIELD).is_none() => {
                let mut fields = Map::new();
                fields.insert(FIELD.into(), value.clone());
                Self(fields).number(FIELD, 1.0, 1e12, None)
            }
            _ => self.number(FIELD, 1.0, 1e12, Some(10_000.0)),
        }
    }

    fn related(&self, c: &Qwen3Config) -> Result<(), ConfigError> {
        let value = |field, found: usize, expected: String| {
            Err(ConfigError::Value { field, found: found.to_string(), expected })
        };
        if !c.head_dim.is_multiple_of(2) {
            return value("head_dim", c.head_dim, "even: rotary embedding pairs its halves".into());
        }
        if !c.num_attention_heads.is_multiple_of(c.num_key_value_heads) {
            let expected = format!("a divisor of `num_attention_heads`, {}", c.num_attention_heads);
            return value("num_key_value_heads", c.num_key_value_heads, expected);
        }
        if c.parameters() > MAX_PARAMETERS {
            let expected = format!("smaller: all dimensions together ask for {} parameters", c.parameters());
            return value("num_hidden_layers", c.num_hidden_layers, expected);
        }
        Ok(())
    }

    fn end_tokens(&self, vocab: usize) -> Result<BTreeSet<u32>, ConfigError> {
        const FIELD: &str = "eos_token_id";
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.get(FIELD) {
            None => return Ok(BTreeSet::new()),
            Some(Value::Array(all)) if all.len() <= 64 => all.iter().map(id).collect(),
            Some(one) => id(one).map(|n| BTreeSet::from([n])),
        };
        ids.filter(|ids: &BTreeSet<u32>| ids.iter().all(|&n| (n as usize) < vocab)).ok_or_else(|| {
            ConfigError::Value {
                field: FIELD,
                found: self.get(FIELD).map(show).unwrap_or_default(),
                expected: format!("a token id below `vocab_size`, {vocab}, or a list of at most 64"),
            }
        })
    }
}

/// A value for an error text, shortened.
fn show(value: &Value) -> String {
    let mut text = match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    };
    if text.len() > 80 {
        text = text.chars().take(60).chain("…".chars()).collect();
    }
    format!("`{text}`")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 300,
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 96,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 50_000.0,
            "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": [1, 2],
            "rope_scaling": null, "torch_dtype": "bfloat16", "something_new": {}
        })
    }

    fn parse(change: impl Fn(&mut Value)) -> Result<ModelConfig, ConfigError> {
        let mut value = good();
        change(&mut value);
        parse_config(value.to_string().as_bytes(), None)
    }

    #[test]
    fn both_forms_of_rope_theta_are_read() {
        assert_eq!(parse(|_| ()).unwrap().dimensions.rope_theta, 50_000.0);
        let nested = parse(|v| {
            v["rope_theta"] = Value::Null;
            v["rope_parameters"] = json!({"rope_theta": 7.5e3, "rope_type": "default"});
        });
        assert_eq!(nested.unwrap().dimensions.rope_theta, 7500.0);
    }

    #[test]
    fn each_defect_names_its_field() {
        let cases: [(&str, Value); 13] = [
            ("model_type", json!("llama")),
            ("architectures", json!(["LlamaForCausalLM"])),
            ("hidden_size", json!(-1)),
            ("hidden_size", json!("64")),
            ("num_hidden_layers", json!(1e30)),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(7)),
            ("rope_scaling", json!({"rope_type": "yarn"})),
            ("use_sliding_window", json!(true)),
            ("attention_bias", json!(true)),
            ("tie_word_embeddings", json!("yes")),
            ("eos_token_id", json!(300)),
            ("rms_norm_eps", json!(0)),
        ];
        for (field, bad) in cases {
            let error = parse(|v| v[field] = bad.clone()).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
        }
        let error = parse(|v| v["vocab_size"] = Value::Null).unwrap_err().to_string();
        assert_eq!(error, "field `vocab_size` is missing; it must be a whole number from 1 to 4194304");
    }

    #[test]
    fn dimensions_that_add_up_to_too_much_are_refused() {
        let huge = parse(|v| {
            v["hidden_size"] = json!(65_536);
            v["intermediate_size"] = json!(1_048_576);
            v["num_hidden_layers"] = json!(1024);
        });
        assert!(matches!(huge, Err(ConfigError::Value { field: "num_hidden_layers", .. })));
    }

    #[test]
    fn end_tokens_come_from_both_files() {
        let config = good().to_string();
        let both = parse_config(config.as_bytes(), Some(br#"{"eos_token_id": 7}"#)).unwrap();
        assert_eq!(both.end_tokens, BTreeSet::from([1, 2, 7]));
        let none = parse(|v| v["eos_token_id"] = Value::Null);
        assert!(matches!(none, Err(ConfigError::Missing { field: "eos_token_id", .. })));
    }
}
