//! `cocoon bench session`: what a request costs on its way through the network.
//!
//! Real processes on loopback: gateway, worker host and enclave, with an echo engine in the model's place
//! (50 tokens of 145 bytes), payments and encryption on. The load comes from a separate process over HTTP
//! with a new TCP connection per request; it shares the machine, and its CPU time is not counted.

// A shell: measuring is what it is for.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args as ClapArgs;
use cocoon_client::LightPeer;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::Command;

use super::load::Measured;
use crate::{
    cli::{gateway::peer_config, output, service},
    config::{GatewayConfig, Overrides},
    host::control,
    instruments::Instruments,
    localnet::{Engine, Kind, Layout, Localnet, Options},
};

const TOKENS: u32 = 50;
const TOKEN_BYTES: u32 = 145;
/// Telegram's cocoon with its logs off on a machine of two cores, same work: see docs/benchmarks.md.
const LIMITS: &[(usize, f64)] = &[(1, 460.0), (10, 1130.0), (30, 1450.0)];
/// The same system's CPU time per request at 30 streams.
const LIMIT_CPU_MS: f64 = 0.82;

/// How long the handshakes' own channel may take to open.
const READY: Duration = Duration::from_secs(60);

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// Concurrent streams, one row each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 30])]
    concurrency: Vec<usize>,
    /// Seconds that each row takes, about
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Handshakes to measure, cold and warm each
    #[arg(long, default_value_t = 20)]
    handshakes: usize,
    /// Keep the testnet's folder here
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    concurrency: usize,
    requests: usize,
    requests_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    ttft_p50_ms: f64,
    ttft_p99_ms: f64,
    cpu_ms_per_request: f64,
    cpu_ms_by_process: BTreeMap<String, f64>,
    vouchers: u64,
    fsyncs: u64,
    settled_nanoton: u64,
}

pub(super) async fn run(args: Args, verbose: u8) -> anyhow::Result<()> {
    let stop = service::stop_signal()?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let layout = Layout::new(args.state.clone().unwrap_or_else(|| scratch.path().join("bench")));
    let options = Options {
        layout: layout.clone(),
        workers: 1,
        engine: Engine::Echo { tokens: TOKENS, bytes: TOKEN_BYTES },
        gateway: true,
        block_interval: Duration::from_millis(250),
        program: std::env::current_exe().context("cannot find this program's own file")?,
        odd_enclave: None,
        verbose,
    };
    let bar = output::spinner("starting gateway, host and enclave");
    let started = Instant::now();
    let localnet = Localnet::up(options, &mut |_| {}, stop).await?;
    let bench = Bench { localnet, layout };
    bench.load(1, 1).await.context("the first request failed")?;
    let ready_ms = started.elapsed().as_secs_f64() * 1e3;
    bar.set_message("warming up");
    bench.load(10, 500).await?;

    let mut rows = Vec::new();
    for &concurrency in &args.concurrency {
        bar.set_message(format!("{concurrency} concurrent streams"));
        rows.push(bench.row(concurrency, args.seconds).await?);
    }
    bar.set_message("handshakes");
    let (cold, warm) = bench.handshakes(args.handshakes).await?;
    bar.finish_and_clear();
    bench.localnet.down().await;

    if args.json {
        output::json(&json!({
            "rows": rows, "handshake_cold_ms": cold, "handshake_warm_ms": warm, "ready_ms": ready_ms,
            "tokens": TOKENS, "token_bytes": TOKEN_BYTES,
        }));
    } else {
        print(&rows, cold, warm, ready_ms);
    }
    Ok(())
}

fn print(rows: &[Row], cold: f64, warm: f64, ready_ms: f64) {
    output::line(
        "streams    req/s   p50 ms   p99 ms  ttft ms  CPU ms/req  vouchers  fsyncs  limit req/s  ratio",
    );
    for row in rows {
        let limit = LIMITS.iter().find(|(at, _)| *at == row.concurrency).map(|(_, limit)| *limit);
        let ratio =
            limit.map_or_else(|| "-".to_owned(), |limit| format!("{:.2}", row.requests_per_s / limit));
        output::line(format!(
            "{:>7} {:>8.0} {:>8.2} {:>8.2} {:>8.2} {:>11.3} {:>9} {:>7} {:>12} {:>6}",
            row.concurrency,
            row.requests_per_s,
            row.p50_ms,
            row.p99_ms,
            row.ttft_p50_ms,
            row.cpu_ms_per_request,
            row.vouchers,
            row.fsyncs,
            limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
            ratio,
        ));
        let parts: Vec<String> =
            row.cpu_ms_by_process.iter().map(|(name, ms)| format!("{name} {ms:.3}")).collect();
        output::line(format!(
            "        CPU ms per request: {} (limit at 30 streams {LIMIT_CPU_MS})",
            parts.join(", ")
        ));
    }
    output::line(format!(
        "handshake: cold {cold:.2} ms, warm {warm:.2} ms; start to first answer {ready_ms:.0} ms"
    ));
}

struct Bench {
    localnet: Localnet,
    layout: Layout,
}

impl Bench {
    async fn load(&self, concurrency: usize, requests: usize) -> anyhow::Result<Measured> {
        let network = self.localnet.network();
        let address = network.base_url.trim_start_matches("http://").trim_end_matches("/v1");
        let output = Command::new(std::env::current_exe()?)
            .args(["bench", "load", "--address", address, "--model", "echo"])
            .arg("--key-file")
            .arg(&network.api_key_file)
            .args(["--concurrency", &concurrency.to_string(), "--requests", &requests.to_string()])
            .args(["--events", &TOKENS.to_string()])
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot start the load generator")?;
        ensure!(
            output.status.success(),
            "the load generator failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).context("the load generator printed no result")
    }

    async fn row(&self, concurrency: usize, seconds: u64) -> anyhow::Result<Row> {
        // A short run tells how many requests fill the time.
        let probe = self.load(concurrency, 50 * concurrency).await?;
        let requests = ((probe.requests_per_s * seconds as f64) as usize).max(100);
        let (cpu, counters) = (self.cpu(), self.counters().await?);
        let measured = self.load(concurrency, requests).await?;
        let (cpu_after, counters_after) = (self.cpu(), self.counters().await?);
        let settled = self.settle().await?;
        let cpu_ms_by_process: BTreeMap<String, f64> = cpu_after
            .iter()
            .map(|(name, after)| {
                let before = cpu.get(name).copied().unwrap_or_default();
                (name.clone(), after.saturating_sub(before).as_secs_f64() * 1e3 / measured.requests as f64)
            })
            .collect();
        let delta =
            |field: &str| counters_after[field].as_u64().unwrap_or(0) - counters[field].as_u64().unwrap_or(0);
        Ok(Row {
            concurrency,
            requests: measured.requests,
            requests_per_s: measured.requests_per_s,
            p50_ms: measured.p50_ms,
            p99_ms: measured.p99_ms,
            ttft_p50_ms: measured.ttft_p50_ms,
            ttft_p99_ms: measured.ttft_p99_ms,
            cpu_ms_per_request: cpu_ms_by_process.values().sum(),
            cpu_ms_by_process,
            vouchers: delta("vouchers"),
            fsyncs: delta("fsyncs"),
            settled_nanoton: settled,
        })
    }

    /// CPU time so far of the processes that serve: not of chain and bootstrap peer, which do no work for
    /// a request, and not of the load generator.
    fn cpu(&self) -> BTreeMap<String, Duration> {
        let serves = |kind: Kind| matches!(kind, Kind::Gateway | Kind::Host | Kind::Enclave);
        let processes = self.localnet.network().processes.iter().filter(|process| serves(process.kind));
        processes
            .filter_map(|process| {
                let name = match process.kind {
                    Kind::Host => "host".to_owned(),
                    Kind::Enclave => "enclave".to_owned(),
                    _ => process.name.clone(),
                };
                Some((name, crate::process::cpu_time(process.pid)?))
            })
            .collect()
    }

    async fn counters(&self) -> anyhow::Result<Value> {
        self.ask("status").await
    }

    /// Redeems the newest vouchers and returns what the chain says is settled in all.
    async fn settle(&self) -> anyhow::Result<u64> {
        self.ask("settle").await?;
        let channels = self.ask("channels").await?;
        let settled = channels["channels"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|channel| channel["settled_nanoton"].as_u64());
        Ok(settled.sum())
    }

    async fn ask(&self, command: &str) -> anyhow::Result<Value> {
        let socket = self.layout.process("worker-1").join("state/control.sock");
        control::request(&socket, &json!({"cmd": command})).await.context("the worker's host does not answer")
    }

    /// Medians of a cold and a warm handshake by a light peer of this process, in milliseconds.
    async fn handshakes(&self, count: usize) -> anyhow::Result<(f64, f64)> {
        let file = self.layout.process("gateway").join("gateway.toml");
        let mut config = GatewayConfig::load(&file, &Overrides::default())?;
        // A peer of its own, with a channel of its own: the host answers no handshake without one.
        config.state = self.layout.process("probe");
        let peer = LightPeer::start(peer_config(&config, &Instruments::default())?).await?;
        let ready = async {
            while !peer.status().await.ready() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(READY, ready).await.context("the probe's channel was not opened in time")?;
        let mut medians = [0.0; 2];
        for (median, fresh) in medians.iter_mut().zip([true, false]) {
            let mut times = Vec::with_capacity(count);
            for _ in 0..count {
                times.push(peer.handshake_probe(fresh).await?.as_secs_f64() * 1e3);
            }
            times.sort_by(f64::total_cmp);
            *median = times.get(count / 2).copied().unwrap_or(0.0);
        }
        peer.close().await;
        Ok((medians[0], medians[1]))
    }
}
