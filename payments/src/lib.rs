//! Money for Cocoon: payment channels on TON, the vouchers that move through them, and the chain
//! clients that open and settle them.
//!
//! An asker locks a deposit in a [channel] with one worker, then pays by signing
//! [vouchers](Voucher): "this channel owes its worker N nanoTON in total". Each voucher replaces the
//! one before, so the newest is all that either side keeps, and the contract needs neither disputes
//! nor penalties: an old voucher only pays less.
//!
//! | module | what it holds |
//! |---|---|
//! | [`channel`] | the contract's parameters, address, messages, and how its account is read |
//! | [`lane`] | the two ends of a channel as state machines without clock or I/O |
//! | [`wallet`] | wallet v5r1 from a 24-word mnemonic |
//! | [`chain`] | the [`chain::Chain`] trait, the toncenter client, [`chain::submit`] |
//! | [`store`] | what must survive a crash: the worker's vouchers, the asker's keys |
//! | [`cell`] | TON's cells and the one door through which foreign bags of cells come in |
//!
//! Every amount is a [`NanoTon`], every account an [`Address`]; both are checked where they enter.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod address;
pub mod cell;
pub mod chain;
pub mod channel;
pub mod codec;
#[doc(hidden)]
pub mod fuzz;
pub mod lane;
#[cfg(feature = "local-chain")]
pub mod local;
mod receipt;
pub mod store;
mod units;
mod voucher;
pub mod wallet;

pub use address::{Address, AddressError};
pub use receipt::{MAX_RECEIPT_BYTES, MAX_WORKER_ID_BYTES, Receipt, ReceiptError, SignedReceipt};
pub use units::{NanoTon, ParseNanoTonError, token_cost};
pub use voucher::{MAX_VOUCHER_BYTES, SignedVoucher, VOUCHER_TAG, Voucher, VoucherError, VoucherKey};
