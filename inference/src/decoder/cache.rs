//! Keys and values of one sequence.

use burn::tensor::{Device, Tensor};

use super::DecoderConfig;

/// The key/value cache of one sequence: per layer two buffers `[1, kv_heads, capacity, head_dim]`,
/// allocated once.
///
/// Appending writes in place, which the backend can do only while nobody else holds the buffer:
/// views handed to attention must be gone before the next append. The buffers hold what the asker
/// said in another form, so they are overwritten when the cache is dropped.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Pair>,
    capacity: usize,
    len: usize,
}

#[derive(Debug)]
struct Pair {
    keys: Tensor<4>,
    values: Tensor<4>,
}

impl KvCache {
    /// A cache with room for `capacity` tokens.
    pub fn new(config: &DecoderConfig, capacity: usize, device: &Device) -> Self {
        let shape = [1, config.num_key_value_heads, capacity.max(1), config.head_dim];
        let zeros = || Tensor::<4>::zeros(shape, device);
        let layers = config.layers.iter().map(|_| Pair { keys: zeros(), values: zeros() }).collect();
        Self { layers, capacity, len: 0 }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes the keys and values of new tokens, `[1, kv_heads, new, head_dim]`, behind the ones of
    /// earlier tokens and returns views of all from `first` on. [`advance`](Self::advance) makes them
    /// count.
    pub(super) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<4>,
        values: Tensor<4>,
        first: usize,
    ) -> (Tensor<4>, Tensor<4>) {
        let [_, heads, new, width] = keys.dims();
        let range = [0..1, 0..heads, self.len..self.len + new, 0..width];
        let pair = &mut self.layers[layer];
        pair.keys.inplace(|buffer| buffer.slice_assign(range.clone(), keys));
        pair.values.inplace(|buffer| buffer.slice_assign(range, values));
        let view = |buffer: &Tensor<4>| buffer.clone().slice_dim(2, first..self.len + new);
        (view(&pair.keys), view(&pair.values))
    }

    /// Counts `new` appended tokens, once every layer has them.
    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        for pair in &mut self.layers {
            for buffer in [&mut pair.keys, &mut pair.values] {
                let shape = buffer.dims();
                buffer.inplace(|b| b.slice_fill(shape.map(|n| 0..n), 0.0));
            }
        }
    }
}
