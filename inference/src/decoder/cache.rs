//! Keys and values of one sequence.

use super::DecoderConfig;
use super::ops::pool_dim;
use crate::kernels::{BLOCK, KvPool, KvPrecision};

/// Pools of `blocks` blocks, one for each layer.
pub(crate) fn kv_pools(config: &DecoderConfig, blocks: usize) -> Vec<KvPool> {
    let (kv, dim) = (config.num_key_value_heads, pool_dim(config.head_dim));
    config.layers.iter().map(|_| KvPool::new(blocks, kv, dim, KvPrecision::F32)).collect()
}

/// Memory of a block in the pools of all layers.
pub(crate) fn block_bytes(config: &DecoderConfig) -> u64 {
    kv_pools(config, 1).iter().map(|pool| pool.bytes() as u64).sum()
}

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
        let table = (0..u32::try_from(blocks).unwrap_or(u32::MAX)).collect();
        Self { pools: kv_pools(config, blocks), table, capacity, len: 0, touched: 0 }
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
