//! `cocoon chat`: ask the running network.
//!
//! Attaches to the gateway of the local testnet, or to any gateway named with `--url`. With a question on
//! the command line or on standard input it answers once; on a terminal it is a prompt that remembers the
//! conversation. Ctrl-C ends the answer, and at an empty prompt the program.

use std::io::{IsTerminal as _, Read as _};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{
    Stop, output,
    sse::{self, Event},
};
use crate::localnet::{AttachError, Layout, Network};

/// Most of standard input that becomes a question.
const MAX_QUESTION: u64 = 1024 * 1024;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The question; absent, it is read from standard input, or asked for on a terminal
    question: Vec<String>,
    /// `name` or `name@digest`; absent, the first model on offer
    #[arg(short, long)]
    model: Option<String>,
    /// Instructions that precede the conversation
    #[arg(long)]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long)]
    max_tokens: Option<u32>,
    /// Randomness of the answer, 0 (always the likeliest token) to 2
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Base URL of a gateway; absent, that of the local testnet
    #[arg(long, env = "OPENAI_BASE_URL")]
    url: Option<String>,
    /// The gateway's key; absent, that of the local testnet
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// State folder of the testnet
    #[arg(long, value_name = "DIR")]
    state: Option<std::path::PathBuf>,
    /// Print one JSON object for each answer instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let gateway = Gateway::find(&args)?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => gateway.first_model().await?,
    };
    let mut session = Session { gateway, model, messages: Vec::new(), args };
    if let Some(system) = session.args.system.clone() {
        session.messages.push(json!({"role": "system", "content": system}));
    }
    if !session.args.question.is_empty() {
        let question = session.args.question.join(" ");
        return session.once(&question).await;
    }
    if std::io::stdin().is_terminal() {
        return session.prompt().await;
    }
    let mut question = String::new();
    std::io::stdin()
        .take(MAX_QUESTION)
        .read_to_string(&mut question)
        .context("cannot read standard input")?;
    session.once(question.trim()).await
}

struct Session {
    gateway: Gateway,
    model: String,
    messages: Vec<Value>,
    args: Args,
}

impl Session {
    async fn once(&mut self, question: &str) -> anyhow::Result<()> {
        if question.is_empty() {
            bail!("there is no question: put it on the command line or on standard input");
        }
        if self.ask(question).await? { Ok(()) } else { Err(Stop::Interrupted.into()) }
    }

    async fn prompt(&mut self) -> anyhow::Result<()> {
        output::note(format!("{} — Ctrl-C ends an answer, Ctrl-D the conversation", self.model));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        loop {
            output::piece("> ");
            let line = tokio::select! {
                line = lines.next_line() => line.context("cannot read the terminal")?,
                _ = tokio::signal::ctrl_c() => {
                    output::line("");
                    output::note("Ctrl-D ends the conversation");
                    continue;
                }
            };
            match line {
                None => {
                    output::line("");
                    return Ok(());
                }
                Some(question) if question.trim().is_empty() => {}
                Some(question) => {
                    let before = self.messages.len();
                    match self.ask(question.trim()).await {
                        Ok(true) => {}
                        // An answer that was cut short is no part of the conversation.
                        Ok(false) => self.messages.truncate(before),
                        Err(error) => {
                            self.messages.truncate(before);
                            output::error(&error);
                        }
                    }
                }
            }
        }
    }

    /// Asks, prints the answer as it comes, and says whether it came to its end.
    async fn ask(&mut self, question: &str) -> anyhow::Result<bool> {
        self.messages.push(json!({"role": "user", "content": question}));
        let mut body = json!({
            "model": self.model,
            "messages": self.messages,
            "temperature": self.args.temperature,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(limit) = self.args.max_tokens {
            body["max_tokens"] = limit.into();
        }
        let mut answer = String::new();
        let mut last = Value::Null;
        let mut usage = Value::Null;
        let stream = async {
            let mut response = self.gateway.post("/chat/completions", &body).await?;
            let mut parser = sse::Parser::default();
            while let Some(bytes) = response.chunk().await.context("the gateway hung up")? {
                for event in parser.push(&bytes)? {
                    let Event::Data(chunk) = event else { return Ok(()) };
                    if let Some(error) = chunk.get("error") {
                        bail!("{}", text_of(error, "message"));
                    }
                    let choice = &chunk["choices"][0];
                    if let Some(text) = choice["delta"]["content"].as_str() {
                        answer.push_str(text);
                        if !self.args.json {
                            output::piece(text);
                        }
                    }
                    if choice["finish_reason"].is_string() {
                        last = json!({"finish_reason": choice["finish_reason"], "cocoon": chunk["cocoon"]});
                    }
                    if chunk["usage"].is_object() {
                        usage = chunk["usage"].clone();
                    }
                }
            }
            bail!("the gateway hung up in the middle of the answer")
        };
        let whole = tokio::select! {
            result = stream => {
                result?;
                true
            }
            // Dropping the request closes the connection, which stops generation and payment.
            _ = tokio::signal::ctrl_c() => false,
        };
        if self.args.json {
            let result = json!({
                "answer": answer, "whole": whole, "finish_reason": last["finish_reason"], "usage": usage,
                "receipt": last["cocoon"],
            });
            output::json(&result);
        } else {
            output::line("");
            if whole { output::note(summary(&last["cocoon"])) } else { output::note("(stopped)") }
        }
        self.messages.push(json!({"role": "assistant", "content": answer}));
        Ok(whole)
    }
}

/// One line on what the answer cost and who ran it.
fn summary(receipt: &Value) -> String {
    let legs = receipt["legs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sum = |field: &str| legs.iter().filter_map(|leg| leg[field].as_u64()).sum::<u64>();
    let who = legs
        .iter()
        .map(|leg| format!("{} ({})", short(text_of(leg, "worker")), text_of(leg, "assurance")))
        .collect::<Vec<_>>()
        .join(" → ");
    let cost = cocoon_payments::NanoTon(receipt["total"].as_u64().unwrap_or(0));
    format!("— {cost} for {} tokens in, {} out; {who}", sum("input_tokens"), sum("output_tokens"))
}

fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id)
}

fn text_of<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("?")
}

/// The gateway and the right to use it.
struct Gateway {
    base: String,
    key: String,
    http: reqwest::Client,
}

impl Gateway {
    fn find(args: &Args) -> anyhow::Result<Self> {
        let (base, key) = match (&args.url, &args.key) {
            (Some(url), Some(key)) => (url.clone(), key.clone()),
            (Some(_), None) => bail!("--url needs --key (or OPENAI_API_KEY), the gateway's key"),
            (None, _) => {
                let layout = Layout::new(args.state.clone().unwrap_or_else(Layout::default_root));
                let network = Network::attach(&layout).map_err(|error| match error {
                    AttachError::NotRunning(_) => anyhow::Error::new(Stop::NothingRunning(error.to_string())),
                    other => other.into(),
                })?;
                (network.base_url.clone(), network.api_key().context("cannot read the gateway's key")?)
            }
        };
        let http = reqwest::Client::builder().no_proxy().build().context("cannot make an HTTP client")?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), key, http })
    }

    async fn first_model(&self) -> anyhow::Result<String> {
        let url = format!("{}/models", self.base);
        let response =
            self.http.get(&url).bearer_auth(&self.key).send().await.context("the gateway does not answer")?;
        let list: Value =
            accepted(response).await?.json().await.context("the gateway's model list is not JSON")?;
        let first = list["data"][0]["id"].as_str();
        Ok(first
            .context("no model is on offer: no worker is online, or none that your policy accepts")?
            .to_owned())
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<reqwest::Response> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.key).json(body);
        accepted(request.send().await.context("the gateway does not answer")?).await
    }
}

/// Turns an error status into the gateway's own words.
async fn accepted(response: reqwest::Response) -> anyhow::Result<reqwest::Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body: Value = response.json().await.unwrap_or(Value::Null);
    match body["error"]["message"].as_str() {
        Some(message) => bail!("{message}"),
        None => bail!("the gateway answered {status}"),
    }
}
