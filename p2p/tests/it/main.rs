//! Real swarms over loopback, golden encodings, and replays of the fuzz corpora.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod fuzz_replay;
mod golden;
mod kit;
mod misbehaviour;
mod overlay;
mod sessions;
