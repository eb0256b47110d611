//! Keys and values of all layers, in blocks that sequences hold by number.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use super::kernels::{Buffer, Gpu, HeadShape};
use super::{DeviceDecoder, DeviceError};

/// The blocks of a device, one pool for each layer; a block's number means the same in all of them.
///
/// They hold what askers said in another form. Blocks start as zeros, are zeros again when they are
/// [wiped](Self::wipe), and all are overwritten when the pools are dropped.
#[derive(Debug)]
pub struct DevicePools {
    gpu: Gpu,
    pub(super) layers: Vec<Buffer>,
    heads: HeadShape,
    blocks: usize,
    /// Never the same for two pools of a process: a recorded step works on the pools it was recorded with.
    pub(super) id: u64,
}

impl DevicePools {
    /// Pools of zeros.
    ///
    /// # Errors
    /// If they do not fit the device.
    pub fn new(decoder: &DeviceDecoder, blocks: usize) -> Result<Self, DeviceError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (gpu, heads) = (decoder.gpu().clone(), decoder.heads());
        let blocks = blocks.max(1);
        let bytes = blocks * heads.block_bytes();
        // Kernels count words of four bytes in 32 bits.
        if u32::try_from(bytes / 4).is_err() {
            let why = format!("{blocks} blocks in a pool are more than a kernel can count; ask for fewer");
            return Err(DeviceError::Step { why });
        }
        gpu.fits(decoder.bytes(), bytes * decoder.config().layers.len())?;
        let layers = decoder.config().layers.iter().map(|_| gpu.empty(bytes)).collect();
        let pools = Self { gpu, layers, heads, blocks, id: NEXT.fetch_add(1, Ordering::Relaxed) };
        pools.zero(&(0..blocks as u32).collect::<Vec<_>>());
        pools.gpu.wait()?;
        Ok(pools)
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The memory taken.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(Buffer::bytes).sum()
    }

    /// Overwrites blocks with zeros, so that the next sequence to hold them can learn nothing.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn wipe(&mut self, blocks: &[u32]) -> Result<(), DeviceError> {
        if let Some(block) = blocks.iter().find(|&&block| block as usize >= self.blocks) {
            return Err(DeviceError::Step {
                why: format!("there is no block {block} among {}", self.blocks),
            });
        }
        self.zero(blocks);
        Ok(())
    }

    fn zero(&self, blocks: &[u32]) {
        // As many as a launch can name on every runtime.
        for blocks in blocks.chunks(1 << 15) {
            let list = self.gpu.upload(blocks);
            for pool in &self.layers {
                self.gpu.wipe(self.heads, pool, &list, blocks.len());
            }
        }
    }
}

impl Drop for DevicePools {
    fn drop(&mut self) {
        // A device that failed cannot be asked any more, and says so by a panic.
        let _ = catch_unwind(AssertUnwindSafe(|| self.zero(&(0..self.blocks as u32).collect::<Vec<_>>())));
    }
}
