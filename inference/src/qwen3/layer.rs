//! One decoder layer.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};

use super::rope::Rope;
use super::{KvCache, Qwen3Config};

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension.
pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<D>, eps: f64) -> Tensor<D> {
    let mean = x.clone().square().mean_dim(D - 1);
    x / (mean + eps).sqrt() * weight
}

/// `x · weightᵀ` for a weight in the checkpoint's `[out, in]` layout.
pub(super) fn project(x: Tensor<2>, weight: &Param<Tensor<2>>) -> Tensor<2> {
    x.matmul(weight.val().transpose())
}

/// Rows of a batch: `batch` sequences of `time` tokens each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) batch: usize,
    pub(super) time: usize,
}

/// One decoder layer.
#[derive(Module, Debug)]
pub(super) struct Layer {
    pub(super) input_norm: Param<Tensor<1>>,
    pub(super) post_norm: Param<Tensor<1>>,
    pub(super) q_norm: Param<Tensor<1>>,
    pub(super) k_norm: Param<Tensor<1>>,
    /// Query, key and value projections, stacked.
    pub(super) qkv: Param<Tensor<2>>,
    pub(super) o: Param<Tensor<2>>,
    /// Gate and up projections, stacked.
    pub(super) gate_up: Param<Tensor<2>>,
    pub(super) down: Param<Tensor<2>>,
}

impl Layer {
    /// `x` is `[batch · time, hidden]`. `mask` is added to the scores, `[1, 1, group · time, keys]`.
    pub(super) fn forward(
        &self,
        config: &Qwen3Config,
        x: Tensor<2>,
        rows: Rows,
        rope: &Rope,
        mask: Option<&Tensor<4>>,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<2> {
        let eps = config.rms_norm_eps;
        let y = rms_norm(x.clone(), self.input_norm.val().unsqueeze(), eps);
        let x = x + self.attention(config, y, rows, rope, mask, cache);
        let y = rms_norm(x.clone(), self.post_norm.val().unsqueeze(), eps);
        x + self.mlp(config, y)
    }

    fn mlp(&self, config: &Qwen3Config, x: Tensor<2>) -> Tensor<2> {
        let width = config.intermediate_size;
        let gate_up = project(x, &self.gate_up);
        let gate = gate_up.clone().slice_dim(1, 0..width);
        let up = gate_up.slice_dim(1, width..2 * width);
        project(activation::silu(gate) * up, &self.down)
    }

    fn attention(
        &self,
        config: &Qwen3Config,
        x: Tensor<2>,
        Rows { batch, time }: Rows,
        rope: &Rope,
        mask: Option<&Tensor<4>>,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<2> {
        let (heads, kv, width) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let group = heads / kv;
        let qkv = project(x, &self.qkv).reshape([batch, time, heads + 2 * kv, width]);
        let values = qkv.clone().slice_dim(2, heads + kv..heads + 2 * kv).swap_dims(1, 2);

        // Queries and keys are normalised and rotated together. The score's 1/√width is folded into
        // the queries' norm weight.
        let scale = (width as f64).powf(-0.5);
        let weight = Tensor::cat(
            vec![
                (self.q_norm.val() * scale).unsqueeze::<2>().expand([heads, width]),
                self.k_norm.val().unsqueeze::<2>().expand([kv, width]),
            ],
            0,
        );
        let qk = qkv.slice_dim(2, 0..heads + kv);
        let qk = rope.apply(rms_norm(qk, weight.unsqueeze(), config.rms_norm_eps));
        let keys = qk.clone().slice_dim(2, heads..heads + kv).swap_dims(1, 2);

        // The query heads of one group become more rows against the same keys, so that keys and
        // values are never repeated.
        let queries = qk
            .slice_dim(2, 0..heads)
            .reshape([batch, time, kv, group, width])
            .permute([0, 2, 3, 1, 4])
            .reshape([batch, kv, group * time, width]);

        let (keys, values) = match cache {
            Some((cache, layer)) => cache.append(layer, keys, values),
            None => (keys, values),
        };
        let scores = queries.matmul(keys.swap_dims(2, 3));
        let scores = match mask {
            Some(mask) => scores + mask.clone(),
            None => scores,
        };
        let out = activation::softmax(scores, 3).matmul(values);
        let out = out
            .reshape([batch, kv, group, time, width])
            .permute([0, 3, 1, 2, 4])
            .reshape([batch * time, heads * width]);
        project(out, &self.o)
    }
}
