//! The whole decoder.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::layer::{Layer, Rows, project, rms_norm};
use super::rope::Rope;
use super::{KvCache, Qwen3Config};

/// Added to the score of a key that a query must not see. Finite, so that no row of scores can
/// become NaN; e to this power is zero in f32 beside any real score.
const MASKED: f32 = -1e9;

/// A Qwen3 decoder with its weights.
///
/// `Qwen3::from_tensors` in [`weights`](super::weights) reads one from a checkpoint.
#[derive(Module, Debug)]
pub struct Qwen3 {
    pub(super) embed: Param<Tensor<2>>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Param<Tensor<1>>,
    /// Absent when embeddings are tied.
    pub(super) lm_head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    pub(super) config: Qwen3Config,
}

impl Qwen3 {
    /// The dimensions.
    pub fn config(&self) -> &Qwen3Config {
        &self.config
    }

    /// Logits `[batch, time, vocab]` of a batch of token rows `[batch, time]`, without a cache.
    ///
    /// Row `i` of the output is the prediction after token `i`. Shorter rows are padded on the
    /// right with any id: causality keeps padding from what precedes it.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, time] = ids.dims();
        let device = ids.device();
        let x = self.hidden(ids.reshape([batch * time]), Rows { batch, time }, &device, None);
        self.head(x).reshape([batch, time, self.config.vocab_size])
    }

    /// Appends `ids` to a sequence and returns the logits `[ids, vocab]` after each of them.
    ///
    /// The caller keeps ids below `vocab_size` and within the cache's capacity.
    pub fn forward_cached(&self, ids: &[u32], cache: &mut KvCache) -> Tensor<2> {
        self.head(self.extend(ids, cache))
    }

    /// Like [`forward_cached`](Self::forward_cached), but only the logits after the last id,
    /// `[1, vocab]`: the output projection is the largest product of a small model.
    pub fn forward_cached_last(&self, ids: &[u32], cache: &mut KvCache) -> Tensor<2> {
        let x = self.extend(ids, cache);
        let rows = x.dims()[0];
        self.head(x.slice_dim(0, rows.saturating_sub(1)..rows))
    }

    fn extend(&self, ids: &[u32], cache: &mut KvCache) -> Tensor<2> {
        let device = self.embed.val().device();
        let rows = Rows { batch: 1, time: ids.len() };
        let data: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(data, [rows.time]), &device);
        self.hidden(ids, rows, &device, Some(cache))
    }

    fn head(&self, x: Tensor<2>) -> Tensor<2> {
        let x = rms_norm(x, self.norm.val().unsqueeze(), self.config.rms_norm_eps);
        project(x, self.lm_head.as_ref().unwrap_or(&self.embed))
    }

    fn hidden(
        &self,
        ids: Tensor<1, Int>,
        rows: Rows,
        device: &Device,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let config = &self.config;
        let start = cache.as_ref().map_or(0, |c| c.len());
        let rope = Rope::new(start, rows.time, config.head_dim, config.rope_theta, device);
        let group = config.num_attention_heads / config.num_key_value_heads;
        // A single new token sees everything before it: no mask.
        let mask = (rows.time > 1).then(|| causal_mask(start, rows.time, group, device));
        let mut x = self.embed.val().select(0, ids);
        for (i, layer) in self.layers.iter().enumerate() {
            let cache = cache.as_deref_mut().map(|c| (c, i));
            x = layer.forward(config, x, rows, &rope, mask.as_ref(), cache);
        }
        if let Some(cache) = cache {
            cache.advance(rows.time);
        }
        x
    }
}

/// `[1, 1, group · time, start + time]`: query `t` sees keys up to `start + t`.
fn causal_mask(start: usize, time: usize, group: usize, device: &Device) -> Tensor<4> {
    let keys = start + time;
    let mut mask = Vec::with_capacity(group * time * keys);
    for _ in 0..group {
        for t in 0..time {
            mask.extend((0..keys).map(|k| if k <= start + t { 0.0 } else { MASKED }));
        }
    }
    Tensor::from_data(TensorData::new(mask, [1, 1, group * time, keys]), device)
}
