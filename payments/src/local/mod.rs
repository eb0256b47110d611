//! An embedded TON chain: real contract bytecode, real fees, no network.
//!
//! A test network needs a chain that starts in milliseconds, is nobody else's, and still makes every
//! mistake cost what it would cost on TON. [`LocalChain`] executes real transactions with tycho's TVM and
//! transaction executor and keeps its state in one file. There is no consensus: whoever holds the file
//! produces the blocks, when [`LocalChain::produce_block`] is called, and that block is final.
//!
//! | part | what it does |
//! |---|---|
//! | `genesis` | the zero state: own random global id, configuration, faucet |
//! | `block` | which messages a block runs, in which order, within which limits |
//! | `execute` | one message on one account, in tycho's executor |
//! | `store` | redb tables, crash safety, retention |
//! | `mempool`, `faucet` | what waits for the next block |
//! | `getter` | get methods |
//! | [`toncenter()`] | all of it in the JSON shapes of toncenter's HTTP API v2 |
//!
//! **What differs from mainnet.** Transactions of the official emulator (npm
//! `@ton/sandbox`), replayed by the tests, are the evidence for everything that is not listed here.
//!
//! - The TVM is version 12; mainnet is at 14 or later. So `CHKSIGN` accepts zero and identity public
//!   keys, and failed actions bounce what version 12 bounces. Our contract rejects such keys itself.
//! - Fees are mainnet's of 2026-08 and never change; there are no validators, elections or ticktock
//!   transactions, and no masterchain contracts.
//! - One chain of blocks stands for masterchain and basechain both, and what a block sends it delivers at
//!   once while there is room. On mainnet a message between shards takes some seconds and blocks.
//! - `PREVMCBLOCKS` and its siblings find nothing, and public libraries are not collected: contracts here
//!   cannot use libraries of other accounts.
//! - `RANDOM` is predictable: the seed follows from the block before.
//! - A deploying transaction carries `msg_state_used` and `account_activated`, which the official node
//!   leaves unset, which changes its hash and nothing else.
//! - An account that has coins but no code counts as one storage cell, at the official node as none, which
//!   changes hashes and costs such an account some 65,000 nanoTON a year.
//! - A message that tycho's executor cannot execute at all is dropped with its coins and a warning.

mod block;
mod chain;
mod execute;
mod faucet;
mod genesis;
mod getter;
mod mempool;
mod store;
mod toncenter;
#[cfg(test)]
mod vectors;

use std::path::PathBuf;

use thiserror::Error;
use tycho_types::models::StdAddr;

pub use self::{
    block::{MAX_GAS, MAX_TRANSACTIONS},
    chain::{BlockInfo, LocalChain, StoredTransaction},
    faucet::{GRANTS_PER_BLOCK, MAX_GRANT_NANOTON},
    genesis::SUPPLY_NANOTON,
    getter::{
        EXIT_NOT_ACTIVE, GetMethodOutput, MAX_STACK_BYTES, MAX_STACK_DEPTH, MAX_STACK_VALUES, StackValue,
    },
    mempool::{MAX_GRANTS, MAX_PENDING, MAX_PENDING_BYTES},
    store::{KEEP_EMPTY_BLOCKS, KEEP_TRANSACTIONS},
    toncenter::{ToncenterError, toncenter},
};
use crate::Address;

/// Name of the chain's file in its directory.
pub const FILE_NAME: &str = "chain.redb";

/// Largest external message, as in TON's configuration parameter 43.
pub const MAX_MESSAGE_BYTES: usize = 65_535;

/// The chain's file or the virtual machine failed; nothing that a caller sent can cause these.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LocalChainError {
    /// The directory or file cannot be used.
    #[error(
        "cannot use {path} for the local chain: {source}; check that the directory exists and is writable"
    )]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A chain is there already.
    #[error("{path} already holds a chain; open it, or choose an empty directory for a new one")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no chain.
    #[error("{path} holds no chain; create one first")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process; stop that chain first")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by another version.
    #[error("{path} has chain format {found}, this program reads {expected}; start a new chain")]
    Format {
        /// The file.
        path: PathBuf,
        /// Format in the file.
        found: u64,
        /// Format of this program.
        expected: u64,
    },
    /// The database failed, most likely for lack of disk space.
    #[error("the chain's database failed: {0}; check the disk's free space")]
    Storage(#[source] Box<redb::Error>),
    /// Something stored cannot be read back.
    #[error("the chain's {what} cannot be read back; restore the file or start a new chain")]
    Corrupt {
        /// Which part.
        what: &'static str,
    },
    /// A cell could not be built or read.
    #[error("a cell of the chain is malformed: {0}")]
    Cell(#[from] tycho_types::error::Error),
    /// The machine gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(String),
}

impl From<redb::Error> for LocalChainError {
    fn from(error: redb::Error) -> Self {
        Self::Storage(Box::new(error))
    }
}

/// Why an external message was not taken.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Longer than TON allows.
    #[error("the message has {bytes} bytes; TON allows {MAX_MESSAGE_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not a bag of cells with one root.
    #[error("the message is not a bag of cells with one root: {0}")]
    NotABoc(String),
    /// Not an external inbound message.
    #[error("the bag of cells is not an external inbound message: {0}")]
    NotExternal(String),
    /// The destination is no account of this chain.
    #[error("the message goes to {0}; accounts live on workchain 0 or -1 of this chain")]
    Destination(String),
    /// The account refuses it.
    #[error("the account did not accept the external message{}; check its sequence number, expiry, wallet id and signature", exit(.exit_code))]
    NotAccepted {
        /// The contract's exit code, if it ran.
        exit_code: Option<i32>,
    },
    /// The virtual machine could not run it.
    #[error("the message cannot be executed: {0}")]
    Impossible(String),
    /// The waiting room is full.
    #[error("{MAX_PENDING} messages wait already; send again after the next block")]
    Full,
    /// The chain failed.
    #[error(transparent)]
    Chain(#[from] LocalChainError),
}

/// Why the faucet gives nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FaucetError {
    /// Nothing or too much was asked for.
    #[error("amount is {nanoton} nanoTON; ask for 1 to {MAX_GRANT_NANOTON}")]
    Amount {
        /// What was asked for.
        nanoton: u64,
    },
    /// No account of this chain has the address.
    #[error("the address is on workchain {workchain}; accounts live on workchain 0 or -1 of this chain")]
    Workchain {
        /// What was asked for.
        workchain: i8,
    },
    /// The waiting room is full.
    #[error("{MAX_GRANTS} grants wait already; ask again after the next block")]
    Full,
}

/// Why a get method did not run. A contract's own failure is an exit code, not an error.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GetMethodError {
    /// The virtual machine could not run it, or its result has no form outside the machine.
    #[error("the get method cannot be answered: {0}")]
    Impossible(String),
    /// The chain failed.
    #[error(transparent)]
    Chain(#[from] LocalChainError),
}

fn exit(code: &Option<i32>) -> String {
    code.map_or_else(String::new, |code| format!(" (exit code {code})"))
}

fn account_key(address: &StdAddr) -> store::AccountKey {
    Address { workchain: address.workchain, hash: address.address.0 }.to_bytes()
}

fn std_addr(address: &Address) -> StdAddr {
    StdAddr::new(address.workchain, address.hash.into())
}
