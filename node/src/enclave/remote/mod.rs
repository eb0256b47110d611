//! An engine that computes in another process: a server with OpenAI's API inside the same TEE (vLLM, SGLang,
//! llama.cpp), for models that this program does not compute.
//!
//! The enclave keeps everything that an asker relies on. It renders the conversation, makes ids of it, follows the
//! allowance, recounts what comes back with the model's own vocabulary, looks for stop strings, and checks the form of
//! structured answers. The server gets ids (`wire.rs`) and gives tokens. It is ordered no more of them than are paid
//! for; when an asker pays on, the next order continues the text so far, which servers find in their prefix cache.
//!
//! ```text
//! scheduler ─ order(paid) ─► RemoteAnswer ─ POST /completions ─► server
//!     ▲                          │  ▲                              │
//!     └── token, Later, end ─────┘  └── News ◄── stream's task ◄───┘
//! ```
//!
//! What the digest in the evidence covers are the files of the model's folder. That the server serves these files, and
//! which server it is, is for the image to say: its measurement is part of the quote. A server elsewhere would see the
//! prompts, so only loopback addresses are taken.

mod answer;
mod client;
mod error;
mod health;
mod recount;
mod sse;
mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cocoon_inference::engine::frontend::{Begun, Frontend};
use cocoon_inference::engine::{Executor, Logits, Resources, Shape, Started};
use cocoon_inference::scheduler::{BlockId, Plan, Run};
use cocoon_inference::{BurnEngine, Engine, EngineError, GenerateRequest, ModelInfo, RequestError, Thinking};

use answer::RemoteAnswer;
use client::{Client, News};
pub use error::RemoteError;
use recount::Recount;

use crate::config::ServerConfig;

/// Longest time that a step waits for any of its answers' next tokens: other work comes up meanwhile.
const PATIENCE: Duration = Duration::from_millis(20);

/// A model that another process computes.
pub struct RemoteEngine {
    frontend: Arc<Frontend>,
    client: Arc<Client>,
    recount: Arc<Recount>,
    healthy: Arc<AtomicBool>,
    _health: health::Watch,
}

impl RemoteEngine {
    /// Waits until the server answers, and watches it from then on. Blocks; `runtime` carries the connections.
    ///
    /// # Errors
    /// If the server is not there after [`ServerConfig::patience`], or has not this model.
    pub fn connect(
        frontend: Frontend,
        config: &ServerConfig,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, RemoteError> {
        let mut client = Client::new(config, runtime.clone())?;
        let served = health::wait(&client, config)?;
        client.serve(&served.name);
        // It may have been started with room for less than the model has.
        let frontend = Arc::new(frontend.within(served.context.unwrap_or(u32::MAX)));
        let context = frontend.info().context;
        tracing::info!(server = %config.url, model = %served.name, context, "the inference server answers");
        let client = Arc::new(client);
        let healthy = Arc::new(AtomicBool::new(true));
        let watch = health::watch(Arc::clone(&client), Arc::clone(&healthy));
        let recount = Arc::new(Recount::new(&frontend));
        Ok(Self { frontend, client, recount, healthy, _health: watch })
    }
}

impl std::fmt::Debug for RemoteEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteEngine").field("model", self.frontend.info()).finish_non_exhaustive()
    }
}

impl Engine for RemoteEngine {
    fn info(&self) -> &ModelInfo {
        self.frontend.info()
    }

    fn start(&self, request: &GenerateRequest) -> Result<Started, RequestError> {
        let Begun { sequence, form, grammar, writer } = self.frontend.start(request)?;
        if grammar.is_some() && form.reasoning == Thinking::Opened {
            let why = "the model begins with its thoughts, where its server cannot tell the form's beginning; turn them \
                       off by `chat_template_kwargs`";
            return Err(RequestError::invalid("response_format", why));
        }
        if grammar.is_some() && !sequence.prefix.is_empty() {
            // A server's grammar begins where its own tokens do.
            let why = "an answer that must have a form cannot be continued by this engine; ask again from its beginning";
            return Err(RequestError::invalid("prefix", why));
        }
        let order = wire::Order::new(&request.sampling, grammar.as_ref());
        let ids = [sequence.prompt.as_slice(), &sequence.prefix].concat();
        let (client, recount) = (Arc::clone(&self.client), Arc::clone(&self.recount));
        let answer = RemoteAnswer::new(writer, order, ids, sequence.limit, client, recount);
        Ok(Started { sequence, form, answer: Box::new(answer) })
    }

    /// The server has its own memory and its own steps; here a sequence is one block, and a prompt never cut.
    fn shape(&self) -> Shape {
        let context = self.frontend.info().context;
        Shape { block_tokens: context, block_bytes: 1, prefill: context, context }
    }

    fn executor(&self, _: Resources) -> Result<Box<dyn Executor>, EngineError> {
        Ok(Box::new(Waiting { news: Arc::clone(self.client.news()), seen: 0 }))
    }

    fn ready(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }
}

/// Reads bytes as a server's events: whatever they are, tokens are the model's.
pub(crate) fn fuzz(bytes: &[u8]) {
    static WORLD: OnceLock<Option<(Arc<Frontend>, Recount)>> = OnceLock::new();
    let world = WORLD.get_or_init(|| {
        let frontend = Arc::clone(BurnEngine::embedded().ok()?.frontend());
        let recount = Recount::new(&frontend);
        Some((frontend, recount))
    });
    let Some((frontend, recount)) = world else { return };
    let read = |data: &[u8]| {
        if let Ok(part) = wire::part(data, frontend, recount, Some(2)) {
            let known = part.tokens.iter().all(|made| (made.id as usize) < frontend.vocab());
            assert!(known, "an id that the model has not was let through");
        }
    };
    read(bytes);
    // A line that is too long ends the connection.
    let _ = sse::Events::new(0).push(bytes, read);
}

/// Computes nothing: a step is over when some answer has something new.
struct Waiting {
    news: Arc<News>,
    seen: u64,
}

impl Executor for Waiting {
    fn wipe(&mut self, _: &[BlockId]) {}

    fn run(&mut self, _: &Plan, _: &[Run]) -> Result<Logits, EngineError> {
        self.seen = self.news.wait(self.seen, PATIENCE);
        Ok(Logits::default())
    }
}
