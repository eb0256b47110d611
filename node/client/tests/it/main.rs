//! Integration tests of the light peer's library: what other crates and strangers' bytes see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fuzz_replay;
mod golden;
