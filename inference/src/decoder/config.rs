//! Dimensions of a decoder, and what its family computes with them.

/// A line of models whose decoders differ in structure, not only in size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Qwen3, dense (Yang et al., "Qwen3 Technical Report", 2025).
    Qwen3,
    /// Llama 2 and 3 (Grattafiori et al., "The Llama 3 Herd of Models", 2024).
    Llama,
    /// Mistral, dense (Jiang et al., "Mistral 7B", 2023).
    Mistral,
    /// The text decoder of Gemma 3 (Gemma Team, "Gemma 3 Technical Report", 2025).
    Gemma3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Qwen3, Self::Llama, Self::Mistral, Self::Gemma3];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// The class in `config.json`'s `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    /// The name that ads and lists show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gemma3 => "gemma3",
            other => other.model_type(),
        }
    }

    /// Whether queries and keys are RMS-normalised per head before they are rotated.
    pub fn normalises_heads(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether the outputs of attention and of the feed-forward part are normalised too, before they
    /// join the residual stream.
    pub fn normalises_outputs(self) -> bool {
        self == Self::Gemma3
    }

    /// What is added to every norm weight of the checkpoint: Gemma stores the difference from one.
    pub fn norm_offset(self) -> f32 {
        if self == Self::Gemma3 { 1.0 } else { 0.0 }
    }

    /// The gate of the feed-forward part.
    pub fn gate(self) -> Gate {
        if self == Self::Gemma3 { Gate::GeluTanh } else { Gate::Silu }
    }
}

/// Activation of the feed-forward part's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x · sigmoid(x)`.
    Silu,
    /// The tanh form of GELU (Hendrycks and Gimpel, 2016): PyTorch's `gelu(approximate="tanh")`.
    GeluTanh,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: wavelengths above `original / low_freq_factor` are stretched by `factor`, those below
    /// `original / high_freq_factor` are kept, those between are interpolated.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Turns within the original context below which a frequency is low.
        low_freq_factor: f64,
        /// Turns within the original context above which a frequency is high.
        high_freq_factor: f64,
        /// The context of the first training, in tokens.
        original_max_position_embeddings: f64,
    },
}

/// The rotary embedding of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// What is done to them.
    pub scaling: RopeScaling,
}

/// What distinguishes the attention of one layer from that of another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// A token sees itself and the `window - 1` tokens before it; without a window, all of them.
    pub window: Option<usize>,
    /// Its rotary embedding.
    pub rotary: Rotary,
}

/// Dimensions of a decoder, as its `config.json` gives them.
///
/// [`checkpoint::parse_config`](crate::checkpoint::parse_config) makes one from a file and checks
/// every bound.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// What it computes.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The layers, from the first.
    pub layers: Vec<Attention>,
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
    /// What scores are multiplied with: `1 / √head_dim`, or Gemma's `1 / √query_pre_attn_scalar`.
    pub query_scale: f64,
    /// What embeddings are multiplied with on their way in: 1, or Gemma's `√hidden_size`, rounded to the
    /// number format of the checkpoint.
    pub embed_scale: f32,
    /// Whether the four projections of attention add a bias.
    pub attention_bias: bool,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
}

impl DecoderConfig {
    /// Rows of the stacked query, key and value projection.
    pub fn qkv_size(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// Number of parameters, tied embeddings counted once.
    pub fn parameters(&self) -> u64 {
        let [d, f, width] = [self.hidden_size, self.intermediate_size, self.head_dim].map(|n| n as u64);
        let (q, qkv) = (self.num_attention_heads as u64 * width, self.qkv_size() as u64);
        let bias = if self.attention_bias { qkv + d } else { 0 };
        let head_norms = if self.family.normalises_heads() { 2 * width } else { 0 };
        let norms = if self.family.normalises_outputs() { 4 * d } else { 2 * d };
        let layer = d * qkv + q * d + bias + head_norms + norms + 3 * d * f;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * d * self.vocab_size as u64 + self.layers.len() as u64 * layer + d
    }
}
