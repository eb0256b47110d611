//! Makes a new network's files: chain, software TEE, model, genesis, wallets.

// A shell: a new network is dated by the machine's clock.
#![allow(clippy::disallowed_methods, reason = "setup runs once, from the command line")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cocoon_attest::software_tee::{self, Platform};
use cocoon_client::genesis::{
    ChainSection, Genesis, GenesisError, GenesisFile, ModelSection, Params, RegistrySection, TrustSection,
};
use cocoon_payments::{local::LocalChain, wallet::Wallet};
use thiserror::Error;

use super::layout::Layout;
use crate::config::EnclaveConfig;

/// Payment may lead service by this many output tokens.
const QUANTUM_TOKENS: u32 = 64;
/// How long a worker has to redeem its newest voucher after an asker wants its deposit back.
const CLOSE_DELAY_S: u32 = 3600;
/// Ads are renewed every 30 s; three missed renewals and a worker is gone.
const AD_TTL_S: u32 = 90;

/// Why a network's files could not be made or used.
#[derive(Debug, Error)]
pub enum SetupError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state directory belongs to a network whose enclaves ran another executable.
    #[error(
        "the network in {0} was made by another build of this program, whose enclaves measure differently; \
         remove the folder, or name another with --state"
    )]
    OtherBuild(PathBuf),
    /// The state directory belongs to a network of other engine settings.
    #[error(
        "the network in {0} was made with other engine settings; remove the folder, or name another with --state"
    )]
    OtherEngine(PathBuf),
    /// The genesis file is damaged.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The chain, the software TEE or a wallet could not be made.
    #[error("cannot make the {what}: {why}")]
    Make {
        /// Which part.
        what: &'static str,
        /// Its own words.
        why: String,
    },
}

/// What the network's first start fixes for good.
#[derive(Debug)]
pub struct NewNetwork<'a> {
    /// Where its files go.
    pub layout: &'a Layout,
    /// The executable that its enclaves run.
    pub program: &'a Path,
    /// The configuration that its enclaves share.
    pub enclave: &'a EnclaveConfig,
    /// The name of the model that they serve.
    pub model: &'a str,
}

impl NewNetwork<'_> {
    /// Makes whatever is missing, and checks that what is there fits.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn ensure(&self) -> Result<Genesis, SetupError> {
        let layout = self.layout;
        let measurement = software_tee::measure_executable(self.program)
            .map_err(|source| SetupError::File { path: self.program.to_owned(), source })?;
        if layout.genesis().exists() {
            let genesis = Genesis::load(layout.genesis())?;
            if !genesis.measurements().contains(&measurement) {
                return Err(SetupError::OtherBuild(layout.root().to_owned()));
            }
            if !genesis.enclave_configs().contains(&self.enclave.digest()) {
                return Err(SetupError::OtherEngine(layout.root().to_owned()));
            }
            return Ok(genesis);
        }
        let now = unix_now();
        let chain = make_chain(&layout.chain(), now)?;
        let platform = Platform::generate(now).map_err(|error| make("software TEE", error))?;
        write_private(&layout.platform(), platform.to_json().as_bytes())?;
        let root = platform.trust_root();
        let file = GenesisFile {
            version: 1,
            name: format!("local-{:04x}", chain.global_id() & 0xffff),
            chain: ChainSection { global_id: chain.global_id(), zero_state: hex::encode(chain.zero_state()) },
            trust: vec![TrustSection {
                name: root.name,
                assurance: root.assurance.to_string(),
                certificate: BASE64.encode(root.certificate),
            }],
            registry: RegistrySection {
                min_tcb_evaluation: 0,
                measurements: vec![measurement.to_string()],
                enclave_configs: vec![hex::encode(self.enclave.digest())],
                models: vec![ModelSection {
                    name: self.model.to_owned(),
                    digest: self.enclave.engine.model_digest.clone(),
                }],
            },
            params: Params {
                quantum_tokens: QUANTUM_TOKENS,
                close_delay_s: CLOSE_DELAY_S,
                ad_ttl_s: AD_TTL_S,
            },
        };
        // Last: a genesis file says that everything else is in place.
        write(&layout.genesis(), file.to_toml()?.as_bytes())?;
        Ok(Genesis::load(layout.genesis())?)
    }
}

fn make_chain(dir: &Path, now: u64) -> Result<LocalChain, SetupError> {
    // A chain without a genesis beside it is what an interrupted first start left.
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(|source| SetupError::File { path: dir.to_owned(), source })?;
    }
    LocalChain::create(dir, u32::try_from(now).unwrap_or(u32::MAX))
        .map_err(|error| make("local chain", error))
}

/// The wallet in `path`, made first if there is none.
///
/// # Errors
/// [`SetupError`].
pub(crate) fn ensure_wallet(path: &Path, global_id: i32) -> Result<Wallet, SetupError> {
    let words = match fs::read_to_string(path) {
        Ok(words) => words,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mnemonic = Wallet::generate(global_id).map_err(|error| make("wallet", error))?.1;
            write_private(path, mnemonic.to_string().as_bytes())?;
            mnemonic.to_string()
        }
        Err(source) => return Err(SetupError::File { path: path.to_owned(), source }),
    };
    Wallet::from_mnemonic(words.trim(), global_id).map_err(|error| make("wallet", error))
}

/// The key in `path`, made first if there is none.
///
/// # Errors
/// [`SetupError::File`].
pub(crate) fn ensure_key(path: &Path) -> Result<String, SetupError> {
    match fs::read_to_string(path) {
        Ok(key) if !key.trim().is_empty() => Ok(key.trim().to_owned()),
        _ => {
            let key = format!("sk-cocoon-{:032x}", rand::random::<u128>());
            write_private(path, key.as_bytes())?;
            Ok(key)
        }
    }
}

/// Writes a file that only this user may read.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), SetupError> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let file = |source| SetupError::File { path: path.to_owned(), source };
    make_parent(path)?;
    // Written beside and renamed: a crash leaves the old file or the new one, never half a key.
    let partial = path.with_extension("partial");
    let mut out = fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&partial)
        .map_err(file)?;
    out.write_all(bytes).and_then(|()| out.sync_all()).map_err(file)?;
    fs::rename(&partial, path).map_err(file)
}

/// Writes a file that anybody may read.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), SetupError> {
    let file = |source| SetupError::File { path: path.to_owned(), source };
    make_parent(path)?;
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path)).map_err(file)
}

fn make_parent(path: &Path) -> Result<(), SetupError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|source| SetupError::File { path: parent.to_owned(), source })
}

fn make(what: &'static str, error: impl std::fmt::Display) -> SetupError {
    SetupError::Make { what, why: error.to_string() }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
