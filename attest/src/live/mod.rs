//! Binding one session to one TEE, freshly.
//!
//! Evidence binds a *key*. Should that key leak, anybody could answer handshakes with it and relay
//! (the class of CVE-2026-33697). The genuine enclave, however, quotes only handshakes it took part
//! in itself. So after the handshake the asker sends a nonce ([`Challenge`]), and the enclave
//! answers with a quote whose report data is
//!
//! ```text
//! SHA-512("cocoon/live/v1" ‖ role ‖ Noise key ‖ leaf count (u32 LE) ‖ tree hash)
//! leaf = SHA-256(0x00 ‖ "cocoon/live/leaf/v1" ‖ handshake hash ‖ nonce)
//! node = SHA-256(0x01 ‖ left ‖ right)
//! ```
//!
//! Hardware makes about 25 quotes a second, so one quote serves all sessions that asked while the
//! previous quote was being made ([`Batcher`]): they become the leaves of one hash tree of the shape
//! of RFC 9162 §2.1, and each gets its own path ([`LiveProof`]). An idle enclave quotes at once.

mod batcher;
mod tree;

use bincode::{Decode, Encode};
use thiserror::Error;

pub use batcher::{Batcher, MAX_WAITING};
pub use tree::MAX_LEAVES;

use crate::{
    claims::Role,
    codec::{self, WireError},
    hash::{sha256, sha512},
    policy::Policy,
    quote::{MAX_QUOTE_BYTES, verify_quote},
    verify::{Verified, VerifyError},
};

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"cocoon/live/v1";
const LEAF_DOMAIN: &[u8] = b"cocoon/live/leaf/v1";

/// A quote, its longest path and room for the lengths.
pub const MAX_PROOF_BYTES: usize = MAX_QUOTE_BYTES + 1024;

/// The asker's question: quote this session, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Challenge {
    /// Random, so that no earlier quote can answer.
    pub nonce: [u8; 32],
}

/// The enclave's answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LiveProof {
    /// A quote over the tree.
    pub quote: Vec<u8>,
    /// Which leaf is this session's.
    pub index: u32,
    /// How many leaves the tree has.
    pub leaves: u32,
    /// The siblings from the leaf up to the root of the tree.
    pub path: Vec<[u8; 32]>,
}

impl LiveProof {
    /// The wire form.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(VERSION, self)
    }

    /// Reads what [`LiveProof::encode`] wrote; nothing is judged yet.
    ///
    /// # Errors
    /// If the bytes exceed [`MAX_PROOF_BYTES`] or are not a canonical encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, LiveError> {
        Ok(codec::decode::<_, MAX_PROOF_BYTES>(VERSION, bytes)?)
    }
}

/// Why a session could not be bound.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The proof cannot be read.
    #[error("cannot read the proof: {0}")]
    Wire(#[from] WireError),
    /// The proof's numbers cannot be a place in a tree.
    #[error(
        "leaf {index} of {leaves} with a path of {path} is no place in a tree of at most {MAX_LEAVES} leaves"
    )]
    Shape {
        /// Leaf index.
        index: u32,
        /// Leaves in the tree.
        leaves: u32,
        /// Length of the path.
        path: usize,
    },
    /// The quote is not over this session.
    #[error("the quote is not over this handshake and nonce: somebody relays it, or it is old")]
    Unbound,
    /// The quote is of other code than the evidence.
    #[error("the quote is of measurement {found}, the evidence of {expected}")]
    OtherCode {
        /// In the quote.
        found: crate::Measurement,
        /// In the evidence.
        expected: crate::Measurement,
    },
    /// The quote rests on another root than the evidence.
    #[error("the quote rests on root {found:?}, the evidence on {expected:?}")]
    OtherRoot {
        /// Of the quote.
        found: String,
        /// Of the evidence.
        expected: String,
    },
    /// The enclave has too many challenges waiting.
    #[error("{MAX_WAITING} sessions already wait for a quote; try again shortly")]
    Busy,
    /// This session already waits for a quote.
    #[error("session {session} already waits for a quote; one challenge at a time")]
    Waiting {
        /// Which session.
        session: u64,
    },
}

/// Verifies that the session with `handshake_hash` ends in the enclave whose evidence gave `verified`.
///
/// `collateral` is that evidence's collateral: the TEE is the same, so are its vendor's statements.
///
/// # Errors
/// `live-binding` if the quote is over something else, otherwise the check of the quote that refused.
pub fn verify_live(
    proof: &LiveProof,
    handshake_hash: &[u8; 32],
    nonce: &[u8; 32],
    verified: &Verified,
    collateral: &[u8],
    policy: &Policy,
    now: u64,
) -> Result<(), VerifyError> {
    let tree = tree::root_from_path(leaf(handshake_hash, nonce), proof.index, proof.leaves, &proof.path)
        .ok_or(LiveError::Shape { index: proof.index, leaves: proof.leaves, path: proof.path.len() })?;
    let expected = report_data(verified.claims.role, &verified.claims.noise_key, proof.leaves, &tree);

    let quote = verify_quote(&proof.quote, collateral, policy, now)?;
    if quote.report_data != expected {
        return Err(LiveError::Unbound.into());
    }
    if quote.measurement != verified.measurement {
        return Err(LiveError::OtherCode { found: quote.measurement, expected: verified.measurement }.into());
    }
    if quote.root != verified.root {
        return Err(LiveError::OtherRoot { found: quote.root, expected: verified.root.clone() }.into());
    }
    Ok(())
}

fn leaf(handshake_hash: &[u8; 32], nonce: &[u8; 32]) -> [u8; 32] {
    sha256(&[&[0x00], LEAF_DOMAIN, handshake_hash, nonce])
}

fn report_data(role: Role, noise_key: &[u8; 32], leaves: u32, tree: &[u8; 32]) -> [u8; 64] {
    sha512(&[DOMAIN, &[role.id()], noise_key, &leaves.to_le_bytes(), tree])
}

/// For fuzzing: whether the proof's numbers are a place in a tree.
pub(crate) fn path_leads_somewhere(proof: &LiveProof) -> bool {
    tree::root_from_path([0; 32], proof.index, proof.leaves, &proof.path).is_some()
}
