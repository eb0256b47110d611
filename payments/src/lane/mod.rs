//! The two ends of a channel as values that turn inputs into results: no clock, no I/O.
//!
//! A *lane* is the ordered sequence of vouchers on one channel. It has one writer, the asker's
//! [`Payer`], and one reader, the worker's [`Payee`]. Invariants:
//!
//! - **The cumulative amount only rises**, on both ends, whatever arrives in whatever order. A stale
//!   or repeated voucher is refused and changes nothing.
//! - **The payee accepts nothing that the chain might not pay**: it works from a confirmed, recent read
//!   of the account and refuses when the channel closes, nears its expiry, or runs out of deposit.
//! - **What one voucher adds is credited once**: [`allocate`] spreads exactly the difference. It is counted
//!   from the newest voucher held or from what the chain has paid, whichever is more, so that a payee that
//!   lost its vouchers does not credit again what it was paid already.
//!
//! The payee's shell must make an accepted voucher durable *before* it credits it. So
//! [`Payee::check`] decides without changing anything, and [`Payee::commit`] moves the lane on after
//! the write.

mod allocation;
mod payee;
mod payer;
mod possession;

pub use allocation::{Allocated, AllocationError, MAX_ALLOCATIONS, allocate};
pub use payee::{Accepted, Payee, PayeePolicy, Refusal, RefusedFor};
pub use payer::{AdoptError, PayError, Payer, PayerError};
pub use possession::{ProofError, SESSION_LABEL, verify_session};

use crate::NanoTon;

/// Deposit that neither end counts on, for storage fees between two reads of the account: a year's at
/// the prices of 2026, weeks at the highest that TON has had.
pub const HEADROOM: NanoTon = NanoTon(1_000_000);
