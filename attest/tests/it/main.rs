//! Integration tests: everything through the public interface.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod fuzz_replay;
mod genuine;
mod live;
mod mutation;
mod oracle;
mod software;
mod testkit;
