//! Tests of the crate through its public interface.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod fuzz_replay;
mod golden;

#[cfg(feature = "engine")]
mod checkpoint;
#[cfg(feature = "engine")]
mod embedder;
#[cfg(feature = "engine")]
mod generation;
#[cfg(feature = "engine")]
mod parity;
#[cfg(feature = "engine")]
mod runner;
#[cfg(feature = "engine")]
mod structure;
#[cfg(feature = "engine")]
mod testkit;
