//! The chain as this crate needs it: read accounts, call getters, send messages.
//!
//! [`Chain`] is the whole interface; [`Toncenter`] speaks it to any toncenter v2 endpoint, the
//! project's local chain included. An endpoint is believed about *state* only as far as its lies are
//! bounded: [identity](Chain::identity) is compared with the network's genesis before anything is
//! signed, channel code and terms are recomputed, and payees stop when their last read is too old.

mod http;
mod json;
mod submit;
mod toncenter;
mod transaction;

use std::{future::Future, pin::Pin};

use thiserror::Error;

pub use submit::{SubmitError, Submitted, submit};
pub use toncenter::{Toncenter, ToncenterError};

use crate::{Address, NanoTon, cell::BocError};

/// A future that a [`Chain`] returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which chain it is. Two chains differ in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainIdentity {
    /// Configuration parameter 19; wallets and vouchers sign it.
    pub global_id: i32,
    /// Root hash of the zero state.
    pub zero_state: [u8; 32],
}

/// The newest masterchain block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub seqno: u32,
    /// Its root hash.
    pub hash: [u8; 32],
    /// When it was made, unix seconds.
    pub unixtime: u64,
}

/// Whether an account has code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountStatus {
    /// Nothing at the address.
    Absent,
    /// Coins but no code.
    Uninit,
    /// A contract.
    Active,
    /// Frozen for debt.
    Frozen,
}

/// An account at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountState {
    /// Its coins.
    pub balance: NanoTon,
    /// Whether it has code.
    pub status: AccountStatus,
    /// Bag of cells.
    pub code: Option<Vec<u8>>,
    /// Bag of cells.
    pub data: Option<Vec<u8>>,
    /// Logical time of its last transaction, 0 if none.
    pub last_lt: u64,
    /// Hash of its last transaction.
    pub last_hash: [u8; 32],
    /// When this was so, unix seconds of the chain.
    pub unixtime: u64,
}

/// A value that a get-method takes or returns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackValue {
    /// A 257-bit integer: sign and big-endian magnitude.
    Int {
        /// Below zero.
        negative: bool,
        /// Absolute value.
        magnitude: [u8; 32],
    },
    /// A cell or slice, as a bag of cells.
    Cell(Vec<u8>),
    /// Something that this crate has no use for (tuple, list, null).
    Other(String),
}

impl StackValue {
    /// A non-negative integer.
    pub fn uint(value: u128) -> Self {
        let mut magnitude = [0; 32];
        magnitude[16..].copy_from_slice(&value.to_be_bytes());
        Self::Int { negative: false, magnitude }
    }

    /// The value, if it is an integer of that range.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int { negative: false, magnitude } if magnitude[..24].iter().all(|byte| *byte == 0) => {
                let mut low = [0; 8];
                low.copy_from_slice(&magnitude[24..]);
                Some(u64::from_be_bytes(low))
            }
            _ => None,
        }
    }

    /// The value, if it is a boolean: −1 is true, 0 is false.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Int { magnitude, .. } => Some(magnitude.iter().any(|byte| *byte != 0)),
            _ => None,
        }
    }
}

/// What a get-method returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetMethodResult {
    /// 0 or 1 is success.
    pub exit_code: i32,
    /// Gas that the call took.
    pub gas_used: u64,
    /// Results, first value first.
    pub stack: Vec<StackValue>,
}

/// A message inside a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageInfo {
    /// `None` for an external message.
    pub source: Option<Address>,
    /// `None` for a log.
    pub destination: Option<Address>,
    /// Coins that came along.
    pub value: NanoTon,
    /// Hash of the message's body.
    pub body_hash: [u8; 32],
}

/// A transaction of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionInfo {
    /// Its hash.
    pub hash: [u8; 32],
    /// Its logical time.
    pub lt: u64,
    /// Unix seconds.
    pub now: u64,
    /// Everything that it cost.
    pub fees: NanoTon,
    /// Gas, if code ran.
    pub gas_used: Option<u64>,
    /// The code's exit code, if it ran.
    pub exit_code: Option<i32>,
    /// The action phase's result code, if there was one.
    pub action_code: Option<i32>,
    /// The message that caused it.
    pub in_msg: Option<MessageInfo>,
    /// The messages that it sent.
    pub out_msgs: Vec<MessageInfo>,
}

impl TransactionInfo {
    /// Whether code ran and its actions were carried out.
    pub fn succeeded(&self) -> bool {
        matches!(self.exit_code, Some(0 | 1)) && self.action_code == Some(0)
    }
}

/// Why the chain could not be asked, or its answer not used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// No answer: network, timeout, TLS.
    #[error("the chain endpoint cannot be reached ({method}): {source}")]
    Unreachable {
        /// What was asked.
        method: &'static str,
        /// Why.
        source: reqwest::Error,
    },
    /// It answered with an error of its own.
    #[error("the chain endpoint refused {method} with code {code}: {message}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// HTTP status or toncenter code.
        code: i64,
        /// Its words, shortened.
        message: String,
    },
    /// Checked while reading, so that an endpoint cannot fill memory.
    #[error("the chain endpoint's answer to {method} exceeds {max} bytes")]
    TooLarge {
        /// What was asked.
        method: &'static str,
        /// Bytes allowed.
        max: usize,
    },
    /// An answer of another shape.
    #[error("the chain endpoint's answer to {method} has no usable `{field}`; is it a toncenter v2 API?")]
    Answer {
        /// What was asked.
        method: &'static str,
        /// Which part of the answer.
        field: &'static str,
    },
    /// Cells that cannot be read.
    #[error("cells in the chain endpoint's answer to {method} cannot be read: {source}")]
    Boc {
        /// What was asked.
        method: &'static str,
        /// Why.
        source: BocError,
    },
}

impl ChainError {
    /// Whether asking again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { code, .. } => *code == 429 || *code >= 500,
            _ => false,
        }
    }
}

/// A TON chain, however it is reached.
pub trait Chain: Send + Sync + std::fmt::Debug {
    /// Which chain it is.
    fn identity(&self) -> BoxFuture<'_, Result<ChainIdentity, ChainError>>;

    /// The newest masterchain block.
    fn head(&self) -> BoxFuture<'_, Result<Head, ChainError>>;

    /// An account; a missing one is [`AccountStatus::Absent`] or `Uninit`, not an error.
    fn account<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<AccountState, ChainError>>;

    /// Calls a getter.
    fn run_get_method<'a>(
        &'a self,
        address: &'a Address,
        method: &'a str,
        stack: &'a [StackValue],
    ) -> BoxFuture<'a, Result<GetMethodResult, ChainError>>;

    /// Hands an external message over; returns its hash. Accepted is not included: see [`submit()`].
    fn send<'a>(&'a self, boc: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], ChainError>>;

    /// An account's newest transactions, newest first.
    fn transactions<'a>(
        &'a self,
        address: &'a Address,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<TransactionInfo>, ChainError>>;
}
