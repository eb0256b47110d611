//! `cocoon enclave`: the half of a worker that sees prompts and answers.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use serde_json::json;

use super::{
    node::overrides,
    service::{Supervised, stop_signal},
};
use crate::{config::EnclaveConfig, enclave, instruments::Instruments};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The configuration file; `cocoon init` writes one
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Override a key of it, as section.key=value
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    supervised: Supervised,
}

pub(super) fn run(args: &Args, instruments: Instruments) -> anyhow::Result<()> {
    args.supervised.attach()?;
    let config = EnclaveConfig::load(&args.config, &overrides(&args.set)?)?;
    // What askers send, and what is computed of it, leaves no trace in memory that is given back.
    crate::memory::overwrite_what_is_freed();
    // The engine has threads of its own; the rest of the enclave moves frames.
    let runtime = crate::process::runtime(1).context("cannot start the runtime")?;
    let supervised = args.supervised.clone();
    runtime.block_on(async move {
        let stop = stop_signal()?;
        enclave::run(config, instruments, stop, move |_| supervised.ready(&json!({}))).await?;
        Ok(())
    })
}
