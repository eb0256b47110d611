//! `cocoon channel`: the payment channels of what runs here.

use anyhow::Context as _;
use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};

use super::{Stop, output, testnet::StateArgs};
use crate::{
    host::control,
    localnet::{Kind, Network},
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every channel that a worker of the testnet serves: deposit, paid, settled
    List {
        #[command(flatten)]
        state: StateArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let Command::List { state, json } = args.command;
    let layout = state.layout();
    let network = Network::attach(&layout).map_err(|error| Stop::NothingRunning(error.to_string()))?;
    let mut list = Vec::new();
    for process in network.processes.iter().filter(|process| process.kind == Kind::Host) {
        let socket = layout.process(&process.name).join("state/control.sock");
        let reply = control::request(&socket, &json!({"cmd": "channels"})).await.with_context(|| {
            format!("{} does not answer; `cocoon testnet status` tells more", process.name)
        })?;
        for channel in reply["channels"].as_array().into_iter().flatten() {
            let mut channel = channel.clone();
            channel["worker"] = process.name.clone().into();
            list.push(channel);
        }
    }
    if json {
        output::json(&json!({"channels": list}));
        return Ok(());
    }
    if list.is_empty() {
        output::note("no channel yet: the first question opens one");
    }
    for channel in &list {
        let text = |field: &str| match &channel[field] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        output::line(format!(
            "{}  {}  {}  paid {}  redeemed {}  holds {} (nanoTON)",
            text("worker"),
            text("address"),
            text("stage"),
            text("cumulative_nanoton"),
            text("settled_nanoton"),
            text("balance_nanoton")
        ));
    }
    Ok(())
}
