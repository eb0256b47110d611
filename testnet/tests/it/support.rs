//! What several tests share.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use cocoon_payments::{
    Address,
    chain::{Chain as _, Toncenter},
};
use cocoon_testnet::{Testnet, cocoon};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Networks run one at a time: two cores are shared by a dozen processes as it is.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::const_new(());
    ONE.lock().await
}

/// A testnet of the production program.
pub(crate) fn up(args: &[&str]) -> Testnet {
    Testnet::up(&cocoon().unwrap(), args, &[]).unwrap()
}

/// Asks a host's control socket.
pub(crate) fn control(testnet: &Testnet, process: &str, command: &str) -> Value {
    let socket = testnet.state().join(process).join("state/control.sock");
    let mut stream = UnixStream::connect(&socket).unwrap();
    writeln!(stream, "{}", json!({"cmd": command})).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// The process whose peer id is `worker`, from what each process said when it was ready.
pub(crate) fn process_of(testnet: &Testnet, worker: &str) -> String {
    let ready = testnet.state().join("ready");
    let files: Vec<PathBuf> = std::fs::read_dir(ready).unwrap().map(|entry| entry.unwrap().path()).collect();
    let found = files.iter().find(|path| json_file(path)["peer_id"] == worker);
    found.unwrap().file_stem().unwrap().to_str().unwrap().to_owned()
}

pub(crate) fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap_or(Value::Null)
}

/// A client of the testnet's chain.
pub(crate) fn chain(testnet: &Testnet) -> Toncenter {
    let key = std::fs::read_to_string(testnet.info["chain"]["api_key_file"].as_str().unwrap()).unwrap();
    Toncenter::new(testnet.info["chain"]["url"].as_str().unwrap(), Some(key.trim().to_owned())).unwrap()
}

/// Nanotons that a channel's transactions have sent to `payee`, by the chain itself.
pub(crate) async fn settled_on_chain(testnet: &Testnet, channel: &str, payee: &str) -> u64 {
    let channel: Address = channel.parse().unwrap();
    let payee: Address = payee.parse().unwrap();
    let history = chain(testnet).transactions(&channel, 20).await.unwrap();
    // A settlement's first message pays; its second returns what the call left over.
    let settlements =
        history.iter().filter(|transaction| transaction.succeeded() && transaction.out_msgs.len() > 1);
    let messages = settlements.filter_map(|transaction| transaction.out_msgs.first());
    messages
        .filter(|message| message.destination.as_ref() == Some(&payee))
        .map(|message| message.value.0)
        .sum()
}

/// Whether a process exists.
pub(crate) fn alive(pid: u32) -> bool {
    cocoon_node::process::alive(pid)
}
