//! `cocoon bench`: measurements, each against a named limit.

mod inference;
mod load;
mod session;
mod soak;

use clap::{Args as ClapArgs, Subcommand};

use super::service;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A model on this machine: prompt and answer tokens per second
    Inference(inference::Args),
    /// Many askers of every kind at one engine, to find leaks and wrong answers
    Soak(soak::Args),
    /// Requests through gateway, host and enclave as real processes, with payment and encryption on
    Session(session::Args),
    /// The load generator of `session`: asks a gateway and measures
    Load(load::Args),
}

pub(super) fn run(args: Args, verbose: u8) -> anyhow::Result<()> {
    match args.command {
        Command::Inference(args) => inference::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Session(args) => service::block_on(session::run(args, verbose)),
        Command::Load(args) => load::run(&args),
    }
}
