//! The enclave: the half of a worker that sees prompts and answers, and nothing else.
//!
//! It listens on a Unix socket for its host, makes keys and evidence when asked to ([`epoch`]), answers Noise
//! handshakes, and runs one [`session::Session`] per asker over the engine ([`engine`]). It has no network,
//! no disk beyond the model, and no money beyond the credit its host grants: a voucher never gets here, a
//! prompt never leaves.
//!
//! One task (`connection`) owns all sessions of the host's connection. It takes whatever frames and engine
//! events are there, lets the machines settle once, seals what came of it and writes it with one system call.
//! When the host goes, its sessions go with it, and the next host finds the same keys.

mod connection;
pub mod engine;
pub mod epoch;
pub mod remote;
pub mod session;

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cocoon_attest::{Measurement, Quoter, quoted_measurement, software_tee, tsm};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::config::{EnclaveConfig, QuoterKind};
use crate::instruments::Instruments;

/// Why an enclave process cannot serve.
#[derive(Debug, Error)]
pub enum EnclaveError {
    /// The model or its engine.
    #[error("cannot load the model")]
    Engine(#[from] engine::EngineLoadError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The kernel's quoter.
    #[error("cannot make quotes on this machine (configuration key `tee.quoter`)")]
    Quoter(#[from] cocoon_attest::QuoteError),
    /// The TEE's own quote.
    #[error("this machine's TEE makes quotes that cannot be read (configuration key `tee.quoter`): {0}")]
    OwnQuote(cocoon_attest::VerifyError),
    /// The software TEE's platform file.
    #[error("cannot use the software TEE's platform file {} (configuration key `tee.platform`): {why}", path.display())]
    Platform {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The executable cannot be measured.
    #[error("cannot measure this executable ({}): {why}", path.display())]
    Measure {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        why: io::Error,
    },
    /// The socket.
    #[error("cannot listen on {} (configuration key `socket`): {why}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A task of ours died.
    #[error("an internal task of the enclave ended unexpectedly: {0}")]
    Internal(String),
}

/// What a supervisor learns when the enclave serves.
#[derive(Debug, Clone)]
pub struct EnclaveReady {
    /// The model's name.
    pub model: String,
    /// Digest of its manifest.
    pub model_digest: [u8; 32],
    /// SHA-384 of this executable.
    pub image: Measurement,
    /// Which quoter signs.
    pub tee: &'static str,
}

/// What all connections share.
struct Shared {
    config: EnclaveConfig,
    config_digest: [u8; 32],
    loaded: engine::Loaded,
    quoter: Arc<dyn Quoter>,
    image: Measurement,
    instruments: Instruments,
}

/// Runs an enclave until `stop` turns true.
///
/// # Errors
/// When it cannot serve: see [`EnclaveError`].
pub async fn run(
    config: EnclaveConfig,
    instruments: Instruments,
    mut stop: watch::Receiver<bool>,
    ready: impl FnOnce(EnclaveReady) + Send,
) -> Result<(), EnclaveError> {
    let internal = |error: tokio::task::JoinError| EnclaveError::Internal(error.to_string());
    let prepared = tokio::task::spawn_blocking(move || prepare(config, instruments));
    let shared = tokio::select! {
        prepared = prepared => Arc::new(prepared.map_err(internal)??),
        () = stopped(&mut stop) => return Ok(()),
    };
    let path = shared.config.socket.clone();
    let listener = listen(&path).await?;
    tracing::info!(socket = %path.display(), model = shared.loaded.info.name, tee = shared.quoter.describe(), "enclave serves");
    ready(EnclaveReady {
        model: shared.loaded.info.name.clone(),
        model_digest: shared.loaded.info.digest,
        image: shared.image,
        tee: shared.quoter.describe(),
    });

    let mut epochs = epoch::Epochs::default();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept the host's connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stopped(&mut stop) => break,
        };
        if let Err(error) = same_user(&stream, &path) {
            tracing::warn!(%error, "refused a connection");
            continue;
        }
        tokio::select! {
            ended = connection::serve(&shared, &mut epochs, stream) => match ended {
                Ok(connection::Ended::HostLeft) => tracing::info!("the host left; waiting for it"),
                Ok(connection::Ended::Shutdown) => break,
                Err(error) => tracing::warn!(%error, "the host's connection ended"),
            },
            () = stopped(&mut stop) => break,
        }
    }
    let _ = std::fs::remove_file(&path);
    Ok(())
}

/// Resolves when `stop` turns true or nobody can turn it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The slow part of starting: measuring the executable, opening the quoter, loading the model.
fn prepare(config: EnclaveConfig, instruments: Instruments) -> Result<Shared, EnclaveError> {
    let (quoter, image) = quoter(&config)?;
    let loaded = engine::load(&config)?;
    let config_digest = config.digest();
    Ok(Shared { config, config_digest, loaded, quoter, image, instruments })
}

/// What is running, even if the file was replaced since: on Linux the kernel's own link to the image.
fn executable() -> PathBuf {
    let kernel = Path::new("/proc/self/exe");
    if kernel.exists() {
        kernel.to_owned()
    } else {
        std::env::current_exe().unwrap_or_else(|_| kernel.to_owned())
    }
}

/// The TEE, and what it measures this enclave as: what its quotes say, so that the claims can repeat it.
fn quoter(config: &EnclaveConfig) -> Result<(Arc<dyn Quoter>, Measurement), EnclaveError> {
    match config.tee.quoter {
        QuoterKind::Tsm => {
            let tee = tsm::ConfigfsTsm::new(config.tee.collateral.clone())?;
            let image = quoted_measurement(&tee.quote(&[0; 64])?).map_err(EnclaveError::OwnQuote)?;
            Ok((Arc::new(tee), image))
        }
        QuoterKind::SoftwareTee => {
            let path = &config.tee.platform;
            let fail = |why: String| EnclaveError::Platform { path: path.clone(), why };
            let text = zeroize::Zeroizing::new(
                std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?,
            );
            let platform =
                software_tee::Platform::from_json(&text).map_err(|error| fail(error.to_string()))?;
            let executable = executable();
            let image = software_tee::measure_executable(&executable)
                .map_err(|why| EnclaveError::Measure { path: executable, why })?;
            Ok((Arc::new(platform.quoter(image)), image))
        }
    }
}

/// Listens on `path`, which only this user may open. A socket file that nobody answers is a dead enclave's.
async fn listen(path: &Path) -> Result<UnixListener, EnclaveError> {
    let fail = |why: String| EnclaveError::Listen { path: path.to_owned(), why };
    if UnixStream::connect(path).await.is_ok() {
        return Err(fail("another enclave listens there; stop it or name another socket".to_owned()));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| fail(error.to_string()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error.to_string())),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|error| fail(error.to_string()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| fail(error.to_string()))?;
    Ok(listener)
}

/// The file mode keeps others out once it is set; this covers the moment before. The socket's file is ours.
fn same_user(stream: &UnixStream, socket: &Path) -> io::Result<()> {
    let theirs = stream.peer_cred()?.uid();
    let ours = std::fs::metadata(socket)?.uid();
    if theirs == ours {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("it came from user {theirs}, this enclave runs as {ours}"),
    ))
}
