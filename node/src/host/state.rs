//! What a host keeps on disk besides vouchers, and the lock that keeps a second host off it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cocoon_p2p::Keypair;
use cocoon_payments::wallet::{Wallet, WalletError};
use ed25519_dalek::SigningKey;
use thiserror::Error;
use zeroize::Zeroizing;

const IDENTITY: &str = "identity.key";
/// Twenty-four words are far shorter.
const MAX_MNEMONIC_BYTES: u64 = 4096;

/// Why the state on disk cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file or directory.
    #[error("cannot {action} {}: {why}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's words.
        why: io::Error,
    },
    /// Two hosts on one state directory would pay out one voucher twice over.
    #[error("the state directory {} is in use by another cocoon process; stop it or use another `state`", .0.display())]
    Locked(PathBuf),
    /// The identity.
    #[error("the peer identity {} is damaged ({why}); restore it from a backup, or delete it to become another peer", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The wallet.
    #[error("cannot use the wallet in {} (configuration key `wallet.mnemonic_file`); `cocoon wallet new` makes one", path.display())]
    Wallet {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        why: WalletError,
    },
}

/// A locked state directory.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    /// Released by the system when the process ends, however it ends.
    _lock: File,
}

impl StateDir {
    /// Makes the directory if there is none, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |why| StateError::File { action, path, why }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail("create", path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(fail("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::Locked(path.to_owned())),
            Err(TryLockError::Error(why)) => Err(StateError::File { action: "lock", path: lock_path, why }),
        }
    }

    /// Where vouchers are stored.
    pub(super) fn vouchers(&self) -> PathBuf {
        self.path.join("vouchers")
    }

    /// This host's identity, made at the first start.
    pub(super) fn identity(&self) -> Result<Keypair, StateError> {
        let path = self.path.join(IDENTITY);
        let damaged = |why: String| StateError::Identity { path: path.clone(), why };
        match fs::read(&path) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                Keypair::from_protobuf_encoding(&bytes).map_err(|error| damaged(error.to_string()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keypair = Keypair::generate_ed25519();
                let bytes = Zeroizing::new(
                    keypair.to_protobuf_encoding().map_err(|error| damaged(error.to_string()))?,
                );
                write_secret(&path, &bytes).map_err(|why| StateError::File {
                    action: "write",
                    path: path.clone(),
                    why,
                })?;
                Ok(keypair)
            }
            Err(why) => Err(StateError::File { action: "read", path, why }),
        }
    }
}

/// Writes a file that only its owner may read, all of it or nothing.
fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let _ = fs::remove_file(&partial);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

/// Keeps the key below apart from anything else that may ever be derived from an identity.
const PAYEE_DOMAIN: &[u8] = b"cocoon/payee-key/v1";

/// The key that names this host in the terms of its channels.
///
/// It belongs to the host, not to the wallet that is paid: several hosts may share a wallet, and a channel bound
/// to the wallet's key alone would be good at each of them, so that one voucher would buy service from all. It is
/// derived from the identity (HKDF-SHA256), so it stays as long as the peer id does. Redeeming needs no
/// signature of it: the contract asks for one only in a cooperative close, which this host does not offer.
pub(super) fn payee_key(identity: &Keypair) -> Result<[u8; 32], StateError> {
    let secret =
        identity.derive_secret(PAYEE_DOMAIN).map(Zeroizing::new).ok_or_else(|| StateError::Identity {
            path: PathBuf::from(IDENTITY),
            why: "no key can be derived from a key of its kind".to_owned(),
        })?;
    Ok(SigningKey::from_bytes(&secret).verifying_key().to_bytes())
}

/// The wallet whose words a file holds.
pub(super) fn wallet(path: &Path, global_id: i32) -> Result<Wallet, StateError> {
    let fail = |why| StateError::File { action: "read the wallet's words in", path: path.to_owned(), why };
    let size = fs::metadata(path).map_err(fail)?.len();
    if size > MAX_MNEMONIC_BYTES {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidData, "it is too large for 24 words")));
    }
    let words = Zeroizing::new(fs::read_to_string(path).map_err(fail)?);
    Wallet::from_mnemonic(words.trim(), global_id)
        .map_err(|why| StateError::Wallet { path: path.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_stays_and_a_second_host_is_kept_off() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(&dir.path().join("state")).unwrap();
        let identity = first.identity().unwrap().public();
        assert_eq!(first.identity().unwrap().public(), identity);
        assert!(matches!(StateDir::open(&dir.path().join("state")), Err(StateError::Locked(_))));
        drop(first);
        let again = StateDir::open(&dir.path().join("state")).unwrap();
        assert_eq!(again.identity().unwrap().public(), identity);
    }

    #[test]
    fn every_host_has_a_payee_key_of_its_own_that_stays() {
        let (one, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let key = payee_key(&one).unwrap();
        assert_eq!(payee_key(&one).unwrap(), key);
        assert_ne!(payee_key(&other).unwrap(), key);
        // The peer id ends with the identity's own public key, which must not serve a second purpose.
        assert!(!one.public().to_peer_id().to_bytes().ends_with(&key));
    }

    #[test]
    fn a_damaged_identity_is_refused_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        fs::write(dir.path().join("identity.key"), b"junk").unwrap();
        assert!(matches!(state.identity(), Err(StateError::Identity { .. })));
    }
}
