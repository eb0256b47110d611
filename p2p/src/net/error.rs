//! What can go wrong, one type per operation.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use thiserror::Error;

use crate::core::AdError;

/// Why a swarm did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// A transport or protocol could not be set up.
    #[error("could not set up {what}: {why}")]
    Transport {
        /// Which one.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {why}; is the port taken, or the address not of this machine?")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// Why.
        why: String,
    },
    /// The swarm was shut down.
    #[error("the overlay was shut down")]
    Stopped,
}

/// Why an ad was not published.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The ad itself.
    #[error("the ad was not published")]
    Ad(#[from] AdError),
    /// It is another peer's.
    #[error("the ad names peer {named}, but this is {ours}; a peer publishes only its own ads")]
    NotOurs {
        /// Peer in the ad.
        named: String,
        /// This peer.
        ours: PeerId,
    },
    /// The swarm was shut down.
    #[error("the overlay was shut down")]
    Stopped,
}

/// Why a session stream was not opened.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Nobody said where the peer is.
    #[error(
        "no dialable address of {peer} is known; get a fresh ad, or allow more local addresses with `reach`"
    )]
    NoAddress {
        /// The peer.
        peer: PeerId,
    },
    /// None of its addresses answered.
    #[error("could not connect to {peer}: {why}")]
    Dial {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: String,
    },
    /// Connected, but it takes no sessions.
    #[error("{peer} does not accept sessions: {why}")]
    Refused {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: String,
    },
    /// Nothing happened for too long.
    #[error("{peer} did not answer within {} s", after.as_secs())]
    Timeout {
        /// The peer.
        peer: PeerId,
        /// How long was waited.
        after: Duration,
    },
    /// The swarm was shut down.
    #[error("the overlay was shut down")]
    Stopped,
}

/// Why evidence or ads could not be fetched.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The peer does not have it.
    #[error("{peer} does not serve what its ad names; its ad may be outdated")]
    NotFound {
        /// The peer.
        peer: PeerId,
    },
    /// The peer sent something else.
    #[error("{peer} sent evidence whose SHA-256 is {found}…, not the {asked}… that was asked for")]
    WrongDigest {
        /// The peer.
        peer: PeerId,
        /// First bytes of the digest asked for, hex.
        asked: String,
        /// First bytes of the digest found, hex.
        found: String,
    },
    /// The peer is asked too often.
    #[error("{peer} is busy; ask again in a moment")]
    Busy {
        /// The peer.
        peer: PeerId,
    },
    /// The answer does not fit the question.
    #[error("{peer} answered something that was not asked")]
    Unexpected {
        /// The peer.
        peer: PeerId,
    },
    /// It could not be asked, or did not answer.
    #[error("{peer} could not be asked: {why}")]
    Failed {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: String,
    },
    /// The swarm was shut down.
    #[error("the overlay was shut down")]
    Stopped,
}

/// Why evidence is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Larger than anyone accepts.
    #[error("evidence of {found} bytes; at most {limit} can be served")]
    TooLarge {
        /// Bytes given.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The digest is not of these bytes.
    #[error("the digest is not the SHA-256 of the evidence")]
    WrongDigest,
    /// Too many blobs.
    #[error("{limit} evidence blobs are served already; withdraw one first")]
    Full {
        /// Blobs allowed.
        limit: usize,
    },
}
