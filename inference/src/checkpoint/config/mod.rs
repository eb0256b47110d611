//! `config.json`, parsed within bounds.
//!
//! A field that is absent takes the default of the family's configuration class in `transformers`
//! only where a published checkpoint may really omit it. A field that asks for something this decoder
//! does not compute is an error: ignoring it would give wrong answers that look right.

mod family;
mod fields;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

pub(crate) use fields::Fields;

use super::MAX_CONFIG_BYTES;
use crate::decoder::{DecoderConfig, Family};

/// Most parameters that any dimensions may add up to: a terabyte of f32.
pub(crate) const MAX_PARAMETERS: u64 = 1 << 38;

/// What `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Dimensions of the decoder.
    pub dimensions: DecoderConfig,
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
        field: String,
        /// What it must be.
        expected: String,
    },
    /// A field has a value of another type or outside its bounds.
    #[error("field `{field}` is {found}; it must be {expected}")]
    Value {
        /// The field.
        field: String,
        /// What was found.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A field asks for something that is not implemented.
    #[error("field `{field}` is {found}, which this engine does not compute; it serves {supported}")]
    Unsupported {
        /// The field.
        field: String,
        /// What was found.
        found: String,
        /// What would work.
        supported: String,
    },
}

/// Parses `config.json`, and `generation_config.json` for its end-of-turn tokens.
pub fn parse_config(config: &[u8], generation: Option<&[u8]>) -> Result<ModelConfig, ConfigError> {
    let fields = Fields::parse(config)?;
    let dimensions = dimensions(&fields)?;
    let mut end_tokens = fields.end_tokens(dimensions.vocab_size)?;
    if let Some(bytes) = generation {
        end_tokens.extend(Fields::parse(bytes)?.end_tokens(dimensions.vocab_size)?);
    }
    if end_tokens.is_empty() {
        let expected = "the id of the token that ends a turn, here or in generation_config.json";
        return Err(fields.missing("eos_token_id", expected));
    }
    Ok(ModelConfig { dimensions, end_tokens })
}

/// Parses the dimensions in `config.json` alone.
pub fn parse_dimensions(config: &[u8]) -> Result<DecoderConfig, ConfigError> {
    dimensions(&Fields::parse(config)?)
}

fn dimensions(fields: &Fields) -> Result<DecoderConfig, ConfigError> {
    let family = family::family(fields)?;
    family::refuse_unsupported(fields, family)?;
    let hidden_size = fields.integer("hidden_size", 1..=65_536, None)?;
    let heads = fields.integer("num_attention_heads", 1..=1024, None)?;
    // The first Llamas have neither field; in the other families a file without them is damaged,
    // because their classes' defaults fit one published size only.
    let plain = matches!(family, Family::Llama | Family::Qwen3);
    let kv_heads = fields.integer("num_key_value_heads", 1..=1024, plain.then_some(heads))?;
    let even_share = (family != Family::Gemma3).then_some(hidden_size / heads);
    let head_dim = fields.integer("head_dim", 2..=1024, even_share)?;
    let count = fields.integer("num_hidden_layers", 1..=1024, None)?;
    let dimensions = DecoderConfig {
        family,
        vocab_size: fields.integer("vocab_size", 1..=4_194_304, None)?,
        hidden_size,
        layers: family::layers(fields, family, count)?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: fields.integer("intermediate_size", 1..=1_048_576, None)?,
        max_position_embeddings: fields.integer("max_position_embeddings", 2..=4_194_304, None)?,
        rms_norm_eps: fields.number("rms_norm_eps", 0.0, 1.0, Some(1e-6))?,
        query_scale: family::query_scale(fields, family, head_dim)?,
        embed_scale: family::embed_scale(fields, family, hidden_size)?,
        attention_bias: fields.flag("attention_bias", false)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings", family == Family::Gemma3)?,
    };
    related(fields, &dimensions)?;
    Ok(dimensions)
}

/// Checks fields against each other.
fn related(fields: &Fields, c: &DecoderConfig) -> Result<(), ConfigError> {
    let value = |field, found: usize, expected: String| Err(fields.wrong(field, found.to_string(), expected));
    if !c.head_dim.is_multiple_of(2) {
        return value("head_dim", c.head_dim, "even: rotary embedding pairs its halves".into());
    }
    if !c.num_attention_heads.is_multiple_of(c.num_key_value_heads) {
        let expected = format!("a divisor of `num_attention_heads`, {}", c.num_attention_heads);
        return value("num_key_value_heads", c.num_key_value_heads, expected);
    }
    if c.parameters() > MAX_PARAMETERS {
        let expected = format!("smaller: all dimensions together ask for {} parameters", c.parameters());
        return value("num_hidden_layers", c.layers.len(), expected);
    }
    Ok(())
}
