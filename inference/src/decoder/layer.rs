//! One decoder layer.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};

use super::view::{Rows, View};
use super::{DecoderConfig, Gate};

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension.
pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<D>, eps: f64) -> Tensor<D> {
    let mean = x.clone().square().mean_dim(D - 1);
    x / (mean + eps).sqrt() * weight
}

/// `x · weightᵀ` for a weight in the checkpoint's `[out, in]` layout.
pub(super) fn project(x: Tensor<2>, weight: &Param<Tensor<2>>) -> Tensor<2> {
    x.matmul(weight.val().transpose())
}

/// `x · weightᵀ + bias`, where there is a bias, `[out]`.
fn project_with(x: Tensor<2>, weight: &Param<Tensor<2>>, bias: Option<&Param<Tensor<1>>>) -> Tensor<2> {
    let y = project(x, weight);
    match bias {
        Some(bias) => y + bias.val().unsqueeze(),
        None => y,
    }
}

/// PyTorch's `gelu(x, approximate="tanh")`.
fn gelu_tanh(x: Tensor<2>) -> Tensor<2> {
    // √(2/π)
    const SLOPE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    let cubed = x.clone() * x.clone() * x.clone();
    let inner = (x.clone() + cubed * 0.044715) * SLOPE;
    x * (inner.tanh() + 1.0) * 0.5
}

/// One decoder layer. Norm weights are as they are multiplied: Gemma's offset is added already.
#[derive(Module, Debug)]
pub(super) struct Layer {
    /// Before attention, `[hidden]`.
    pub(super) attention_norm: Param<Tensor<1>>,
    /// After attention, where the family has it.
    pub(super) attention_out_norm: Option<Param<Tensor<1>>>,
    /// Before the feed-forward part, `[hidden]`.
    pub(super) mlp_norm: Param<Tensor<1>>,
    /// After the feed-forward part, where the family has it.
    pub(super) mlp_out_norm: Option<Param<Tensor<1>>>,
    /// Norms of the query heads, times the score's scale, above those of the key heads:
    /// `[heads + kv_heads, head_dim]`. Absent where heads are not normalised.
    pub(super) head_norms: Option<Param<Tensor<2>>>,
    /// Query, key and value projections, stacked: `[(heads + 2 · kv_heads) · head_dim, hidden]`.
    pub(super) qkv: Param<Tensor<2>>,
    pub(super) qkv_bias: Option<Param<Tensor<1>>>,
    /// `[hidden, heads · head_dim]`.
    pub(super) o: Param<Tensor<2>>,
    pub(super) o_bias: Option<Param<Tensor<1>>>,
    /// Gate and up projections, stacked: `[2 · intermediate, hidden]`.
    pub(super) gate_up: Param<Tensor<2>>,
    /// `[hidden, intermediate]`.
    pub(super) down: Param<Tensor<2>>,
}

impl Layer {
    /// `x` is `[batch · time, hidden]`.
    pub(super) fn forward(&self, config: &DecoderConfig, x: Tensor<2>, rows: Rows, view: &View) -> Tensor<2> {
        let norm = |x: Tensor<2>, weight: &Param<Tensor<1>>| {
            rms_norm(x, weight.val().unsqueeze(), config.rms_norm_eps)
        };
        let norm_out = |x, weight: &Option<Param<Tensor<1>>>| match weight {
            Some(weight) => norm(x, weight),
            None => x,
        };
        let y = self.attention(config, norm(x.clone(), &self.attention_norm), rows, view);
        let x = x + norm_out(y, &self.attention_out_norm);
        let y = self.mlp(config, norm(x.clone(), &self.mlp_norm));
        x + norm_out(y, &self.mlp_out_norm)
    }

    fn mlp(&self, config: &DecoderConfig, x: Tensor<2>) -> Tensor<2> {
        let width = config.intermediate_size;
        let gate_up = project(x, &self.gate_up);
        let gate = gate_up.clone().slice_dim(1, 0..width);
        let up = gate_up.slice_dim(1, width..2 * width);
        let gate = match config.family.gate() {
            Gate::Silu => activation::silu(gate),
            Gate::GeluTanh => gelu_tanh(gate),
        };
        project(gate * up, &self.down)
    }

    fn attention(
        &self,
        config: &DecoderConfig,
        x: Tensor<2>,
        Rows { batch, time }: Rows,
        view: &View,
    ) -> Tensor<2> {
        let (heads, kv, width) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let group = heads / kv;
        let qkv = project_with(x, &self.qkv, self.qkv_bias.as_ref());
        let qkv = qkv.reshape([batch, time, heads + 2 * kv, width]);
        let values = qkv.clone().slice_dim(2, heads + kv..heads + 2 * kv).swap_dims(1, 2);

        // Queries and keys are normalised and rotated together. The score's scale is in the queries'
        // norm weight, where there is one.
        let qk = qkv.slice_dim(2, 0..heads + kv);
        let qk = match &self.head_norms {
            Some(weight) => rms_norm(qk, weight.val().unsqueeze(), config.rms_norm_eps),
            None => qk,
        };
        let qk = view.rope.apply(qk);
        let keys = qk.clone().slice_dim(2, heads..heads + kv).swap_dims(1, 2);
        let queries = qk.slice_dim(2, 0..heads);
        let queries = match self.head_norms {
            Some(_) => queries,
            None => queries * config.query_scale,
        };

        // The query heads of one group become more rows against the same keys, so that keys and
        // values are never repeated.
        let queries = queries.reshape([batch, time, kv, group, width]).permute([0, 2, 3, 1, 4]).reshape([
            batch,
            kv,
            group * time,
            width,
        ]);

        let scores = queries.matmul(keys.swap_dims(2, 3));
        let scores = match &view.mask {
            Some(mask) => scores + mask.clone(),
            None => scores,
        };
        let out = activation::softmax(scores, 3).matmul(values);
        let out = out
            .reshape([batch, kv, group, time, width])
            .permute([0, 3, 1, 2, 4])
            .reshape([batch * time, heads * width]);
        project_with(out, &self.o, self.o_bias.as_ref())
    }
}
