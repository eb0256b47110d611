//! What the chain says about a channel.

use thiserror::Error;
use tonlib_core::cell::TonCellError;

use super::{ChannelParams, ParamsError, RESERVE, code_hash};
use crate::{
    NanoTon,
    cell::{self, BocError},
    chain::{AccountState, AccountStatus},
};

/// Where in its life a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No code at the address: not opened yet, or over.
    Absent,
    /// The code is there but `open` never came.
    Unopened,
    /// Pays vouchers.
    Open,
    /// The asker asked to close; pays vouchers until somebody finalizes, from `at` on.
    Closing {
        /// Unix time.
        at: u32,
    },
}

/// A channel's account at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnChain {
    /// Where in its life the channel is.
    pub stage: Stage,
    /// Coins on the account.
    pub balance: NanoTon,
    /// Paid to the worker so far.
    pub settled: NanoTon,
    /// Unix time from which anybody may have the asker refunded.
    pub expire_at: u32,
    /// Unix time of the state that was read.
    pub read_at: u64,
}

impl OnChain {
    /// The largest cumulative amount that the contract can pay in full: what it paid already plus the
    /// deposit less the reserve. Zero unless open.
    pub fn capacity(&self) -> NanoTon {
        if !self.opened() {
            return NanoTon::ZERO;
        }
        self.settled.saturating_add(self.balance.saturating_sub(RESERVE))
    }

    /// Whether the contract pays vouchers.
    pub fn opened(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Closing { .. })
    }

    /// When the close delay ends, if the asker asked to close.
    pub fn close_at(&self) -> Option<u32> {
        match self.stage {
            Stage::Closing { at } => Some(at),
            _ => None,
        }
    }
}

/// Why an account is not the channel with these terms.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The terms themselves.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The account was read, but has no code or data.
    #[error("the chain says that the account is active but sent no {0}; ask another endpoint")]
    Missing(&'static str),
    /// Frozen for debt; the reserve makes this impossible for a channel.
    #[error("the channel's account is frozen")]
    Frozen,
    /// Not this contract. The address says otherwise, so the endpoint lies or is broken.
    #[error("the account's code hash is {found}, expected {expected}; ask another endpoint")]
    Code {
        /// What the endpoint sent.
        found: String,
        /// The channel contract's.
        expected: String,
    },
    /// The unchanging part of the data differs from the terms.
    #[error("the account's data does not hold the channel's terms ({0}); ask another endpoint")]
    Terms(&'static str),
    /// Bytes that are no cells.
    #[error("the account's {what} cannot be read: {source}")]
    Boc {
        /// Code or data.
        what: &'static str,
        /// Why.
        source: BocError,
    },
    /// Cells of another shape.
    #[error("the account's data is not a channel's: {0}")]
    Data(#[from] TonCellError),
}

/// Reads the state of the channel with the terms `params` from its account.
///
/// A missing or empty account is no error: it is a channel that was not opened yet, or is over.
pub fn read_account(params: &ChannelParams, account: &AccountState) -> Result<OnChain, ReadError> {
    let mut state = OnChain {
        stage: Stage::Absent,
        balance: account.balance,
        settled: NanoTon::ZERO,
        expire_at: params.expire_at,
        read_at: account.unixtime,
    };
    match account.status {
        AccountStatus::Absent | AccountStatus::Uninit => return Ok(state),
        AccountStatus::Frozen => return Err(ReadError::Frozen),
        AccountStatus::Active => {}
    }
    let parse = |what, boc: &Option<Vec<u8>>| {
        let boc = boc.as_deref().ok_or(ReadError::Missing(what))?;
        cell::parse(boc).map_err(|source| ReadError::Boc { what, source })
    };
    let found = cell::hash(&*parse("code", &account.code)?);
    if found != code_hash() {
        return Err(ReadError::Code { found: hex::encode(found), expected: hex::encode(code_hash()) });
    }
    let data = parse("data", &account.data)?;
    let mut parser = data.parser();
    let opened = parser.load_bit()?;
    state.settled = NanoTon(parser.load_u64(64)?);
    let close_at = parser.load_u32(32)?;
    state.expire_at = parser.load_u32(32)?;
    if cell::load_address(&mut parser)? != params.client {
        return Err(ReadError::Terms("client"));
    }
    if cell::load_address(&mut parser)? != params.worker {
        return Err(ReadError::Terms("worker"));
    }
    let terms = parser.next_reference()?;
    if cell::hash(&terms) != cell::hash(&*params.terms()?) {
        return Err(ReadError::Terms("keys, id, close delay or opening time"));
    }
    if state.expire_at < params.expire_at {
        return Err(ReadError::Terms("expiry"));
    }
    parser.ensure_empty()?;
    state.stage = match (opened, close_at) {
        (false, _) => Stage::Unopened,
        (true, 0) => Stage::Open,
        (true, at) => Stage::Closing { at },
    };
    Ok(state)
}

#[cfg(test)]
mod tests {
    use tonlib_core::cell::CellBuilder;

    use super::*;
    use crate::{
        Address,
        channel::{code, params::tests::params},
    };

    fn account(opened: bool, settled: u64, close_at: u32, client: Address) -> AccountState {
        let params = params();
        let mut data = CellBuilder::new();
        data.store_bit(opened)
            .unwrap()
            .store_u64(64, settled)
            .unwrap()
            .store_u32(32, close_at)
            .unwrap()
            .store_u32(32, params.expire_at + 5)
            .unwrap();
        cell::store_address(&mut data, &client).unwrap();
        cell::store_address(&mut data, &params.worker).unwrap();
        data.store_reference(&params.terms().unwrap()).unwrap();
        AccountState {
            balance: NanoTon(1_000_000_000),
            status: AccountStatus::Active,
            code: Some(cell::to_boc(&code().unwrap()).unwrap()),
            data: Some(cell::to_boc(&data.build().unwrap().to_arc()).unwrap()),
            last_lt: 1,
            last_hash: [0; 32],
            unixtime: 1_790_000_100,
        }
    }

    #[test]
    fn an_open_channel_reads_as_it_is() {
        let state = read_account(&params(), &account(true, 40, 0, params().client)).unwrap();
        assert_eq!(state.stage, Stage::Open);
        assert_eq!(state.settled, NanoTon(40));
        assert_eq!(state.expire_at, params().expire_at + 5);
        assert_eq!(state.capacity(), NanoTon(1_000_000_000 - RESERVE.0 + 40));
        let closing = read_account(&params(), &account(true, 40, 9, params().client)).unwrap();
        assert_eq!(closing.close_at(), Some(9));
    }

    #[test]
    fn an_unopened_channel_covers_nothing() {
        let state = read_account(&params(), &account(false, 0, 0, params().client)).unwrap();
        assert_eq!(state.stage, Stage::Unopened);
        assert_eq!(state.capacity(), NanoTon::ZERO);
    }

    #[test]
    fn a_lying_endpoint_is_found_out() {
        let other = account(true, 0, 0, Address::base([9; 32]));
        assert!(matches!(read_account(&params(), &other), Err(ReadError::Terms("client"))));
        let mut other_code = account(true, 0, 0, params().client);
        other_code.code = other_code.data.clone();
        assert!(matches!(read_account(&params(), &other_code), Err(ReadError::Code { .. })));
        let mut no_data = account(true, 0, 0, params().client);
        no_data.data = None;
        assert!(matches!(read_account(&params(), &no_data), Err(ReadError::Missing("data"))));
    }
}
