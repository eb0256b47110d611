//! What a running network says of itself, in `network.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{layout::Layout, lock};

/// Why no running network was found.
#[derive(Debug, Error)]
pub enum AttachError {
    /// There is none.
    #[error(
        "no testnet runs in {0}; start one with `cocoon testnet up --detach`, or name its folder with --state"
    )]
    NotRunning(PathBuf),
    /// There is a file, but it is not ours.
    #[error("{path} cannot be read as a network description: {why}; remove the folder and start again")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// One running local network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// For people; also in the genesis.
    pub name: String,
    /// SHA-256 of the genesis file, in hex.
    pub network_id: String,
    /// The process that started and watches the others.
    pub supervisor: u32,
    /// What an OpenAI client calls its base URL.
    pub base_url: String,
    /// The file that holds the gateway's key.
    pub api_key_file: PathBuf,
    /// The chain's endpoint.
    pub chain: ChainEndpoint,
    /// Multiaddresses of the bootstrap peer, with its peer id.
    pub bootstrap: Vec<String>,
    /// Everything that runs, in the order in which it was started.
    pub processes: Vec<ProcessInfo>,
    /// From the start of the first process to the first moment an answer could be had.
    pub ready_ms: f64,
}

/// Where the local chain answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainEndpoint {
    /// Ends in `/api/v2`.
    pub url: String,
    /// The file that holds its key.
    pub api_key_file: PathBuf,
}

impl ChainEndpoint {
    /// The key that the local chain asks for.
    ///
    /// # Errors
    /// When the key file cannot be read.
    pub fn api_key(&self) -> io::Result<String> {
        read_key(&self.api_key_file)
    }
}

fn read_key(file: &Path) -> io::Result<String> {
    let key = fs::read_to_string(file)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", file.display())))?;
    Ok(key.trim().to_owned())
}

/// One process of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Unique in the network, such as `worker-1`.
    pub name: String,
    /// Its role.
    pub kind: Kind,
    /// Its process id.
    pub pid: u32,
    /// Its log file.
    pub log: PathBuf,
}

/// The role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The local chain.
    Chain,
    /// The peer that others know from the start.
    Bootstrap,
    /// A worker's TEE half.
    Enclave,
    /// A worker's host half.
    Host,
    /// The OpenAI endpoint with its light peer.
    Gateway,
}

impl Network {
    /// Finds the network that runs in `layout`.
    ///
    /// # Errors
    /// [`AttachError`]; a description whose supervisor is gone, or holds no lock, counts as not running.
    pub fn attach(layout: &Layout) -> Result<Self, AttachError> {
        let path = layout.network();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(AttachError::NotRunning(layout.root().to_owned()));
            }
            Err(error) => return Err(AttachError::Unreadable { path, why: error.to_string() }),
        };
        let network: Self = serde_json::from_slice(&bytes)
            .map_err(|error| AttachError::Unreadable { path: path.clone(), why: error.to_string() })?;
        // The supervisor's process id may be another program's by now, which `down` would then end: that
        // ours still runs is what the lock says.
        let held = lock::is_held(&layout.lock())
            .map_err(|error| AttachError::Unreadable { path, why: format!("its lock: {error}") })?;
        if held && crate::process::alive(network.supervisor) {
            Ok(network)
        } else {
            Err(AttachError::NotRunning(layout.root().to_owned()))
        }
    }

    /// The gateway's key.
    ///
    /// # Errors
    /// When the key file cannot be read.
    pub fn api_key(&self) -> io::Result<String> {
        read_key(&self.api_key_file)
    }

    /// The processes that ought to run and do not.
    pub fn missing(&self) -> Vec<&ProcessInfo> {
        self.processes.iter().filter(|process| !crate::process::alive(process.pid)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_description_whose_lock_nobody_holds_is_not_attached_to() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        // A process id that was used again: this test's own is certainly alive.
        let network = Network {
            name: "left over".into(),
            network_id: String::new(),
            supervisor: std::process::id(),
            base_url: String::new(),
            api_key_file: PathBuf::new(),
            chain: ChainEndpoint { url: String::new(), api_key_file: PathBuf::new() },
            bootstrap: Vec::new(),
            processes: Vec::new(),
            ready_ms: 0.0,
        };
        fs::write(layout.network(), serde_json::to_vec(&network).unwrap()).unwrap();
        let not_running = || matches!(Network::attach(&layout), Err(AttachError::NotRunning(_)));
        assert!(not_running(), "there is not even a lock file");
        let lock = lock::take(&layout.lock()).await.unwrap().unwrap();
        assert_eq!(Network::attach(&layout).unwrap(), network);
        drop(lock);
        assert!(not_running(), "the supervisor is gone");
    }
}
