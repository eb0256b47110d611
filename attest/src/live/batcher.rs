//! One quote for all sessions that asked while the previous one was being made.
//!
//! ```text
//! push ─► waiting ── start ─► in flight (report data out, quote in) ── finish ─► proofs
//!                                                                  └─ fail ───► sessions to refuse
//! ```

use std::collections::{BTreeSet, VecDeque};

use super::{LiveError, LiveProof, leaf, report_data, tree};
use crate::claims::Role;

/// Sessions that may wait for a quote. Four full trees: at 25 quotes a second nobody waits longer
/// than a blink for these, and further askers are told to come back.
pub const MAX_WAITING: usize = 4 * tree::MAX_LEAVES;

/// Collects challenges and hands out proofs. Sans-IO: the caller makes the quote and says when.
#[derive(Debug)]
pub struct Batcher {
    role: Role,
    noise_key: [u8; 32],
    waiting: VecDeque<(u64, [u8; 32])>,
    /// Everybody in `waiting` and in flight, so that a session asks once at a time.
    asked: BTreeSet<u64>,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    /// In leaf order; `None` for sessions that ended meanwhile.
    sessions: Vec<Option<u64>>,
    paths: Vec<Vec<[u8; 32]>>,
}

impl Batcher {
    /// For the enclave whose claims hold `role` and `noise_key`.
    pub fn new(role: Role, noise_key: [u8; 32]) -> Self {
        Self { role, noise_key, waiting: VecDeque::new(), asked: BTreeSet::new(), in_flight: None }
    }

    /// Adds a session's challenge to the next tree.
    ///
    /// # Errors
    /// If too many wait, or this session already does.
    pub fn push(
        &mut self,
        session: u64,
        handshake_hash: &[u8; 32],
        nonce: &[u8; 32],
    ) -> Result<(), LiveError> {
        if self.asked.contains(&session) {
            return Err(LiveError::Waiting { session });
        }
        if self.waiting.len() == MAX_WAITING {
            return Err(LiveError::Busy);
        }
        self.asked.insert(session);
        self.waiting.push_back((session, leaf(handshake_hash, nonce)));
        Ok(())
    }

    /// Forgets a session that ended. If it is in flight, the tree is made already and keeps its leaf.
    pub fn forget(&mut self, session: u64) {
        if !self.asked.remove(&session) {
            return;
        }
        self.waiting.retain(|&(waiting, _)| waiting != session);
        let in_flight = self.in_flight.iter_mut().flat_map(|flight| &mut flight.sessions);
        in_flight.filter(|slot| **slot == Some(session)).for_each(|slot| *slot = None);
    }

    /// The report data to quote next, if somebody waits and no quote is in flight.
    ///
    /// The caller answers with [`Batcher::finish`] or [`Batcher::fail`].
    pub fn start(&mut self) -> Option<[u8; 64]> {
        if self.in_flight.is_some() {
            return None;
        }
        let count = self.waiting.len().min(tree::MAX_LEAVES);
        let (sessions, leaves): (Vec<_>, Vec<_>) =
            self.waiting.drain(..count).map(|(session, leaf)| (Some(session), leaf)).unzip();
        let (root, paths) = tree::build(&leaves)?;
        self.in_flight = Some(InFlight { sessions, paths });
        // At most `MAX_LEAVES`.
        Some(report_data(self.role, &self.noise_key, count as u32, &root))
    }

    /// Turns the quote over the last [`Batcher::start`] into the proofs of its sessions.
    pub fn finish(&mut self, quote: &[u8]) -> Vec<(u64, LiveProof)> {
        let Some(InFlight { sessions, paths }) = self.in_flight.take() else {
            return Vec::new();
        };
        let leaves = paths.len() as u32;
        let mut proofs = Vec::with_capacity(sessions.len());
        for (index, (session, path)) in (0u32..).zip(sessions.into_iter().zip(paths)) {
            if let Some(session) = session {
                self.asked.remove(&session);
                proofs.push((session, LiveProof { quote: quote.to_vec(), index, leaves, path }));
            }
        }
        proofs
    }

    /// Gives up the quote in flight; returns the sessions to be told.
    pub fn fail(&mut self) -> Vec<u64> {
        let sessions = self.in_flight.take().map(|flight| flight.sessions).unwrap_or_default();
        sessions.into_iter().flatten().inspect(|session| _ = self.asked.remove(session)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batcher() -> Batcher {
        Batcher::new(Role::Worker, [7; 32])
    }

    fn push(batcher: &mut Batcher, session: u64) -> Result<(), LiveError> {
        batcher.push(session, &[session as u8; 32], &[1; 32])
    }

    #[test]
    fn an_idle_enclave_quotes_at_once_and_batches_while_busy() {
        let mut batcher = batcher();
        assert_eq!(batcher.start(), None);
        push(&mut batcher, 1).unwrap();
        let first = batcher.start().unwrap();
        push(&mut batcher, 2).unwrap();
        push(&mut batcher, 3).unwrap();
        assert_eq!(batcher.start(), None, "one quote at a time");

        let proofs = batcher.finish(b"quote");
        assert_eq!(proofs.len(), 1);
        assert_eq!(proofs[0], (1, LiveProof { quote: b"quote".to_vec(), index: 0, leaves: 1, path: vec![] }));
        assert_eq!(first, report_data(Role::Worker, &[7; 32], 1, &leaf(&[1; 32], &[1; 32])));

        let second = batcher.start().unwrap();
        let proofs = batcher.finish(b"next");
        assert_eq!(proofs.iter().map(|(session, _)| *session).collect::<Vec<_>>(), [2, 3]);
        for (session, proof) in proofs {
            let leaf = leaf(&[session as u8; 32], &[1; 32]);
            let root = tree::root_from_path(leaf, proof.index, proof.leaves, &proof.path).unwrap();
            assert_eq!(second, report_data(Role::Worker, &[7; 32], 2, &root));
        }
        assert!(batcher.finish(b"late").is_empty());
    }

    #[test]
    fn a_session_waits_once_and_may_ask_again_afterwards() {
        let mut batcher = batcher();
        push(&mut batcher, 1).unwrap();
        assert_eq!(push(&mut batcher, 1), Err(LiveError::Waiting { session: 1 }));
        batcher.start().unwrap();
        assert_eq!(push(&mut batcher, 1), Err(LiveError::Waiting { session: 1 }));
        batcher.finish(b"");
        push(&mut batcher, 1).unwrap();
    }

    #[test]
    fn sessions_that_ended_get_no_proof() {
        let mut batcher = batcher();
        for session in 0..3 {
            push(&mut batcher, session).unwrap();
        }
        batcher.forget(0);
        batcher.start().unwrap();
        batcher.forget(1);
        let proofs = batcher.finish(b"");
        assert_eq!(proofs.len(), 1);
        assert_eq!((proofs[0].0, proofs[0].1.index, proofs[0].1.leaves), (2, 1, 2));
    }

    #[test]
    fn a_failed_quote_names_the_sessions_to_tell() {
        let mut batcher = batcher();
        push(&mut batcher, 1).unwrap();
        batcher.start().unwrap();
        push(&mut batcher, 2).unwrap();
        assert_eq!(batcher.fail(), [1]);
        assert!(batcher.start().is_some());
    }

    #[test]
    fn waiting_is_bounded_and_a_tree_takes_the_oldest() {
        let mut batcher = batcher();
        for session in 0..MAX_WAITING as u64 {
            push(&mut batcher, session).unwrap();
        }
        assert_eq!(push(&mut batcher, u64::MAX), Err(LiveError::Busy));
        batcher.start().unwrap();
        let proofs = batcher.finish(b"");
        assert_eq!(proofs.len(), tree::MAX_LEAVES);
        assert_eq!(proofs[0].0, 0);
        push(&mut batcher, u64::MAX).unwrap();
    }
}
