//! The contract of `contracts/channel.tolk`, seen from outside: its terms, its address, the messages
//! it takes, and how its account is read.
//!
//! A contract's address is the hash of its code and initial data. Both sides therefore build the
//! initial data themselves from [`ChannelParams`] and compute the address ([`ChannelParams::address`]):
//! whoever gets there has exactly this code and these terms, whatever a chain endpoint says.
//! [`read_account`] then takes only the state that changes (settled amount, closing, expiry) from the
//! chain, and checks that the rest is what it must be.

mod account;
mod messages;
mod params;

pub use account::{OnChain, ReadError, Stage, read_account};
pub use messages::{
    CLOSE_TAG, CloseAgreement, SETTLE_VALUE, coop_close, finalize, open, request_close, settle, top_up,
};
pub use params::{ChannelParams, MAX_PARAMS_BYTES, ParamsError, code, code_hash};

#[cfg(test)]
pub(crate) use params::tests as tests_support;

use crate::NanoTon;

/// What `settle` leaves on the account for its storage; the same constant as in the contract. A
/// voucher is covered only up to the deposit less this.
pub const RESERVE: NanoTon = NanoTon(10_000_000);

/// The contract refuses to open when `open_by` is further ahead than this.
pub const MAX_OPEN_WINDOW_S: u32 = 7 * 86_400;

/// The contract refuses to open with a longer close delay.
pub const MAX_CLOSE_DELAY_S: u32 = 30 * 86_400;
