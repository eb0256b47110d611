//! Starting, asking and killing.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The `cocoon` program under test: `$COCOON_BIN`, or what this build made.
///
/// # Errors
/// When there is none.
pub fn cocoon() -> anyhow::Result<PathBuf> {
    built("cocoon", "COCOON_BIN")
}

/// The instrumented program of the capture test.
///
/// # Errors
/// When there is none.
pub fn instrumented() -> anyhow::Result<PathBuf> {
    built("cocoon-instrumented", "COCOON_INSTRUMENTED_BIN")
}

fn built(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => {
            // A test runs from target/PROFILE/deps.
            let exe = std::env::current_exe()?;
            let folder =
                exe.parent().and_then(Path::parent).context("this test does not run from a target folder")?;
            folder.join(name)
        }
    };
    ensure!(
        path.is_file(),
        "{} is missing; build it first: cargo build --release --workspace --bins",
        path.display()
    );
    Ok(path)
}

/// Kills a process at once, as a crash would.
pub fn kill(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// A running testnet; stopped when dropped.
#[derive(Debug)]
pub struct Testnet {
    program: PathBuf,
    folder: TempDir,
    /// What `testnet up --json` printed.
    pub info: Value,
    http: reqwest::Client,
}

/// One answer, as an OpenAI client sees it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Text events of the stream.
    pub events: usize,
    /// OpenAI's usage object.
    pub usage: Value,
    /// The extension field `cocoon`: the receipt.
    pub receipt: Value,
}

impl Testnet {
    /// Starts `testnet up --detach` with more arguments, in a folder of its own.
    ///
    /// # Errors
    /// When the network does not come up; the error quotes what it printed.
    pub fn up(program: &Path, args: &[&str], env: &[(&str, &OsStr)]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command.args(["testnet", "up", "--detach", "--json", "--state"]).arg(folder.path()).args(args);
        command.envs(env.iter().copied());
        let output = command.output()?;
        if !output.status.success() {
            bail!("testnet up failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let info = serde_json::from_slice(&output.stdout).context("testnet up printed no JSON")?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build()?;
        Ok(Self { program: program.to_owned(), folder, info, http })
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the program with `args` and `--state`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(&self.program).args(args).arg("--state").arg(self.state()).output()?)
    }

    /// A command's standard output as JSON.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let output = self.run(args)?;
        ensure!(output.status.success(), "{args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The process id of a process by name.
    pub fn pid(&self, name: &str) -> Option<u32> {
        let processes = self.info["processes"].as_array()?;
        let process = processes.iter().find(|process| process["name"] == name)?;
        u32::try_from(process["pid"].as_u64()?).ok()
    }

    /// Sends a chat completion, with a bearer key.
    ///
    /// # Errors
    /// When the gateway does not answer.
    pub async fn post(&self, body: &Value) -> anyhow::Result<reqwest::Response> {
        let url = format!("{}/chat/completions", self.info["base_url"].as_str().unwrap_or_default());
        let key = self.info["api_key"].as_str().unwrap_or_default();
        Ok(self.http.post(url).bearer_auth(key).json(body).send().await?)
    }

    /// Asks one question, greedily, and reads the stream; `on_event` sees the count of text events so far
    /// after each of them.
    ///
    /// # Errors
    /// When the gateway refuses or the stream breaks.
    pub async fn ask(&self, question: &str, on_event: impl FnMut(usize)) -> anyhow::Result<Answer> {
        let mut on_event = on_event;
        self.ask_watching(question, |seen, _| on_event(seen)).await
    }

    /// Like [`Self::ask`], and tells `on_event` also which worker (peer id) the stream said it began with.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_watching(
        &self,
        question: &str,
        on_event: impl FnMut(usize, &str),
    ) -> anyhow::Result<Answer> {
        let response = self.post(&greedy(question)).await?;
        ensure!(response.status().is_success(), "the gateway answered {}", response.text().await?);
        read_stream(response, on_event).await
    }

    /// Calls `ready` until it gives something, for at most `limit`.
    ///
    /// # Errors
    /// When it gives nothing in time, naming `what`.
    pub async fn eventually<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = ready()? {
                return Ok(found);
            }
            ensure!(Instant::now() < deadline, "{what} did not happen within {} s", limit.as_secs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Testnet {
    fn drop(&mut self) {
        let _ =
            Command::new(&self.program).args(["testnet", "down", "--state"]).arg(self.folder.path()).output();
    }
}

/// Reads a stream of completion chunks to its end.
///
/// # Errors
/// When it breaks, carries an error, or has no end.
pub async fn answer_events(
    response: reqwest::Response,
    mut on_event: impl FnMut(usize),
) -> anyhow::Result<Answer> {
    read_stream(response, |seen, _| on_event(seen)).await
}

fn greedy(question: &str) -> Value {
    json!({
        "model": "cocoon-tiny", "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": question}],
    })
}

async fn read_stream(
    mut response: reqwest::Response,
    mut on_event: impl FnMut(usize, &str),
) -> anyhow::Result<Answer> {
    let mut worker = String::new();
    let mut answer = Answer { text: String::new(), events: 0, usage: Value::Null, receipt: Value::Null };
    let mut buffer = Vec::new();
    while let Some(bytes) = response.chunk().await? {
        buffer.extend_from_slice(&bytes);
        while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = buffer.drain(..end + 2).collect();
            let data = event.trim_ascii().strip_prefix(b"data: ").context("an event without data")?;
            if data == b"[DONE]" {
                return Ok(answer);
            }
            let chunk: Value = serde_json::from_slice(data)?;
            ensure!(chunk.get("error").is_none(), "the stream carries an error: {chunk}");
            if let Some(name) = chunk["cocoon"]["worker"].as_str() {
                name.clone_into(&mut worker);
            }
            if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str()
                && chunk["choices"][0]["delta"].get("role").is_none()
            {
                answer.text.push_str(text);
                answer.events += 1;
                on_event(answer.events, &worker);
            }
            if chunk["usage"].is_object() {
                answer.usage = chunk["usage"].clone();
            }
            if chunk["cocoon"]["legs"].is_array() {
                answer.receipt = chunk["cocoon"].clone();
            }
        }
    }
    bail!("the stream ended without [DONE] after {:?}", answer.text)
}
