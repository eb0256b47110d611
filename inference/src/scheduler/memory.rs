//! The life of a block, between [`Pool`] (who holds it) and [`Prefix`] (what it holds).
//!
//! ```text
//!            take                 last holder lets go, content unknown
//!   free ───────────► held ────────────────────────────────────────────► dirty ──┐
//!    ▲                ▲  │                                                 ▲     │
//!    │          reuse │  │ last holder lets go, content published          │     │
//!    │                │  ▼                                                 │     │
//!    │               kept ─────────────────────────────────────────────────┘     │
//!    │                        its time is up, or its memory is wanted            │
//!    └───────────────────────────────────────────────────────────────────────────┘
//!                                 listed in a plan's `wipe`
//! ```

use std::time::{Duration, Instant};

use super::blocks::{BlockId, Pool};
use super::prefix::{Key, Prefix};

/// All blocks.
#[derive(Debug)]
pub(super) struct Memory {
    pool: Pool,
    prefix: Prefix,
}

impl Memory {
    pub(super) fn new(blocks: u32, keep: Duration) -> Self {
        Self { pool: Pool::new(blocks), prefix: Prefix::new(blocks, keep) }
    }

    /// Blocks in all.
    pub(super) fn len(&self) -> usize {
        self.pool.len()
    }

    /// Blocks with nothing worth keeping in them.
    pub(super) fn free(&self) -> usize {
        self.pool.available()
    }

    /// Blocks that nobody holds, but somebody may want again.
    pub(super) fn kept(&self) -> usize {
        self.prefix.kept()
    }

    /// Blocks that can be had.
    pub(super) fn available(&self) -> usize {
        self.free() + self.kept()
    }

    /// Whether blocks are ever reused.
    pub(super) fn reuses(&self) -> bool {
        self.prefix.is_on()
    }

    /// How many blocks a chain of keys finds, and how many of them count as [`available`](Self::available).
    pub(super) fn hits(&self, keys: &[Key]) -> (usize, usize) {
        self.prefix.hits(keys)
    }

    /// Becomes a holder of the longest known chain.
    pub(super) fn reuse(&mut self, keys: &[Key], table: &mut Vec<BlockId>) {
        for key in keys {
            let Some(block) = self.prefix.reuse(key) else { return };
            self.pool.share(block);
            table.push(block);
        }
    }

    /// A blank block. What must be wiped to get it is listed.
    pub(super) fn take(&mut self, wipe: &mut Vec<BlockId>) -> Option<BlockId> {
        if self.pool.available() == 0 {
            let block = self.prefix.evict()?;
            self.pool.spoil(block);
        }
        self.pool.take().or_else(|| {
            self.pool.wipe(wipe);
            self.pool.take()
        })
    }

    /// Lets go of a block.
    pub(super) fn release(&mut self, block: BlockId, now: Instant) {
        if self.pool.release(block) && !self.prefix.keep(block, now) {
            self.pool.spoil(block);
        }
    }

    /// Makes the content of a held block known.
    pub(super) fn publish(&mut self, block: BlockId, key: Key) {
        self.prefix.publish(block, key);
    }

    /// Spoils kept blocks whose time is up.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(block) = self.prefix.expire(now) {
            self.pool.spoil(block);
        }
    }

    /// When [`expire`](Self::expire) next has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.prefix.next_expiry()
    }

    /// Lists every dirty block.
    pub(super) fn wipe(&mut self, out: &mut Vec<BlockId>) {
        self.pool.wipe(out);
    }

    /// Every block is in exactly one state, and has as many holders as there are tables with it.
    #[cfg(test)]
    pub(super) fn check<'a>(&self, held: impl Iterator<Item = &'a BlockId>) {
        let mut holders = vec![0; self.len()];
        held.for_each(|block| holders[block.index()] += 1);
        let mut states = vec![0; self.len()];
        self.pool.unheld().chain(self.prefix.kept_blocks()).for_each(|block| states[block.index()] += 1);
        for (i, (holders, states)) in holders.into_iter().zip(states).enumerate() {
            let block = BlockId(u32::try_from(i).unwrap());
            assert_eq!(self.pool.holders(block), holders, "{block:?} has other holders than it counts");
            assert_eq!(
                states,
                u32::from(holders == 0),
                "{block:?} with {holders} holders is in {states} lists"
            );
        }
    }
}
