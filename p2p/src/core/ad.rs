//! Capacity ads: what a worker says about itself.
//!
//! An [`Ad`] is a claim, never a proof. It names the models a worker serves, what it asks for them, how
//! busy it is and which evidence backs it; the asker verifies the evidence and measures the rest. It
//! travels as a [`SignedAd`](super::SignedAd): at most 4 KiB, signed with the peer's libp2p key, with a
//! sequence number that only rises and a life of at most two minutes, so that a directory forgets a
//! worker that died without anybody having to say so.
//!
//! Every field is bounded here, in one place, before anything else looks at it.

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use libp2p::{Multiaddr, PeerId};
use thiserror::Error;

use crate::codec::CodecError;

/// An ad with its key and signature must fit a gossip message with room for the envelope.
pub const MAX_AD_BYTES: usize = 4096;
/// A worker that dies silently is forgotten after this long.
pub const MAX_AD_LIFETIME_S: u64 = 120;
/// Clocks of honest peers may differ by this much.
pub const MAX_CLOCK_SKEW_S: u64 = 30;
/// A worker serves a handful of models; more than this is not one worker.
pub const MAX_MODELS: usize = 16;
/// One address per transport and interface, and a relay or two.
pub const MAX_ADDRESSES: usize = 8;
/// Longest textual multiaddr (a relayed address with two peer ids is about 180 characters).
pub const MAX_ADDRESS_BYTES: usize = 256;
/// Longest model or quantisation name.
pub const MAX_NAME_BYTES: usize = 64;
/// Price ceiling in nanoTON per million tokens (a million TON), so that no product with a `u32` token
/// count leaves `u64` after the division by a million.
pub const MAX_PRICE: u64 = 1_000_000_000_000_000;
/// A queue longer than this is the same as being full.
pub const MAX_QUEUE_DELAY_MS: u32 = 3_600_000;
/// Longest close delay of a payment channel that an ad may ask for.
pub const MAX_CLOSE_DELAY_S: u32 = 30 * 24 * 3600;

/// The bytes of a libp2p peer id, ordered, for tables that must not depend on libp2p's hashing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct PeerKey(pub Vec<u8>);

impl PeerKey {
    /// The peer id, if the bytes are one.
    pub fn peer_id(&self) -> Option<PeerId> {
        PeerId::from_bytes(&self.0).ok()
    }
}

impl From<PeerId> for PeerKey {
    fn from(peer: PeerId) -> Self {
        Self(peer.to_bytes())
    }
}

impl From<&PeerId> for PeerKey {
    fn from(peer: &PeerId) -> Self {
        Self(peer.to_bytes())
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer_id() {
            Some(peer) => peer.fmt(f),
            None => write!(f, "0x{}", hex::encode(&self.0)),
        }
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One model that a worker serves, and its price.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ModelOffer {
    /// Digest of the model's manifest; the only identity that counts.
    pub digest: [u8; 32],
    /// Name for people, e.g. `qwen3-0.6b`.
    pub name: String,
    /// Context window in tokens.
    pub context: u32,
    /// Quantisation label, e.g. `f16` or `q4_k`; may be empty.
    pub quantisation: String,
    /// NanoTON per million input tokens.
    pub price_input: u64,
    /// NanoTON per million input tokens found in the asker's own cached prefix.
    pub price_cached_input: u64,
    /// NanoTON per million output tokens.
    pub price_output: u64,
}

/// What a worker claims about itself. See the module page.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Ad {
    /// The network this ad is for; an ad of another network is refused.
    pub network_id: [u8; 32],
    /// The worker's peer id; must be the signer's.
    pub peer: PeerKey,
    /// Rises with every ad of this peer; an older one never replaces a newer one.
    pub sequence: u64,
    /// Unix seconds at which the ad was made.
    pub issued_at: u64,
    /// Unix seconds after which it is void; at most [`MAX_AD_LIFETIME_S`] after `issued_at`.
    pub expires_at: u64,
    /// Where the worker can be dialled, as multiaddr text.
    pub addresses: Vec<String>,
    /// What it serves.
    pub models: Vec<ModelOffer>,
    /// Requests it could start right now.
    pub free_slots: u16,
    /// What it expects a request that arrives now to wait.
    pub queue_delay_ms: u32,
    /// Output tokens per second for one stream.
    pub tokens_per_second: u32,
    /// SHA-256 of the attestation evidence; fetched by digest, never gossiped.
    pub evidence_digest: [u8; 32],
    /// Claimed assurance: 0 open, 1 test, 2 confidential. A claim only: the asker verifies.
    pub assurance: u8,
    /// TON address of the payee: workchain byte, then the account hash.
    pub payout: [u8; 33],
    /// Ed25519 key that signs the payee's side of a channel.
    pub payee_key: [u8; 32],
    /// Close delay the payee requires of a channel.
    pub close_delay_s: u32,
    /// Hash of the platform id in the quote, so that one machine is not counted as many.
    pub platform: Option<[u8; 16]>,
}

/// Why an ad was not taken. The text names the field and what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AdError {
    /// More than [`MAX_AD_BYTES`].
    #[error("the signed ad has {found} bytes; at most {MAX_AD_BYTES} fit: offer fewer models or addresses")]
    TooLarge {
        /// Bytes found.
        found: usize,
    },
    /// The bytes are not a signed ad.
    #[error("the signed ad does not decode")]
    Encoding(#[source] CodecError),
    /// A field is out of bounds.
    #[error("ad field `{field}`: {why}")]
    Field {
        /// The field, with its index where it is a list.
        field: String,
        /// What was found and what is allowed.
        why: String,
    },
    /// Signed for another network.
    #[error(
        "ad field `network_id`: the ad is for network {found}…, this is network {ours}…; check which genesis file both peers use"
    )]
    WrongNetwork {
        /// First bytes of the ad's network id, hex.
        found: String,
        /// First bytes of ours, hex.
        ours: String,
    },
    /// Its time is over.
    #[error(
        "ad field `expires_at`: expired {ago_s} s ago; ask the worker for a fresh ad, or check this machine's clock"
    )]
    Expired {
        /// Seconds since expiry.
        ago_s: u64,
    },
    /// Made in the future.
    #[error(
        "ad field `issued_at`: {ahead_s} s ahead of this clock, more than {MAX_CLOCK_SKEW_S} s; check both clocks"
    )]
    FromTheFuture {
        /// Seconds ahead.
        ahead_s: u64,
    },
    /// The key is not an Ed25519 libp2p key.
    #[error("ad field `public_key`: not an Ed25519 libp2p public key")]
    Key,
    /// The key is not the key of `peer`.
    #[error("ad field `peer`: names {named}, but the ad is signed by {signer}")]
    PeerMismatch {
        /// Peer in the ad.
        named: PeerKey,
        /// Peer of the key.
        signer: PeerKey,
    },
    /// The signature does not hold.
    #[error("ad field `signature`: not a signature of this ad by {0}")]
    Signature(PeerKey),
    /// The key refused to sign.
    #[error("the ad could not be signed: {0}")]
    Signing(String),
    /// A newer ad of this peer is known.
    #[error("ad field `sequence`: {found}, but {newest} of the same peer is already known")]
    Stale {
        /// Sequence of this ad.
        found: u64,
        /// Newest known sequence.
        newest: u64,
    },
    /// The peer re-announces too often.
    #[error(
        "the peer announces more than {burst} ads at once or one every {every_s} s; announce on material change only"
    )]
    TooFrequent {
        /// Burst allowed.
        burst: u32,
        /// Seconds per ad thereafter.
        every_s: u64,
    },
    /// The directory has no room for another peer.
    #[error("the directory already holds its limit of {limit} peers")]
    Full {
        /// Peers held.
        limit: usize,
    },
}

impl AdError {
    /// Whether only a broken or hostile peer can have produced this. The others (late, early, repeated,
    /// no room) also happen to honest peers and to whoever merely forwards them.
    pub fn is_fault(&self) -> bool {
        match self {
            Self::TooLarge { .. }
            | Self::Encoding(_)
            | Self::Field { .. }
            | Self::WrongNetwork { .. }
            | Self::Key
            | Self::PeerMismatch { .. }
            | Self::Signature(_) => true,
            Self::Expired { .. }
            | Self::FromTheFuture { .. }
            | Self::Signing(_)
            | Self::Stale { .. }
            | Self::TooFrequent { .. }
            | Self::Full { .. } => false,
        }
    }
}

fn refuse(field: impl Into<String>, why: impl Into<String>) -> AdError {
    AdError::Field { field: field.into(), why: why.into() }
}

impl Ad {
    /// Checks every bound that does not depend on the clock or the network.
    pub fn validate(&self) -> Result<(), AdError> {
        if self.peer.peer_id().is_none() {
            return Err(refuse("peer", "not a libp2p peer id"));
        }
        let life = self
            .expires_at
            .checked_sub(self.issued_at)
            .ok_or_else(|| refuse("expires_at", "lies before `issued_at`"))?;
        if life == 0 || life > MAX_AD_LIFETIME_S {
            return Err(refuse(
                "expires_at",
                format!("{life} s after `issued_at`; 1 to {MAX_AD_LIFETIME_S} s are allowed"),
            ));
        }
        if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            return Err(refuse(
                "addresses",
                format!("{} entries; 1 to {MAX_ADDRESSES} are allowed", self.addresses.len()),
            ));
        }
        for (i, address) in self.addresses.iter().enumerate() {
            if address.len() > MAX_ADDRESS_BYTES {
                return Err(refuse(
                    format!("addresses[{i}]"),
                    format!("longer than {MAX_ADDRESS_BYTES} bytes"),
                ));
            }
            if Multiaddr::from_str(address).is_err() {
                return Err(refuse(
                    format!("addresses[{i}]"),
                    "not a multiaddr such as /ip4/203.0.113.7/udp/4001/quic-v1",
                ));
            }
        }
        if self.models.is_empty() || self.models.len() > MAX_MODELS {
            return Err(refuse(
                "models",
                format!("{} entries; 1 to {MAX_MODELS} are allowed", self.models.len()),
            ));
        }
        for (i, offer) in self.models.iter().enumerate() {
            offer.validate(i)?;
            if self.models[..i].iter().any(|earlier| earlier.digest == offer.digest) {
                return Err(refuse(format!("models[{i}].digest"), "offered twice in one ad"));
            }
        }
        if self.queue_delay_ms > MAX_QUEUE_DELAY_MS {
            return Err(refuse(
                "queue_delay_ms",
                format!("above {MAX_QUEUE_DELAY_MS}; stop announcing when the queue is full"),
            ));
        }
        if self.assurance > 2 {
            return Err(refuse("assurance", "must be 0 (open), 1 (test) or 2 (confidential)"));
        }
        if !matches!(self.payout[0], 0x00 | 0xff) {
            return Err(refuse(
                "payout",
                "the first byte is the workchain: 0x00 (basechain) or 0xff (masterchain)",
            ));
        }
        if self.close_delay_s > MAX_CLOSE_DELAY_S {
            return Err(refuse("close_delay_s", format!("above {MAX_CLOSE_DELAY_S} s (30 days)")));
        }
        Ok(())
    }

    /// Checks the network and the clock. `now` is unix seconds.
    pub fn check_time_and_network(&self, network_id: &[u8; 32], now: u64) -> Result<(), AdError> {
        if &self.network_id != network_id {
            return Err(AdError::WrongNetwork {
                found: hex::encode(&self.network_id[..4]),
                ours: hex::encode(&network_id[..4]),
            });
        }
        if self.expires_at <= now {
            return Err(AdError::Expired { ago_s: now - self.expires_at });
        }
        if self.issued_at > now.saturating_add(MAX_CLOCK_SKEW_S) {
            return Err(AdError::FromTheFuture { ahead_s: self.issued_at - now });
        }
        Ok(())
    }

    /// The offer for one model, if there is one.
    pub fn offer(&self, digest: &[u8; 32]) -> Option<&ModelOffer> {
        self.models.iter().find(|offer| &offer.digest == digest)
    }
}

impl ModelOffer {
    fn validate(&self, index: usize) -> Result<(), AdError> {
        let field = |name: &str| format!("models[{index}].{name}");
        if !is_name(&self.name) || self.name.is_empty() {
            return Err(refuse(
                field("name"),
                format!("1 to {MAX_NAME_BYTES} characters of [A-Za-z0-9._:/+-]"),
            ));
        }
        if !is_name(&self.quantisation) {
            return Err(refuse(
                field("quantisation"),
                format!("at most {MAX_NAME_BYTES} characters of [A-Za-z0-9._:/+-]"),
            ));
        }
        if self.context == 0 {
            return Err(refuse(field("context"), "must be at least one token"));
        }
        for (name, price) in [
            ("price_input", self.price_input),
            ("price_cached_input", self.price_cached_input),
            ("price_output", self.price_output),
        ] {
            if price > MAX_PRICE {
                return Err(refuse(field(name), format!("above {MAX_PRICE} nanoTON per million tokens")));
            }
        }
        Ok(())
    }
}

/// Names are shown in terminals and logs, so that control and look-alike characters stay out.
fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/+-".contains(&b))
}
