//! `cocoon testnet`: a whole network of real processes on this machine.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command as ChildCommand, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, Subcommand};
use cocoon_payments::{Address, NanoTon};
use serde_json::json;

use super::{Stop, chain, output, service, status};
use crate::localnet::{AttachError, Engine, Faucet, Layout, Localnet, Network, Options, Progress, tail};

/// How long `down` waits for the supervisor to stop everything.
const DOWN: Duration = Duration::from_secs(30);
/// How long `up --detach` waits for the network.
const DETACHED: Duration = Duration::from_secs(120);

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a chain, a bootstrap peer, workers and a gateway; Ctrl-C stops them
    Up(UpArgs),
    /// Stop a network
    Down(StateArgs),
    /// Which processes run, and how each is doing
    Status(StatusArgs),
    /// Print logs
    Logs(LogsArgs),
    /// Give a wallet coins of the local chain
    Fund(FundArgs),
    /// Run only the local chain
    Chain(chain::Args),
}

#[derive(Debug, ClapArgs)]
pub(super) struct StateArgs {
    /// State folder of the network [default: $COCOON_STATE, or cocoon/testnet in the user's state folder]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl StateArgs {
    pub(super) fn layout(&self) -> Layout {
        let root = self.state.clone().unwrap_or_else(Layout::default_root);
        Layout::new(std::path::absolute(&root).unwrap_or(root))
    }
}

#[derive(Debug, ClapArgs)]
struct UpArgs {
    #[command(flatten)]
    state: StateArgs,
    /// How many workers, each a host and an enclave
    #[arg(short, long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=32))]
    workers: u16,
    /// Return once the network answers, and leave it running
    #[arg(short, long)]
    detach: bool,
    /// Milliseconds between blocks of the local chain
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(20..=60_000))]
    block_ms: u64,
    /// Least milliseconds between two tokens, to watch an answer being made
    #[arg(long, default_value_t = 0)]
    pace_ms: u64,
    /// Answer with a fixed pattern instead of a model, as `tokens`x`bytes`
    #[arg(long, value_name = "NxB", value_parser = parse_echo)]
    echo: Option<(u32, u32)>,
    /// Another executable for one worker's enclave, as `worker`=`path`: to see it refused
    #[arg(long, value_name = "N=PATH", value_parser = parse_odd, hide = true)]
    odd_enclave: Option<(usize, PathBuf)>,
    /// Print what runs as one JSON object
    #[arg(long)]
    json: bool,
}

fn parse_echo(text: &str) -> Result<(u32, u32), String> {
    let pair = text.split_once('x').and_then(|(n, b)| Some((n.parse().ok()?, b.parse().ok()?)));
    pair.filter(|(n, b)| *n > 0 && *b > 0)
        .ok_or_else(|| "write it as 50x145: tokens, then bytes of each".to_owned())
}

fn parse_odd(text: &str) -> Result<(usize, PathBuf), String> {
    let pair = text.split_once('=').and_then(|(n, path)| Some((n.parse().ok()?, PathBuf::from(path))));
    pair.ok_or_else(|| "write it as 2=/path/to/executable".to_owned())
}

#[derive(Debug, ClapArgs)]
struct StatusArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct LogsArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Only this process
    process: Option<String>,
    /// Go on printing what is added
    #[arg(short, long)]
    follow: bool,
}

#[derive(Debug, ClapArgs)]
struct FundArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The wallet: `workchain:hex` or the base64 form
    address: Address,
    /// How many whole test coins
    #[arg(default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    ton: u64,
}

pub(super) fn run(args: Args, verbose: u8) -> anyhow::Result<()> {
    match args.command {
        Command::Up(args) if args.detach => service::block_on(async { up_detached(&args) }),
        Command::Up(args) => service::block_on(up(args, verbose)),
        Command::Down(args) => down(&args),
        Command::Status(args) => service::block_on(show_status(args)),
        Command::Logs(args) => logs(&args),
        Command::Fund(args) => service::block_on(fund(args)),
        Command::Chain(args) => chain::run(&args),
    }
}

fn options(args: &UpArgs, verbose: u8) -> anyhow::Result<Options> {
    Ok(Options {
        layout: args.state.layout(),
        workers: usize::from(args.workers),
        engine: match args.echo {
            Some((tokens, bytes)) => Engine::Echo { tokens, bytes },
            None => Engine::Model { pace_ms: args.pace_ms },
        },
        gateway: true,
        block_interval: Duration::from_millis(args.block_ms),
        program: std::env::current_exe().context("cannot find this program's own file")?,
        odd_enclave: args.odd_enclave.clone(),
        verbose,
    })
}

async fn up(args: UpArgs, verbose: u8) -> anyhow::Result<()> {
    let stop = service::stop_signal()?;
    let bar = output::spinner("starting");
    let mut progress = |event: Progress| match event {
        Progress::Step(text) => bar.set_message(text),
        Progress::Ready(name) => bar.println(format!("  {name} is ready")),
    };
    let result = Localnet::up(options(&args, verbose)?, &mut progress, stop.clone()).await;
    bar.finish_and_clear();
    let mut localnet = result?;
    announce(localnet.network(), args.json)?;
    let mut stopping = stop;
    loop {
        tokio::select! {
            (name, how) = localnet.watch() => {
                let log = localnet.layout().log(&name);
                output::note(format!("{name} ended ({how}); the end of {}:\n{}", log.display(), tail(&log)));
            }
            _ = stopping.wait_for(|stop| *stop) => break,
        }
    }
    output::note("stopping");
    localnet.down().await;
    Ok(())
}

async fn fund(args: FundArgs) -> anyhow::Result<()> {
    let network = Network::attach(&args.state.layout()).map_err(|e| Stop::NothingRunning(e.to_string()))?;
    let faucet = Faucet::at(&network.chain.url, network.chain.api_key()?)?;
    faucet.fund(&args.address, NanoTon(args.ton.saturating_mul(1_000_000_000))).await?;
    output::line(format!("{} test TON are on their way to {}", args.ton, args.address));
    Ok(())
}

/// Starts this program again without `--detach`, in a session of its own, and waits for the network. If that
/// fails, nothing goes on running.
fn up_detached(args: &UpArgs) -> anyhow::Result<()> {
    let stop = service::stop_signal()?;
    let layout = args.state.layout();
    if Network::attach(&layout).is_ok() {
        bail!("a testnet already runs in {}; stop it with `cocoon testnet down`", layout.root().display());
    }
    let log = layout.log("supervisor");
    std::fs::create_dir_all(log.parent().unwrap_or(layout.root())).context("cannot make the log folder")?;
    let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = out.try_clone().context("cannot share the log file")?;
    let arguments: Vec<OsString> =
        std::env::args_os().skip(1).filter(|argument| argument != "--detach" && argument != "-d").collect();
    let mut command = ChildCommand::new(std::env::current_exe()?);
    command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(errors);
    // A group of its own, so that the Ctrl-C of this terminal does not reach it.
    let mut child = command.process_group(0).spawn().context("cannot start the supervisor")?;
    let bar = output::spinner("starting in the background");
    let network = service::wait_until(DETACHED, || {
        if *stop.borrow() {
            return Err(Stop::Interrupted.into());
        }
        if let Some(status) = child.try_wait()? {
            bail!("the network did not come up ({status}); the end of {}:\n{}", log.display(), tail(&log));
        }
        Ok(Network::attach(&layout).ok().filter(|network| network.supervisor == child.id()))
    });
    bar.finish_and_clear();
    let announced = network
        .and_then(|network| {
            network.with_context(|| format!("the network was not ready in time; see {}", log.display()))
        })
        .and_then(|network| announce(&network, args.json));
    if announced.is_err() {
        abandon(&mut child);
    }
    announced
}

/// Ends a supervisor that nobody will use: asks it to stop what it started, and kills it if it does not,
/// which its processes do not outlive either.
fn abandon(child: &mut Child) {
    // The process id of a child that was waited for may be somebody else's already.
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    crate::process::terminate(child.id());
    let ended = service::wait_until(DOWN, || Ok(child.try_wait()?));
    if !matches!(ended, Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Prints what a person, or a program, needs to use the network.
fn announce(network: &Network, json: bool) -> anyhow::Result<()> {
    let key = network.api_key().context("cannot read the gateway's key")?;
    if json {
        let mut value = serde_json::to_value(network)?;
        value["api_key"] = key.into();
        output::json(&value);
        return Ok(());
    }
    output::line(format!(
        "network {} is ready ({:.1} s); test network: a software TEE protects nothing",
        network.name,
        network.ready_ms / 1e3
    ));
    output::line(format!("export OPENAI_BASE_URL={}\nexport OPENAI_API_KEY={key}", network.base_url));
    output::line(format!(
        "curl -sN {}/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
         -d '{{\"model\":\"{}\",\"temperature\":0,\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"What is 12+34?\"}}]}}'",
        network.base_url,
        cocoon_inference::embedded::NAME,
    ));
    output::note("ask it with `cocoon chat`; stop it with Ctrl-C or `cocoon testnet down`");
    Ok(())
}

fn attach(layout: &Layout) -> anyhow::Result<Network> {
    Network::attach(layout).map_err(|error| match error {
        AttachError::NotRunning(_) => Stop::NothingRunning(error.to_string()).into(),
        other => other.into(),
    })
}

fn down(args: &StateArgs) -> anyhow::Result<()> {
    let layout = args.layout();
    let network = attach(&layout)?;
    crate::process::terminate(network.supervisor);
    let gone = service::wait_until(DOWN, || Ok((!crate::process::alive(network.supervisor)).then_some(())))?;
    gone.with_context(|| format!("the supervisor, process {}, does not end", network.supervisor))?;
    output::note(format!(
        "network {} is stopped; its state stays in {}",
        network.name,
        layout.root().display()
    ));
    Ok(())
}

async fn show_status(args: StatusArgs) -> anyhow::Result<()> {
    let layout = args.state.layout();
    let network = attach(&layout)?;
    let report = status::network(&layout, &network).await;
    if args.json {
        output::json(&json!({"network": network, "processes": report}));
    } else {
        output::line(format!("network {} — {}", network.name, network.base_url));
        status::print(&report);
    }
    Ok(())
}

fn logs(args: &LogsArgs) -> anyhow::Result<()> {
    let layout = args.state.layout();
    let folder = layout.root().join("logs");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .with_context(|| format!("there are no logs in {}; no testnet has run there", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .filter(|name| args.process.as_ref().is_none_or(|wanted| wanted == name))
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("no process of that name has a log in {}", folder.display());
    }
    let mut files = Vec::new();
    for name in names {
        let file = File::open(layout.log(&name)).with_context(|| format!("cannot open the log of {name}"))?;
        files.push((name, BufReader::new(file)));
    }
    loop {
        let mut printed = false;
        for (name, file) in &mut files {
            // A line without its end is still being written: leave it for the next round.
            let mut line = Vec::new();
            while file.by_ref().take(1 << 20).read_until(b'\n', &mut line)? > 0 {
                if line.last() != Some(&b'\n') && args.follow {
                    file.seek(SeekFrom::Current(-i64::try_from(line.len())?))?;
                    break;
                }
                output::line(format!("{name}: {}", String::from_utf8_lossy(&line).trim_end()));
                line.clear();
                printed = true;
            }
        }
        if !args.follow {
            return Ok(());
        }
        if !printed {
            service::pause(Duration::from_millis(200));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn an_abandoned_supervisor_is_asked_to_end_and_waited_for() {
        let mut child = ChildCommand::new("sleep").arg("600").spawn().unwrap();
        abandon(&mut child);
        let status = child.try_wait().unwrap().unwrap();
        assert_eq!(status.signal(), Some(nix::sys::signal::Signal::SIGTERM as i32));
        // Once more does nothing: that process id is no longer ours.
        abandon(&mut child);
    }
}
