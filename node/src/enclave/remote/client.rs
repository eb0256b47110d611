//! Connections to the server.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use cocoon_inference::engine::frontend::Frontend;
use serde::Deserialize;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::error::RemoteError;
use super::recount::Recount;
use super::sse::Events;
use super::wire::{End, Made, part, short};
use crate::config::ServerConfig;

/// Longest wait for a connection: the server is on this machine.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for more of an answer: a long prompt on a slow machine.
const IDLE: Duration = Duration::from_secs(120);
/// Longest answer to a question about the server itself, in bytes.
const MAX_ABOUT: usize = 1 << 20;
/// Tokens that a server may send beyond what was ordered, where its counting is another.
const SLACK: usize = 64;

/// Whoever waits for any answer's next token.
#[derive(Debug, Default)]
pub(super) struct News {
    count: Mutex<u64>,
    more: Condvar,
}

impl News {
    /// There is something for somebody.
    pub(super) fn tell(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.wrapping_add(1);
        self.more.notify_all();
    }

    /// Waits until there is more than what was `seen`; what is there now.
    pub(super) fn wait(&self, seen: u64, patience: Duration) -> u64 {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.more.wait_timeout_while(count, patience, |count| *count == seen);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What a server says of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) name: String,
    /// Positions that it has room for, if it says so.
    pub(super) context: Option<u32>,
}

/// A server.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    model: String,
    runtime: Handle,
    news: Arc<News>,
}

/// What arrives of an answer.
#[derive(Debug)]
pub(super) enum Item {
    Tokens(Vec<Made>),
    End(End),
    Failed(String),
}

/// An order that is being served. Dropping it tells the server to stop.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) items: Receiver<Item>,
    task: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    pub(super) fn new(config: &ServerConfig, runtime: Handle) -> Result<Self, RemoteError> {
        let base = config.base()?;
        // A redirection could lead out of the enclave, and so could a proxy.
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let http = http.connect_timeout(CONNECT).tcp_nodelay(true).build();
        let http = http.map_err(|e| RemoteError::Client { why: e.to_string() })?;
        Ok(Self { http, base, model: config.model.clone(), runtime, news: Arc::default() })
    }

    /// Sets the name under which the model is asked for.
    pub(super) fn serve(&mut self, name: &str) {
        name.clone_into(&mut self.model);
    }

    /// Whether this is the model that is asked for.
    pub(super) fn serves(&self, model: &Served) -> bool {
        model.name == self.model
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn news(&self) -> &Arc<News> {
        &self.news
    }

    /// What the server has.
    pub(super) async fn models(&self) -> Result<Vec<Served>, String> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
            /// vLLM's and SGLang's word for its room.
            max_model_len: Option<u32>,
            /// llama.cpp's.
            #[serde(default)]
            meta: Meta,
        }
        #[derive(Default, Deserialize)]
        struct Meta {
            n_ctx: Option<u32>,
        }
        let asked = async {
            let sent = self.http.get(format!("{}/models", self.base)).send().await;
            let response = sent.map_err(|e| reason(&e))?;
            if !response.status().is_success() {
                return Err(format!("HTTP status {}", response.status().as_u16()));
            }
            let body = body(response, MAX_ABOUT).await?;
            serde_json::from_slice::<Models>(&body)
                .map_err(|e| format!("its list of models: {}", short(&e.to_string())))
        };
        let models = timeout(CONNECT, asked).await.map_err(|_| "no answer in time".to_owned())??;
        let served =
            |model: Model| Served { name: model.id, context: model.max_model_len.or(model.meta.n_ctx) };
        Ok(models.data.into_iter().map(served).collect())
    }

    /// Orders tokens.
    pub(super) fn order(&self, body: impl FnOnce(&str) -> Value, reading: Reading) -> Stream {
        let (sender, items) = channel();
        let request = self.http.post(format!("{}/completions", self.base)).json(&body(&self.model));
        let news = Arc::clone(&self.news);
        let task = self.runtime.spawn(async move {
            let last = match serve(request, &reading, &sender, &news).await {
                Ok(end) => Item::End(end),
                Err(why) => Item::Failed(why),
            };
            // Nobody may be listening any more.
            let _ = sender.send(last);
            news.tell();
        });
        Stream { items, task: task.abort_handle() }
    }
}

/// How the answer to an order is read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) frontend: Arc<Frontend>,
    pub(super) recount: Arc<Recount>,
    /// Ids that were sent.
    pub(super) prompt: usize,
    /// Tokens that were ordered.
    pub(super) tokens: u32,
    /// Alternatives that were asked for, if log-probabilities were.
    pub(super) top: Option<u8>,
}

/// Passes on what the server sends, up to its end.
async fn serve(
    request: reqwest::RequestBuilder,
    reading: &Reading,
    sender: &Sender<Item>,
    news: &News,
) -> Result<End, String> {
    let Reading { frontend, recount, prompt, tokens, top } = reading;
    let most = (*tokens as usize).saturating_add(SLACK);
    let late = |_| format!("it sent nothing for {} s", IDLE.as_secs());
    let mut response = timeout(IDLE, request.send()).await.map_err(late)?.map_err(|e| reason(&e))?;
    let status = response.status();
    if !status.is_success() {
        // Its words may quote the prompt, so that they are for the asker alone.
        tracing::warn!(status = status.as_u16(), "the inference server refused an order");
        let said = body(response, 4096).await.unwrap_or_default();
        return Err(format!("HTTP status {}: {}", status.as_u16(), short(&String::from_utf8_lossy(&said))));
    }
    let (mut events, mut count, mut end) = (Events::new(*prompt), 0, None);
    while end.is_none() {
        let chunk = timeout(IDLE, response.chunk()).await.map_err(late)?.map_err(|e| reason(&e))?;
        let Some(chunk) = chunk else { return Err("it broke off in the middle of an answer".into()) };
        let (mut tokens, mut failed) = (Vec::new(), None);
        let cut = events.push(&chunk, |data| {
            if failed.is_none() && end.is_none() {
                match part(data, frontend, recount, *top) {
                    Ok(part) => {
                        tokens.extend(part.tokens);
                        end = part.end;
                    }
                    Err(why) => failed = Some(why),
                }
            }
        });
        cut.map_err(|_| "it sent an event that is longer than any".to_owned())?;
        count += tokens.len();
        if count > most {
            return Err(format!("it sent {count} tokens, more than were ordered"));
        }
        if !tokens.is_empty() {
            if sender.send(Item::Tokens(tokens)).is_err() {
                break;
            }
            news.tell();
        }
        if let Some(why) = failed {
            return Err(why);
        }
    }
    Ok(end.unwrap_or(End::Stop))
}

async fn body(mut response: reqwest::Response, most: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| reason(&e))? {
        body.extend_from_slice(&chunk[..chunk.len().min(most - body.len())]);
        if body.len() == most {
            break;
        }
    }
    Ok(body)
}

/// What went wrong, to its cause, without the address.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    short(&cause.to_string())
}
