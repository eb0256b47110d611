//! The encoder of BERT (Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2018).
//!
//! ```text
//! x = norm(word + type + position)
//! x = norm(x + attention(x))        every token sees all tokens of its text
//! x = norm(x + down(gelu(up(x))))   for each layer
//! ```
//!
//! The rows of several texts are computed side by side, without padding. A row meets other rows in attention only,
//! and there those of its own text only, so by the rules of the [`kernels`](crate::kernels) an embedding is the same
//! to the bit in any company.

use rayon::prelude::*;

use super::config::EncoderConfig;
use super::tokenizer::Tokens;
use super::weights::{Layer, Linear, Norm, Weights, wide};
use crate::checkpoint::{TensorError, Tensors};
use crate::kernels::attention::{Row, attend};
use crate::kernels::gelu::gelu;
use crate::kernels::layer_norm::{add_layer_norm, layer_norm};
use crate::kernels::{BLOCK, Heads, KvPool, KvPrecision, Precision, matmul};

/// Values that one thread takes together where they need next to nothing each.
const TASK: usize = 32 << 10;

/// An encoder, ready to run.
#[derive(Debug)]
pub(super) struct Encoder {
    config: EncoderConfig,
    weights: Weights,
}

impl Encoder {
    pub(super) fn read(
        config: EncoderConfig,
        precision: Precision,
        tensors: &Tensors,
    ) -> Result<Self, TensorError> {
        let weights = Weights::read(&config, precision, tensors)?;
        Ok(Self { config, weights })
    }

    /// Width of a row.
    pub(super) fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// The rows of the last layer, for each token of each text in turn. The caller keeps ids within the tables, and
    /// texts within the number of positions.
    pub(super) fn run(&self, texts: &[Tokens]) -> Vec<f32> {
        // One step from outside into the pool, instead of one for each kernel.
        rayon::scope(|_| {
            let layout = Layout::new(texts);
            let mut pool =
                KvPool::new(layout.blocks, self.config.heads, wide(self.config.head_dim()), KvPrecision::F32);
            let mut x = self.embed(texts);
            let rows = layout.rows();
            for layer in &self.weights.layers {
                let seen = self.attention(layer, &x, &rows, &layout, &mut pool);
                self.norm(&mut x, &product(&seen, rows.len(), &layer.out), &layer.attention_norm);
                let mut inner = product(&x, rows.len(), &layer.up);
                gelu(&mut inner);
                self.norm(&mut x, &product(&inner, rows.len(), &layer.down), &layer.output_norm);
            }
            x
        })
    }

    fn embed(&self, texts: &[Tokens]) -> Vec<f32> {
        let (width, weights) = (self.config.hidden_size, &self.weights);
        let tokens = texts.iter().flat_map(|t| t.ids.iter().zip(&t.types).enumerate());
        let mut x = vec![0.0; texts.iter().map(|t| t.ids.len()).sum::<usize>() * width];
        for (row, (position, (&id, &kind))) in x.chunks_exact_mut(width).zip(tokens) {
            weights.words.row(id as usize, row);
            let kind = &weights.types[kind as usize * width..][..width];
            let place = &weights.positions[position * width..][..width];
            row.iter_mut().zip(kind).zip(place).for_each(|((x, kind), place)| *x = *x + kind + place);
        }
        let Norm { weight, bias } = &weights.norm;
        layer_norm(&mut x, weight, bias, self.config.eps as f32);
        x
    }

    /// What the heads of each row see.
    fn attention(
        &self,
        layer: &Layer,
        x: &[f32],
        rows: &[Row<'_>],
        layout: &Layout,
        pool: &mut KvPool,
    ) -> Vec<f32> {
        let (heads, dim) = (self.config.heads, wide(self.config.head_dim()));
        let qkv = product(x, rows.len(), &layer.qkv);
        for (row, (table, place)) in qkv.chunks_exact(3 * heads * dim).zip(layout.places()) {
            let (keys, values) = row[heads * dim..].split_at(heads * dim);
            pool.append(table, place, keys, values);
        }
        let queries = Heads { stride: 3 * heads * dim, offset: 0, count: heads, dim };
        let scale = 1.0 / (self.config.head_dim() as f32).sqrt();
        let mut seen = vec![0.0; rows.len() * heads * dim];
        attend(pool, &qkv, queries, rows, scale, &mut seen);
        seen
    }

    fn norm(&self, x: &mut [f32], delta: &[f32], norm: &Norm) {
        add_layer_norm(x, delta, &norm.weight, &norm.bias, self.config.eps as f32);
    }
}

/// `x · weightᵀ + bias`.
fn product(x: &[f32], rows: usize, Linear { weight, bias }: &Linear) -> Vec<f32> {
    let mut out = vec![0.0; rows * weight.out_features()];
    matmul(x, rows, weight, &mut out);
    let task = (TASK / bias.len()).max(1) * bias.len();
    out.par_chunks_mut(task).for_each(|rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    });
    out
}

/// Where the texts' keys and values are. Each text has blocks of its own; the pool serves one layer after the other.
struct Layout {
    /// The blocks of each text, and how many tokens are in them.
    texts: Vec<(Vec<u32>, usize)>,
    blocks: usize,
}

impl Layout {
    fn new(texts: &[Tokens]) -> Self {
        let mut blocks = 0;
        let text = |text: &Tokens| {
            let first = blocks;
            blocks += text.ids.len().div_ceil(BLOCK);
            let table = (first..blocks).filter_map(|block| u32::try_from(block).ok()).collect();
            (table, text.ids.len())
        };
        let texts = texts.iter().map(text).collect();
        Self { texts, blocks }
    }

    /// The table and the position of each token.
    fn places(&self) -> impl Iterator<Item = (&[u32], usize)> {
        self.texts.iter().flat_map(|(table, tokens)| (0..*tokens).map(move |place| (&table[..], place)))
    }

    /// What each token sees: its whole text.
    fn rows<'a>(&'a self) -> Vec<Row<'a>> {
        let text = |(table, tokens): &'a (Vec<u32>, usize)| {
            std::iter::repeat_n(Row { position: tokens.saturating_sub(1), first_key: 0, table }, *tokens)
        };
        self.texts.iter().flat_map(text).collect()
    }
}
