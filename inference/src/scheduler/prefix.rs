//! Which blocks may be reused, by whom, and for how long.
//!
//! A full block is found again by its *key*, a chain over everything that its values depend on:
//!
//! ```text
//! key(0) = SHA-256("cocoon/kv/1" ‖ salt ‖ 32 zero bytes ‖ ids of block 0)
//! key(i) = SHA-256("cocoon/kv/1" ‖ salt ‖ key(i-1)      ‖ ids of block i)        ids: u32, little-endian
//! ```
//!
//! All parts but the last have a fixed length, so two different inputs never spell the same bytes. The salt is
//! the asker's secret: without it, the time to a first token would tell an asker whether somebody else has sent
//! the same text. Who opts in to sharing uses [`Salt::SHARED`] and meets only others who did. The collision
//! resistance of SHA-256 is what makes a key stand for its tokens; content is not compared again.
//!
//! A block that nobody holds any more is *kept*, least recently used first in line to go, until its memory is
//! wanted or its time is up: a conversation must not linger in the pool because a worker happens to be idle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::blocks::BlockId;

const TAG: &[u8] = b"cocoon/kv/1";

/// Separates askers' cached prefixes. A secret, but for [`Salt::SHARED`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

impl Salt {
    /// The salt of those who opted in to sharing: they can find, and time, each other's prefixes.
    pub const SHARED: Self = Self(*b"cocoon: shared prefixes, opt in.");

    /// The salt of everybody who knows this key.
    pub fn of_key(key: &str) -> Self {
        let mut hash = Sha256::new_with_prefix(b"cocoon/cache-key/v1");
        hash.update(key);
        Self(hash.finalize().into())
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::SHARED { "Salt::SHARED" } else { "Salt(secret)" })
    }
}

/// Stands for a salt and all tokens up to the end of a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// The key of the block with these ids, after its parent's.
    pub(super) fn of(salt: &Salt, parent: Option<&Self>, ids: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(TAG);
        hash.update(salt.0);
        hash.update(parent.map_or([0; 32], |key| key.0));
        for id in ids {
            hash.update(id.to_le_bytes());
        }
        Self(hash.finalize().into())
    }

    /// Appends the keys of all full blocks of `ids` that `keys` does not have yet.
    pub(super) fn extend(keys: &mut Vec<Self>, salt: &Salt, ids: &[u32], block_tokens: usize) {
        for block in ids.chunks_exact(block_tokens).skip(keys.len()) {
            let key = Self::of(salt, keys.last(), block);
            keys.push(key);
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What is known of one block.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    key: Option<Key>,
    /// Its place in the order of release and when that was, if nobody holds it.
    kept: Option<(u64, Instant)>,
}

/// Finds blocks by key, and remembers those that nobody holds.
#[derive(Debug)]
pub(super) struct Prefix {
    keep: Duration,
    blocks: BTreeMap<Key, BlockId>,
    entries: Vec<Entry>,
    /// In order of release. A counter and not the instant, because many are released in one.
    kept: BTreeMap<u64, BlockId>,
    released: u64,
}

impl Prefix {
    /// Keeps blocks that nobody holds for `keep`; nothing is ever reused if that is zero.
    pub(super) fn new(blocks: u32, keep: Duration) -> Self {
        let entries = vec![Entry::default(); blocks as usize];
        Self { keep, blocks: BTreeMap::new(), entries, kept: BTreeMap::new(), released: 0 }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.keep.is_zero()
    }

    /// Blocks that nobody holds.
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// The longest chain of known blocks: how many, and how many of those nobody holds.
    pub(super) fn hits(&self, keys: &[Key]) -> (usize, usize) {
        let known = keys.iter().map_while(|key| self.blocks.get(key));
        known.fold((0, 0), |(hits, kept), block| {
            (hits + 1, kept + usize::from(self.entries[block.index()].kept.is_some()))
        })
    }

    /// The block of a key, for another holder.
    pub(super) fn reuse(&mut self, key: &Key) -> Option<BlockId> {
        let block = *self.blocks.get(key)?;
        if let Some((place, _)) = self.entries[block.index()].kept.take() {
            self.kept.remove(&place);
        }
        Some(block)
    }

    /// Makes a block known. If another one with the same content already is, this one stays its holder's own.
    pub(super) fn publish(&mut self, block: BlockId, key: Key) {
        if self.is_on() && !self.blocks.contains_key(&key) {
            self.blocks.insert(key, block);
            self.entries[block.index()].key = Some(key);
        }
    }

    /// Keeps a block that nobody holds any more, if it is known.
    pub(super) fn keep(&mut self, block: BlockId, now: Instant) -> bool {
        let entry = &mut self.entries[block.index()];
        if entry.key.is_none() {
            return false;
        }
        self.released = self.released.saturating_add(1);
        entry.kept = Some((self.released, now));
        self.kept.insert(self.released, block);
        true
    }

    /// Forgets the block that has not been held for longest.
    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.kept.pop_first()?;
        let entry = std::mem::take(&mut self.entries[block.index()]);
        if let Some(key) = entry.key {
            self.blocks.remove(&key);
        }
        Some(block)
    }

    /// When the next kept block's time is up.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let (_, block) = self.kept.first_key_value()?;
        let (_, since) = self.entries[block.index()].kept?;
        since.checked_add(self.keep)
    }

    /// Forgets one block whose time is up, if any.
    pub(super) fn expire(&mut self, now: Instant) -> Option<BlockId> {
        self.next_expiry().filter(|due| *due <= now)?;
        self.evict()
    }

    #[cfg(test)]
    pub(super) fn kept_blocks(&self) -> impl Iterator<Item = BlockId> {
        self.kept.values().copied()
    }
}
