//! The file that says which network this is.
//!
//! A network is named by the SHA-256 of its genesis file, byte for byte: change a comment and it
//! is another network. The file fixes what a peer may believe: the chain (global id and zero
//! state), the roots under which evidence counts and for how much, the images, enclave
//! configurations and models that may serve, and the parameters money depends on.
//!
//! Two rules keep a test network from passing for a real one. A root is `confidential` only if it
//! *is* Intel's certificate, whatever the file calls it; and a genesis on TON's mainnet is a
//! production genesis, which may name no test root at all.

use std::{collections::BTreeSet, fmt, fs, io, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cocoon_attest::{Assurance, Live, Measurement, Policy, TrustRoot};
use cocoon_payments::NanoTon;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A genesis holds a few certificates and digest lists; more is not a genesis.
pub const MAX_GENESIS_BYTES: usize = 256 * 1024;
/// Entries per list: keeps a hostile file from becoming a slow policy check on every handshake.
pub const MAX_LIST: usize = 1024;
/// TON's mainnet; a genesis on it is a production genesis.
pub const MAINNET_GLOBAL_ID: i32 = -239;
/// How far a worker's clock may be off before its claims count as not yet or no longer valid.
pub const CLOCK_SKEW_S: u64 = 60;

/// The genesis of the production network, once there is one: its hash is compiled in.
pub const PRODUCTION_NETWORK_ID: Option<[u8; 32]> = None;

/// The file as TOML has it: what `testnet up` writes and [`Genesis::parse`] reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisFile {
    /// Format version; 1.
    pub version: u32,
    /// Shown to people.
    pub name: String,
    /// Which TON chain.
    pub chain: ChainSection,
    /// Roots of trust for evidence.
    pub trust: Vec<TrustSection>,
    /// What may serve.
    pub registry: RegistrySection,
    /// Network parameters.
    pub params: Params,
}

/// `[chain]`: every backend is checked against it before anything is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSection {
    /// TON global id.
    pub global_id: i32,
    /// Root hash of the zero state, hexadecimal.
    pub zero_state: String,
}

/// `[[trust]]`: one root certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustSection {
    /// For example `intel` or `software-tee`.
    pub name: String,
    /// `confidential` or `test`.
    pub assurance: String,
    /// DER, base64.
    pub certificate: String,
}

/// `[registry]`: stands in for the registry contract until there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySection {
    /// Floor for the TCB evaluation number of collateral.
    pub min_tcb_evaluation: u32,
    /// Allowed image measurements, 48 bytes hexadecimal.
    pub measurements: Vec<String>,
    /// Allowed enclave-configuration digests, 32 bytes hexadecimal.
    pub enclave_configs: Vec<String>,
    /// Allowed models.
    pub models: Vec<ModelSection>,
}

/// `[[registry.models]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// The name people use.
    pub name: String,
    /// Manifest digest, 32 bytes hexadecimal.
    pub digest: String,
}

/// `[params]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Payment quantum in output tokens: the most that payment may lead service.
    pub quantum_tokens: u32,
    /// Least close delay of a payment channel.
    pub close_delay_s: u32,
    /// Longest validity of a capacity ad.
    pub ad_ttl_s: u32,
}

/// A model the network knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownModel {
    /// The name people use.
    pub name: String,
    /// Digest of its manifest.
    pub digest: [u8; 32],
}

/// A checked genesis. Cheap to clone.
#[derive(Clone)]
pub struct Genesis {
    inner: Arc<Inner>,
}

struct Inner {
    network_id: [u8; 32],
    name: String,
    global_id: i32,
    zero_state: [u8; 32],
    roots: Vec<TrustRoot>,
    min_tcb_evaluation: u32,
    measurements: BTreeSet<Measurement>,
    configs: BTreeSet<[u8; 32]>,
    models: Vec<KnownModel>,
    params: Params,
}

/// Why a file is not a genesis. Names the field and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// The file cannot be read.
    #[error("cannot read genesis {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Larger than [`MAX_GENESIS_BYTES`].
    #[error("genesis has {size} bytes, at most {MAX_GENESIS_BYTES} are accepted")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// Not UTF-8, not TOML, a field missing or unknown.
    #[error("genesis is not valid: {0}")]
    Syntax(String),
    /// A field holds something that cannot be.
    #[error("genesis field `{field}`: {why}")]
    Field {
        /// Its path in the file.
        field: String,
        /// What is wrong and what to write.
        why: String,
    },
}

fn field(field: impl Into<String>, why: impl Into<String>) -> GenesisError {
    GenesisError::Field { field: field.into(), why: why.into() }
}

impl GenesisFile {
    /// The file's text. Its bytes are what the network id is made of: write them unchanged.
    pub fn to_toml(&self) -> Result<String, GenesisError> {
        toml::to_string(self).map_err(|error| GenesisError::Syntax(error.to_string()))
    }
}

impl Genesis {
    /// Reads and checks a genesis file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, GenesisError> {
        let path = path.as_ref();
        let read = |source| GenesisError::Read { path: path.display().to_string(), source };
        let size = fs::metadata(path).map_err(read)?.len();
        if size > MAX_GENESIS_BYTES as u64 {
            return Err(GenesisError::TooLarge { size: usize::try_from(size).unwrap_or(usize::MAX) });
        }
        Self::parse(&fs::read(path).map_err(read)?)
    }

    /// Checks the bytes of a genesis file.
    pub fn parse(bytes: &[u8]) -> Result<Self, GenesisError> {
        if bytes.len() > MAX_GENESIS_BYTES {
            return Err(GenesisError::TooLarge { size: bytes.len() });
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| GenesisError::Syntax("the file is not UTF-8 text".into()))?;
        let file: GenesisFile =
            toml::from_str(text).map_err(|error| GenesisError::Syntax(error.to_string()))?;
        let network_id = Sha256::digest(bytes).into();
        Ok(Self { inner: Arc::new(Inner::check(file, network_id)?) })
    }

    /// SHA-256 of the file: the name of the network on every wire.
    #[must_use]
    pub fn network_id(&self) -> [u8; 32] {
        self.inner.network_id
    }

    /// The name for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// TON global id that the chain must have.
    #[must_use]
    pub fn global_id(&self) -> i32 {
        self.inner.global_id
    }

    /// Zero state that the chain must have.
    #[must_use]
    pub fn zero_state(&self) -> [u8; 32] {
        self.inner.zero_state
    }

    /// Whether real money runs here.
    #[must_use]
    pub fn is_production(&self) -> bool {
        self.inner.global_id == MAINNET_GLOBAL_ID
    }

    /// Roots of trust.
    #[must_use]
    pub fn roots(&self) -> &[TrustRoot] {
        &self.inner.roots
    }

    /// Allowed image measurements.
    #[must_use]
    pub fn measurements(&self) -> &BTreeSet<Measurement> {
        &self.inner.measurements
    }

    /// Allowed enclave-configuration digests.
    #[must_use]
    pub fn enclave_configs(&self) -> &BTreeSet<[u8; 32]> {
        &self.inner.configs
    }

    /// Models that may be served.
    #[must_use]
    pub fn models(&self) -> &[KnownModel] {
        &self.inner.models
    }

    /// Network parameters.
    #[must_use]
    pub fn params(&self) -> Params {
        self.inner.params
    }

    /// Finds a model by `name`, `name@digest` or the digest alone.
    #[must_use]
    pub fn find_model(&self, text: &str) -> Option<&KnownModel> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (Some(name), Some(digest)),
            None => (None, None),
        };
        self.inner.models.iter().find(|model| match (name, digest) {
            (Some(name), Some(digest)) => {
                model.name == name && hex::encode(model.digest).eq_ignore_ascii_case(digest)
            }
            _ => model.name == text || hex::encode(model.digest).eq_ignore_ascii_case(text),
        })
    }

    /// What an asker demands of evidence here.
    ///
    /// `minimum` is the asker's own choice; the genesis cannot lower it.
    #[must_use]
    pub fn policy(&self, minimum: Assurance, live: Live) -> Policy {
        let inner = &*self.inner;
        Policy {
            network_id: inner.network_id,
            roots: inner.roots.clone(),
            minimum,
            measurements: inner.measurements.clone(),
            config_digests: inner.configs.clone(),
            model_digests: inner.models.iter().map(|model| model.digest).collect(),
            min_tcb_evaluation: inner.min_tcb_evaluation,
            clock_skew_s: CLOCK_SKEW_S,
            live,
        }
    }

    /// The payment quantum at a price: what payment may lead service by.
    #[must_use]
    pub fn quantum(&self, price_output: u64) -> NanoTon {
        crate::session::meter::quantum(price_output, self.inner.params.quantum_tokens)
    }
}

impl fmt::Debug for Genesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Genesis")
            .field("name", &self.inner.name)
            .field("network_id", &hex::encode(self.inner.network_id))
            .field("global_id", &self.inner.global_id)
            .field("models", &self.inner.models.len())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn check(file: GenesisFile, network_id: [u8; 32]) -> Result<Self, GenesisError> {
        if file.version != 1 {
            let found = file.version;
            return Err(field("version", format!("is {found}, this build reads version 1")));
        }
        text("name", &file.name)?;
        let production = file.chain.global_id == MAINNET_GLOBAL_ID;
        if file.name == "production" && !production {
            return Err(field("name", "`production` is reserved for a genesis on TON's mainnet"));
        }
        let zero_state = digest("chain.zero_state", &file.chain.zero_state)?;
        let roots = roots(&file.trust, production)?;

        let registry = file.registry;
        bounded("registry.measurements", registry.measurements.len())?;
        bounded("registry.enclave_configs", registry.enclave_configs.len())?;
        bounded("registry.models", registry.models.len())?;
        let mut measurements = BTreeSet::new();
        for (i, text) in registry.measurements.iter().enumerate() {
            let name = format!("registry.measurements[{i}]");
            measurements.insert(Measurement(fixed(&name, text)?));
        }
        let mut configs = BTreeSet::new();
        for (i, text) in registry.enclave_configs.iter().enumerate() {
            configs.insert(digest(&format!("registry.enclave_configs[{i}]"), text)?);
        }
        let mut models: Vec<KnownModel> = Vec::with_capacity(registry.models.len());
        for (i, model) in registry.models.into_iter().enumerate() {
            let name = format!("registry.models[{i}].name");
            text(&name, &model.name)?;
            if model.name.contains('@') {
                return Err(field(name, "`@` separates a name from a digest; leave it out"));
            }
            if models.iter().any(|known| known.name == model.name) {
                return Err(field(name, format!("`{}` is named twice", model.name)));
            }
            let digest = digest(&format!("registry.models[{i}].digest"), &model.digest)?;
            models.push(KnownModel { name: model.name, digest });
        }

        let params = file.params;
        // The lower bounds keep payment from degenerating into one signature per token and a
        // channel from closing faster than a worker can redeem.
        range("params.quantum_tokens", params.quantum_tokens, 2, 65_536)?;
        range("params.close_delay_s", params.close_delay_s, 60, 30 * 86_400)?;
        range("params.ad_ttl_s", params.ad_ttl_s, 5, 120)?;

        Ok(Self {
            network_id,
            name: file.name,
            global_id: file.chain.global_id,
            zero_state,
            roots,
            min_tcb_evaluation: registry.min_tcb_evaluation,
            measurements,
            configs,
            models,
            params,
        })
    }
}

fn roots(sections: &[TrustSection], production: bool) -> Result<Vec<TrustRoot>, GenesisError> {
    if sections.is_empty() {
        return Err(field("trust", "name at least one root, or no evidence can ever verify"));
    }
    if sections.len() > 16 {
        return Err(field("trust", "at most 16 roots"));
    }
    let mut roots = Vec::with_capacity(sections.len());
    for (i, section) in sections.iter().enumerate() {
        text(&format!("trust[{i}].name"), &section.name)?;
        let certificate = BASE64
            .decode(&section.certificate)
            .map_err(|error| field(format!("trust[{i}].certificate"), format!("not base64: {error}")))?;
        if certificate.is_empty() || certificate.len() > 8192 {
            return Err(field(
                format!("trust[{i}].certificate"),
                format!("has {} bytes, expected one DER certificate of at most 8192", certificate.len()),
            ));
        }
        let at = format!("trust[{i}].assurance");
        let assurance = match section.assurance.as_str() {
            "confidential" if certificate == TrustRoot::intel().certificate => Assurance::Confidential,
            "confidential" => {
                return Err(field(
                    at,
                    "only Intel's SGX/TDX root is confidential; write `test` for a software TEE",
                ));
            }
            "test" if production => {
                return Err(field(at, "a production genesis may not have a test root; remove it"));
            }
            "test" => Assurance::Test,
            other => {
                return Err(field(at, format!("is `{other}`, expected `confidential` or `test`")));
            }
        };
        roots.push(TrustRoot { name: section.name.clone(), assurance, certificate });
    }
    Ok(roots)
}

fn text(name: &str, value: &str) -> Result<(), GenesisError> {
    if value.is_empty() || value.len() > 64 || value.chars().any(char::is_control) {
        return Err(field(name, "expected 1 to 64 bytes of printable text"));
    }
    Ok(())
}

fn bounded(name: &str, len: usize) -> Result<(), GenesisError> {
    if len > MAX_LIST {
        return Err(field(name, format!("has {len} entries, at most {MAX_LIST} are accepted")));
    }
    Ok(())
}

fn range(name: &str, value: u32, low: u32, high: u32) -> Result<(), GenesisError> {
    if !(low..=high).contains(&value) {
        return Err(field(name, format!("is {value}, expected {low} to {high}")));
    }
    Ok(())
}

fn digest(name: &str, text: &str) -> Result<[u8; 32], GenesisError> {
    fixed(name, text)
}

fn fixed<const N: usize>(name: &str, text: &str) -> Result<[u8; N], GenesisError> {
    let mut out = [0; N];
    hex::decode_to_slice(text, &mut out)
        .map_err(|error| field(name, format!("expected {N} bytes in hexadecimal: {error}")))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> GenesisFile {
        GenesisFile {
            version: 1,
            name: "local-test".into(),
            chain: ChainSection { global_id: 777, zero_state: "11".repeat(32) },
            trust: vec![TrustSection {
                name: "software-tee".into(),
                assurance: "test".into(),
                certificate: BASE64.encode([1, 2, 3]),
            }],
            registry: RegistrySection {
                min_tcb_evaluation: 3,
                measurements: vec!["22".repeat(48)],
                enclave_configs: vec!["33".repeat(32)],
                models: vec![ModelSection { name: "cocoon-tiny".into(), digest: "44".repeat(32) }],
            },
            params: Params { quantum_tokens: 64, close_delay_s: 3600, ad_ttl_s: 90 },
        }
    }

    fn refused(file: &GenesisFile) -> String {
        Genesis::parse(file.to_toml().unwrap().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_written_genesis_reads_back() {
        let text = file().to_toml().unwrap();
        let genesis = Genesis::parse(text.as_bytes()).unwrap();
        assert_eq!(genesis.global_id(), 777);
        assert_eq!(genesis.zero_state(), [0x11; 32]);
        assert_eq!(genesis.network_id(), <[u8; 32]>::from(Sha256::digest(text.as_bytes())));
        assert!(!genesis.is_production());
        let policy = genesis.policy(Assurance::Test, Live::FirstUse);
        assert_eq!(policy.min_tcb_evaluation, 3);
        assert!(policy.measurements.contains(&Measurement([0x22; 48])));
        assert!(policy.model_digests.contains(&[0x44; 32]));
    }

    #[test]
    fn another_byte_is_another_network() {
        let text = file().to_toml().unwrap();
        let a = Genesis::parse(text.as_bytes()).unwrap();
        let b = Genesis::parse(format!("{text}\n# note\n").as_bytes()).unwrap();
        assert_ne!(a.network_id(), b.network_id());
    }

    #[test]
    fn a_production_genesis_has_no_test_root() {
        let mut file = file();
        file.chain.global_id = MAINNET_GLOBAL_ID;
        assert!(refused(&file).contains("production genesis may not have a test root"));
    }

    #[test]
    fn only_intel_is_confidential() {
        let mut file = file();
        file.trust[0].assurance = "confidential".into();
        assert!(refused(&file).contains("trust[0].assurance"));
        file.trust[0].certificate = BASE64.encode(TrustRoot::intel().certificate);
        file.chain.global_id = MAINNET_GLOBAL_ID;
        let genesis = Genesis::parse(file.to_toml().unwrap().as_bytes()).unwrap();
        assert!(genesis.is_production());
        assert_eq!(genesis.roots()[0].assurance, Assurance::Confidential);
    }

    #[test]
    fn wrong_fields_are_named() {
        let mut bad = file();
        bad.registry.measurements[0].pop();
        assert!(refused(&bad).contains("registry.measurements[0]"));
        let mut bad = file();
        bad.params.ad_ttl_s = 600;
        assert!(refused(&bad).contains("params.ad_ttl_s"));
        let mut bad = file();
        bad.registry.models.push(bad.registry.models[0].clone());
        assert!(refused(&bad).contains("named twice"));
        let unknown = format!("surprise = 1\n{}", file().to_toml().unwrap());
        assert!(Genesis::parse(unknown.as_bytes()).unwrap_err().to_string().contains("surprise"));
        assert!(matches!(
            Genesis::parse(&vec![b' '; MAX_GENESIS_BYTES + 1]),
            Err(GenesisError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_model_is_found_by_name_digest_or_both() {
        let genesis = Genesis::parse(file().to_toml().unwrap().as_bytes()).unwrap();
        let digest = "44".repeat(32);
        for text in ["cocoon-tiny".to_owned(), digest.clone(), format!("cocoon-tiny@{digest}")] {
            assert!(genesis.find_model(&text).is_some(), "{text}");
        }
        assert!(genesis.find_model("other").is_none());
        assert!(genesis.find_model(&format!("other@{digest}")).is_none());
    }
}
