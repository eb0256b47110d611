//! The light peer of Cocoon: find, verify, pay and ask workers from any program.
//!
//! ```text
//!   LightPeer::chat
//!     1 discover   signed ads, by gossip and snapshots          cocoon_p2p
//!     2 choose     policy, then score, then a lottery           cocoon_p2p::core
//!     3 attest     evidence by digest, verified here            cocoon_attest
//!     4 connect    a Noise channel that ends inside the TEE     session::{outer, inner}
//!     5 pay+run    vouchers lead the tokens by one quantum      session::{meter, asker}
//!     6 settle     the worker redeems its newest voucher        cocoon_payments
//! ```
//!
//! [`LightPeer`] joins these: it keeps a few channels funded in the background, one attested
//! session per worker, and turns a [`ChatRequest`] into an [`Answer`], a stream of tokens that ends
//! with a [`Receipt`]. When a worker fails, another one continues the same answer.
//!
//! The lower modules are also the worker's: [`genesis`] says which network it is, [`session`] is
//! the wire between an asker and an enclave.
//!
//! This crate contains no inference engine, HTTP server or chain of its own.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod codec;
#[doc(hidden)]
pub mod fuzz;
pub mod genesis;
mod peer;
pub mod session;

pub use codec::CodecError;
pub use peer::{
    Answer, AnswerEvent, AskPolicy, ChainEndpoint, ChannelStatus, ChannelView, ChatError, ChatRequest,
    Config, ConfigError, DEFAULT_DEPOSIT, FailedLeg, Leg, LegStart, LightPeer, ModelListing, PeerStatus,
    Receipt, RefusedWorker, StartError, StepTimings,
};
