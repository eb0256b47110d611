//! Parameters by their Hugging Face names.
//!
//! The encoder of a larger model has `bert.` before every name, and the oldest checkpoints call a norm's weight and
//! bias `gamma` and `beta`.

use super::config::EncoderConfig;
use crate::checkpoint::{TensorError, Tensors};
use crate::kernels::{BLOCK, Matrix, Precision};

/// A norm by mean and variance.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// A product and what is added to it.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Matrix,
    pub(super) bias: Vec<f32>,
}

/// One layer. Both norms stand behind the sum with what came in.
#[derive(Debug)]
pub(super) struct Layer {
    /// Queries, keys and values, stacked; each head filled up with zeros to [`wide`].
    pub(super) qkv: Linear,
    /// From heads of the same width.
    pub(super) out: Linear,
    pub(super) attention_norm: Norm,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) output_norm: Norm,
}

/// All parameters.
#[derive(Debug)]
pub(super) struct Weights {
    /// `[vocab, hidden]`.
    pub(super) words: Matrix,
    /// `[positions, hidden]`.
    pub(super) positions: Vec<f32>,
    /// `[token types, hidden]`.
    pub(super) types: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
}

/// The width of a head in memory: keys and values are kept in whole vectors.
pub(super) fn wide(head_dim: usize) -> usize {
    head_dim.next_multiple_of(BLOCK)
}

impl Weights {
    /// Takes the tensors of an encoder of these dimensions, whatever else is beside them.
    pub(super) fn read(
        config: &EncoderConfig,
        precision: Precision,
        tensors: &Tensors,
    ) -> Result<Self, TensorError> {
        let inside = tensors.contains("bert.embeddings.word_embeddings.weight");
        let reader = Reader { tensors, prefix: if inside { "bert." } else { "" }, precision };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let words = reader.get("embeddings.word_embeddings.weight", &[config.vocab_size, hidden])?;
        let words = Matrix::from_slice(config.vocab_size, hidden, precision, &words);
        let positions = reader.get("embeddings.position_embeddings.weight", &[config.positions, hidden])?;
        let types = reader.get("embeddings.token_type_embeddings.weight", &[config.token_types, hidden])?;
        let norm = reader.norm("embeddings.LayerNorm", hidden)?;
        let layer = |i: usize| {
            let name = |part: &str| format!("encoder.layer.{i}.{part}");
            Ok(Layer {
                qkv: reader.queries_keys_values(&name("attention.self"), config)?,
                out: reader.after_heads(&name("attention.output.dense"), config)?,
                attention_norm: reader.norm(&name("attention.output.LayerNorm"), hidden)?,
                up: reader.linear(&name("intermediate.dense"), inner, hidden)?,
                down: reader.linear(&name("output.dense"), hidden, inner)?,
                output_norm: reader.norm(&name("output.LayerNorm"), hidden)?,
            })
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_, _>>()?;
        Ok(Self { words, positions, types, norm, layers })
    }
}

struct Reader<'a> {
    tensors: &'a Tensors,
    prefix: &'static str,
    precision: Precision,
}

impl Reader<'_> {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorError> {
        self.tensors.get(&format!("{}{name}", self.prefix), shape)
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, TensorError> {
        let get = |new: &str, old: &str| {
            let old = format!("{name}.{old}");
            let known = self.tensors.contains(&format!("{}{old}", self.prefix));
            self.get(&if known { old } else { format!("{name}.{new}") }, &[width])
        };
        Ok(Norm { weight: get("weight", "gamma")?, bias: get("bias", "beta")? })
    }

    fn linear(&self, name: &str, out: usize, from: usize) -> Result<Linear, TensorError> {
        let weight = self.get(&format!("{name}.weight"), &[out, from])?;
        let bias = self.get(&format!("{name}.bias"), &[out])?;
        Ok(Linear { weight: Matrix::from_slice(out, from, self.precision, &weight), bias })
    }

    /// The three projections as one, so that every row is multiplied once.
    fn queries_keys_values(&self, name: &str, config: &EncoderConfig) -> Result<Linear, TensorError> {
        let (hidden, dim, wide) = (config.hidden_size, config.head_dim(), wide(config.head_dim()));
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for part in ["query", "key", "value"] {
            weights.push(self.get(&format!("{name}.{part}.weight"), &[hidden, hidden])?);
            biases.push(self.get(&format!("{name}.{part}.bias"), &[hidden])?);
        }
        // Output `o` of the stack: a place in a head of a projection, or one of the zeros that fill the head up.
        let source = |o: usize| {
            let (part, o) = (o / (config.heads * wide), o % (config.heads * wide));
            (o % wide < dim).then_some((part, o / wide * dim + o % wide))
        };
        let outputs = 3 * config.heads * wide;
        let weight = Matrix::pack(outputs, hidden, self.precision, |o, row| match source(o) {
            Some((part, o)) => row.copy_from_slice(&weights[part][o * hidden..][..hidden]),
            None => row.fill(0.0),
        });
        let bias = (0..outputs).map(|o| source(o).map_or(0.0, |(part, o)| biases[part][o])).collect();
        Ok(Linear { weight, bias })
    }

    /// The projection of what the heads saw; nothing is taken from the zeros.
    fn after_heads(&self, name: &str, config: &EncoderConfig) -> Result<Linear, TensorError> {
        let (hidden, dim, wide) = (config.hidden_size, config.head_dim(), wide(config.head_dim()));
        let weight = self.get(&format!("{name}.weight"), &[hidden, hidden])?;
        let bias = self.get(&format!("{name}.bias"), &[hidden])?;
        let weight = Matrix::pack(hidden, config.heads * wide, self.precision, |o, row| {
            let heads = row.chunks_exact_mut(wide).zip(weight[o * hidden..][..hidden].chunks_exact(dim));
            for (to, from) in heads {
                to[..dim].copy_from_slice(from);
                to[dim..].fill(0.0);
            }
        });
        Ok(Linear { weight, bias })
    }
}
