//! Keys and values of one sequence.

use super::DecoderConfig;
use super::ops::pool_dim;
use crate::kernels::{BLOCK, KvPool, KvPrecision};

/// The key/value cache of one sequence: a pool of blocks for each layer.
///
/// Memory is taken as tokens come. It holds what the asker said in another form, so it is overwritten when the
/// cache is dropped.
#[derive(Debug)]
pub struct KvCache {
    pub(super) pools: Vec<KvPool>,
    pub(super) table: Vec<u32>,
    capacity: usize,
    len: usize,
    /// Tokens that may have left a trace: also those of a step that broke off.
    touched: usize,
}

impl KvCache {
    /// A cache with room for `capacity` tokens.
    pub fn new(config: &DecoderConfig, capacity: usize) -> Self {
        let blocks = capacity.div_ceil(BLOCK).max(1);
        let (kv, dim) = (config.num_key_value_heads, pool_dim(config.head_dim));
        let pool = |_| KvPool::new(blocks, kv, dim, KvPrecision::F32);
        let table = (0..u32::try_from(blocks).unwrap_or(u32::MAX)).collect();
        Self { pools: config.layers.iter().map(pool).collect(), table, capacity, len: 0, touched: 0 }
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

    /// `new` tokens are about to be written.
    pub(super) fn begin(&mut self, new: usize) {
        self.touched = self.touched.max(self.len + new);
    }

    /// Counts `new` appended tokens, once every layer has them.
    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        let blocks = self.touched.div_ceil(BLOCK).min(self.table.len());
        for pool in &mut self.pools {
            self.table[..blocks].iter().for_each(|&block| pool.wipe(block));
        }
    }
}
