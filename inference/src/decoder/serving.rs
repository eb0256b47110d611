//! The decoder as it serves: packed weights, paged keys and values, rows of any sequences side by side.
//!
//! A row's result depends on its own sequence alone, to the bit: not on what else is in the step, nor on the
//! chunks in which its prompt was read ([`kernels`](crate::kernels) says why). So an answer can be resumed by
//! another worker, which reads in one go what the first one made token by token.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::ThreadPool;

use super::ops::{HeadSpec, attention, gated, linear, rms_norm};
use super::rope::frequencies;
use super::view::first_key;
use super::weights::{LayerParts, Parts};
use super::{DecoderConfig, KvCache};
use crate::kernels::attention::Row;
use crate::kernels::rope::Rope;
use crate::kernels::{KvPool, Matrix, RoundingError};

/// Weights below this size are multiplied faster by one thread than several can be woken.
const ALONE_BYTES: usize = 8 << 20;

/// A decoder that is ready to serve. [`Packing`](super::Packing) makes one from a checkpoint.
#[derive(Debug)]
pub struct ServingDecoder {
    parts: Parts<Matrix, Vec<f32>>,
    config: DecoderConfig,
    /// The frequencies of each layer's rotary embedding.
    frequencies: Vec<Vec<f32>>,
    device: Device,
    bytes: usize,
    rounding: RoundingError,
}

/// One row of a step: where it is in which sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot<'a> {
    /// Its position in its sequence.
    pub(crate) position: usize,
    /// The blocks of its sequence in the pools, from position 0 to its own.
    pub(crate) table: &'a [u32],
}

impl ServingDecoder {
    /// A decoder of these parameters.
    pub(super) fn new(config: DecoderConfig, parts: Parts<Matrix, Vec<f32>>) -> Self {
        let matrices = parts.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        let (mut bytes, mut rounding) = (0, RoundingError::default());
        let head = parts.lm_head.as_ref().unwrap_or(&parts.embed);
        for matrix in matrices.chain([head]) {
            bytes += matrix.bytes();
            let error = matrix.rounding_error();
            rounding = RoundingError { max: rounding.max.max(error.max), rms: rounding.rms.max(error.rms) };
        }
        let frequencies = config.layers.iter().map(|l| frequencies(config.head_dim, l.rotary)).collect();
        Self { parts, config, frequencies, device: Device::flex(), bytes, rounding }
    }

    /// The dimensions.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Bytes of the weights that every token is multiplied with. An embedding table of its own is not among them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Weights that every token of a prompt is multiplied with: those of the layers. Only its last one meets the
    /// output projection.
    pub fn layer_weights(&self) -> u64 {
        let matrices = self.parts.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        matrices.map(|m| m.out_features() as u64 * m.in_features() as u64).sum()
    }

    /// What packing changed: the worst of all matrices.
    pub fn rounding_error(&self) -> RoundingError {
        self.rounding
    }

    /// Appends `ids` to a sequence and returns the logits `[ids, vocab]` after each of them.
    ///
    /// The caller keeps ids below `vocab_size` and within the cache's capacity.
    pub fn forward(&self, ids: &[u32], cache: &mut KvCache) -> Tensor<2> {
        self.pooled(None, || {
            let x = self.extend(ids, cache);
            self.head(x)
        })
    }

    /// Like [`forward`](Self::forward), but only the logits after the last id, `[1, vocab]`: the output projection
    /// is the largest product of a small model.
    pub fn forward_last(&self, ids: &[u32], cache: &mut KvCache) -> Tensor<2> {
        self.pooled(None, || {
            let x = self.extend(ids, cache);
            let rows = x.dims()[0];
            self.head(x.slice_dim(0, rows.saturating_sub(1)..rows))
        })
    }

    /// Computes rows of any sequences whose keys and values are in `pools`, one pool for each layer; the logits
    /// `[wanted, vocab]` after those rows that are `wanted`, if any is. `threads` absent are those of the process.
    ///
    /// The caller keeps ids below `vocab_size` and tables within the pools.
    pub(crate) fn step(
        &self,
        ids: &[u32],
        spots: &[Spot<'_>],
        wanted: &[usize],
        pools: &mut [KvPool],
        threads: Option<&ThreadPool>,
    ) -> Option<Tensor<2>> {
        self.pooled(threads, || {
            let x = self.hidden(ids, spots, pools);
            let all = wanted.len() == ids.len();
            (!wanted.is_empty()).then(|| self.head(if all { x } else { rows(x, wanted, &self.device) }))
        })
    }

    /// Runs on the threads of a pool if that is worth waking them.
    fn pooled<T: Send>(&self, threads: Option<&ThreadPool>, run: impl FnOnce() -> T + Send) -> T {
        match threads {
            _ if self.bytes < ALONE_BYTES => run(),
            Some(threads) => threads.install(run),
            None => rayon::scope(|_| run()),
        }
    }

    fn extend(&self, ids: &[u32], cache: &mut KvCache) -> Tensor<2> {
        cache.begin(ids.len());
        let from = cache.len();
        let KvCache { pools, table, .. } = cache;
        let spots: Vec<Spot<'_>> =
            (from..from + ids.len()).map(|position| Spot { position, table }).collect();
        let x = self.hidden(ids, &spots, pools);
        cache.advance(ids.len());
        x
    }

    fn head(&self, x: Tensor<2>) -> Tensor<2> {
        let x = rms_norm(x, &self.parts.norm, self.config.rms_norm_eps as f32);
        linear(x, self.parts.lm_head.as_ref().unwrap_or(&self.parts.embed))
    }

    /// Computes rows of any sequences whose keys and values are in `pools`, one pool for each layer.
    fn hidden<'a>(&self, ids: &[u32], spots: &[Spot<'a>], pools: &mut [KvPool]) -> Tensor<2> {
        let width = self.config.hidden_size;
        let mut x = vec![0.0; ids.len() * width];
        for (row, &id) in x.chunks_exact_mut(width).zip(ids) {
            self.parts.embed.row(id as usize, row);
            if self.config.embed_scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= self.config.embed_scale);
            }
        }
        let mut x = Tensor::<2>::from_data(TensorData::new(x, [ids.len(), width]), &self.device);
        let positions: Vec<usize> = spots.iter().map(|spot| spot.position).collect();
        // Neighbouring layers of equal attention share their angles and rows.
        let mut shared: Option<(usize, Rope, Vec<Row<'a>>)> = None;
        for (i, (layer, pool)) in self.parts.layers.iter().zip(pools).enumerate() {
            let kind = self.config.layers[i];
            let known = shared.take().filter(|(of, ..)| self.config.layers[*of] == kind);
            let (_, rope, rows) = shared.insert(known.unwrap_or_else(|| {
                let row = |&Spot { position, table }: &Spot<'a>| {
                    let first_key = first_key(position, kind.window);
                    Row { position, first_key, table }
                };
                (i, Rope::new(&self.frequencies[i], &positions), spots.iter().map(row).collect())
            }));
            x = self.layer(layer, x, rope, rows, pool);
        }
        x
    }

    fn layer(
        &self,
        layer: &LayerParts<Matrix, Vec<f32>>,
        x: Tensor<2>,
        rope: &Rope,
        rows: &[Row<'_>],
        pool: &mut KvPool,
    ) -> Tensor<2> {
        let config = &self.config;
        let eps = config.rms_norm_eps as f32;
        let spec = HeadSpec {
            heads: (config.num_attention_heads, config.num_key_value_heads),
            dim: config.head_dim,
            norms: layer.head_norms.as_ref().map(|(q, k)| (&q[..], &k[..])),
            eps,
            scale: config.query_scale as f32,
            rope,
            rows,
        };
        let norm_out = |x, weight: &Option<Vec<f32>>| match weight {
            Some(weight) => rms_norm(x, weight, eps),
            None => x,
        };
        let qkv = linear(rms_norm(x.clone(), &layer.attention_norm, eps), &layer.qkv);
        let seen = attention(self.add(qkv, layer.qkv_bias.as_ref()), &spec, pool);
        let y = self.add(linear(seen, &layer.o), layer.o_bias.as_ref());
        let x = x + norm_out(y, &layer.attention_out_norm);
        let gate_up = linear(rms_norm(x.clone(), &layer.mlp_norm, eps), &layer.gate_up);
        let y = linear(gated(gate_up, config.family.gate()), &layer.down);
        x + norm_out(y, &layer.mlp_out_norm)
    }

    fn add(&self, x: Tensor<2>, bias: Option<&Vec<f32>>) -> Tensor<2> {
        match bias {
            Some(bias) => x + Tensor::<1>::from_data(bias.as_slice(), &self.device).unsqueeze(),
            None => x,
        }
    }
}

/// Some rows of a tensor.
fn rows(x: Tensor<2>, wanted: &[usize], device: &Device) -> Tensor<2> {
    let count = wanted.len();
    let wanted: Vec<i64> = wanted.iter().map(|&row| row as i64).collect();
    x.select(0, Tensor::<1, Int>::from_data(TensorData::new(wanted, [count]), device))
}
