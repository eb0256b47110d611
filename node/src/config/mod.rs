//! Configuration files of the long-running processes.
//!
//! TOML, one file per process, unknown keys refused. Every key is documented in the annotated templates
//! beside this file ([`HOST_TEMPLATE`], [`ENCLAVE_TEMPLATE`]), which `cocoon init` writes and a test keeps
//! equal to the code's defaults. Any key can be overridden without editing the file: by [`Overrides`] from
//! `--set prices.output=50` or from the environment (`COCOON_CFG_PRICES__OUTPUT=50`). Relative paths are
//! relative to the file that names them.

mod enclave;
mod gateway;
mod host;
mod server;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

pub use enclave::{
    EnclaveConfig, EngineConfig, EngineKind, ModelConfig, QuoterKind, SessionLimits, TeeConfig,
};
pub use gateway::{GatewayConfig, PaymentConfig, PolicyConfig};
pub use host::{
    ChainConfig, HostConfig, HostLimits, LinkConfig, NetworkConfig, PriceConfig, Role, SettlementConfig,
    WalletConfig, multiaddrs,
};
pub use server::{ServerAddressError, ServerConfig};

/// Annotated template of the host's configuration.
pub const HOST_TEMPLATE: &str = include_str!("host.toml");
/// Annotated template of the enclave's configuration.
pub const ENCLAVE_TEMPLATE: &str = include_str!("enclave.toml");
/// Annotated template of the gateway's configuration.
pub const GATEWAY_TEMPLATE: &str = include_str!("gateway.toml");

/// A configuration file is a page of text; anything beyond this is the wrong file.
const MAX_CONFIG_BYTES: u64 = 256 * 1024;

/// Environment variables with this prefix override keys; `__` stands for the dot.
const ENV_PREFIX: &str = "COCOON_CFG_";

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {why}; `cocoon init` writes one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// Not TOML, an unknown key, a missing key or a value of the wrong type; the text says which and where.
    #[error("configuration file {}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with key and line.
        why: String,
    },
    /// An override that is not `key=value`, or whose key runs through something that is not a table.
    #[error("override `{text}`: {why}; write it as section.key=value")]
    Override {
        /// As given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// A value that parses and cannot work.
    #[error("configuration key `{key}` is {found}; {fix}")]
    Value {
        /// Dotted path of the key.
        key: &'static str,
        /// What stands there.
        found: String,
        /// What to write instead.
        fix: String,
    },
}

impl ConfigError {
    fn value(key: &'static str, found: impl std::fmt::Display, fix: impl Into<String>) -> Self {
        Self::Value { key, found: found.to_string(), fix: fix.into() }
    }
}

/// Keys set from outside the file, applied in order.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<(String, String)>);

impl Overrides {
    /// From the environment: `COCOON_CFG_PRICES__OUTPUT=50` sets `prices.output`.
    #[must_use]
    pub fn from_env() -> Self {
        let mut found: Vec<_> = std::env::vars()
            .filter_map(|(name, value)| {
                let key = name.strip_prefix(ENV_PREFIX)?.to_ascii_lowercase().replace("__", ".");
                Some((key, value))
            })
            .collect();
        found.sort();
        Self(found)
    }

    /// Adds one `section.key=value` as a flag gives it.
    ///
    /// # Errors
    /// When there is no `=` or no key.
    pub fn set(&mut self, text: &str) -> Result<(), ConfigError> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                self.0.push((key.trim().to_owned(), value.to_owned()));
                Ok(())
            }
            _ => Err(ConfigError::Override { text: text.to_owned(), why: "it has no `=`".to_owned() }),
        }
    }

    /// Whether nothing is overridden.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn apply(&self, table: &mut toml::Table) -> Result<(), ConfigError> {
        for (key, value) in &self.0 {
            let fail =
                |why: &str| ConfigError::Override { text: format!("{key}={value}"), why: why.to_owned() };
            let mut parts: Vec<&str> = key.split('.').collect();
            let last = parts.pop().filter(|part| !part.is_empty()).ok_or_else(|| fail("the key is empty"))?;
            let mut at = &mut *table;
            for part in parts {
                at = at
                    .entry(part)
                    .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                    .as_table_mut()
                    .ok_or_else(|| fail("its path runs through a value that is not a section"))?;
            }
            at.insert(last.to_owned(), parse_value(value));
        }
        Ok(())
    }
}

/// Reads `text` as a TOML value, and as a string where it is none, so that paths and names need no quotes.
fn parse_value(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

/// What the two configurations have in common.
trait Document: DeserializeOwned {
    /// Makes relative paths absolute.
    fn resolve(&mut self, base: &Path);
    /// Refuses values that cannot work.
    fn validate(&self) -> Result<(), ConfigError>;
}

fn load<T: Document>(path: &Path, overrides: &Overrides) -> Result<T, ConfigError> {
    let read = |why: String| ConfigError::Read { path: path.to_owned(), why };
    let size = std::fs::metadata(path).map_err(|error| read(error.to_string()))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(read(format!(
            "it has {size} bytes, more than the {MAX_CONFIG_BYTES} a configuration may have"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| read(error.to_string()))?;
    let mut config: T = parse(&text, overrides).map_err(|error| match error {
        ParseError::Syntax(why) => ConfigError::Syntax { path: path.to_owned(), why },
        ParseError::Config(error) => error,
    })?;
    let base = path.parent().unwrap_or(Path::new("."));
    config.resolve(&std::path::absolute(base).unwrap_or_else(|_| base.to_owned()));
    config.validate()?;
    Ok(config)
}

enum ParseError {
    Syntax(String),
    Config(ConfigError),
}

fn parse<T: DeserializeOwned>(text: &str, overrides: &Overrides) -> Result<T, ParseError> {
    let syntax = |error: toml::de::Error| ParseError::Syntax(error.to_string().trim_end().to_owned());
    if overrides.is_empty() {
        // Straight from the text, so that errors carry line and column.
        return toml::from_str(text).map_err(syntax);
    }
    let mut table: toml::Table = toml::from_str(text).map_err(syntax)?;
    overrides.apply(&mut table).map_err(ParseError::Config)?;
    table.try_into().map_err(syntax)
}

fn resolve(path: &mut PathBuf, base: &Path) {
    if path.is_relative() {
        *path = base.join(&*path);
    }
}

/// Feeds arbitrary bytes through both parsers; for the fuzz bodies.
pub(crate) fn fuzz(text: &str) {
    let _ = parse::<HostConfig>(text, &Overrides::default()).map(|config| config.validate());
    let _ = parse::<EnclaveConfig>(text, &Overrides::default()).map(|config| config.validate());
    let _ = parse::<GatewayConfig>(text, &Overrides::default()).map(|config| config.validate());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str, overrides: &[&str]) -> Result<HostConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        std::fs::write(&path, text).unwrap();
        let mut set = Overrides::default();
        for text in overrides {
            set.set(text)?;
        }
        HostConfig::load(&path, &set)
    }

    #[test]
    fn the_templates_are_valid_and_state_the_defaults() {
        let host: HostConfig = toml::from_str(HOST_TEMPLATE).unwrap();
        assert_eq!(host, HostConfig::worker());
        let enclave: EnclaveConfig = toml::from_str(ENCLAVE_TEMPLATE).unwrap();
        assert_eq!(enclave, EnclaveConfig::embedded());
        let gateway: GatewayConfig = toml::from_str(GATEWAY_TEMPLATE).unwrap();
        assert_eq!(gateway, GatewayConfig::desktop());
    }

    #[test]
    fn every_key_of_the_structures_stands_in_the_templates() {
        for (template, value) in [
            (HOST_TEMPLATE, toml::Value::try_from(HostConfig::worker()).unwrap()),
            (ENCLAVE_TEMPLATE, toml::Value::try_from(EnclaveConfig::embedded()).unwrap()),
            (GATEWAY_TEMPLATE, toml::Value::try_from(GatewayConfig::desktop()).unwrap()),
        ] {
            for (key, value) in value.as_table().unwrap() {
                assert!(template.contains(key.as_str()), "`{key}` is not in the template");
                for inner in value.as_table().into_iter().flat_map(toml::Table::keys) {
                    assert!(template.contains(inner.as_str()), "`{key}.{inner}` is not in the template");
                }
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_and_line() {
        let error = host("role = \"worker\"\n[prices]\noutptu = 3\n", &[]).unwrap_err().to_string();
        assert!(error.contains("outptu") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn a_wrong_value_names_key_and_fix() {
        let error = host(HOST_TEMPLATE, &["prices.output=0"]).unwrap_err().to_string();
        assert!(error.contains("prices.output") && error.contains("at least"), "{error}");
        let error = host(HOST_TEMPLATE, &["network.listen=[\"nonsense\"]"]).unwrap_err().to_string();
        assert!(error.contains("network.listen"), "{error}");
    }

    #[test]
    fn overrides_reach_nested_keys_and_take_bare_strings() {
        let config =
            host(HOST_TEMPLATE, &["prices.output=77", "state=/elsewhere", "role=bootstrap"]).unwrap();
        assert_eq!(config.prices.output, 77);
        assert_eq!(config.state, Path::new("/elsewhere"));
        assert_eq!(config.role, Role::Bootstrap);
        let error = host(HOST_TEMPLATE, &["prices.nothing=1"]).unwrap_err().to_string();
        assert!(error.contains("nothing"), "{error}");
        assert!(matches!(host(HOST_TEMPLATE, &["prices"]), Err(ConfigError::Override { .. })));
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        std::fs::write(&path, HOST_TEMPLATE).unwrap();
        let config = HostConfig::load(&path, &Overrides::default()).unwrap();
        assert!(config.genesis.starts_with(dir.path()), "{}", config.genesis.display());
    }

    #[test]
    fn a_written_configuration_reads_back() {
        let config = EnclaveConfig::embedded();
        assert_eq!(toml::from_str::<EnclaveConfig>(&config.to_toml()).unwrap(), config);
        let config = HostConfig::worker();
        assert_eq!(toml::from_str::<HostConfig>(&config.to_toml()).unwrap(), config);
    }
}
