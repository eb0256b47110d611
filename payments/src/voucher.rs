//! Vouchers: "channel C owes its worker N nanoTON in total", signed by the asker.
//!
//! What is signed is the representation hash of this cell (523 bits, no references), because that is
//! what the contract can check with one instruction:
//!
//! | bits | field |
//! |---|---|
//! | 32 | [`VOUCHER_TAG`], so that no other signed message is taken for a voucher |
//! | 32 | the network's TON global id, so that a test voucher is worthless on mainnet |
//! | 128 | channel id |
//! | 64 | cumulative amount in nanoTON |
//! | 267 | address of the channel's contract |
//!
//! A worker checks thousands of these a second, so the hash is computed from a fixed buffer instead
//! of through a cell builder (a test holds both equal), and [`VoucherKey`] keeps the decompressed key.

use bincode::{Decode, Encode};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tonlib_core::cell::{ArcCell, CellBuilder, TonCellError};

use crate::{
    Address, NanoTon, cell,
    codec::{self, WireError},
};

/// `VOUC`.
pub const VOUCHER_TAG: u32 = 0x564f_5543;
/// The longest encoding of a [`SignedVoucher`] has 129 bytes.
pub const MAX_VOUCHER_BYTES: usize = 160;
const VERSION: u8 = 1;

/// A promise to pay, cumulative over the life of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Voucher {
    /// The TON network's global id.
    pub global_id: i32,
    /// The channel's contract.
    pub channel: Address,
    /// Chosen by the asker; part of the contract's address already, bound again.
    pub channel_id: u128,
    /// What the worker may have received in total once this is settled.
    pub cumulative: NanoTon,
}

impl Voucher {
    /// The representation hash of [`Voucher::cell`].
    pub fn hash(&self) -> [u8; 32] {
        // Descriptors of a cell with no references and 523 bits: 2 * 65 whole bytes + 1.
        let mut repr = [0u8; 2 + 66];
        repr[1] = 131;
        repr[2..6].copy_from_slice(&VOUCHER_TAG.to_be_bytes());
        repr[6..10].copy_from_slice(&self.global_id.to_be_bytes());
        repr[10..26].copy_from_slice(&self.channel_id.to_be_bytes());
        repr[26..34].copy_from_slice(&self.cumulative.0.to_be_bytes());
        // `addr_std$10 anycast:nothing$0` shifts the rest by three bits; `1` marks the end.
        let mut carry = 0b100;
        for (slot, byte) in repr[34..].iter_mut().zip(self.channel.to_bytes()) {
            *slot = carry << 5 | byte >> 3;
            carry = byte & 0b111;
        }
        repr[67] = carry << 5 | 0b1_0000;
        Sha256::digest(repr).into()
    }

    /// The cell that `settle` carries to the contract.
    pub fn cell(&self) -> Result<ArcCell, TonCellError> {
        let mut builder = CellBuilder::new();
        builder
            .store_u32(32, VOUCHER_TAG)?
            .store_i32(32, self.global_id)?
            .store_slice(&self.channel_id.to_be_bytes())?
            .store_u64(64, self.cumulative.0)?;
        cell::store_address(&mut builder, &self.channel)?;
        Ok(builder.build()?.to_arc())
    }

    /// Signs with the asker's channel key.
    pub fn sign(self, key: &SigningKey) -> SignedVoucher {
        SignedVoucher { voucher: self, signature: key.sign(&self.hash()).to_bytes() }
    }
}

/// A voucher and the asker's signature.
#[derive(Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct SignedVoucher {
    /// What is promised.
    pub voucher: Voucher,
    /// Ed25519 over [`Voucher::hash`].
    pub signature: [u8; 64],
}

impl SignedVoucher {
    /// Checks the signature, refusing malleable ones and small-order keys. To check many under one
    /// key use [`VoucherKey`].
    pub fn verify_strict(&self, client_key: &[u8; 32]) -> Result<(), VoucherError> {
        VoucherKey::new(client_key)?.verify(self)
    }

    /// Bytes for the wire and the disk.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(VERSION, self)
    }

    /// Inverse of [`SignedVoucher::encode`]; the signature is not checked.
    pub fn decode(bytes: &[u8]) -> Result<Self, VoucherError> {
        Ok(codec::decode(VERSION, bytes, MAX_VOUCHER_BYTES)?)
    }
}

impl std::fmt::Debug for SignedVoucher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedVoucher")
            .field("voucher", &self.voucher)
            .field("signature", &hex::encode(&self.signature[..8]))
            .finish()
    }
}

/// An asker's channel key, decompressed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoucherKey(VerifyingKey);

impl VoucherKey {
    /// Refuses what no honest asker has: bytes that are no curve point, and points of small order,
    /// under which anybody could sign.
    pub fn new(key: &[u8; 32]) -> Result<Self, VoucherError> {
        let key = VerifyingKey::from_bytes(key).map_err(|_| VoucherError::Key)?;
        if key.is_weak() {
            return Err(VoucherError::Key);
        }
        Ok(Self(key))
    }

    /// See [`SignedVoucher::verify_strict`].
    pub fn verify(&self, signed: &SignedVoucher) -> Result<(), VoucherError> {
        let signature = Signature::from_bytes(&signed.signature);
        self.0.verify_strict(&signed.voucher.hash(), &signature).map_err(|_| VoucherError::Signature)
    }
}

/// Why something is not a voucher of this asker.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VoucherError {
    /// Not an encoding.
    #[error("the voucher cannot be read: {0}")]
    Wire(#[from] WireError),
    /// The key could not have made a signature that means anything.
    #[error("the voucher key is not a usable ed25519 public key; the asker must make a new channel")]
    Key,
    /// Signed by somebody else, or changed on the way.
    #[error("the voucher's signature does not match its content and the channel's client key")]
    Signature,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn voucher() -> Voucher {
        Voucher {
            global_id: -217,
            channel: Address::base([0xa5; 32]),
            channel_id: 7,
            cumulative: NanoTon(1_234_567),
        }
    }

    proptest! {
        #[test]
        fn the_fast_hash_is_the_cells_hash(
            global_id: i32,
            workchain: i8,
            hash: [u8; 32],
            channel_id: u128,
            cumulative: u64,
        ) {
            let voucher = Voucher {
                global_id,
                channel: Address { workchain, hash },
                channel_id,
                cumulative: NanoTon(cumulative),
            };
            prop_assert_eq!(voucher.hash(), cell::hash(&voucher.cell().unwrap()));
        }

        #[test]
        fn vouchers_survive_the_wire(seed: [u8; 32], cumulative: u64) {
            let signed = Voucher { cumulative: NanoTon(cumulative), ..voucher() }
                .sign(&SigningKey::from_bytes(&seed));
            let bytes = signed.encode();
            prop_assert!(bytes.len() <= MAX_VOUCHER_BYTES);
            prop_assert_eq!(SignedVoucher::decode(&bytes), Ok(signed));
        }
    }

    #[test]
    fn changing_any_field_breaks_the_signature() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let public = key.verifying_key().to_bytes();
        let good = voucher().sign(&key);
        assert_eq!(good.verify_strict(&public), Ok(()));
        let other = |change: fn(&mut Voucher)| {
            let mut bad = good;
            change(&mut bad.voucher);
            bad.verify_strict(&public)
        };
        let changes: [fn(&mut Voucher); 5] = [
            |v| v.global_id = -239,
            |v| v.channel.hash[31] ^= 1,
            |v| v.channel.workchain = -1,
            |v| v.channel_id += 1,
            |v| v.cumulative.0 += 1,
        ];
        for change in changes {
            assert_eq!(other(change), Err(VoucherError::Signature));
        }
        let mut bad = good;
        bad.signature[63] ^= 1;
        assert_eq!(bad.verify_strict(&public), Err(VoucherError::Signature));
    }

    #[test]
    fn keys_under_which_anybody_can_sign_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        for key in [[0; 32], identity] {
            assert_eq!(VoucherKey::new(&key), Err(VoucherError::Key));
        }
    }
}
