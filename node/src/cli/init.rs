//! `cocoon init`: writes what a provider (or a gateway) needs to run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use cocoon_client::genesis::Genesis;

use super::output;
use crate::{
    config::{ENCLAVE_TEMPLATE, EnclaveConfig, GATEWAY_TEMPLATE, GatewayConfig, HOST_TEMPLATE, HostConfig},
    localnet::{self, Layout, Network},
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The folder to make
    #[arg(default_value = "cocoon-provider")]
    folder: PathBuf,
    /// The genesis file of the network to join
    #[arg(long, value_name = "FILE", required_unless_present = "testnet")]
    genesis: Option<PathBuf>,
    /// Join the testnet that runs in this state folder: its genesis, bootstrap peer, chain and software TEE
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "genesis")]
    testnet: Option<Option<PathBuf>>,
    /// Write a gateway's configuration instead of a provider's
    #[arg(long)]
    gateway: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = &args.folder;
    let main = folder.join(if args.gateway { "gateway.toml" } else { "host.toml" });
    if main.exists() {
        bail!("{} exists; edit it, or name another folder", main.display());
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let joined = match &args.testnet {
        Some(state) => {
            let layout = Layout::new(state.clone().unwrap_or_else(Layout::default_root));
            let network = Network::attach(&layout)?;
            Some((layout, network))
        }
        None => None,
    };
    let source = match (&args.genesis, &joined) {
        (Some(path), _) => path.clone(),
        (None, Some((layout, _))) => layout.genesis(),
        (None, None) => bail!("name the network to join: --genesis FILE or --testnet"),
    };
    let genesis = Genesis::load(&source)?;
    fs::copy(&source, folder.join("genesis.toml")).context("cannot copy the genesis file")?;
    let wallet = localnet::ensure_wallet(&folder.join("wallet.txt"), genesis.global_id())?;
    if args.gateway {
        write_gateway(folder, joined.as_ref())?
    } else {
        write_provider(folder, joined.as_ref())?
    }
    output::line(format!("wrote {}", folder.display()));
    output::line(format!("network {}, wallet {}", genesis.name(), wallet.address()));
    output::line("back up wallet.txt: whoever has its words has the money, and nobody else can restore them");
    if joined.is_some() {
        output::line(format!("test coins: cocoon testnet fund {}", wallet.address()));
    }
    output::line(if args.gateway {
        format!("next: fund the wallet, then `cocoon gateway --config {}`", main.display())
    } else {
        format!(
            "next: read {}, fund the wallet for fees, then `cocoon up {}`",
            main.display(),
            folder.display()
        )
    });
    Ok(())
}

type Joined = (Layout, Network);

fn write_provider(folder: &Path, joined: Option<&Joined>) -> anyhow::Result<()> {
    let (host, enclave) = match joined {
        // Without a running network the annotated templates are the best start.
        None => (HOST_TEMPLATE.to_owned(), ENCLAVE_TEMPLATE.replace("\"software-tee\"", "\"tsm\"")),
        Some((layout, network)) => {
            let mut host = HostConfig::worker();
            host.network.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".into(), "/ip4/127.0.0.1/tcp/0".into()];
            host.network.bootstrap.clone_from(&network.bootstrap);
            host.chain.url.clone_from(&network.chain.url);
            host.chain.api_key = network.chain.api_key()?;
            let mut enclave: EnclaveConfig =
                toml::from_str(ENCLAVE_TEMPLATE).context("the enclave template")?;
            enclave.engine.model_digest = hex::encode(cocoon_inference::embedded::digest());
            enclave.tee.platform = layout.platform();
            (host.to_toml(), enclave.to_toml())
        }
    };
    localnet::write_private(&folder.join("host.toml"), host.as_bytes())?;
    localnet::write_private(&folder.join("enclave.toml"), enclave.as_bytes())?;
    Ok(())
}

fn write_gateway(folder: &Path, joined: Option<&Joined>) -> anyhow::Result<()> {
    let text = match joined {
        None => GATEWAY_TEMPLATE.to_owned(),
        Some((_, network)) => {
            let mut config = GatewayConfig::desktop();
            config.network.bootstrap.clone_from(&network.bootstrap);
            config.chain.url.clone_from(&network.chain.url);
            config.chain.api_key = network.chain.api_key()?;
            "test".clone_into(&mut config.policy.assurance);
            config.to_toml()
        }
    };
    Ok(localnet::write_private(&folder.join("gateway.toml"), text.as_bytes())?)
}
