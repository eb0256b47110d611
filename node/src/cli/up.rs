//! `cocoon up`: runs a provider, its enclave and its host, from the folder that `init` made.

use std::{path::PathBuf, time::Duration};

use anyhow::bail;
use clap::Args as ClapArgs;

use super::{output, service};
use crate::{
    config::{EnclaveConfig, HostConfig, Overrides},
    localnet::{Layout, Process, tail},
};

/// A model of many gigabytes has to load.
const READY: Duration = Duration::from_secs(600);

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The folder with host.toml and enclave.toml
    #[arg(default_value = "cocoon-provider")]
    folder: PathBuf,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let folder = std::path::absolute(&args.folder)?;
    let (host, enclave) = (folder.join("host.toml"), folder.join("enclave.toml"));
    // Both are read here too, so that a mistake is told at once and not from a log.
    let overrides = Overrides::from_env();
    let config = HostConfig::load(&host, &overrides)?;
    let enclave_config = EnclaveConfig::load(&enclave, &overrides)?;
    if config.enclave.socket != enclave_config.socket {
        bail!(
            "host.toml and enclave.toml name different sockets, {} and {}; make `enclave.socket` and `socket` equal",
            config.enclave.socket.display(),
            enclave_config.socket.display()
        );
    }
    let stop = service::stop_signal()?;
    let layout = Layout::new(&folder);
    let program = std::env::current_exe()?;
    let bar = output::spinner("starting the enclave");
    let start = |name: &str, command: &str, path: &PathBuf| {
        Process::spawn(&layout, name, &program, vec![command.into(), "--config".into(), path.into()])
    };
    let mut enclave = start("enclave", "enclave", &enclave)?;
    let mut host = start("host", "node", &host)?;
    let ready = async {
        enclave.ready(READY).await?;
        bar.set_message("starting the host");
        host.ready(READY).await
    };
    let mut stopping = stop;
    let result = tokio::select! {
        ready = ready => ready.map(Some),
        _ = stopping.wait_for(|stop| *stop) => Ok(None),
    };
    bar.finish_and_clear();
    let outcome = match result {
        Ok(Some(ready)) => {
            output::note(format!(
                "serving as {}; `cocoon status --provider {}` tells more",
                ready["peer_id"],
                folder.display()
            ));
            tokio::select! {
                status = enclave.wait() => Err(format!("the enclave ended ({status:?}); the end of its log:\n{}", tail(&layout.log("enclave")))),
                status = host.wait() => Err(format!("the host ended ({status:?}); the end of its log:\n{}", tail(&layout.log("host")))),
                _ = stopping.wait_for(|stop| *stop) => Ok(()),
            }
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    host.stop().await;
    enclave.stop().await;
    outcome.map_err(anyhow::Error::msg)
}
