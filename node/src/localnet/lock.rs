//! The lock that says that somebody runs a network in a state directory.
//!
//! The kernel drops it with the process that holds it, however that ends. It is therefore the one thing
//! about a network that is never out of date: `network.json` outlives a `kill -9`, and the process ids in
//! it belong to other programs after a while.

// A shell: it waits a moment for others who look.
#![allow(clippy::disallowed_methods, reason = "the supervisor is an async shell")]

use std::{
    fs::File,
    io,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// Somebody who only looks holds the lock for microseconds; who still has it after this long runs a network.
const LOOKING: Duration = Duration::from_millis(100);

/// Takes the lock, unless somebody else has it.
pub(super) async fn take(path: &Path) -> io::Result<Option<Flock<File>>> {
    let mut handle = File::options().create(true).truncate(false).write(true).open(path)?;
    let began = Instant::now();
    loop {
        handle = match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((handle, Errno::EWOULDBLOCK)) if began.elapsed() < LOOKING => handle,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(error.into()),
        };
        tokio::time::sleep(LOOKING / 10).await;
    }
}

/// Whether somebody holds the lock.
pub(super) fn is_held(path: &Path) -> io::Result<bool> {
    let handle = match File::open(path) {
        Ok(handle) => handle,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // Shared, so that two who look at the same time do not take each other for a network.
    match Flock::lock(handle, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_held_until_it_is_dropped_and_looking_does_not_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let lock = take(&path).await.unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(take(&path).await.unwrap().is_none());
        drop(lock);
        assert!(!is_held(&path).unwrap());
        assert!(take(&path).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn somebody_who_looks_does_not_keep_a_network_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        File::create(&path).unwrap();
        let look = Flock::lock(File::open(&path).unwrap(), FlockArg::LockSharedNonblock).unwrap();
        assert!(!is_held(&path).unwrap());
        let (taken, ()) = tokio::join!(take(&path), async {
            tokio::task::yield_now().await;
            drop(look);
        });
        assert!(taken.unwrap().is_some());
    }
}
