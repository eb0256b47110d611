//! What a light peer is told before it starts.

use std::{fmt, path::PathBuf};

use cocoon_attest::{Assurance, Live, noise};
use cocoon_p2p::Multiaddr;
use cocoon_payments::{
    NanoTon,
    wallet::{Wallet, WalletError},
};

use crate::{genesis::Genesis, session::asker::Patience};

/// Deposit of a channel unless configured: enough for many answers, little enough to lose sight of.
pub const DEFAULT_DEPOSIT: NanoTon = NanoTon(1_000_000_000);

/// What the asker allows. Nothing ever falls below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskPolicy {
    /// Lowest assurance that the asker's own verification must find.
    pub minimum: Assurance,
    /// Ceiling in nanoTON per million input tokens.
    pub max_price_input: u64,
    /// Ceiling in nanoTON per million output tokens.
    pub max_price_output: u64,
    /// When a session must be bound to a fresh quote before anything is said in it.
    pub live: Live,
}

impl Default for AskPolicy {
    /// A genuine TEE, freshly bound once per worker, at any price.
    fn default() -> Self {
        Self {
            minimum: Assurance::Confidential,
            max_price_input: u64::MAX,
            max_price_output: u64::MAX,
            live: Live::FirstUse,
        }
    }
}

/// Where the chain is reached: any toncenter v2 endpoint.
#[derive(Clone, PartialEq, Eq)]
pub struct ChainEndpoint {
    /// Base URL, for example `http://127.0.0.1:8081`.
    pub url: String,
    /// Sent as `X-API-Key`.
    pub api_key: Option<String>,
}

impl fmt::Debug for ChainEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainEndpoint").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Configuration of a light peer. Build it with [`Config::new`] and adjust.
pub struct Config {
    /// Which network.
    pub genesis: Genesis,
    /// Directory for what must survive a restart: channels and their keys.
    pub state: PathBuf,
    /// Addresses to listen on; empty to only dial.
    pub listen: Vec<Multiaddr>,
    /// First peers to dial.
    pub bootstrap: Vec<Multiaddr>,
    /// The chain.
    pub chain: ChainEndpoint,
    /// Pays deposits.
    pub wallet: Wallet,
    /// What the asker allows.
    pub policy: AskPolicy,
    /// Deposit of each channel.
    pub deposit: NanoTon,
    /// Channels kept funded with different workers: the first serves, the others stand by, so that
    /// no on-chain wait falls into an answer.
    pub channels: usize,
    /// How long a silent worker is waited for.
    pub patience: Patience,
    /// Primitives of the attested channel. [`noise::default_crypto`], except in a test that proves
    /// its own search for plaintext works.
    pub crypto: noise::Crypto,
}

/// Why a configuration is unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The mnemonic is not that of a wallet.
    #[error("the wallet's mnemonic cannot be used: {0}")]
    Wallet(#[from] WalletError),
}

impl Config {
    /// Safe defaults for a network, a state directory and a wallet of 24 words.
    pub fn new(genesis: Genesis, state: impl Into<PathBuf>, mnemonic: &str) -> Result<Self, ConfigError> {
        let wallet = Wallet::from_mnemonic(mnemonic, genesis.global_id())?;
        Ok(Self {
            genesis,
            state: state.into(),
            listen: Vec::new(),
            bootstrap: Vec::new(),
            chain: ChainEndpoint { url: "http://127.0.0.1:8081".into(), api_key: None },
            wallet,
            policy: AskPolicy::default(),
            deposit: DEFAULT_DEPOSIT,
            channels: 2,
            patience: Patience::default(),
            crypto: noise::default_crypto,
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("genesis", &self.genesis)
            .field("state", &self.state)
            .field("chain", &self.chain)
            .field("wallet", &self.wallet.address())
            .field("policy", &self.policy)
            .field("deposit", &self.deposit)
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}
