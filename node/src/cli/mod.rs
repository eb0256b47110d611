//! The command line.
//!
//! Every command is one module with its arguments and its `run`. What a person reads goes to standard
//! output, progress and logs to standard error; with `--json` standard output carries one JSON value and
//! nothing else. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing is running, 130 interrupted.

mod attest;
mod bench;
mod chain;
mod channel;
mod chat;
mod demo;
mod enclave;
mod gateway;
mod init;
mod model;
mod node;
mod output;
mod service;
mod sse;
mod status;
mod testnet;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::instruments::Instruments;

/// The command line of `cocoon`.
#[derive(Debug, Parser)]
#[command(
    name = "cocoon",
    version,
    about = "Confidential compute open network: sell and buy AI inference, sealed end to end",
    after_help = "Start with `cocoon demo`.  Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing is running, 130 interrupted."
)]
struct Cli {
    /// More log lines on standard error (-v info, -vv debug, -vvv trace); RUST_LOG overrides it
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole network at work: a local testnet, a few questions, a report
    Demo(demo::Args),
    /// Write a provider's configuration, keys and wallet
    Init(init::Args),
    /// Run a provider: its enclave and its host, from the folder that `init` made
    Up(up::Args),
    /// Run the host half of a worker, or a bootstrap peer (network, money, disk)
    Node(node::Args),
    /// Run the enclave half of a worker (Noise, metering, engine)
    Enclave(enclave::Args),
    /// Serve OpenAI's HTTP API on loopback, with a light peer behind it
    Gateway(gateway::Args),
    /// Ask the network: one shot, standard input, or a prompt
    Chat(chat::Args),
    /// What is running here and how it is doing
    Status(status::Args),
    /// A whole network of real processes on this machine
    Testnet(testnet::Args),
    /// Show and verify attestation evidence
    Attest(attest::Args),
    /// Payment channels
    Channel(channel::Args),
    /// Models: list, verify, generate without a network
    Model(model::Args),
    /// Measure
    Bench(bench::Args),
}

/// Why a command ended without doing what was asked, where the exit code says more than "failed".
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The command needs something that runs, and nothing does.
    #[error("{0}")]
    NothingRunning(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// Parses the arguments, runs the command, prints its error.
pub(crate) fn main(instruments: Instruments) -> ExitCode {
    let cli = Cli::parse();
    output::init_logs(cli.verbose);
    match run(cli.command, cli.verbose, instruments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            match error.downcast_ref::<Stop>() {
                Some(Stop::NothingRunning(_)) => ExitCode::from(3),
                Some(Stop::Interrupted) => ExitCode::from(130),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command, verbose: u8, instruments: Instruments) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => service::block_on(demo::run(args, verbose, instruments)),
        Command::Init(args) => init::run(&args),
        Command::Up(args) => service::block_on(up::run(args)),
        Command::Node(args) => node::run(&args, instruments),
        Command::Enclave(args) => enclave::run(&args, instruments),
        Command::Gateway(args) => gateway::run(&args, instruments),
        Command::Chat(args) => service::block_on(chat::run(args)),
        Command::Status(args) => service::block_on(status::run(args)),
        Command::Testnet(args) => testnet::run(args, verbose),
        Command::Attest(args) => attest::run(&args),
        Command::Channel(args) => service::block_on(channel::run(args)),
        Command::Model(args) => model::run(&args),
        Command::Bench(args) => bench::run(args, verbose),
    }
}
