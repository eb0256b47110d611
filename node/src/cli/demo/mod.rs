//! `cocoon demo`: the whole network at work, and a report of what happened.
//!
//! Starts a testnet (or uses one that runs), joins it with a light peer of its own, asks a few questions,
//! settles on the chain, and reports each of the six steps. Nothing in the report is taken on trust: the
//! evidence is verified again from its bytes, the receipts' signatures are checked against the key in
//! it, and the settlement is read back from the chain's HTTP endpoint. What it read lies in the state
//! folder afterwards, so that anybody can derive the report again.

// A shell: it measures how long things take.
#![allow(clippy::disallowed_methods, reason = "commands are shells")]

mod ask;
mod check;
mod report;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use cocoon_client::{LightPeer, genesis::Genesis};
use cocoon_payments::NanoTon;
use serde_json::{Value, json};

use super::{gateway::peer_config, output, service};
use crate::{
    config::{GatewayConfig, Overrides},
    instruments::Instruments,
    localnet::{self, Engine, Layout, Localnet, Network, Options, Progress},
};

/// How long the light peer may take to find, verify and fund its workers.
const JOIN: Duration = Duration::from_secs(30);
/// What the demo's wallet gets from the faucet.
const FUNDS: NanoTon = NanoTon(20_000_000_000);
/// What is asked, if nothing else is.
const QUESTIONS: &[&str] =
    &["What is 347+285?", "Reverse the word planet.", "What is a voucher?", "Is my prompt private?"];

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Ask this instead (may be given several times)
    #[arg(short, long = "question", value_name = "TEXT")]
    questions: Vec<String>,
    /// How many workers
    #[arg(short, long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    workers: u16,
    /// Keep the network's state in this folder [default: removed at the end]
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    keep: Option<Option<PathBuf>>,
    /// Use the testnet that runs in this state folder instead of starting one
    #[arg(long, value_name = "DIR", conflicts_with_all = ["keep", "workers"])]
    testnet: Option<PathBuf>,
    /// Print the report as one JSON object on standard output; text for people goes to standard error
    #[arg(long)]
    json: bool,
}

/// A network that is there for the demo, started by it or not.
struct Stage {
    layout: Layout,
    network: Network,
    owned: Option<Localnet>,
    // Removed with the state folder in it, unless it is to be kept.
    _scratch: Option<tempfile::TempDir>,
}

pub(super) async fn run(args: Args, verbose: u8, instruments: Instruments) -> anyhow::Result<()> {
    let started = Instant::now();
    let stop = service::stop_signal()?;
    let say = Say { to_stderr: args.json };
    let stage = Stage::set(&args, verbose, stop.clone(), say).await?;
    let mut stopping = stop;
    let result = tokio::select! {
        result = perform(&args, &stage, &instruments, say) => result,
        _ = stopping.wait_for(|stop| *stop) => Err(super::Stop::Interrupted.into()),
    };
    let kept = stage.layout.root().to_owned();
    let keep = args.keep.is_some();
    stage.strike().await;
    let mut report = result?;
    report["total_s"] = started.elapsed().as_secs_f64().into();
    if keep {
        report["state"] = kept.display().to_string().into();
        std::fs::write(kept.join("demo/report.json"), format!("{report:#}\n"))
            .context("cannot keep the report")?;
    }
    report::print(&report, say);
    if args.json {
        output::json(&report);
    }
    Ok(())
}

/// Where text for people goes.
#[derive(Debug, Clone, Copy)]
struct Say {
    to_stderr: bool,
}

impl Say {
    fn line(self, text: impl AsRef<str>) {
        if self.to_stderr { output::note(text) } else { output::line(text) }
    }

    fn piece(self, text: &str) {
        if self.to_stderr {
            use std::io::Write as _;
            let _ = write!(std::io::stderr(), "{text}");
        } else {
            output::piece(text);
        }
    }
}

impl Stage {
    async fn set(
        args: &Args,
        verbose: u8,
        stop: tokio::sync::watch::Receiver<bool>,
        say: Say,
    ) -> anyhow::Result<Self> {
        if let Some(state) = &args.testnet {
            let layout = Layout::new(std::path::absolute(state)?);
            let network = Network::attach(&layout)?;
            return Ok(Self { layout, network, owned: None, _scratch: None });
        }
        let (root, scratch) = match &args.keep {
            Some(Some(folder)) => (std::path::absolute(folder)?, None),
            Some(None) => (tempfile::Builder::new().prefix("cocoon-demo-").tempdir()?.keep(), None),
            None => {
                let scratch = tempfile::Builder::new().prefix("cocoon-demo-").tempdir()?;
                (scratch.path().to_owned(), Some(scratch))
            }
        };
        let options = Options {
            layout: Layout::new(root),
            workers: usize::from(args.workers),
            engine: Engine::Model { pace_ms: 0 },
            // The demo is a light peer itself, so no gateway stands between it and the network.
            gateway: false,
            block_interval: Duration::from_millis(250),
            program: std::env::current_exe().context("cannot find this program's own file")?,
            odd_enclave: None,
            verbose,
        };
        say.line("starting a local network (software TEE — test network: it protects nothing)");
        let bar = output::spinner("starting");
        let mut progress = |event: Progress| match event {
            Progress::Step(text) => bar.set_message(text),
            Progress::Ready(name) => bar.println(format!("  {name} is ready")),
        };
        let up = Localnet::up(options, &mut progress, stop).await;
        bar.finish_and_clear();
        let localnet = up?;
        Ok(Self {
            layout: localnet.layout().clone(),
            network: localnet.network().clone(),
            owned: Some(localnet),
            _scratch: scratch,
        })
    }

    async fn strike(self) {
        if let Some(localnet) = self.owned {
            localnet.down().await;
        }
    }

    /// Fails if a process of the network is gone.
    fn whole(&self) -> anyhow::Result<()> {
        let missing: Vec<String> = self
            .network
            .missing()
            .iter()
            .map(|process| {
                format!("{} (process {}, log {})", process.name, process.pid, process.log.display())
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        bail!("not every process of the network runs; missing: {}", missing.join(", "))
    }
}

async fn perform(args: &Args, stage: &Stage, instruments: &Instruments, say: Say) -> anyhow::Result<Value> {
    stage.whole()?;
    let folder = stage.layout.process("demo");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;

    let bar = output::spinner("joining: discovering workers, verifying their evidence, funding channels");
    let joined = Instant::now();
    let peer = join(stage, instruments).await;
    bar.finish_and_clear();
    let peer = peer?;
    let join_ms = joined.elapsed().as_secs_f64() * 1e3;

    let questions: Vec<&str> = if args.questions.is_empty() {
        QUESTIONS.to_vec()
    } else {
        args.questions.iter().map(String::as_str).collect()
    };
    let mut answers = Vec::new();
    for question in questions {
        answers.push(
            ask::ask(&peer, question, say).await.with_context(|| format!("no answer to {question:?}"))?,
        );
    }
    let workers = check::workers(stage, &peer, &answers, &folder)?;
    let settlements = check::settle(stage, &answers).await?;
    let peers = serde_json::to_value(peer.peers())?;
    let channels = serde_json::to_value(peer.channels())?;
    peer.close().await;
    stage.whole()?;

    let steps = report::steps(&answers, &settlements, join_ms);
    Ok(json!({
        "assurance": "test",
        "warning": "software TEE — test network",
        "network": {
            "name": stage.network.name, "network_id": stage.network.network_id,
            "processes": stage.network.processes, "ready_ms": stage.network.ready_ms,
        },
        "peers": peers,
        "workers": workers,
        "answers": answers.iter().map(ask::Asked::to_json).collect::<Vec<_>>(),
        "channels": channels,
        "settlements": settlements,
        "steps_ms": steps,
    }))
}

/// Starts a light peer with a wallet of its own and waits until it could ask.
async fn join(stage: &Stage, instruments: &Instruments) -> anyhow::Result<LightPeer> {
    let config = stage.gateway_config()?;
    let file = stage.layout.process("demo").join("peer.toml");
    localnet::write_private(&file, config.to_toml().as_bytes())?;
    let config = GatewayConfig::load(&file, &Overrides::default())?;
    let global_id = Genesis::load(stage.layout.genesis())?.global_id();
    let wallet = localnet::ensure_wallet(&config.wallet.mnemonic_file, global_id)?;
    localnet::Faucet::new(&config.chain)?.fund(&wallet.address(), FUNDS).await?;
    let peer = LightPeer::start(peer_config(&config, instruments)?).await?;
    let deadline = Instant::now() + JOIN;
    loop {
        let status = peer.status().await;
        if status.ready() {
            return Ok(peer);
        }
        if Instant::now() >= deadline {
            let status = serde_json::to_value(&status).unwrap_or_default();
            bail!("no attested, funded worker within {} s; the light peer says {status}", JOIN.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Stage {
    fn gateway_config(&self) -> anyhow::Result<GatewayConfig> {
        let folder = self.layout.process("demo");
        let mut config = GatewayConfig::desktop();
        config.genesis = self.layout.genesis();
        config.state = folder.join("state");
        config.network.bootstrap.clone_from(&self.network.bootstrap);
        config.chain.url.clone_from(&self.network.chain.url);
        config.chain.api_key = self.network.chain.api_key()?;
        config.chain.refresh_s = 2;
        config.wallet.mnemonic_file = folder.join("wallet.txt");
        "test".clone_into(&mut config.policy.assurance);
        config.payment.channels = 2;
        Ok(config)
    }
}
