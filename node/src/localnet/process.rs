//! One child process of a local network: started with its output in a log file, waited for until it
//! says that it serves, stopped politely and then firmly.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;
use thiserror::Error;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::layout::Layout;

/// How often a starting child's ready file is looked for.
const POLL: Duration = Duration::from_millis(5);
/// How long a child may take to shut down before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Why a child did not come up.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The program could not be started.
    #[error("cannot start {name}: {source}")]
    Spawn {
        /// Which process.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file that it needs could not be made.
    #[error("cannot write {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended before it served.
    #[error("{name} ended before it was ready ({status}); the end of {log}:\n{tail}")]
    Ended {
        /// Which process.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// It did not serve in time.
    #[error("{name} was not ready within {seconds} s; the end of {log}:\n{tail}")]
    Late {
        /// Which process.
        name: String,
        /// How long we waited.
        seconds: u64,
        /// Its log file.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ready: PathBuf,
}

impl Process {
    /// Starts `program args…`. The child dies with this process, whatever kills it.
    ///
    /// # Errors
    /// [`ProcessError::Spawn`] and [`ProcessError::File`].
    pub fn spawn(
        layout: &Layout,
        name: &str,
        program: &Path,
        args: Vec<OsString>,
    ) -> Result<Self, ProcessError> {
        let (log, ready) = (layout.log(name), layout.ready(name));
        for path in [&log, &ready] {
            let folder = path.parent().unwrap_or(layout.root());
            fs::create_dir_all(folder)
                .map_err(|source| ProcessError::File { path: folder.to_owned(), source })?;
        }
        match fs::remove_file(&ready) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ProcessError::File { path: ready, source });
            }
            _ => {}
        }
        let file = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|source| ProcessError::File { path: path.to_owned(), source })
        };
        let output = file(&log)?;
        let errors = output.try_clone().map_err(|source| ProcessError::File { path: log.clone(), source })?;
        let child = Command::new(program)
            .args(args)
            .arg("--ready-file")
            .arg(&ready)
            .arg("--die-with-parent")
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // Its own group: Ctrl-C reaches the supervisor only, which then stops children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ProcessError::Spawn { name: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), child, log, ready })
    }

    /// Waits until the child has written its ready file, and returns its content.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] or [`ProcessError::Late`], each with the end of the child's log.
    pub async fn ready(&mut self, limit: Duration) -> Result<Value, ProcessError> {
        let deadline = Instant::now() + limit;
        loop {
            // The file is renamed into place, so what is there is whole.
            if let Ok(bytes) = fs::read(&self.ready) {
                return Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null));
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let tail = tail(&self.log);
                return Err(ProcessError::Ended {
                    name: self.name.clone(),
                    status,
                    log: self.log.clone(),
                    tail,
                });
            }
            if Instant::now() >= deadline {
                let seconds = limit.as_secs();
                let tail = tail(&self.log);
                return Err(ProcessError::Late {
                    name: self.name.clone(),
                    seconds,
                    log: self.log.clone(),
                    tail,
                });
            }
            sleep(POLL).await;
        }
    }

    /// Which process this is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Resolves when the child ends.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks the child to end, and kills it if it does not within a few seconds.
    pub async fn stop(&mut self) {
        if let Some(pid) = self.child.id() {
            crate::process::terminate(pid);
        }
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            tracing::warn!(name = self.name, "did not stop within {} s; killing it", GRACE.as_secs());
            let _ = self.child.kill().await;
        }
    }
}

/// The last lines of a log, for an error message.
pub fn tail(path: &Path) -> String {
    const BYTES: u64 = 2048;
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    read().unwrap_or_else(|error| format!("(cannot read it: {error})"))
}
