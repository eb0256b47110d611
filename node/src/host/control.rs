//! The host's control socket: how the command line asks a running host how it is.
//!
//! A Unix socket in the state directory that only its owner may open. A request is one line of JSON, `{"cmd":
//! …}` with `status`, `channels` or `settle`; the answer is one line of JSON, `{"error": …}` where something
//! is wrong.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// A request is a word or two.
const MAX_REQUEST: u64 = 4096;
/// An answer with thousands of channels still fits.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;
/// Conversations at once.
const MAX_CLIENTS: usize = 16;
/// Somebody who connects says what they want at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a running host could not be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("nothing answers at {}: {why}; is the host running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's words.
        why: io::Error,
    },
    /// The conversation broke off.
    #[error("the host at {} broke off: {why}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// The host's own answer.
    #[error("the host says: {0}")]
    Host(String),
}

/// Asks a running host one thing.
///
/// # Errors
/// When nobody answers, or the host answers with an error.
pub async fn request(path: &Path, request: &Value) -> Result<Value, ControlError> {
    let broken = |why: String| ControlError::Broken { path: path.to_owned(), why };
    let stream = UnixStream::connect(path)
        .await
        .map_err(|why| ControlError::Connect { path: path.to_owned(), why })?;
    let (read, mut write) = stream.into_split();
    write.write_all(format!("{request}\n").as_bytes()).await.map_err(|error| broken(error.to_string()))?;
    let mut line = String::new();
    BufReader::new(read.take(MAX_ANSWER))
        .read_line(&mut line)
        .await
        .map_err(|error| broken(error.to_string()))?;
    let answer: Value =
        serde_json::from_str(&line).map_err(|error| broken(format!("no JSON came back: {error}")))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(ControlError::Host(error.to_owned())),
        None => Ok(answer),
    }
}

/// What answers. Implemented by each role.
pub(super) trait Answers: Send + Sync + 'static {
    /// One command, one answer.
    fn answer(&self, command: &str) -> impl Future<Output = Result<Value, String>> + Send;
}

/// Opens the socket. A file that nobody answers is a dead host's; the state directory's lock says so.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers for as long as the host runs.
pub(super) async fn serve<A: Answers>(listener: UnixListener, answers: Arc<A>) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answers = answers.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Err(error) = converse(stream, answers.as_ref()).await {
                        tracing::debug!(%error, "control socket");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse<A: Answers>(stream: UnixStream, answers: &A) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        let mut limited = (&mut read).take(MAX_REQUEST);
        let count = match tokio::time::timeout(PATIENCE, limited.read_line(&mut line)).await {
            Ok(count) => count?,
            Err(_) => return Ok(()),
        };
        if count == 0 {
            return Ok(());
        }
        let answer = match command(&line) {
            Ok(command) => answers.answer(&command).await,
            Err(why) => Err(why),
        };
        let answer = answer.unwrap_or_else(|why| json!({ "error": why }));
        write.write_all(format!("{answer}\n").as_bytes()).await?;
    }
}

/// The command in a request line.
fn command(line: &str) -> Result<String, String> {
    let request: Value = serde_json::from_str(line)
        .map_err(|error| format!("the request is not one line of JSON: {error}"))?;
    match request.get("cmd").and_then(Value::as_str) {
        Some(command) => Ok(command.to_owned()),
        None => Err("field `cmd` of the request is missing; use status, channels or settle".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Parrot;

    impl Answers for Parrot {
        async fn answer(&self, command: &str) -> Result<Value, String> {
            match command {
                "status" => Ok(json!({"fine": true})),
                other => Err(format!("unknown command `{other}`")),
            }
        }
    }

    #[tokio::test]
    async fn a_request_gets_one_answer_and_errors_name_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let missing = request(&path, &json!({"cmd": "status"})).await.unwrap_err();
        assert!(matches!(missing, ControlError::Connect { .. }), "{missing}");

        let listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        tokio::spawn(serve(listener, Arc::new(Parrot)));
        assert_eq!(request(&path, &json!({"cmd": "status"})).await.unwrap(), json!({"fine": true}));
        let error = request(&path, &json!({"cmd": "dance"})).await.unwrap_err().to_string();
        assert!(error.contains("dance"), "{error}");
        let error = request(&path, &json!({"command": "status"})).await.unwrap_err().to_string();
        assert!(error.contains("`cmd`"), "{error}");
        let error = request(&path, &json!(["x".repeat(5000)])).await.unwrap_err().to_string();
        assert!(error.contains("JSON"), "{error}");
    }
}
