//! What an enclave says about itself, and how that is bound into a quote.
//!
//! A TEE signs only 64 bytes of the enclave's choosing, so the enclave puts there
//! `SHA-512("cocoon/evidence/v1" ‖ length ‖ canonical claims)`. Whoever holds the claims can then
//! check that the quoted code, and nobody else, chose these keys for this network, configuration,
//! model and day. Claims live at most [`MAX_VALIDITY_S`], and name a recent block of the chain, so
//! they cannot have been made earlier than that block.

use bincode::{Decode, Encode};
use serde::Serialize;
use thiserror::Error;

use crate::{
    codec::{self, WireError},
    hash::sha512,
    hexed,
    measurement::Measurement,
};

/// The bytes of a libp2p peer id are 34 to 42 today; this leaves room for larger key types.
pub const MAX_PEER_ID_BYTES: usize = 64;

/// Claims are renewed daily, so that a leaked enclave key is of use for a day at most.
pub const MAX_VALIDITY_S: u64 = 24 * 60 * 60;

/// All fields at their largest stay below half of this.
pub(crate) const MAX_CLAIMS_BYTES: usize = 1024;

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"cocoon/evidence/v1";

/// What the enclave does in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Answers requests with a model.
    Worker,
}

impl Role {
    /// The byte that stands for the role in hashes.
    pub(crate) fn id(self) -> u8 {
        match self {
            Role::Worker => 1,
        }
    }
}

/// A recent block of the chain that the network settles on: the claims are younger than it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Beacon {
    /// The block's sequence number in the masterchain.
    pub seqno: u32,
    /// The block's root hash.
    #[serde(serialize_with = "hexed::bytes")]
    pub hash: [u8; 32],
}

/// What an enclave claims, all of it bound into its quote.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Claims {
    /// Hash of the genesis file of the network served.
    #[serde(serialize_with = "hexed::bytes")]
    pub network_id: [u8; 32],
    /// What the enclave does there.
    pub role: Role,
    /// X25519 key at which the enclave answers Noise handshakes.
    #[serde(serialize_with = "hexed::bytes")]
    pub noise_key: [u8; 32],
    /// Ed25519 key with which the enclave signs receipts.
    #[serde(serialize_with = "hexed::bytes")]
    pub receipt_key: [u8; 32],
    /// The peer id of the host in front of the enclave, at most [`MAX_PEER_ID_BYTES`].
    #[serde(serialize_with = "hexed::bytes")]
    pub peer_id: Vec<u8>,
    /// The enclave's own image; must equal what the TEE measured.
    pub image: Measurement,
    /// Digest of the configuration the host passed in: untrusted input, therefore measured.
    #[serde(serialize_with = "hexed::bytes")]
    pub config_digest: [u8; 32],
    /// Digest of the manifest of the model that is loaded.
    #[serde(serialize_with = "hexed::bytes")]
    pub model_digest: [u8; 32],
    /// Digest of the GPU's own evidence, where a GPU takes part.
    #[serde(serialize_with = "hexed::optional")]
    pub gpu_evidence: Option<[u8; 32]>,
    /// Unix seconds from which the claims hold.
    pub not_before: u64,
    /// Unix seconds until which the claims hold, at most [`MAX_VALIDITY_S`] later.
    pub not_after: u64,
    /// Proof that the claims are not older than this block.
    pub beacon: Beacon,
}

/// Why bytes are not claims.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClaimsError {
    /// Not the canonical encoding of claims.
    #[error("cannot read the claims: {0}")]
    Wire(#[from] WireError),
    /// The peer id is empty or too long.
    #[error("claims.peer_id has {len} bytes, 1 to {MAX_PEER_ID_BYTES} are allowed")]
    PeerId {
        /// Bytes found.
        len: usize,
    },
}

impl Claims {
    /// The canonical encoding: equal claims have equal bytes and no others decode.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(VERSION, self)
    }

    /// Reads what [`Claims::encode`] wrote.
    ///
    /// Times are not judged here: see [`crate::verify()`].
    ///
    /// # Errors
    /// If the bytes are not a canonical encoding or the peer id has an impossible length.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClaimsError> {
        let claims: Self = codec::decode::<_, MAX_CLAIMS_BYTES>(VERSION, bytes)?;
        match claims.peer_id.len() {
            1..=MAX_PEER_ID_BYTES => Ok(claims),
            len => Err(ClaimsError::PeerId { len }),
        }
    }

    /// The 64 bytes that the TEE signs for these claims.
    pub fn report_data(&self) -> [u8; 64] {
        let claims = self.encode();
        sha512(&[DOMAIN, &(claims.len() as u64).to_le_bytes(), &claims])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample() -> Claims {
        Claims {
            network_id: [1; 32],
            role: Role::Worker,
            noise_key: [2; 32],
            receipt_key: [3; 32],
            peer_id: vec![4; 38],
            image: Measurement([5; 48]),
            config_digest: [6; 32],
            model_digest: [7; 32],
            gpu_evidence: None,
            not_before: 1_795_000_000,
            not_after: 1_795_003_600,
            beacon: Beacon { seqno: 8, hash: [9; 32] },
        }
    }

    fn any_claims() -> impl Strategy<Value = Claims> {
        (
            (any::<[u8; 32]>(), any::<[u8; 32]>(), any::<[u8; 32]>(), any::<[u8; 32]>()),
            prop::collection::vec(any::<u8>(), 1..=MAX_PEER_ID_BYTES),
            prop::collection::vec(any::<u8>(), 48),
            (any::<[u8; 32]>(), any::<Option<[u8; 32]>>(), any::<[u8; 32]>()),
            (any::<u64>(), any::<u64>(), any::<u32>()),
        )
            .prop_map(|(a, peer_id, image, b, c)| Claims {
                network_id: a.0,
                role: Role::Worker,
                noise_key: a.1,
                receipt_key: a.2,
                peer_id,
                image: Measurement(image.try_into().unwrap()),
                config_digest: a.3,
                model_digest: b.0,
                gpu_evidence: b.1,
                not_before: c.0,
                not_after: c.1,
                beacon: Beacon { seqno: c.2, hash: b.2 },
            })
    }

    proptest! {
        #[test]
        fn any_claims_round_trip(claims in any_claims()) {
            prop_assert_eq!(Claims::decode(&claims.encode()), Ok(claims));
        }

        #[test]
        fn different_bytes_never_decode_to_the_same_claims(claims in any_claims(), at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = claims.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = Claims::decode(&bytes) {
                prop_assert_ne!(other.report_data(), claims.report_data());
                prop_assert_eq!(other.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_peer_id_must_have_a_possible_length() {
        for len in [0, MAX_PEER_ID_BYTES + 1] {
            let claims = Claims { peer_id: vec![0; len], ..sample() };
            assert_eq!(Claims::decode(&claims.encode()), Err(ClaimsError::PeerId { len }));
        }
    }
}
