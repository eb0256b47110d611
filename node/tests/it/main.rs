//! Integration tests of the worker: fuzz corpora, and host and enclave as they run, in one process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "real processes have real clocks")]

mod fuzz_replay;
mod remote;
mod worker;
