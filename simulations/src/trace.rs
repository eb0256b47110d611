//! The trace: a digest of everything that happened, in the order in which it happened.
//!
//! Two runs with equal hashes did the same things at the same virtual times. It covers what peers
//! report and every chunk of bytes that arrives over a link, so that a difference anywhere in the stack
//! shows up as soon as it changes one packet.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use crate::os;

/// A shared trace. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<(Sha256, u64)>>);

impl Trace {
    /// Adds an event at the present virtual time.
    pub(crate) fn event(&self, kind: &str, bytes: &[u8]) {
        let now = os::elapsed().as_nanos() as u64;
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (hash, events) = &mut *guard;
        // Lengths keep adjacent fields apart.
        hash.update(now.to_le_bytes());
        hash.update((kind.len() as u64).to_le_bytes());
        hash.update(kind);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
        *events += 1;
    }

    /// The hash so far, in hex, and how many events it covers.
    pub(crate) fn summary(&self) -> (String, u64) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (hex::encode(guard.0.clone().finalize()), guard.1)
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trace").field(&self.summary()).finish()
    }
}
