//! A model's dimensions as a device has them: filled up with zeros where kernels read whole groups.
//!
//! Real models need no filling; the smallest ones of tests do. Zeros in a weight's columns meet zeros in what it
//! multiplies, zero rows make zeros, and a norm divides by the real width: so the filling stays zero and changes
//! nothing.

use super::DeviceError;
use super::kernels::HeadShape;
use super::kernels::format::{Format, WIDE};
use crate::decoder::{DecoderConfig, Role};

/// Dimensions with filling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Values of the residual stream.
    pub(super) hidden: usize,
    /// The same, filled up.
    pub(super) wide_hidden: usize,
    ffn: usize,
    /// The feed-forward layer, filled up.
    pub(super) wide_ffn: usize,
    /// Tokens.
    pub(super) vocab: usize,
    /// The same, filled up: values in a row of logits.
    pub(super) wide_vocab: usize,
    /// The heads of every layer.
    pub(super) heads: HeadShape,
}

impl Layout {
    /// The layout of a model whose keys and values are kept in a format.
    pub(super) fn new(config: &DecoderConfig, kept: Format) -> Result<Self, DeviceError> {
        let dim = config.head_dim;
        if !dim.is_multiple_of(4) || dim > 512 {
            let why = format!("its heads have {dim} values, and kernels need a multiple of 4 up to 512");
            return Err(DeviceError::Shape { why });
        }
        // A word of keys at least, and whole groups of all heads together.
        let mut wide = dim.next_multiple_of(8);
        while !(config.num_attention_heads * wide).is_multiple_of(WIDE) {
            wide += 8;
        }
        let filled = |n: usize| n.next_multiple_of(WIDE);
        let layout = Self {
            hidden: config.hidden_size,
            wide_hidden: filled(config.hidden_size),
            ffn: config.intermediate_size,
            wide_ffn: filled(config.intermediate_size),
            vocab: config.vocab_size,
            wide_vocab: filled(config.vocab_size),
            heads: HeadShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                dim,
                wide,
                format: kept,
            },
        };
        // Kernels count values in 32 bits.
        let largest = layout.wide_vocab.max(2 * layout.wide_ffn).max(layout.qkv());
        let width = layout.wide_hidden.max(layout.wide_ffn).max(layout.seen());
        if largest as u64 * width as u64 > u64::from(u32::MAX) {
            let why = format!("a matrix of {largest} times {width} has more values than a kernel can count");
            return Err(DeviceError::Shape { why });
        }
        Ok(layout)
    }

    /// Values in a row of stacked projections.
    pub(super) fn qkv(&self) -> usize {
        (self.heads.heads + 2 * self.heads.kv_heads) * self.heads.wide
    }

    /// Values in a row of what attention saw.
    pub(super) fn seen(&self) -> usize {
        self.heads.heads * self.heads.wide
    }

    /// A weight, filled up, with its shape.
    pub(super) fn matrix(
        &self,
        role: Role,
        values: Vec<f32>,
        [rows, columns]: [usize; 2],
    ) -> (Vec<f32>, [usize; 2]) {
        let HeadShape { dim, wide, .. } = self.heads;
        // Runs of real values, and how far apart they are on the device: of rows, and of columns.
        let (of_rows, of_columns) = match role {
            Role::Vocabulary => ((rows, self.wide_vocab), (columns, self.wide_hidden)),
            Role::Projections => ((dim, wide), (columns, self.wide_hidden)),
            Role::AttentionOutput => ((rows, self.wide_hidden), (dim, wide)),
            Role::GateUp => ((self.ffn, self.wide_ffn), (columns, self.wide_hidden)),
            Role::Down => ((rows, self.wide_hidden), (columns, self.wide_ffn)),
            Role::Stream => ((rows, rows), (columns, columns)),
        };
        let [wide_rows, wide_columns] = [spread(rows, of_rows), spread(columns, of_columns)];
        if [wide_rows, wide_columns] == [rows, columns] {
            return (values, [rows, columns]);
        }
        let mut out = vec![0.0; wide_rows * wide_columns];
        for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
            let row = &mut out[place(row, of_rows) * wide_columns..][..wide_columns];
            for (column, value) in values.iter().enumerate() {
                row[place(column, of_columns)] = *value;
            }
        }
        (out, [wide_rows, wide_columns])
    }

    /// A norm or a bias, filled up.
    pub(super) fn vector(&self, role: Role, values: Vec<f32>) -> Vec<f32> {
        let of = match role {
            Role::Projections => (self.heads.dim, self.heads.wide),
            _ => (values.len(), values.len().next_multiple_of(WIDE)),
        };
        let mut out = vec![0.0; spread(values.len(), of)];
        for (i, value) in values.into_iter().enumerate() {
            out[place(i, of)] = value;
        }
        out
    }
}

/// Where value `i` is, if runs of `real` values are `wide` apart.
fn place(i: usize, (real, wide): (usize, usize)) -> usize {
    i / real * wide + i % real
}

/// The extent of `count` values in such runs.
fn spread(count: usize, (real, wide): (usize, usize)) -> usize {
    count / real * wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::{Attention, Family, RopeScaling, Rotary};

    fn config(heads: usize, dim: usize, hidden: usize, ffn: usize, vocab: usize) -> DecoderConfig {
        let rotary = Rotary { theta: 1e4, scaling: RopeScaling::None };
        DecoderConfig {
            family: Family::Llama,
            vocab_size: vocab,
            hidden_size: hidden,
            layers: vec![Attention { window: None, rotary }; 2],
            num_attention_heads: heads,
            num_key_value_heads: 1,
            head_dim: dim,
            intermediate_size: ffn,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-6,
            query_scale: 1.0,
            embed_scale: 1.0,
            attention_bias: true,
            tie_word_embeddings: true,
        }
    }

    #[test]
    fn a_real_model_is_laid_out_as_it_is() {
        let layout = Layout::new(&config(32, 128, 4096, 12_288, 151_936), Format::Bf16).unwrap();
        assert_eq!((layout.wide_hidden, layout.wide_ffn, layout.wide_vocab), (4096, 12_288, 151_936));
        assert_eq!((layout.heads.wide, layout.qkv(), layout.seen()), (128, 34 * 128, 4096));
    }

    #[test]
    fn filling_is_zero_and_keeps_every_value_where_its_kernel_looks() {
        let layout = Layout::new(&config(3, 12, 24, 40, 50), Format::F32).unwrap();
        assert_eq!((layout.heads.wide, layout.seen()), (32, 96));
        let values: Vec<f32> = (1..=5 * 12 * 24).map(|v| v as f32).collect();
        let (out, shape) = layout.matrix(Role::Projections, values.clone(), [5 * 12, 24]);
        assert_eq!(shape, [5 * 32, 32]);
        assert_eq!(out.iter().filter(|v| **v != 0.0).count(), values.len());
        // Row 13 is the second value of the second head.
        assert_eq!(out[(32 + 1) * 32 + 5], values[13 * 24 + 5]);
        let values: Vec<f32> = (1..=80 * 24).map(|v| v as f32).collect();
        let (out, shape) = layout.matrix(Role::GateUp, values.clone(), [80, 24]);
        assert_eq!(shape, [128, 32]);
        assert_eq!(out[64 * 32], values[40 * 24]);
        let (out, shape) = layout.matrix(Role::AttentionOutput, vec![1.0; 24 * 36], [24, 36]);
        assert_eq!((shape, out[12], out[32]), ([32, 96], 0.0, 1.0));
        assert_eq!(layout.vector(Role::Stream, vec![1.0; 24]).len(), 32);
        assert_eq!(layout.vector(Role::Projections, vec![1.0; 60]).len(), 5 * 32);
    }

    #[test]
    fn heads_that_no_kernel_computes_are_refused_with_their_width() {
        for dim in [6, 514, 1024] {
            let error = Layout::new(&config(4, dim, 64, 64, 64), Format::F32).unwrap_err().to_string();
            assert!(error.contains(&format!("{dim} values")), "{error}");
        }
    }
}
