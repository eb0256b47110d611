//! The crate through its public interface: one binary, so that everything links once.
#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "local-chain")]
mod contract;
#[cfg(feature = "local-chain")]
mod contract_money;
mod crash;
mod endpoint;
mod fuzz_replay;
mod golden;
#[cfg(feature = "local-chain")]
mod local_chain;
#[cfg(feature = "local-chain")]
mod local_crash;
#[cfg(feature = "local-chain")]
mod local_fuzz;
#[cfg(feature = "local-chain")]
mod local_testkit;
#[cfg(feature = "local-chain")]
mod local_toncenter;
#[cfg(feature = "local-chain")]
mod network;
#[cfg(feature = "local-chain")]
mod submit;
mod testkit;
