//! What a test may plug into the worker, and nothing a production build can.
//!
//! The claim "the host never sees a prompt" is worth what its test is worth. [`Tap`] shows a test every frame
//! at the two places where a leak would have to pass: a session's substream *inside* libp2p's own encryption,
//! and the socket between host and enclave. [`Instruments::crypto`] lets the same test run once more with a
//! null cipher, where the search has to find everything. The `cocoon` binary always passes
//! [`Instruments::default`]; no flag, file or environment variable changes it.

use std::fmt;
use std::sync::Arc;

use cocoon_attest::noise;

/// The session substream between a peer and the worker's host, inside libp2p's encryption.
pub const PLACE_SESSION: &str = "session";
/// The socket between host and enclave.
pub const PLACE_LINK: &str = "link";

/// Which way a frame went, seen from the process that records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Read by this process.
    In,
    /// Written by this process.
    Out,
}

/// Sees every frame at one of the two places.
pub trait Tap: Send + Sync {
    /// `frame` is one frame's type byte and payload, without the length before it.
    fn record(&self, place: &'static str, direction: Direction, frame: &[u8]);
}

/// What varies between the production binary and the capture test's.
#[derive(Clone)]
pub struct Instruments {
    /// The primitives under the attested channel.
    pub crypto: noise::Crypto,
    /// Who watches, if anybody.
    pub tap: Option<Arc<dyn Tap>>,
}

impl Default for Instruments {
    fn default() -> Self {
        Self { crypto: noise::default_crypto, tap: None }
    }
}

impl fmt::Debug for Instruments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instruments").field("tapped", &self.tap.is_some()).finish_non_exhaustive()
    }
}
