//! `config.json` of an encoder of the BERT class, parsed within bounds.
//!
//! Names and defaults are those of `BertConfig` in `transformers` 4 and 5. As for decoders, a field that asks for
//! something that is not computed is an error.

use crate::checkpoint::{ConfigError, Fields, MAX_PARAMETERS};

/// `model_type` of the encoders that are served.
pub(super) const FAMILY: &str = "bert";

/// Longest text of any encoder. Attention takes time by the square of it.
const MAX_POSITIONS: usize = 65_536;

/// Dimensions of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncoderConfig {
    /// Rows of the table of words.
    pub(crate) vocab_size: usize,
    /// Width of the rows between layers, and of an embedding.
    pub(crate) hidden_size: usize,
    /// How many layers.
    pub(crate) layers: usize,
    /// Heads of attention, which divide the width among them.
    pub(crate) heads: usize,
    /// Width inside the feed-forward part.
    pub(crate) intermediate_size: usize,
    /// Rows of the table of positions.
    pub(crate) positions: usize,
    /// Rows of the table of token types.
    pub(crate) token_types: usize,
    /// Added to variances.
    pub(crate) eps: f64,
}

impl EncoderConfig {
    pub(crate) fn parse(config: &[u8]) -> Result<Self, ConfigError> {
        let fields = Fields::parse(config)?;
        fields.supported("model_type", "`bert` for embeddings", |v| v == FAMILY)?;
        if fields.get("model_type").is_none() {
            return Err(fields.missing("model_type", "`bert`"));
        }
        // Also a `BertForMaskedLM` holds the encoder, beside a head that is not used.
        fields.supported("architectures", "`BertModel` and models around it", |v| {
            let bert = |name: &serde_json::Value| name.as_str().is_some_and(|n| n.starts_with("Bert"));
            v.as_array().is_some_and(|a| a.iter().any(bert))
        })?;
        fields.supported("hidden_act", "`gelu`, by the error function", |v| v == "gelu")?;
        fields.supported("position_embedding_type", "`absolute`", |v| v == "absolute")?;
        for field in ["is_decoder", "add_cross_attention"] {
            fields.supported(field, "`false`", |v| *v == false)?;
        }
        let config = Self {
            vocab_size: fields.integer("vocab_size", 1..=4_194_304, None)?,
            hidden_size: fields.integer("hidden_size", 1..=65_536, None)?,
            layers: fields.integer("num_hidden_layers", 1..=1024, None)?,
            heads: fields.integer("num_attention_heads", 1..=1024, None)?,
            intermediate_size: fields.integer("intermediate_size", 1..=1_048_576, None)?,
            positions: fields.integer("max_position_embeddings", 2..=MAX_POSITIONS, None)?,
            token_types: fields.integer("type_vocab_size", 1..=1024, Some(2))?,
            eps: fields.number("layer_norm_eps", 0.0, 1.0, Some(1e-12))?,
        };
        if !config.hidden_size.is_multiple_of(config.heads) {
            let expected = format!("a divisor of `hidden_size`, {}", config.hidden_size);
            return Err(fields.wrong("num_attention_heads", config.heads.to_string(), expected));
        }
        if config.parameters() > MAX_PARAMETERS {
            let expected = format!("smaller: all dimensions ask for {} parameters", config.parameters());
            return Err(fields.wrong("num_hidden_layers", config.layers.to_string(), expected));
        }
        Ok(config)
    }

    /// Width of a head.
    pub(crate) fn head_dim(&self) -> usize {
        self.hidden_size / self.heads
    }

    /// Parameters of the encoder. A pooler or another head in the files is not used and not counted.
    pub(crate) fn parameters(&self) -> u64 {
        let [hidden, inner] = [self.hidden_size, self.intermediate_size].map(|n| n as u64);
        let rows = (self.vocab_size + self.positions + self.token_types) as u64;
        let attention = 4 * (hidden + 1) * hidden;
        let forward = (2 * hidden + 1) * inner + hidden;
        let layer = attention + forward + 4 * hidden;
        (rows + 2) * hidden + self.layers as u64 * layer
    }

    /// Parameters that the files of such an encoder may hold: with a pooler, and with the head that guesses masked
    /// words and its copy of the table.
    pub(crate) fn parameters_on_disk(&self) -> u64 {
        let [hidden, vocab] = [self.hidden_size, self.vocab_size].map(|n| n as u64);
        self.parameters() + 2 * (hidden + 1) * hidden + (hidden + 1) * vocab
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(change: impl Fn(&mut Value)) -> Result<EncoderConfig, ConfigError> {
        let mut value = json!({
            "architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30522, "hidden_size": 384,
            "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
            "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
            "hidden_act": "gelu", "position_embedding_type": "absolute", "pad_token_id": 0
        });
        change(&mut value);
        EncoderConfig::parse(value.to_string().as_bytes())
    }

    #[test]
    fn the_parameters_of_a_published_model_are_counted() {
        // all-MiniLM-L6-v2 has 22,713,216, of which 147,840 are a pooler's.
        assert_eq!(parse(|_| ()).unwrap().parameters(), 22_713_216 - 147_840);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let cases = [
            ("model_type", json!("roberta")),
            ("architectures", json!(["RobertaModel"])),
            ("hidden_act", json!("gelu_new")),
            ("hidden_act", json!("relu")),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
        ];
        for (field, value) in cases {
            let error = parse(|v| v[field] = value.clone()).unwrap_err();
            assert!(matches!(&error, ConfigError::Unsupported { field: f, .. } if f == field), "{error}");
        }
        let error = parse(|v| v["model_type"] = Value::Null).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { .. }));
    }

    #[test]
    fn dimensions_that_cannot_be_are_refused() {
        let cases = [
            ("num_attention_heads", json!(5)),
            ("num_attention_heads", json!(0)),
            ("hidden_size", json!(-1)),
            ("vocab_size", json!(1e30)),
            ("max_position_embeddings", json!(1 << 20)),
            ("layer_norm_eps", json!(0)),
            ("intermediate_size", json!("many")),
        ];
        for (field, value) in cases {
            assert!(parse(|v| v[field] = value.clone()).is_err(), "{field}");
        }
        let error = parse(|v| {
            v["hidden_size"] = json!(65_536);
            v["num_attention_heads"] = json!(1024);
            v["num_hidden_layers"] = json!(1024);
        });
        assert!(error.unwrap_err().to_string().contains("parameters"));
    }

    #[test]
    fn a_file_of_the_first_bert_needs_no_more_than_its_dimensions() {
        let config = parse(|v| {
            for field in ["architectures", "type_vocab_size", "layer_norm_eps", "position_embedding_type"] {
                v[field] = Value::Null;
            }
        });
        assert_eq!(config, parse(|_| ()));
    }
}
