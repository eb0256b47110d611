//! Configuration of `cocoon enclave`. The template beside this file documents every key.
//!
//! The host supplies this file, so the host could lie with it. What decides how prompts are treated, the
//! `[engine]` section, is therefore measured: [`EnclaveConfig::digest`] is bound into the evidence, and an
//! asker accepts only digests that its registry lists. The rest says where things are, never what they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cocoon_inference::device::DeviceChoice;
use cocoon_inference::kernels::Precision;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::server::{ServerAddressError, ServerConfig};
use super::{ConfigError, Document, Overrides, load, resolve};

/// Configuration of an enclave process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnclaveConfig {
    /// Where to listen for the host.
    pub socket: PathBuf,
    /// The measured section.
    #[serde(default)]
    pub engine: EngineConfig,
    /// Where the model's files are.
    #[serde(default)]
    pub model: ModelConfig,
    /// Who makes the quotes.
    #[serde(default)]
    pub tee: TeeConfig,
    /// Bounds on what one host can make this process hold.
    #[serde(default)]
    pub limits: SessionLimits,
}

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A checkpoint served by burn.
    Burn,
    /// A checkpoint served by another program inside the same TEE, over OpenAI's API.
    Openai,
    /// A fixed pattern, for benchmarks.
    Echo,
}

impl EngineKind {
    /// As written in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Burn => "burn",
            Self::Openai => "openai",
            Self::Echo => "echo",
        }
    }
}

/// `[engine]`, measured
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// What answers.
    pub kind: EngineKind,
    /// Hex digest the loaded model must have; empty takes the embedded model's.
    pub model_digest: String,
    /// How the weights are kept: f32, f16, int8 or int4. Fewer bits are faster and less exact.
    pub precision: Precision,
    /// What an `openai` server calls the model; empty if it serves one only.
    pub served_model: String,
    /// Answers produced at once.
    pub slots: u16,
    /// Requests that may wait.
    pub queue: u16,
    /// Least milliseconds between two tokens of an answer.
    pub pace_ms: u64,
    /// Tokens of an echo answer.
    pub echo_tokens: u32,
    /// Bytes of each of them.
    pub echo_bytes: u32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            kind: EngineKind::Burn,
            model_digest: String::new(),
            precision: Precision::F32,
            served_model: String::new(),
            slots: 8,
            queue: 256,
            pace_ms: 0,
            echo_tokens: 50,
            echo_bytes: 145,
        }
    }
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// A checkpoint's directory; empty for the embedded model.
    pub directory: PathBuf,
    /// Threads for inference; 0 for all cores.
    pub threads: usize,
    /// Most memory for keys and values of the answers in progress, in MiB. It is taken as it is needed.
    pub cache_mib: u32,
    /// Where it runs: cpu, cuda, cuda:N or auto.
    pub device: DeviceChoice,
    /// Base of the API of an `openai` server, on a loopback address.
    pub server: String,
    /// Seconds that the server may take until it answers for the first time.
    pub server_patience_s: u64,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::new(),
            threads: 0,
            cache_mib: 2048,
            device: DeviceChoice::Cpu,
            server: String::new(),
            server_patience_s: 900,
        }
    }
}

/// Who makes the quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuoterKind {
    /// A process that signs its own; only networks whose genesis says so accept it.
    SoftwareTee,
    /// The kernel's configfs-tsm.
    Tsm,
}

/// `[tee]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeeConfig {
    /// Who makes the quotes.
    pub quoter: QuoterKind,
    /// The software TEE's platform file.
    pub platform: PathBuf,
    /// Where the host places the vendor's collateral for genuine quotes.
    pub collateral: PathBuf,
}

impl Default for TeeConfig {
    fn default() -> Self {
        Self {
            quoter: QuoterKind::SoftwareTee,
            platform: "software-tee.json".into(),
            collateral: "collateral.json".into(),
        }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionLimits {
    /// Sessions at once.
    pub sessions: usize,
    /// Requests in flight per session.
    pub streams_per_session: usize,
    /// Bytes of prompt per request.
    pub prompt_bytes: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { sessions: 256, streams_per_session: 64, prompt_bytes: 48 * 1024 }
    }
}

/// Sets the measured digest apart from any other hash of this project.
const DIGEST_DOMAIN: &[u8] = b"cocoon/enclave-config/v1";

impl EnclaveConfig {
    /// Serves the embedded model; what the template says.
    #[must_use]
    pub fn embedded() -> Self {
        Self {
            socket: "enclave.sock".into(),
            engine: EngineConfig::default(),
            model: ModelConfig::default(),
            tee: TeeConfig::default(),
            limits: SessionLimits::default(),
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

    /// Digest of the measured section: every field with its name and in a fixed order, so that a field added
    /// later changes every digest instead of hiding in one.
    ///
    /// So is a GPU, although `[model]` names it: what it computes leaves the memory that the processor protects, and
    /// no host may decide that alone.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let EngineConfig {
            kind,
            model_digest,
            precision,
            served_model,
            slots,
            queue,
            pace_ms,
            echo_tokens,
            echo_bytes,
        } = &self.engine;
        let mut canonical = format!(
            "kind={}\nmodel_digest={}\nprecision={precision}\nserved_model={served_model:?}\nslots={slots}\nqueue={queue}\npace_ms={pace_ms}\necho_tokens={echo_tokens}\necho_bytes={echo_bytes}\n",
            kind.name(),
            model_digest.to_ascii_lowercase(),
        );
        // Which GPU of a machine it is makes no difference.
        match self.model.device {
            DeviceChoice::Cpu => {}
            DeviceChoice::Cuda(_) => canonical.push_str("device=cuda\n"),
            DeviceChoice::Auto => canonical.push_str("device=auto\n"),
        }
        let mut hash = Sha256::new();
        hash.update(DIGEST_DOMAIN);
        hash.update((canonical.len() as u64).to_be_bytes());
        hash.update(canonical);
        hash.finalize().into()
    }

    /// The digest that the loaded model must have, if the file names one.
    ///
    /// # Errors
    /// When it is not 64 hex digits.
    pub fn expected_model(&self) -> Result<Option<[u8; 32]>, ConfigError> {
        let text = &self.engine.model_digest;
        if text.is_empty() {
            return Ok(None);
        }
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).map_err(|_| {
            ConfigError::value(
                "engine.model_digest",
                format!("\"{text}\""),
                "write the 64 hex digits that `cocoon model list` shows",
            )
        })?;
        Ok(Some(digest))
    }
}

impl EnclaveConfig {
    /// Where the `openai` server is.
    #[must_use]
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            url: self.model.server.clone(),
            model: self.engine.served_model.clone(),
            patience: Duration::from_secs(self.model.server_patience_s),
        }
    }

    fn validate_remote(&self) -> Result<(), ConfigError> {
        let (engine, model) = (&self.engine, &self.model);
        if model.directory.as_os_str().is_empty() || engine.model_digest.is_empty() {
            return Err(ConfigError::value(
                "model.directory",
                format!("\"{}\"", model.directory.display()),
                "name the folder of the model that the server serves, and its digest in `engine.model_digest`: the \
                 vocabulary is read from there, and the digest is what askers choose",
            ));
        }
        if engine.precision != Precision::F32 || model.device != DeviceChoice::Cpu {
            return Err(ConfigError::value(
                "engine.precision",
                engine.precision,
                "leave `engine.precision` and `model.device` out: the server decides them",
            ));
        }
        if model.server_patience_s > 86_400 {
            return Err(ConfigError::value(
                "model.server_patience_s",
                model.server_patience_s,
                "use at most 86400",
            ));
        }
        let refused = |why: ServerAddressError| {
            ConfigError::value("model.server", format!("\"{}\"", model.server), why.to_string())
        };
        self.server().base().map(drop).map_err(refused)
    }
}

impl Document for EnclaveConfig {
    fn resolve(&mut self, base: &Path) {
        resolve(&mut self.socket, base);
        resolve(&mut self.tee.platform, base);
        resolve(&mut self.tee.collateral, base);
        if !self.model.directory.as_os_str().is_empty() {
            resolve(&mut self.model.directory, base);
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        self.expected_model()?;
        let engine = &self.engine;
        if engine.slots == 0 {
            return Err(ConfigError::value("engine.slots", 0, "use at least 1"));
        }
        if self.model.cache_mib == 0 {
            return Err(ConfigError::value("model.cache_mib", 0, "use at least 1; 2048 is usual"));
        }
        if engine.precision != Precision::F32 && self.model.directory.as_os_str().is_empty() {
            return Err(ConfigError::value(
                "engine.precision",
                engine.precision,
                "use f32 for the embedded model, or name a checkpoint in `model.directory`",
            ));
        }
        if engine.pace_ms > 60_000 {
            return Err(ConfigError::value("engine.pace_ms", engine.pace_ms, "use at most 60000"));
        }
        if engine.kind == EngineKind::Echo && (engine.echo_tokens == 0 || engine.echo_bytes == 0) {
            return Err(ConfigError::value(
                "engine.echo_tokens",
                engine.echo_tokens,
                "use at least 1 token of 1 byte",
            ));
        }
        if engine.kind == EngineKind::Openai {
            self.validate_remote()?;
        }
        if engine.kind == EngineKind::Burn
            && !self.model.directory.as_os_str().is_empty()
            && engine.model_digest.is_empty()
        {
            return Err(ConfigError::value(
                "engine.model_digest",
                "empty",
                "name the digest of the checkpoint in `model.directory`; only the embedded model needs none",
            ));
        }
        if self.limits.sessions == 0 || self.limits.streams_per_session == 0 {
            return Err(ConfigError::value(
                "limits.sessions",
                self.limits.sessions,
                "use at least 1 session of 1 stream",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_follows_the_measured_section_and_nothing_else() {
        let base = EnclaveConfig::embedded();
        let mut moved = base.clone();
        moved.socket = "/elsewhere".into();
        moved.limits.sessions = 1;
        assert_eq!(base.digest(), moved.digest());
        let mut paced = base.clone();
        paced.engine.pace_ms = 1;
        assert_ne!(base.digest(), paced.digest());
        let on = |device| {
            let mut config = base.clone();
            config.model.device = device;
            config.digest()
        };
        assert_eq!(on(DeviceChoice::Cpu), base.digest());
        assert_eq!(on(DeviceChoice::Cuda(0)), on(DeviceChoice::Cuda(1)));
        assert_ne!(on(DeviceChoice::Cuda(0)), base.digest());
        assert_ne!(on(DeviceChoice::Auto), on(DeviceChoice::Cuda(0)));
    }

    #[test]
    fn a_checkpoint_without_a_digest_is_refused() {
        let mut config = EnclaveConfig::embedded();
        config.model.directory = "/models/x".into();
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("engine.model_digest"), "{error}");
    }
}
