//! Configuration of `cocoon node`. The template beside this file documents every key.

use std::path::{Path, PathBuf};

use cocoon_p2p::Multiaddr;
use serde::{Deserialize, Serialize};

use super::{ConfigError, Document, Overrides, load, resolve};

/// What a host does for the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves a model through an enclave.
    Worker,
    /// Only helps peers to find each other.
    Bootstrap,
}

/// Configuration of a host process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// What this host does.
    pub role: Role,
    /// The network's genesis file.
    pub genesis: PathBuf,
    /// Identity, vouchers, control socket.
    pub state: PathBuf,
    /// Threads of the network runtime.
    #[serde(default = "one")]
    pub threads: usize,
    /// Addresses.
    #[serde(default)]
    pub network: NetworkConfig,
    /// The chain endpoint.
    #[serde(default)]
    pub chain: ChainConfig,
    /// The wallet that earns.
    #[serde(default)]
    pub wallet: WalletConfig,
    /// The enclave's socket.
    #[serde(default)]
    pub enclave: LinkConfig,
    /// What is charged.
    #[serde(default)]
    pub prices: PriceConfig,
    /// Admission.
    #[serde(default)]
    pub limits: HostLimits,
    /// When vouchers are redeemed.
    #[serde(default)]
    pub settlement: SettlementConfig,
}

fn one() -> usize {
    1
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Addresses others can use.
    pub external: Vec<String>,
    /// Peers to join through.
    pub bootstrap: Vec<String>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            listen: vec!["/ip4/0.0.0.0/udp/4001/quic-v1".to_owned(), "/ip4/0.0.0.0/tcp/4001".to_owned()],
            external: Vec::new(),
            bootstrap: Vec::new(),
        }
    }
}

/// `[chain]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainConfig {
    /// A toncenter v2 endpoint.
    pub url: String,
    /// Its API key; empty for none.
    pub api_key: String,
    /// Seconds between reads of a served channel.
    pub refresh_s: u64,
}

impl Default for ChainConfig {
    fn default() -> Self {
        Self { url: "http://127.0.0.1:8081/".to_owned(), api_key: String::new(), refresh_s: 20 }
    }
}

/// `[wallet]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WalletConfig {
    /// File with the 24 words.
    pub mnemonic_file: PathBuf,
}

impl Default for WalletConfig {
    fn default() -> Self {
        Self { mnemonic_file: "wallet.txt".into() }
    }
}

/// `[enclave]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    /// The socket the enclave listens on.
    pub socket: PathBuf,
    /// Hours that one epoch of keys and evidence lasts.
    pub epoch_h: u64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self { socket: "enclave.sock".into(), epoch_h: 12 }
    }
}

/// `[prices]`, nanoTON per million tokens
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriceConfig {
    /// Prompt tokens.
    pub input: u64,
    /// Prompt tokens found in the cache.
    pub cached_input: u64,
    /// Answer tokens.
    pub output: u64,
}

impl Default for PriceConfig {
    fn default() -> Self {
        Self { input: 20_000_000, cached_input: 20_000_000, output: 100_000_000 }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostLimits {
    /// Sessions at once.
    pub sessions: usize,
    /// Sessions at once of one asker.
    pub sessions_per_peer: usize,
    /// New sessions of one asker per minute.
    pub opens_per_minute: u32,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self { sessions: 256, sessions_per_peer: 4, opens_per_minute: 120 }
    }
}

/// `[settlement]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SettlementConfig {
    /// Redeem when unredeemed value exceeds this many times the cost.
    pub factor: u64,
    /// Assumed cost of redeeming.
    pub cost_nanoton: u64,
    /// Cap on unredeemed value per channel.
    pub max_unsettled_nanoton: u64,
    /// Shortest close delay accepted; 0 takes the genesis parameter.
    pub min_close_delay_s: u32,
    /// Least remaining lifetime of a channel.
    pub min_remaining_s: u32,
}

impl Default for SettlementConfig {
    fn default() -> Self {
        Self {
            factor: 20,
            cost_nanoton: 10_000_000,
            max_unsettled_nanoton: 5_000_000_000,
            min_close_delay_s: 0,
            min_remaining_s: 600,
        }
    }
}

/// Evidence, and so an epoch, is valid for a day at most.
const MAX_EPOCH_H: u64 = 24;

impl HostConfig {
    /// A worker with every default; what the template says.
    #[must_use]
    pub fn worker() -> Self {
        Self {
            role: Role::Worker,
            genesis: "genesis.toml".into(),
            state: "state".into(),
            threads: 1,
            network: NetworkConfig::default(),
            chain: ChainConfig::default(),
            wallet: WalletConfig::default(),
            enclave: LinkConfig::default(),
            prices: PriceConfig::default(),
            limits: HostLimits::default(),
            settlement: SettlementConfig::default(),
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`]; the text names the key and the fix.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        load(path, overrides)
    }

    /// As TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_default()
    }

    /// Where the control socket is; see [`crate::host::control`].
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }
}

/// Parses a list of multiaddresses under the key that holds it.
///
/// # Errors
/// The first text that is none, under `key`.
pub fn multiaddrs(key: &'static str, texts: &[String]) -> Result<Vec<Multiaddr>, ConfigError> {
    texts
        .iter()
        .map(|text| {
            text.parse().map_err(|error| {
                ConfigError::value(
                    key,
                    format!("\"{text}\""),
                    format!("write a multiaddress such as /ip4/127.0.0.1/tcp/4001 ({error})"),
                )
            })
        })
        .collect()
}

impl Document for HostConfig {
    fn resolve(&mut self, base: &Path) {
        for path in
            [&mut self.genesis, &mut self.state, &mut self.wallet.mnemonic_file, &mut self.enclave.socket]
        {
            resolve(path, base);
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        multiaddrs("network.listen", &self.network.listen)?;
        multiaddrs("network.external", &self.network.external)?;
        for address in multiaddrs("network.bootstrap", &self.network.bootstrap)? {
            if !address.to_string().contains("/p2p/") {
                return Err(ConfigError::value("network.bootstrap", address, "end it in /p2p/<peer id>"));
            }
        }
        if self.threads == 0 || self.threads > 64 {
            return Err(ConfigError::value("threads", self.threads, "use 1 to 64"));
        }
        if self.network.listen.is_empty() {
            return Err(ConfigError::value("network.listen", "empty", "give at least one multiaddress"));
        }
        if self.role == Role::Bootstrap {
            return Ok(());
        }
        if !(self.chain.url.starts_with("http://") || self.chain.url.starts_with("https://")) {
            return Err(ConfigError::value(
                "chain.url",
                format!("\"{}\"", self.chain.url),
                "give an http(s) URL",
            ));
        }
        if self.chain.refresh_s == 0 {
            return Err(ConfigError::value("chain.refresh_s", 0, "use at least 1"));
        }
        if self.enclave.epoch_h == 0 || self.enclave.epoch_h > MAX_EPOCH_H {
            return Err(ConfigError::value("enclave.epoch_h", self.enclave.epoch_h, "use 1 to 24"));
        }
        if self.prices.output == 0 {
            return Err(ConfigError::value(
                "prices.output",
                0,
                "charge at least 1 nanoTON per million tokens",
            ));
        }
        if self.prices.cached_input > self.prices.input {
            return Err(ConfigError::value(
                "prices.cached_input",
                self.prices.cached_input,
                "charge at most `prices.input`",
            ));
        }
        if self.limits.sessions == 0 {
            return Err(ConfigError::value("limits.sessions", 0, "use at least 1"));
        }
        if self.limits.sessions_per_peer == 0 {
            return Err(ConfigError::value("limits.sessions_per_peer", 0, "use at least 1"));
        }
        if self.limits.opens_per_minute == 0 {
            return Err(ConfigError::value("limits.opens_per_minute", 0, "use at least 1"));
        }
        if self.settlement.factor == 0 {
            return Err(ConfigError::value(
                "settlement.factor",
                0,
                "use at least 1, or redeeming costs more than it brings",
            ));
        }
        Ok(())
    }
}
