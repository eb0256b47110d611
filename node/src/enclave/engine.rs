//! The engine that answers, loaded from what the configuration names and checked against what it measures.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cocoon_inference::device::{DeviceError, Processor};
use cocoon_inference::engine::frontend::Frontend;
use cocoon_inference::kernels::Precision;
use cocoon_inference::runner::{Runner, RunnerLimits};
use cocoon_inference::{BurnEngine, EchoEngine, Engine, EngineError, LoadError, ModelInfo, Paced};
use thiserror::Error;

use super::remote::{RemoteEngine, RemoteError};
use crate::config::{ConfigError, EnclaveConfig, EngineKind};

/// Why there is no engine.
#[derive(Debug, Error)]
pub enum EngineLoadError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint.
    #[error("checkpoint {}", path.display())]
    Checkpoint {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        why: Box<LoadError>,
    },
    /// The device that the configuration names.
    #[error("the configuration key `model.device` says \"{device}\"")]
    Device {
        /// The device.
        device: String,
        /// Why it cannot be used.
        #[source]
        why: DeviceError,
    },
    /// The model inside this executable.
    #[error("the embedded model cannot be loaded; this executable is damaged, install it again")]
    Embedded(#[source] Box<LoadError>),
    /// The server that computes.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The engine.
    #[error("the engine cannot start; lower `model.cache_mib` or `engine.slots`, or free memory")]
    Engine(#[source] EngineError),
    /// Another model than the configuration says.
    #[error(
        "the model's digest is {found}, the configuration key `engine.model_digest` says {expected}; \
         fetch the model again or change the key"
    )]
    Digest {
        /// What was loaded.
        found: String,
        /// What was expected.
        expected: String,
    },
}

/// A loaded model and the threads that run it.
pub struct Loaded {
    /// Takes requests.
    pub runner: Runner,
    /// What is served.
    pub info: ModelInfo,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Loads the engine. Slow: reads and hashes the whole model.
///
/// # Errors
/// See [`EngineLoadError`].
pub fn load(config: &EnclaveConfig) -> Result<Loaded, EngineLoadError> {
    let expected = config.expected_model()?;
    let settings = &config.engine;
    let mut engine: Arc<dyn Engine> = match settings.kind {
        EngineKind::Echo => Arc::new(EchoEngine::new(settings.echo_tokens, settings.echo_bytes as usize)),
        EngineKind::Burn => Arc::new(burn(config, expected)?),
        EngineKind::Openai => Arc::new(remote(config, expected)?),
    };
    if settings.pace_ms > 0 {
        engine = Arc::new(Paced::new(engine, Duration::from_millis(settings.pace_ms)));
    }
    let info = engine.info().clone();
    if let Some(expected) = expected
        && info.digest != expected
    {
        let (found, expected) = (hex::encode(info.digest), hex::encode(expected));
        return Err(EngineLoadError::Digest { found, expected });
    }
    let runner = Runner::spawn(engine, limits(config)).map_err(EngineLoadError::Engine)?;
    Ok(Loaded { runner, info })
}

fn limits(config: &EnclaveConfig) -> RunnerLimits {
    RunnerLimits {
        slots: usize::from(config.engine.slots),
        queue: usize::from(config.engine.queue),
        threads: config.model.threads,
        cache_bytes: u64::from(config.model.cache_mib) << 20,
    }
}

/// Reads the model's vocabulary, hashes its files, and waits for the server that computes.
fn remote(config: &EnclaveConfig, expected: Option<[u8; 32]>) -> Result<RemoteEngine, EngineLoadError> {
    let directory = &config.model.directory;
    let frontend = Frontend::open(directory, expected.as_ref(), &mut progress())
        .map_err(|why| EngineLoadError::Checkpoint { path: directory.clone(), why: Box::new(why) })?;
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|why| EngineLoadError::Engine(EngineError::Server(why.to_string())))?;
    Ok(RemoteEngine::connect(frontend, &config.server(), &runtime)?)
}

fn burn(config: &EnclaveConfig, expected: Option<[u8; 32]>) -> Result<BurnEngine, EngineLoadError> {
    let device = config.model.device;
    let processor =
        device.resolve().map_err(|why| EngineLoadError::Device { device: device.to_string(), why })?;
    let directory = &config.model.directory;
    if directory.as_os_str().is_empty() {
        let embedded = BurnEngine::embedded_on(processor);
        return embedded.map_err(|why| EngineLoadError::Embedded(Box::new(why)));
    }
    checkpoint(directory, processor, config.engine.precision, expected)
}

fn checkpoint(
    directory: &Path,
    processor: Processor,
    precision: Precision,
    expected: Option<[u8; 32]>,
) -> Result<BurnEngine, EngineLoadError> {
    let engine = BurnEngine::load_on(directory, processor, precision, expected, &mut progress())
        .map_err(|why| EngineLoadError::Checkpoint { path: directory.to_owned(), why: Box::new(why) })?;
    if precision != Precision::F32 {
        let error = engine.rounding_error();
        tracing::info!(%precision, max = error.max, rms = error.rms, "rounded the model's weights");
    }
    Ok(engine)
}

/// Logs every tenth of the files that are read.
fn progress() -> impl FnMut(u64, u64) + Send {
    let mut tenths = 0;
    move |done: u64, total: u64| {
        let now = (done.saturating_mul(10)).checked_div(total).unwrap_or(10);
        if now > tenths {
            tenths = now;
            tracing::debug!(percent = now * 10, "loading the model");
        }
    }
}
