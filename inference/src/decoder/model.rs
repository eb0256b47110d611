//! The whole decoder.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::layer::{Layer, project, rms_norm};
use super::view::{Rows, View};
use super::{Attention, DecoderConfig, KvCache};

/// A decoder with its weights.
///
/// `Decoder::from_tensors` in [`weights`](super::weights) reads one from a checkpoint.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocab, hidden]`.
    pub(super) embed: Param<Tensor<2>>,
    pub(super) layers: Vec<Layer>,
    /// Before the output projection, `[hidden]`.
    pub(super) norm: Param<Tensor<1>>,
    /// `[vocab, hidden]`; absent when embeddings are tied.
    pub(super) lm_head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    pub(super) config: DecoderConfig,
}

impl Decoder {
    /// The dimensions.
    pub fn config(&self) -> &DecoderConfig {
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
        let x = self.embed.val().select(0, ids);
        let mut x = if config.embed_scale == 1.0 { x } else { x * config.embed_scale };
        // Layers of equal attention share positions and masks; a model has one or two kinds.
        let mut views: Vec<(Attention, View)> = Vec::new();
        for (i, (layer, &attention)) in self.layers.iter().zip(&config.layers).enumerate() {
            let known = views.iter().position(|(of, _)| *of == attention);
            let at = known.unwrap_or_else(|| {
                views.push((attention, View::new(config, attention, start, rows.time, device)));
                views.len() - 1
            });
            let cache = cache.as_deref_mut().map(|c| (c, i));
            x = layer.forward(config, x, rows, &views[at].1, cache);
        }
        if let Some(cache) = cache {
            cache.advance(rows.time);
        }
        x
    }
}
