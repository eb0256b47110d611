//! Integration tests of the light peer's library: what other crates and strangers' bytes see.

mod fuzz_replay;
mod golden;
