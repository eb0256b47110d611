//! The blocks of the key/value pool: who holds each, and which must be overwritten.
//!
//! A block stores the keys and values of `block_tokens` consecutive positions. It is *free* (blank, nobody's),
//! *held* (by one sequence or by several that share its content), or *dirty* (nobody's, but still filled with
//! what somebody computed). A dirty block becomes free only by being listed for wiping, so no sequence ever gets
//! memory that holds another's values. A fourth state, *kept* for reuse, belongs to [`super::prefix`].

/// Names a block of the engine's key/value pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl BlockId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Counts holders. It knows nothing of content.
#[derive(Debug)]
pub(super) struct Pool {
    holders: Vec<u32>,
    free: Vec<BlockId>,
    dirty: Vec<BlockId>,
}

impl Pool {
    /// A pool of blank blocks.
    pub(super) fn new(blocks: u32) -> Self {
        let free = (0..blocks).rev().map(BlockId).collect();
        Self { holders: vec![0; blocks as usize], free, dirty: Vec::new() }
    }

    /// Blocks in all.
    pub(super) fn len(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that can be had by wiping at most.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.dirty.len()
    }

    /// Takes a blank block.
    pub(super) fn take(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.holders[block.index()] = 1;
        Some(block)
    }

    /// Adds a holder.
    pub(super) fn share(&mut self, block: BlockId) {
        self.holders[block.index()] += 1;
    }

    /// Removes a holder. True if it was the last; the block is then the caller's to keep or to [`spoil`](Self::spoil).
    pub(super) fn release(&mut self, block: BlockId) -> bool {
        let holders = &mut self.holders[block.index()];
        debug_assert!(*holders > 0, "{block:?} is released twice");
        *holders = holders.saturating_sub(1);
        *holders == 0
    }

    /// Marks a block that nobody holds for wiping.
    pub(super) fn spoil(&mut self, block: BlockId) {
        self.dirty.push(block);
    }

    /// Lists the dirty blocks. They are free from here on, because the engine wipes before it runs.
    pub(super) fn wipe(&mut self, out: &mut Vec<BlockId>) {
        out.extend_from_slice(&self.dirty);
        self.free.append(&mut self.dirty);
    }

    #[cfg(test)]
    pub(super) fn holders(&self, block: BlockId) -> u32 {
        self.holders[block.index()]
    }

    #[cfg(test)]
    pub(super) fn unheld(&self) -> impl Iterator<Item = BlockId> {
        self.free.iter().chain(&self.dirty).copied()
    }
}
