//! `cocoon testnet chain`: only the local chain.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args as ClapArgs;
use serde_json::json;

use super::{
    output,
    service::{Supervised, stop_signal},
};
use crate::{chain::ChainServerConfig, localnet};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The chain's folder; a new chain is made in it if there is none
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Loopback address; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// File with the key that every request must carry; made when it does not exist
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Milliseconds between blocks
    #[arg(long, default_value_t = 250)]
    block_ms: u64,
    #[command(flatten)]
    supervised: Supervised,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    args.supervised.attach()?;
    let key_file = args.key_file.clone().unwrap_or_else(|| args.dir.with_extension("key"));
    let api_key = localnet::ensure_key(&key_file)?;
    let config = ChainServerConfig {
        dir: args.dir.clone(),
        listen: args.listen,
        api_key: Some(api_key),
        block_interval: Duration::from_millis(args.block_ms),
        faucet: true,
    };
    let runtime = crate::process::runtime(1).context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        let server = crate::chain::bind(config).await?;
        let url = format!("http://{}/api/v2", server.address());
        args.supervised.ready(&json!({"url": url}));
        output::note(format!("local chain (simulated, not TON) at {url}, key in {}", key_file.display()));
        server.serve(stop).await?;
        Ok(())
    })
}
