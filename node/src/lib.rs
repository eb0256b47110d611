//! The `cocoon` binary as a library: the worker's two processes, the gateway, local networks and the command line.
//!
//! - [`host`] and [`enclave`] are the two halves of a worker, joined by [`link`]: the host owns network, money and
//!   disk, the enclave owns prompts, answers and session keys, and neither can do the other's work.
//! - [`config`] reads their configuration files, [`instruments`] is what a test may replace in them.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod chain;
mod cli;
pub mod config;
pub mod enclave;
pub mod gateway;
pub mod host;
pub mod http;
pub mod instruments;
pub mod link;
pub mod localnet;
mod memory;
pub mod process;

#[doc(hidden)]
pub mod fuzz;

pub use instruments::{Instruments, Tap};

/// Runs the program: parses the command line, does what it says, and returns its exit code.
///
/// The `cocoon` binary passes [`Instruments::default`].
pub fn main_with(instruments: Instruments) -> std::process::ExitCode {
    cli::main(instruments)
}
