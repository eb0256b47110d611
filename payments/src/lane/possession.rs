//! Proof that whoever opens a session holds the channel's key.
//!
//! A channel's terms are public: they travel in every `open` and its account stands on the chain. Without a
//! proof, anybody who has seen them could take a channel's session from its asker. So the asker signs a
//! *statement* that names everything the session is bound to. What goes into it is the session protocol's
//! business; this module keeps the signature apart from every other one that the same key makes. A voucher
//! and an agreement to close are signatures over 32 bytes, the hash of a cell; this one is over
//! [`SESSION_LABEL`] and a statement, which together are longer, so none can be taken for another.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use thiserror::Error;

/// Stands in front of every statement.
pub const SESSION_LABEL: &[u8] = b"cocoon/session/v1";

/// Why a proof is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The key could not have made a signature that means anything.
    #[error("the channel's client_key is not a usable ed25519 public key")]
    Key,
    /// Another key's signature, or of another statement.
    #[error("the proof is not the channel's client_key's over this session")]
    Signature,
}

pub(super) fn sign(key: &SigningKey, statement: &[u8]) -> [u8; 64] {
    key.sign(&message(statement)).to_bytes()
}

/// Checks [`super::Payer::sign_session`]'s signature, refusing malleable ones and small-order keys.
pub fn verify_session(client_key: &[u8; 32], statement: &[u8], proof: &[u8; 64]) -> Result<(), ProofError> {
    let key = VerifyingKey::from_bytes(client_key).map_err(|_| ProofError::Key)?;
    if key.is_weak() {
        return Err(ProofError::Key);
    }
    let signature = Signature::from_bytes(proof);
    key.verify_strict(&message(statement), &signature).map_err(|_| ProofError::Signature)
}

fn message(statement: &[u8]) -> Vec<u8> {
    [SESSION_LABEL, statement].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NanoTon, SignedVoucher,
        channel::tests_support::{key, params},
        lane::Payer,
    };

    const STATEMENT: &[u8] = b"everything that names this session, which is long";

    #[test]
    fn only_the_channels_key_over_the_same_statement_is_a_proof() {
        let payer = Payer::new(params(), -217, key(1), NanoTon(1_000_000_000)).unwrap();
        let proof = payer.sign_session(STATEMENT);
        let client_key = params().client_key;
        assert_eq!(verify_session(&client_key, STATEMENT, &proof), Ok(()));
        assert_eq!(verify_session(&client_key, b"another", &proof), Err(ProofError::Signature));
        assert_eq!(verify_session(&params().worker_key, STATEMENT, &proof), Err(ProofError::Signature));
        let foreign = sign(&key(9), STATEMENT);
        assert_eq!(verify_session(&client_key, STATEMENT, &foreign), Err(ProofError::Signature));
        for at in [0, 31, 32, 63] {
            let mut bent = proof;
            bent[at] ^= 1;
            assert_eq!(verify_session(&client_key, STATEMENT, &bent), Err(ProofError::Signature));
        }
        assert_eq!(verify_session(&[0; 32], STATEMENT, &proof), Err(ProofError::Key), "a small-order key");
    }

    #[test]
    fn a_session_proof_is_no_voucher_and_a_voucher_no_proof() {
        let mut payer = Payer::new(params(), -217, key(1), NanoTon(1_000_000_000)).unwrap();
        let voucher = payer.pay(NanoTon(5)).unwrap();
        let hash = voucher.voucher.hash();
        let taken = SignedVoucher { signature: payer.sign_session(&hash), ..voucher };
        assert!(taken.verify_strict(&params().client_key).is_err());
        assert!(verify_session(&params().client_key, &hash, &voucher.signature).is_err());
    }
}
