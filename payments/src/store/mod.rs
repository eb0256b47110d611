//! What must survive a crash.
//!
//! | store | holds | what a crash may cost |
//! |---|---|---|
//! | [`PayeeStore`] | a worker's newest voucher of each channel | nothing that was acknowledged, if the process dies; at most the last 10 ms, if the machine does |
//! | [`PayerStore`] | an asker's channel keys and totals | nothing: a total that is too low is corrected by the worker's newest voucher |

mod journal;
mod payee;
mod payer;

use std::{io, path::PathBuf};

use thiserror::Error;

pub(crate) use payee::Entry;
pub use payee::{PayeeChannel, PayeeStats, PayeeStore};
pub use payer::{PayerChannel, PayerStatus, PayerStore};

pub(crate) use journal::scan as scan_journal;

use crate::{Address, codec::WireError};

/// redb's default is a gigabyte; these databases hold a few megabytes.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Why something could not be stored or read back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk.
    #[error("{what} failed on {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An earlier write or sync failed. What the disk holds is not known any more, so nothing is
    /// acknowledged; after a restart the store holds what the disk really has.
    #[error("the store stopped after a disk error; free space or replace the disk, then restart")]
    Poisoned,
    /// Another process has it open.
    #[error("{} is in use by another process; stop it first", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The database cannot be used.
    #[error("the database {} cannot be used: {source}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// A record is not what this build writes.
    #[error("a record of channel {channel} cannot be read: {source}; was it written by a newer version?")]
    Record {
        /// Its key.
        channel: Address,
        /// Why.
        source: WireError,
    },
    /// The key of a record is not an address.
    #[error("the database holds a record under a key that is no address")]
    Key,
    /// A bound on memory.
    #[error("the store holds {max} channels already; settle and forget old ones")]
    Full {
        /// The bound.
        max: usize,
    },
    /// Nothing is known about the channel.
    #[error("channel {channel} is not in the store; add its terms first")]
    Unknown {
        /// The channel.
        channel: Address,
    },
    /// The terms are bad.
    #[error(transparent)]
    Params(#[from] crate::channel::ParamsError),
}

impl StoreError {
    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}

/// Opens a redb database that only its owner can read.
fn open_database(path: &std::path::Path) -> Result<redb::Database, StoreError> {
    let file = private_file()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(StoreError::io("opening", path))?;
    redb::backends::FileBackend::new(file)
        .and_then(|file| redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(file))
        .map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.into() },
            error => StoreError::Database { path: path.into(), source: Box::new(error.into()) },
        })
}

/// Options for files that hold keys or money: nobody else may read them.
fn private_file() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

/// Makes a new file's name durable, not only its content.
fn sync_directory(dir: &std::path::Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(StoreError::io("syncing the directory", dir))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}
