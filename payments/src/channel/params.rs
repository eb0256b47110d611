//! The terms of one channel: its initial data, and with the code its address.

use std::sync::LazyLock;

use bincode::{Decode, Encode};
use thiserror::Error;
use tonlib_core::cell::{ArcCell, CellBuilder, TonCellError};

use super::{MAX_CLOSE_DELAY_S, MAX_OPEN_WINDOW_S};
use crate::{
    Address, VoucherKey, cell,
    codec::{self, WireError},
};

/// The longest encoding of [`ChannelParams`] has 165 bytes.
pub const MAX_PARAMS_BYTES: usize = 192;
const VERSION: u8 = 1;

/// `contracts/build.mjs` compiles it; CI compares.
static CODE_BOC: &[u8] = include_bytes!("../../contracts/channel.boc");

/// A build whose committed code cannot be parsed fails its own tests; at run time it is an error like
/// any other.
static CODE: LazyLock<Option<ArcCell>> = LazyLock::new(|| cell::parse(CODE_BOC).ok());

/// The contract's code.
pub fn code() -> Result<ArcCell, ParamsError> {
    CODE.clone().ok_or(ParamsError::Code)
}

/// Hash of the contract's code, committed in `contracts/channel.json` too. All zero only if the
/// committed code is corrupt, which no account has.
pub fn code_hash() -> [u8; 32] {
    CODE.as_ref().map_or([0; 32], |code| cell::hash(code))
}

/// What both sides agree on before a coin moves. Every field is in the contract's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChannelParams {
    /// The asker's account: it alone opens, tops up, asks to close, and is refunded.
    pub client: Address,
    /// The account that vouchers pay.
    pub worker: Address,
    /// Signs vouchers. A key made for this channel, not the wallet's.
    pub client_key: [u8; 32],
    /// Agrees to a cooperative close.
    pub worker_key: [u8; 32],
    /// Random, so that two channels of the same pair differ.
    pub channel_id: u128,
    /// Seconds between the asker's request to close and its refund, in which the worker settles.
    pub close_delay_s: u32,
    /// Unix time before which the channel must be opened; it cannot be destroyed earlier, so a
    /// destroyed one never opens again and its old vouchers stay worthless.
    pub open_by: u32,
    /// Unix time from which anybody may have the asker refunded. `topUp` raises it on the chain.
    pub expire_at: u32,
}

impl ChannelParams {
    /// Checks what the contract checks when it is opened, and what it cannot: that the keys are usable.
    pub fn validate(&self) -> Result<(), ParamsError> {
        let field = |field, why| Err(ParamsError::Field { field, why });
        if self.client.workchain != 0 {
            return field("client", "must be on the base chain (0:…)");
        }
        if self.worker.workchain != 0 {
            return field("worker", "must be on the base chain (0:…)");
        }
        if self.client == self.worker {
            return field("worker", "is the client's own account");
        }
        if VoucherKey::new(&self.client_key).is_err() {
            return field("client_key", "is not a usable ed25519 public key");
        }
        if VoucherKey::new(&self.worker_key).is_err() {
            return field("worker_key", "is not a usable ed25519 public key");
        }
        if self.close_delay_s == 0 || self.close_delay_s > MAX_CLOSE_DELAY_S {
            return field("close_delay_s", "must be between 1 second and 30 days");
        }
        if self.expire_at <= self.open_by {
            return field("expire_at", "must be after open_by");
        }
        if self.open_by < MAX_OPEN_WINDOW_S {
            return field("open_by", "must be a unix time of this century");
        }
        Ok(())
    }

    /// Where the contract with these terms lives. Fails on terms that [`ChannelParams::validate`]
    /// refuses, so that an address in hand means checked terms.
    pub fn address(&self) -> Result<Address, ParamsError> {
        self.validate()?;
        Ok(Address::base(cell::hash(&*self.state_init()?)))
    }

    /// `StateInit`: the code and the initial data; its hash is the address.
    pub fn state_init(&self) -> Result<ArcCell, ParamsError> {
        // No split depth, not special, code and data present, no library.
        let mut builder = CellBuilder::new();
        builder.store_u8(5, 0b00110)?.store_reference(&code()?)?.store_reference(&self.data()?)?;
        Ok(builder.build()?.to_arc())
    }

    /// The initial data: not opened, nothing settled.
    fn data(&self) -> Result<ArcCell, TonCellError> {
        let mut data = CellBuilder::new();
        data.store_bit(false)?.store_u64(64, 0)?.store_u32(32, 0)?.store_u32(32, self.expire_at)?;
        cell::store_address(&mut data, &self.client)?;
        cell::store_address(&mut data, &self.worker)?;
        data.store_reference(&self.terms()?)?;
        Ok(data.build()?.to_arc())
    }

    /// The part of the data that never changes.
    pub(super) fn terms(&self) -> Result<ArcCell, TonCellError> {
        let mut terms = CellBuilder::new();
        terms
            .store_slice(&self.client_key)?
            .store_slice(&self.worker_key)?
            .store_slice(&self.channel_id.to_be_bytes())?
            .store_u32(32, self.close_delay_s)?
            .store_u32(32, self.open_by)?;
        Ok(terms.build()?.to_arc())
    }

    /// Bytes for the wire and the disk.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(VERSION, self)
    }

    /// Inverse of [`ChannelParams::encode`]. The terms are not validated: take the
    /// [address](ChannelParams::address), which does.
    pub fn decode(bytes: &[u8]) -> Result<Self, ParamsError> {
        Ok(codec::decode(VERSION, bytes, MAX_PARAMS_BYTES)?)
    }
}

/// Why terms are not those of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParamsError {
    /// Not an encoding.
    #[error("the channel's terms cannot be read: {0}")]
    Wire(#[from] WireError),
    /// A term that the contract would refuse, or that would make it unsafe.
    #[error("the channel's {field} {why}")]
    Field {
        /// Name of the field in [`ChannelParams`].
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// This build's copy of the contract is corrupt.
    #[error("the contract code in this program is corrupt; reinstall it")]
    Code,
    /// A cell could not be built. Terms that validate always fit.
    #[error("the channel's cells could not be built: {0}")]
    Cell(String),
}

impl From<TonCellError> for ParamsError {
    fn from(error: TonCellError) -> Self {
        Self::Cell(error.to_string())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;

    pub(crate) fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    /// Terms that validate.
    pub(crate) fn params() -> ChannelParams {
        ChannelParams {
            client: Address::base([0xc1; 32]),
            worker: Address::base([0x33; 32]),
            client_key: key(1).verifying_key().to_bytes(),
            worker_key: key(2).verifying_key().to_bytes(),
            channel_id: 7,
            close_delay_s: 3600,
            open_by: 1_790_000_600,
            expire_at: 1_790_086_400,
        }
    }

    #[test]
    fn the_committed_code_is_the_one_named() {
        let json: serde_json::Value =
            serde_json::from_str(include_str!("../../contracts/channel.json")).unwrap();
        assert_eq!(json["code_hash"], hex::encode(code_hash()));
    }

    #[test]
    fn every_term_is_in_the_address() {
        let address = params().address().unwrap();
        let changes: [fn(&mut ChannelParams); 8] = [
            |p| p.client.hash[0] ^= 1,
            |p| p.worker.hash[0] ^= 1,
            |p| p.client_key = key(3).verifying_key().to_bytes(),
            |p| p.worker_key = key(3).verifying_key().to_bytes(),
            |p| p.channel_id += 1,
            |p| p.close_delay_s += 1,
            |p| p.open_by += 1,
            |p| p.expire_at += 1,
        ];
        for change in changes {
            let mut other = params();
            change(&mut other);
            assert_ne!(other.address().unwrap(), address, "{other:?}");
        }
    }

    #[test]
    fn terms_that_the_contract_would_refuse_are_named() {
        type Change = fn(&mut ChannelParams);
        let cases: [(Change, &str); 9] = [
            (|p| p.client.workchain = -1, "client"),
            (|p| p.worker.workchain = -1, "worker"),
            (|p| p.worker = p.client, "worker"),
            (|p| p.client_key = [0; 32], "client_key"),
            (|p| p.worker_key = [0; 32], "worker_key"),
            (|p| p.close_delay_s = 0, "close_delay_s"),
            (|p| p.close_delay_s = MAX_CLOSE_DELAY_S + 1, "close_delay_s"),
            (|p| p.expire_at = p.open_by, "expire_at"),
            (|p| p.open_by = 0, "open_by"),
        ];
        for (change, name) in cases {
            let mut bad = params();
            change(&mut bad);
            let error = bad.address().unwrap_err();
            assert!(matches!(error, ParamsError::Field { field, .. } if field == name), "{error}");
        }
    }

    #[test]
    fn terms_survive_the_wire() {
        let bytes = params().encode();
        assert!(bytes.len() <= MAX_PARAMS_BYTES);
        assert_eq!(ChannelParams::decode(&bytes), Ok(params()));
    }
}
