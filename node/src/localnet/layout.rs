//! Where a local network keeps its files.
//!
//! Everything lives under one state directory, so that several networks run side by side, `testnet down`
//! finds what `testnet up` left, and deleting the directory deletes the network.

use std::path::{Path, PathBuf};

/// Paths inside one network's state directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `$COCOON_STATE`, or `cocoon/testnet` in the user's state directory.
    pub fn default_root() -> PathBuf {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        var("COCOON_STATE").unwrap_or_else(|| {
            var("XDG_STATE_HOME")
                .or_else(|| var("HOME").map(|home| home.join(".local/state")))
                .unwrap_or_else(std::env::temp_dir)
                .join("cocoon/testnet")
        })
    }

    /// The state directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Locked by the supervisor for as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// What runs and where: written once everything is ready, read by `chat`, `status`, `down`.
    pub fn network(&self) -> PathBuf {
        self.root.join("network.json")
    }

    /// The genesis file; its SHA-256 is the network id.
    pub fn genesis(&self) -> PathBuf {
        self.root.join("genesis.toml")
    }

    /// The software TEE's keys.
    pub fn platform(&self) -> PathBuf {
        self.root.join("software-tee.json")
    }

    /// The chain's database.
    pub fn chain(&self) -> PathBuf {
        self.root.join("chain")
    }

    /// The key of the chain's HTTP endpoint.
    pub fn chain_key(&self) -> PathBuf {
        self.root.join("chain.key")
    }

    /// The folder of one process.
    pub fn process(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What one process says once it serves.
    pub fn ready(&self, name: &str) -> PathBuf {
        self.root.join("ready").join(format!("{name}.json"))
    }

    /// The log of one process.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }
}
