//! What the long-running commands share: the runtime, signals, the ready file, living with a parent.

// A shell: deadlines come from the machine's clock.
#![allow(clippy::disallowed_methods, reason = "commands are shells")]

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Options of a process that something else supervises.
#[derive(Debug, Args, Clone)]
pub(super) struct Supervised {
    /// Write this file, as JSON, once the process serves
    #[arg(long, value_name = "FILE")]
    pub(super) ready_file: Option<PathBuf>,
    /// End when the process with this id, which must have started this one, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub(super) die_with_parent: Option<u32>,
}

impl Supervised {
    /// Ties this process to its parent, if asked to.
    pub(super) fn attach(&self) -> anyhow::Result<()> {
        match self.die_with_parent {
            Some(parent) => {
                crate::process::die_with_parent(parent).context("cannot follow the parent process")
            }
            None => Ok(()),
        }
    }

    /// Says that the process serves.
    pub(super) fn ready(&self, value: &Value) {
        if let Some(path) = &self.ready_file
            && let Err(error) = write_whole(path, format!("{value}\n").as_bytes())
        {
            tracing::error!(path = %path.display(), %error, "cannot write the ready file");
        }
    }
}

/// Runs a command's future on the runtime that all of them share.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(work);
    // A task stuck in a blocking call must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Turns true at the first SIGINT or SIGTERM.
pub(super) fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        let _ = sender.send(true);
        // The second signal means it: whoever sends it does not want to wait for a clean end.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(receiver)
}

/// Asks `ready` again and again until it has something, or `limit` has passed.
pub(super) fn wait_until<T>(
    limit: Duration,
    mut ready: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = ready()? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        pause(Duration::from_millis(10));
    }
}

/// Waits between two looks at something that cannot be waited for: another program's file or process.
#[allow(clippy::disallowed_methods, reason = "there is no event to wait for")]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Writes a file so that a reader sees either nothing or all of it.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    std::fs::write(&partial, bytes)?;
    std::fs::rename(&partial, path)
}
