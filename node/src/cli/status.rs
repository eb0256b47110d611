//! `cocoon status`: what runs here and how it is doing.

use std::{path::PathBuf, time::Duration};

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::{Stop, output, testnet::StateArgs};
use crate::{
    host::control,
    localnet::{Kind, Layout, Network},
};

/// A process that does not answer within this time is reported as silent.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    state: StateArgs,
    /// A provider's folder, as `cocoon init` made it, instead of a testnet
    #[arg(long, value_name = "DIR")]
    provider: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    if let Some(folder) = &args.provider {
        let config = crate::config::HostConfig::load(
            &folder.join("host.toml"),
            &crate::config::Overrides::from_env(),
        )?;
        let socket = config.control_socket();
        let status = ask(&socket, "status").await.map_err(|why| {
            Stop::NothingRunning(format!(
                "no provider answers at {} ({why}); start it with `cocoon up`",
                socket.display()
            ))
        })?;
        show(&json!([{"name": "host", "kind": "host", "running": true, "status": status}]), args.json);
        return Ok(());
    }
    let layout = args.state.layout();
    let network = Network::attach(&layout).map_err(|error| Stop::NothingRunning(error.to_string()))?;
    show(&self::network(&layout, &network).await, args.json);
    Ok(())
}

fn show(report: &Value, json: bool) {
    if json { output::json(report) } else { print(report) }
}

/// The state of each process of a testnet.
pub(super) async fn network(layout: &Layout, network: &Network) -> Value {
    let mut list = Vec::new();
    for process in &network.processes {
        let running = crate::process::alive(process.pid);
        let status = match process.kind {
            Kind::Host | Kind::Bootstrap if running => {
                ask(&layout.process(&process.name).join("state/control.sock"), "status").await
            }
            Kind::Gateway if running => gateway(network).await,
            _ => Ok(Value::Null),
        };
        let status = status.unwrap_or_else(|why| json!({"error": why}));
        list.push(json!({
            "name": process.name, "kind": process.kind, "pid": process.pid, "running": running,
            "cpu_s": crate::process::cpu_time(process.pid).map(|time| time.as_secs_f64()),
            "log": process.log, "status": status,
        }));
    }
    Value::Array(list)
}

/// Prints a report as a person reads it.
pub(super) fn print(report: &Value) {
    for process in report.as_array().map(Vec::as_slice).unwrap_or_default() {
        let state = if process["running"] == true { "running" } else { "DOWN" };
        let name = process["name"].as_str().unwrap_or("?");
        let pid = process["pid"].as_u64().map(|pid| format!("pid {pid}")).unwrap_or_default();
        output::line(format!("{name:<20} {state:<8} {pid}"));
        for (key, value) in process["status"].as_object().into_iter().flatten() {
            if !value.is_null() {
                output::line(format!("    {key:<22} {}", readable(value)));
            }
        }
    }
}

/// JSON without its punctuation, on one line.
fn readable(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Array(list) => list.iter().map(readable).collect::<Vec<_>>().join("; "),
        Value::Object(fields) => {
            let known = fields.iter().filter(|(_, value)| !value.is_null());
            known.map(|(key, value)| format!("{key} {}", readable(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

async fn ask(socket: &std::path::Path, command: &str) -> Result<Value, String> {
    let reply = tokio::time::timeout(PATIENCE, control::request(socket, &json!({"cmd": command}))).await;
    match reply {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn gateway(network: &Network) -> Result<Value, String> {
    let key = network.api_key().map_err(|error| error.to_string())?;
    let url = format!("{}/health", network.base_url.trim_end_matches("/v1"));
    let http =
        reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().map_err(|error| error.to_string())?;
    let response = http.get(url).bearer_auth(key).send().await.map_err(|error| error.to_string())?;
    response.json().await.map_err(|error| error.to_string())
}
