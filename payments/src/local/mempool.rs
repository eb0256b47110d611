//! External messages and faucet grants that wait for the next block, in memory and bounded.

use std::collections::{BTreeSet, VecDeque};

use tycho_types::{models::StdAddr, prelude::Cell};

/// External messages that may wait. A block takes hundreds, so this is several blocks' worth.
pub const MAX_PENDING: usize = 4096;

/// Bytes of external messages that may wait; one message has at most 64 KiB.
pub const MAX_PENDING_BYTES: usize = 16 << 20;

/// Faucet grants that may wait.
pub const MAX_GRANTS: usize = 1024;

/// An accepted external message.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) hash: [u8; 32],
    pub(super) destination: StdAddr,
    pub(super) message: Cell,
    pub(super) bytes: usize,
}

/// Coins to give out.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) to: StdAddr,
    pub(super) nanoton: u64,
}

/// The waiting room. First come, first served.
#[derive(Debug, Default)]
pub(super) struct Mempool {
    pending: VecDeque<Pending>,
    hashes: BTreeSet<[u8; 32]>,
    bytes: usize,
    grants: VecDeque<Grant>,
}

impl Mempool {
    /// Adds a message; the same message twice waits once. False when there is no room.
    pub(super) fn push(&mut self, pending: Pending) -> bool {
        if self.hashes.contains(&pending.hash) {
            return true;
        }
        let bytes = self.bytes.saturating_add(pending.bytes);
        if self.pending.len() >= MAX_PENDING || bytes > MAX_PENDING_BYTES {
            return false;
        }
        self.bytes = bytes;
        self.hashes.insert(pending.hash);
        self.pending.push_back(pending);
        true
    }

    /// Adds a grant. False when there is no room.
    pub(super) fn push_grant(&mut self, grant: Grant) -> bool {
        let room = self.grants.len() < MAX_GRANTS;
        if room {
            self.grants.push_back(grant);
        }
        room
    }

    /// Copies of the oldest entries: what a block is built from.
    pub(super) fn front(&self, messages: usize, grants: usize) -> (Vec<Pending>, Vec<Grant>) {
        (
            self.pending.iter().take(messages).cloned().collect(),
            self.grants.iter().take(grants).cloned().collect(),
        )
    }

    /// Forgets the oldest entries: what a written block has dealt with. Others only ever join behind.
    pub(super) fn remove_front(&mut self, messages: usize, grants: usize) {
        for pending in self.pending.drain(..messages.min(self.pending.len())) {
            self.hashes.remove(&pending.hash);
            self.bytes = self.bytes.saturating_sub(pending.bytes);
        }
        self.grants.drain(..grants.min(self.grants.len()));
    }

    /// Whether neither messages nor grants wait.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.grants.is_empty()
    }

    /// External messages that wait.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(byte: u8, bytes: usize) -> Pending {
        Pending { hash: [byte; 32], destination: StdAddr::ZERO, message: Cell::default(), bytes }
    }

    #[test]
    fn the_same_message_waits_once() {
        let mut pool = Mempool::default();
        assert!(pool.push(message(1, 10)) && pool.push(message(1, 10)));
        assert_eq!(pool.len(), 1);
        pool.remove_front(1, 0);
        assert!(pool.push(message(1, 10)));
        assert_eq!(pool.front(9, 9).0.len(), 1);
    }

    #[test]
    fn the_waiting_room_is_bounded_by_bytes_and_by_number() {
        let mut pool = Mempool::default();
        assert!(pool.push(message(1, MAX_PENDING_BYTES)));
        assert!(!pool.push(message(2, 1)));
        pool.remove_front(1, 0);
        for index in 0..MAX_PENDING {
            let mut pending = message(0, 1);
            pending.hash[..8].copy_from_slice(&(index as u64).to_be_bytes());
            assert!(pool.push(pending));
        }
        assert!(!pool.push(message(255, 1)));
        for _ in 0..MAX_GRANTS {
            assert!(pool.push_grant(Grant { to: StdAddr::ZERO, nanoton: 1 }));
        }
        assert!(!pool.push_grant(Grant { to: StdAddr::ZERO, nanoton: 1 }));
    }
}
