//! Rotary position embedding (Su et al., "RoFormer", 2021), in the half-split form of Hugging Face.
//!
//! Component `i` of a head is paired with component `i + head_dim/2` and the pair is rotated by
//! `position · theta^(-2i/head_dim)`. With `x = [x1, x2]` that is
//! `x · [cos, cos] + [x2, x1] · [-sin, sin]`, so the tables carry the sign.

use burn::tensor::{Device, Tensor, TensorData};

/// Cosine and signed sine of a run of positions, each `[1, positions, 1, head_dim]`.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope {
    /// The tables for positions `start..start + len`. Angles are f32 products as in `transformers`,
    /// whose checkpoints were trained with them.
    pub(super) fn new(start: usize, len: usize, head_dim: usize, theta: f64, device: &Device) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64) as f32).collect();
        let mut cos = Vec::with_capacity(len * head_dim);
        let mut sin = Vec::with_capacity(len * head_dim);
        for position in start..start + len {
            let angle = |f: &f32| f64::from(position as f32 * f);
            cos.extend(frequencies.iter().map(|f| angle(f).cos() as f32));
            cos.extend_from_within(cos.len() - half..);
            sin.extend(frequencies.iter().map(|f| -angle(f).sin() as f32));
            sin.extend(frequencies.iter().map(|f| angle(f).sin() as f32));
        }
        let table = |values| Tensor::from_data(TensorData::new(values, [1, len, 1, head_dim]), device);
        Self { cos: table(cos), sin: table(sin) }
    }

    /// Rotates every head of `x`, `[batch, positions, heads, head_dim]`.
    pub(super) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let head_dim = x.dims()[3];
        let half = head_dim / 2;
        let swapped =
            Tensor::cat(vec![x.clone().slice_dim(3, half..head_dim), x.clone().slice_dim(3, 0..half)], 3);
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}
