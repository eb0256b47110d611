//! Receipts: what an enclave says it delivered, for what price.
//!
//! The enclave signs one per request with its *receipt key*, which its attested claims bind, so a
//! receipt proves what the attested code metered even to somebody who trusts neither side.

use bincode::{Decode, Encode};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    Address, NanoTon,
    codec::{self, WireError},
};

/// Longest peer id that a receipt names; libp2p's have at most 42 bytes.
pub const MAX_WORKER_ID_BYTES: usize = 64;
/// The longest encoding of a [`SignedReceipt`] has under 400 bytes.
pub const MAX_RECEIPT_BYTES: usize = 512;
const VERSION: u8 = 1;
/// Separates receipts from everything else that a key may sign.
const DOMAIN: &[u8] = b"cocoon/receipt/v1\0";

/// What one request cost and why.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Receipt {
    /// The session's Noise handshake hash, so that a receipt belongs to one session.
    #[serde(serialize_with = "as_hex")]
    pub session: [u8; 32],
    /// The request within the session.
    pub stream: u32,
    /// The worker's peer id.
    #[serde(serialize_with = "as_hex")]
    pub worker: Vec<u8>,
    /// Digest of the model that answered.
    #[serde(serialize_with = "as_hex")]
    pub model: [u8; 32],
    /// The channel that paid, if the request was not free.
    pub channel: Option<Address>,
    /// Tokens read, those of a resumed answer included.
    pub input_tokens: u32,
    /// Tokens written by this worker.
    pub output_tokens: u32,
    /// NanoTON per million tokens read.
    pub price_input: u64,
    /// NanoTON per million tokens written.
    pub price_output: u64,
    /// What was metered.
    pub cost: NanoTon,
    /// What had been credited to the request when it ended.
    pub paid: NanoTon,
    /// Unix seconds.
    pub finished_at: u64,
}

impl Receipt {
    /// Signs with the enclave's receipt key.
    pub fn sign(self, key: &SigningKey) -> SignedReceipt {
        let signature = key.sign(&self.digest()).to_bytes();
        SignedReceipt { receipt: self, key: key.verifying_key().to_bytes(), signature }
    }

    /// What is signed.
    fn digest(&self) -> [u8; 32] {
        let body = codec::encode(VERSION, self);
        Sha256::new_with_prefix(DOMAIN).chain_update(body).finalize().into()
    }
}

/// A receipt, the key that signed it, and the signature.
#[derive(Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct SignedReceipt {
    /// What is stated.
    pub receipt: Receipt,
    /// The enclave's receipt key. It means something only if attested claims name it.
    #[serde(serialize_with = "as_hex")]
    pub key: [u8; 32],
    /// Ed25519 over the receipt's domain-separated digest.
    #[serde(serialize_with = "as_hex")]
    pub signature: [u8; 64],
}

/// Bytes as hex, for reports in JSON.
fn as_hex<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

impl SignedReceipt {
    /// Checks the signature. **Compare [`SignedReceipt::key`] with the attested claims yourself**:
    /// anybody can sign anything with a key of their own.
    pub fn verify(&self) -> Result<(), ReceiptError> {
        let key = VerifyingKey::from_bytes(&self.key).map_err(|_| ReceiptError::Key)?;
        key.verify_strict(&self.receipt.digest(), &Signature::from_bytes(&self.signature))
            .map_err(|_| ReceiptError::Signature)
    }

    /// Bytes for the wire and the disk.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(VERSION, self)
    }

    /// Inverse of [`SignedReceipt::encode`]; the signature is not checked.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReceiptError> {
        let signed: Self = codec::decode(VERSION, bytes, MAX_RECEIPT_BYTES)?;
        if signed.receipt.worker.len() > MAX_WORKER_ID_BYTES {
            return Err(ReceiptError::WorkerId { len: signed.receipt.worker.len() });
        }
        Ok(signed)
    }
}

impl std::fmt::Debug for SignedReceipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedReceipt")
            .field("receipt", &self.receipt)
            .field("key", &hex::encode(self.key))
            .finish_non_exhaustive()
    }
}

/// Why something is not a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// Not an encoding.
    #[error("the receipt cannot be read: {0}")]
    Wire(#[from] WireError),
    /// The peer id is longer than any.
    #[error("the receipt's worker id has {len} bytes, at most {MAX_WORKER_ID_BYTES} are allowed")]
    WorkerId {
        /// Bytes found.
        len: usize,
    },
    /// The key is no curve point.
    #[error("the receipt's key is not an ed25519 public key")]
    Key,
    /// Signed by another key, or changed.
    #[error("the receipt's signature does not match its content")]
    Signature,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt() -> Receipt {
        Receipt {
            session: [1; 32],
            stream: 3,
            worker: vec![9; 38],
            model: [2; 32],
            channel: Some(Address::base([4; 32])),
            input_tokens: 17,
            output_tokens: 50,
            price_input: 1_000_000,
            price_output: 2_000_000,
            cost: NanoTon(117),
            paid: NanoTon(120),
            finished_at: 1_790_000_000,
        }
    }

    #[test]
    fn a_receipt_survives_the_wire_and_verifies() {
        let signed = receipt().sign(&SigningKey::from_bytes(&[5; 32]));
        let back = SignedReceipt::decode(&signed.encode()).unwrap();
        assert_eq!(back, signed);
        assert_eq!(back.verify(), Ok(()));
    }

    #[test]
    fn a_changed_receipt_does_not_verify() {
        let mut signed = receipt().sign(&SigningKey::from_bytes(&[5; 32]));
        signed.receipt.cost.0 += 1;
        assert_eq!(signed.verify(), Err(ReceiptError::Signature));
        let mut other_key = receipt().sign(&SigningKey::from_bytes(&[5; 32]));
        other_key.key = SigningKey::from_bytes(&[6; 32]).verifying_key().to_bytes();
        assert_eq!(other_key.verify(), Err(ReceiptError::Signature));
    }

    #[test]
    fn an_oversized_worker_id_is_refused() {
        let mut long = receipt();
        long.worker = vec![0; MAX_WORKER_ID_BYTES + 1];
        let signed = long.sign(&SigningKey::from_bytes(&[5; 32]));
        assert_eq!(SignedReceipt::decode(&signed.encode()), Err(ReceiptError::WorkerId { len: 65 }));
    }
}
