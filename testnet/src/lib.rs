//! Drives local networks of real `cocoon` processes for the end-to-end tests.
//!
//! Nothing here reaches into a process: a [`Testnet`] is started with the command line, asked over HTTP,
//! killed with signals and looked at through its state directory, as any user could.

#![allow(clippy::disallowed_methods, reason = "a test harness is a shell")]

pub mod capture;
pub mod null_cipher;
mod run;

pub use run::{Answer, Testnet, answer_events, cocoon, instrumented, kill};
