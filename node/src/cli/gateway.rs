//! `cocoon gateway`: OpenAI's HTTP API on loopback.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args as ClapArgs;
use cocoon_client::{AskPolicy, ChainEndpoint, Config, LightPeer, genesis::Genesis};
use cocoon_payments::NanoTon;
use serde_json::json;

use super::{
    node::overrides,
    output,
    service::{Supervised, stop_signal},
};
use crate::{
    config::{GatewayConfig, multiaddrs},
    gateway::{Gateway, ServeConfig},
    instruments::Instruments,
    localnet,
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The configuration file; `cocoon init --gateway` writes one
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
    let config = GatewayConfig::load(&args.config, &overrides(&args.set)?)?;
    let runtime = crate::process::runtime(config.threads).context("cannot start the runtime")?;
    runtime.block_on(serve(config, &args.supervised, instruments))
}

async fn serve(
    config: GatewayConfig,
    supervised: &Supervised,
    instruments: Instruments,
) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let key = localnet::ensure_key(&config.api_key_file)?;
    let serve = ServeConfig {
        listen: config.listen,
        api_key: key,
        spend_cap: Some(config.payment.spend_cap_nanoton).filter(|cap| *cap > 0).map(NanoTon),
        deadline: Duration::from_secs(config.deadline_s),
    };
    let peer = LightPeer::start(peer_config(&config, &instruments)?).await?;
    let gateway = Gateway::bind(serve, peer.clone()).await?;
    let base_url = format!("http://{}/v1", gateway.address());
    supervised.ready(&json!({"base_url": base_url}));
    output::note(format!("serving {base_url}, key in {}", config.api_key_file.display()));
    gateway.serve(stop).await?;
    peer.close().await;
    Ok(())
}

/// The light peer's configuration, from a gateway's.
pub(super) fn peer_config(config: &GatewayConfig, instruments: &Instruments) -> anyhow::Result<Config> {
    let genesis = Genesis::load(&config.genesis)?;
    let wallet = std::fs::read_to_string(&config.wallet.mnemonic_file)
        .with_context(|| format!("cannot read the wallet {}", config.wallet.mnemonic_file.display()))?;
    let mut peer = Config::new(genesis, config.state.clone(), wallet.trim())?;
    peer.listen = multiaddrs("network.listen", &config.network.listen)?;
    peer.bootstrap = multiaddrs("network.bootstrap", &config.network.bootstrap)?;
    let api_key = Some(config.chain.api_key.clone()).filter(|key| !key.is_empty());
    peer.chain = ChainEndpoint { url: config.chain.url.clone(), api_key };
    peer.policy = AskPolicy {
        minimum: config.policy.assurance.parse().context("policy.assurance")?,
        max_price_input: config.policy.max_price_input,
        max_price_output: config.policy.max_price_output,
        live: config.policy.live.parse().context("policy.live")?,
    };
    peer.deposit = NanoTon(config.payment.deposit_nanoton);
    peer.channels = config.payment.channels;
    peer.crypto = instruments.crypto;
    Ok(peer)
}
