//! The whole decoder.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};

use super::layer::{Layer, project, rms_norm};
use super::view::{Rows, View};
use super::{Attention, DecoderConfig};

/// A decoder with its weights, in burn's own operations: for any device, and differentiable. What serves is
/// [`ServingDecoder`](super::ServingDecoder).
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

    /// Logits `[batch, time, vocab]` of a batch of token rows `[batch, time]`.
    ///
    /// Row `i` of the output is the prediction after token `i`. Shorter rows are padded on the
    /// right with any id: causality keeps padding from what precedes it.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, time] = ids.dims();
        let device = ids.device();
        let x = self.hidden(ids.reshape([batch * time]), Rows { batch, time }, &device);
        let x = rms_norm(x, self.norm.val().unsqueeze(), self.config.rms_norm_eps);
        let x = project(x, self.lm_head.as_ref().unwrap_or(&self.embed));
        x.reshape([batch, time, self.config.vocab_size])
    }

    fn hidden(&self, ids: Tensor<1, Int>, rows: Rows, device: &Device) -> Tensor<2> {
        let config = &self.config;
        let x = self.embed.val().select(0, ids);
        let mut x = if config.embed_scale == 1.0 { x } else { x * config.embed_scale };
        // Layers of equal attention share positions and masks; a model has one or two kinds.
        let mut views: Vec<(Attention, View)> = Vec::new();
        for (layer, &attention) in self.layers.iter().zip(&config.layers) {
            let known = views.iter().position(|(of, _)| *of == attention);
            let at = known.unwrap_or_else(|| {
                views.push((attention, View::new(config, attention, rows.time, device)));
                views.len() - 1
            });
            x = layer.forward(config, x, rows, &views[at].1);
        }
        x
    }
}
