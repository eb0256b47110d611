//! `cocoon node`: the host half of a worker, or a bootstrap peer.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use serde_json::json;

use super::service::{Supervised, stop_signal};
use crate::{
    config::{HostConfig, Overrides},
    host,
    instruments::Instruments,
};

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
    let config = HostConfig::load(&args.config, &overrides(&args.set)?)?;
    let runtime = crate::process::runtime(config.threads).context("cannot start the runtime")?;
    let supervised = args.supervised.clone();
    runtime.block_on(async move {
        let stop = stop_signal()?;
        host::run(config, instruments, stop, move |ready| {
            supervised.ready(&json!({"peer_id": ready.peer_id, "listen": ready.listen}));
        })
        .await?;
        Ok(())
    })
}

/// The environment's overrides, then the flags'.
pub(super) fn overrides(set: &[String]) -> anyhow::Result<Overrides> {
    let mut overrides = Overrides::from_env();
    for text in set {
        overrides.set(text)?;
    }
    Ok(overrides)
}
