//! `cocoon-sim`: Cocoon's own swarms in virtual time.

mod link;
mod os;
mod scenario;
mod trace;
mod world;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use world::Report;

/// Simulates Cocoon networks: the code that ships, in virtual time, the same on every run.
#[derive(Debug, Parser)]
#[command(name = "cocoon-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one scenario.
    Run {
        /// Which scenario.
        scenario: Scenario,
        /// Determines everything that is random.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Print one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scenario {
    /// Two peers meet; one announces itself, the other hears of it.
    Meet,
}

fn main() -> ExitCode {
    let Command::Run { scenario, seed, json } = Arguments::parse().command;
    let report = match scenario {
        Scenario::Meet => scenario::meet::simulate(seed),
    };
    match report.map(|report| print(&report, json)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error),
        Err(error) => fail(&error),
    }
}

fn print(report: &Report, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::to_string(report)?);
    }
    writeln!(
        out,
        "{} ({} engine), {} peers, seed {}",
        report.scenario, report.engine, report.nodes, report.seed
    )?;
    writeln!(out, "  {:.3} virtual seconds in {:.3} real ones", report.virtual_s, report.wall_s)?;
    writeln!(out, "  {} events, trace {}", report.events, report.trace_hash)?;
    writeln!(out, "  {}", serde_json::to_string_pretty(&report.results)?)
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    let mut text = format!("cocoon-sim: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::FAILURE
}
