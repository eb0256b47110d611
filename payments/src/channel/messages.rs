//! Bodies of the messages that the contract takes.
//!
//! | message | from | value to attach |
//! |---|---|---|
//! | [`open`] | the client, with the state init | the deposit |
//! | [`top_up`] | the client | what the deposit grows by; a plain transfer works too, from anybody |
//! | [`settle`] | anybody | [`SETTLE_VALUE`]; what is left comes back |
//! | [`coop_close`] | anybody | [`SETTLE_VALUE`]; what is left goes to the client |
//! | [`request_close`] | the client | [`SETTLE_VALUE`]; what is left stays in the deposit |
//! | [`finalize`] | anybody | [`SETTLE_VALUE`]; what is left goes to the client |

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use tonlib_core::cell::{ArcCell, CellBuilder, TonCellError};

use crate::{Address, NanoTon, SignedVoucher, cell};

const OPEN: u32 = 0x4f50_454e;
const TOP_UP: u32 = 0x544f_5055;
const SETTLE: u32 = 0x5354_4c45;
const COOP_CLOSE: u32 = 0x434f_4f50;
const REQUEST_CLOSE: u32 = 0x5243_4c53;
const FINALIZE: u32 = 0x4649_4e41;
/// Tag of a [`CloseAgreement`]: `CLOS`.
pub const CLOSE_TAG: u32 = 0x434c_4f53;

/// Enough to attach to any call that needs only gas and forward fees, with room for TON's prices to
/// rise tenfold. `settle` sends the rest back.
pub const SETTLE_VALUE: NanoTon = NanoTon(50_000_000);

/// Opens the channel. Send it with the state init and the deposit, able to bounce.
pub fn open() -> Result<ArcCell, TonCellError> {
    operation(OPEN)
}

/// Raises the expiry; the attached value raises the deposit.
pub fn top_up(expire_at: u32) -> Result<ArcCell, TonCellError> {
    let mut body = CellBuilder::new();
    body.store_u32(32, TOP_UP)?.store_u32(32, expire_at)?;
    Ok(body.build()?.to_arc())
}

/// Pays the worker what the voucher adds to what is settled.
pub fn settle(signed: &SignedVoucher) -> Result<ArcCell, TonCellError> {
    let mut body = CellBuilder::new();
    body.store_u32(32, SETTLE)?.store_slice(&signed.signature)?.store_reference(&signed.voucher.cell()?)?;
    Ok(body.build()?.to_arc())
}

/// Pays the worker the agreed total, refunds the client, removes the account.
pub fn coop_close(
    agreement: &CloseAgreement,
    client_signature: &[u8; 64],
    worker_signature: &[u8; 64],
) -> Result<ArcCell, TonCellError> {
    let worker = CellBuilder::new().store_slice(worker_signature)?.build()?;
    let mut body = CellBuilder::new();
    body.store_u32(32, COOP_CLOSE)?
        .store_slice(client_signature)?
        .store_reference(&worker.to_arc())?
        .store_reference(&agreement.cell()?)?;
    Ok(body.build()?.to_arc())
}

/// Starts the close delay.
pub fn request_close() -> Result<ArcCell, TonCellError> {
    operation(REQUEST_CLOSE)
}

/// Refunds the client once the close delay or the expiry has passed, or when the channel was never
/// opened and can no longer be. In that last case, and for coins sent after the end, send it with the
/// state init.
pub fn finalize() -> Result<ArcCell, TonCellError> {
    operation(FINALIZE)
}

fn operation(code: u32) -> Result<ArcCell, TonCellError> {
    let mut body = CellBuilder::new();
    body.store_u32(32, code)?;
    Ok(body.build()?.to_arc())
}

/// "Close with this total, before this time", signed by both sides. A worker must have durably noted
/// that the channel is closing **before** it signs: from then on the client may end it at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseAgreement {
    /// The TON network's global id.
    pub global_id: i32,
    /// The channel's contract.
    pub channel: Address,
    /// As in the channel's terms.
    pub channel_id: u128,
    /// What the worker will have received in total.
    pub cumulative: NanoTon,
    /// Unix time after which the agreement is void.
    pub deadline: u32,
}

impl CloseAgreement {
    /// The cell that `coopClose` carries.
    pub fn cell(&self) -> Result<ArcCell, TonCellError> {
        let mut builder = CellBuilder::new();
        builder
            .store_u32(32, CLOSE_TAG)?
            .store_i32(32, self.global_id)?
            .store_slice(&self.channel_id.to_be_bytes())?
            .store_u64(64, self.cumulative.0)?
            .store_u32(32, self.deadline)?;
        cell::store_address(&mut builder, &self.channel)?;
        Ok(builder.build()?.to_arc())
    }

    /// Signs for one side.
    pub fn sign(&self, key: &SigningKey) -> Result<[u8; 64], TonCellError> {
        Ok(key.sign(&cell::hash(&*self.cell()?)).to_bytes())
    }

    /// Whether `signature` is that side's.
    pub fn verify(&self, key: &[u8; 32], signature: &[u8; 64]) -> bool {
        let (Ok(key), Ok(cell)) = (VerifyingKey::from_bytes(key), self.cell()) else {
            return false;
        };
        key.verify_strict(&cell::hash(&cell), &Signature::from_bytes(signature)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Voucher, channel::params::tests::key};

    #[test]
    fn a_close_signature_is_no_voucher_signature() {
        let agreement = CloseAgreement {
            global_id: -217,
            channel: Address::base([1; 32]),
            channel_id: 7,
            cumulative: NanoTon(5),
            deadline: 1_790_000_000,
        };
        let signature = agreement.sign(&key(1)).unwrap();
        let client_key = key(1).verifying_key().to_bytes();
        assert!(agreement.verify(&client_key, &signature));
        let voucher = Voucher {
            global_id: -217,
            channel: Address::base([1; 32]),
            channel_id: 7,
            cumulative: NanoTon(5),
        };
        let disguised = SignedVoucher { voucher, signature };
        assert!(disguised.verify_strict(&client_key).is_err());
        let later = CloseAgreement { deadline: agreement.deadline + 1, ..agreement };
        assert!(!later.verify(&client_key, &signature));
    }
}
