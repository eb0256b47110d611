//! Configuration of `cocoon gateway`. The template beside this file documents every key.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{ChainConfig, ConfigError, Document, NetworkConfig, Overrides, WalletConfig, load, resolve};

/// Configuration of a gateway process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Loopback address to serve on.
    pub listen: SocketAddr,
    /// File with the key that every request must carry.
    pub api_key_file: PathBuf,
    /// The network's genesis file.
    pub genesis: PathBuf,
    /// Identity and channels.
    pub state: PathBuf,
    /// Threads of the runtime.
    #[serde(default = "one")]
    pub threads: usize,
    /// Longest time of one answer, in seconds.
    #[serde(default = "five_minutes")]
    pub deadline_s: u64,
    /// Addresses.
    #[serde(default)]
    pub network: NetworkConfig,
    /// The chain endpoint.
    #[serde(default)]
    pub chain: ChainConfig,
    /// The wallet that pays.
    #[serde(default)]
    pub wallet: WalletConfig,
    /// What an answer must satisfy.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// How it is paid for.
    #[serde(default)]
    pub payment: PaymentConfig,
}

fn one() -> usize {
    1
}

fn five_minutes() -> u64 {
    300
}

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Least assurance.
    pub assurance: String,
    /// Most nanoTON per million prompt tokens.
    pub max_price_input: u64,
    /// Most nanoTON per million answer tokens.
    pub max_price_output: u64,
    /// When live binding is demanded.
    pub live: String,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            assurance: "confidential".to_owned(),
            max_price_input: 1_000_000_000,
            max_price_output: 5_000_000_000,
            live: "first-use".to_owned(),
        }
    }
}

/// `[payment]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PaymentConfig {
    /// Deposit of each channel.
    pub deposit_nanoton: u64,
    /// Funded channels kept ready.
    pub channels: usize,
    /// Most that the key may spend; 0 for no cap.
    pub spend_cap_nanoton: u64,
}

impl Default for PaymentConfig {
    fn default() -> Self {
        Self { deposit_nanoton: 1_000_000_000, channels: 2, spend_cap_nanoton: 0 }
    }
}

impl GatewayConfig {
    /// The defaults, as the template states them.
    #[must_use]
    pub fn desktop() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            api_key_file: "api.key".into(),
            genesis: "genesis.toml".into(),
            state: "state".into(),
            threads: one(),
            deadline_s: five_minutes(),
            network: NetworkConfig { listen: Vec::new(), ..NetworkConfig::default() },
            chain: ChainConfig::default(),
            wallet: WalletConfig::default(),
            policy: PolicyConfig::default(),
            payment: PaymentConfig::default(),
        }
    }

    /// Reads a file, applies overrides, checks every value.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key and the fix.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        load(path, overrides)
    }

    /// The file's text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_default()
    }
}

impl Document for GatewayConfig {
    fn resolve(&mut self, base: &Path) {
        for path in
            [&mut self.api_key_file, &mut self.genesis, &mut self.state, &mut self.wallet.mnemonic_file]
        {
            resolve(path, base);
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if !self.listen.ip().is_loopback() {
            let fix = "use a loopback address and a TLS reverse proxy in front of it";
            return Err(ConfigError::value("listen", self.listen, fix));
        }
        if self.payment.deposit_nanoton < 10_000_000 {
            let fix = "deposit at least 10000000 (0.01 TON), less than that is eaten by fees";
            return Err(ConfigError::value("payment.deposit_nanoton", self.payment.deposit_nanoton, fix));
        }
        if !(1..=64).contains(&self.payment.channels) {
            return Err(ConfigError::value("payment.channels", self.payment.channels, "use 1 to 64"));
        }
        if self.deadline_s == 0 || self.deadline_s > 86_400 {
            return Err(ConfigError::value("deadline_s", self.deadline_s, "use 1 to 86400"));
        }
        Ok(())
    }
}
