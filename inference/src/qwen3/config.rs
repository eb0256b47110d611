//! Dimensions of a decoder.

/// Dimensions of a Qwen3 decoder, as its `config.json` gives them.
///
/// [`checkpoint::parse_config`](crate::checkpoint::parse_config) makes one from a file and checks
/// every bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen3Config {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head; even. Need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
}

impl Qwen3Config {
    /// Rows of the stacked query, key and value projection.
    pub fn qkv_size(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// Number of parameters, tied embeddings counted once.
    pub fn parameters(&self) -> u64 {
        let [d, f, hd] = [self.hidden_size, self.intermediate_size, self.head_dim].map(|n| n as u64);
        let attention = d * self.qkv_size() as u64 + d * self.num_attention_heads as u64 * hd + 2 * hd;
        let layer = attention + 3 * d * f + 2 * d;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * d * self.vocab_size as u64 + self.num_hidden_layers as u64 * layer + d
    }
}
