//! Claims, quote and collateral as one blob that anybody can carry and only the bytes can vouch for.
//!
//! Evidence is fetched by its digest and verified locally; who delivered it does not matter.

use bincode::{Decode, Encode};
use thiserror::Error;

use crate::{
    codec::{self, WireError},
    hash::sha256,
};

/// Room for a hardware quote (8 KB), Intel's collateral (24 KB) and growth of both. Larger blobs
/// are refused before anything is read.
pub const MAX_EVIDENCE_BYTES: usize = 64 * 1024;

const VERSION: u8 = 1;

/// What an asker needs to judge a worker's enclave, offline.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Evidence {
    /// Canonical encoding of [`crate::Claims`].
    pub claims: Vec<u8>,
    /// The TEE's quote over the claims.
    pub quote: Vec<u8>,
    /// The platform vendor's statements about the TEE, as [`crate::canonical_collateral`] JSON.
    pub collateral: Vec<u8>,
}

/// Why bytes are not evidence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot read the evidence: {0}")]
pub struct EvidenceError(#[from] WireError);

impl Evidence {
    /// The encoding whose digest names this evidence.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(VERSION, self)
    }

    /// Reads what [`Evidence::encode`] wrote; nothing inside is judged yet.
    ///
    /// # Errors
    /// If the bytes exceed [`MAX_EVIDENCE_BYTES`] or are not a canonical encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, EvidenceError> {
        Ok(codec::decode::<_, MAX_EVIDENCE_BYTES>(VERSION, bytes)?)
    }

    /// SHA-256 of the encoding: the name under which evidence is advertised and fetched.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&[&self.encode()])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_evidence_round_trips(claims: Vec<u8>, quote: Vec<u8>, collateral: Vec<u8>) {
            let evidence = Evidence { claims, quote, collateral };
            let bytes = evidence.encode();
            prop_assert_eq!(sha256(&[&bytes]), evidence.digest());
            prop_assert_eq!(Evidence::decode(&bytes), Ok(evidence));
        }
    }

    #[test]
    fn oversized_evidence_is_refused_before_it_is_read() {
        let evidence = Evidence { claims: vec![], quote: vec![0; MAX_EVIDENCE_BYTES], collateral: vec![] };
        let error = Evidence::decode(&evidence.encode()).unwrap_err();
        assert!(matches!(error, EvidenceError(WireError::TooLarge { .. })), "{error}");
    }
}
