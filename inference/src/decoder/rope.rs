//! Rotary position embedding (Su et al., "RoFormer", 2021), in the half-split form of Hugging Face.
//!
//! Component `i` of a head is paired with component `i + head_dim/2` and the pair is rotated by
//! `position · frequency[i]`, where `frequency[i] = theta^(-2i/head_dim)` before scaling. With
//! `x = [x1, x2]` that is `x · [cos, cos] + [x2, x1] · [-sin, sin]`, so the tables carry the sign.

use std::f64::consts::TAU;

use burn::tensor::{Device, Tensor, TensorData};

use super::{RopeScaling, Rotary};

/// Cosine and signed sine of a run of positions, each `[1, positions, 1, head_dim]`.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope {
    /// The tables for the first `len` positions. Angles are f32 products as in `transformers`,
    /// whose checkpoints were trained with them.
    pub(super) fn new(len: usize, head_dim: usize, rotary: Rotary, device: &Device) -> Self {
        let half = head_dim / 2;
        let frequencies = frequencies(head_dim, rotary);
        let mut cos = Vec::with_capacity(len * head_dim);
        let mut sin = Vec::with_capacity(len * head_dim);
        for position in 0..len {
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

/// The `head_dim / 2` frequencies, in radians per position.
pub(crate) fn frequencies(head_dim: usize, Rotary { theta, scaling }: Rotary) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64));
    plain.map(|frequency| scale(frequency, scaling) as f32).collect()
}

fn scale(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            // Full turns within the original context; `transformers` compares wavelengths instead.
            let turns = original * frequency / TAU;
            // How much of the frequency is kept as it is.
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * frequency / factor + kept * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_stretches_low_ones_and_blends_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let turns = |n: f64| n * TAU / 8192.0;
        assert_eq!(scale(turns(5.0), scaling), turns(5.0));
        assert!((scale(turns(0.5), scaling) - turns(0.5) / 8.0).abs() < 1e-18);
        // Two thirds of the way down from high to low: a third is kept.
        let blended = turns(2.0) * (2.0 / 3.0 / 8.0 + 1.0 / 3.0);
        assert!((scale(turns(2.0), scaling) - blended).abs() < 1e-15);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let rotary = |scaling| Rotary { theta: 1e4, scaling };
        let plain = frequencies(8, rotary(RopeScaling::None));
        let linear = frequencies(8, rotary(RopeScaling::Linear { factor: 4.0 }));
        assert!(plain.iter().zip(&linear).all(|(a, b)| a / 4.0 == *b));
    }
}
