//! The HTTP server: routes, and the two shapes of an answer.

// A shell: response timestamps and deadlines come from the machine's clock.
#![allow(clippy::disallowed_methods, reason = "the gateway is an async shell")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use cocoon_client::{AnswerEvent, ChatRequest, LightPeer, ModelListing};
use cocoon_payments::{NanoTon, token_cost};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch};

use super::{
    billed::Billed,
    openai::{
        choice::Choice,
        error::ApiError,
        request::{self, CacheKey, ChatCompletion},
        response::{self, Chunks, Used},
    },
    spend::Spend,
    sse::SseBody,
};
use crate::http::guard::{GuardConfig, guard};

/// How the gateway listens and what its key may do.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Loopback address; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The key that every request must carry.
    pub api_key: String,
    /// Most that the key may spend while this process lives.
    pub spend_cap: Option<NanoTon>,
    /// Longest time from a request to the end of its answer.
    pub deadline: Duration,
}

/// Why the gateway could not start or had to stop.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// The address cannot be bound.
    #[error(
        "cannot listen on {listen}: {source}; another program may hold the port: choose one with --listen, or 127.0.0.1:0"
    )]
    Bind {
        /// The configured address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Only loopback addresses are served: there is no TLS here.
    #[error(
        "{0} is not a loopback address; put a TLS reverse proxy in front of a loopback port to serve others"
    )]
    NotLoopback(SocketAddr),
    /// The accept loop failed.
    #[error("the HTTP server stopped: {0}")]
    Serve(#[source] std::io::Error),
}

/// A bound gateway.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    router: Router,
    address: SocketAddr,
}

impl Gateway {
    /// Binds the port. Nothing is answered before [`Self::serve`].
    ///
    /// # Errors
    /// [`GatewayError::NotLoopback`] or [`GatewayError::Bind`].
    pub async fn bind(config: ServeConfig, peer: LightPeer) -> Result<Self, GatewayError> {
        if !config.listen.ip().is_loopback() {
            return Err(GatewayError::NotLoopback(config.listen));
        }
        let bind = |source| GatewayError::Bind { listen: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let guards = GuardConfig::loopback(address.port(), Some(config.api_key.clone()));
        let spend = Arc::new(Spend::new(config.spend_cap));
        let state = Arc::new(Shared { peer, spend, deadline: config.deadline, secret: rand::random() });
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/models", get(models))
            .route("/health", get(health))
            .with_state(state);
        Ok(Self { listener, router: guard(router, guards), address })
    }

    /// Where the gateway listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` turns true, then lets running answers end.
    ///
    /// # Errors
    /// [`GatewayError::Serve`].
    pub async fn serve(self, mut stop: watch::Receiver<bool>) -> Result<(), GatewayError> {
        use axum::serve::ListenerExt as _;
        // Tokens are small writes that must leave at once.
        let listener = self.listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, self.router)
            .with_graceful_shutdown(async move {
                let _ = stop.wait_for(|stop| *stop).await;
            })
            .await
            .map_err(GatewayError::Serve)
    }
}

struct Shared {
    peer: LightPeer,
    spend: Arc<Spend>,
    deadline: Duration,
    /// Keeps the keys of this gateway's cached prompts apart from everybody else's.
    secret: [u8; 32],
}

impl Shared {
    fn cache_key(&self, key: &CacheKey) -> String {
        match key {
            CacheKey::Shared(key) => key.clone(),
            CacheKey::Own(key) => {
                hex::encode(Sha256::new_with_prefix(self.secret).chain_update(key).finalize())
            }
        }
    }
}

async fn chat(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let id = request_id();
    let mut response = match answer(shared, &id, &body).await {
        Ok(response) => response,
        Err(error) => error_response(&error),
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

async fn answer(shared: Arc<Shared>, id: &str, body: &[u8]) -> Result<Response, ApiError> {
    let ChatCompletion { model, messages, sampling, structure, cache_key, choices, stream, include_usage } =
        request::parse(body)?;
    let likely = match shared.spend.is_capped() {
        true => likely_cost(&shared.peer.models().await, &model, choices),
        false => NanoTon::ZERO,
    };
    let reservation = shared.spend.reserve(likely)?;
    let max_cost = reservation.share(choices)?;
    let (seed, created): (u64, u64) = (rand::random(), unix_now());
    let ask = |choice| ChatRequest {
        cache_key: cache_key.as_ref().map(|key| shared.cache_key(key)),
        model: model.clone(),
        messages: messages.clone(),
        sampling: sampling.of_choice(choice, seed),
        structure: structure.at(created),
        max_cost,
        deadline: Some(shared.deadline),
    };
    let mut answers =
        Billed::begin((0..choices).map(|choice| shared.peer.chat(ask(choice))), reservation).await?;
    let id = format!("chatcmpl-{id}");
    let ids = (0..choices).map(|choice| format!("{id}-{choice}"));
    if stream {
        let chunks = Chunks::new(&id, &model, created);
        let body = SseBody::begin(answers, chunks, ids.collect(), structure.tools, include_usage).await?;
        return Ok((
            [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")],
            Body::from_stream(body),
        )
            .into_response());
    }
    let logprobs = sampling.options.logprobs.is_some();
    let mut whole: Vec<Choice> = ids.map(|id| Choice::new(id, logprobs, &structure.tools)).collect();
    let mut receipts = BTreeMap::new();
    let mut used = Used::default();
    while receipts.len() < choices {
        let (index, event) = answers.next().await?;
        let Some(choice) = whole.get_mut(index) else { continue };
        match event {
            AnswerEvent::Prepared { form, .. } => choice.begin(form),
            AnswerEvent::Tokens(tokens) => choice.push(&tokens),
            AnswerEvent::Finished { reason, text, usage, receipt } => {
                choice.finish(&text, reason);
                used.add(usage, choice.reasoning_tokens());
                receipts.insert(index, receipt);
            }
            AnswerEvent::Started { .. } | AnswerEvent::Failover { .. } => {}
        }
    }
    let proof = response::receipts(receipts.into_values());
    Ok(Json(response::completion(&id, &model, created, whole, &used.object(), &proof)).into_response())
}

/// What one request may well cost: the model's whole context read and written, as the light peer's own
/// ceiling has it, at the lowest price on offer. Twice that, since the worker that is chosen may be
/// dearer, and after a failover the next one reads everything again; and all that for each answer.
fn likely_cost(models: &[ModelListing], asked: &str, answers: usize) -> NanoTon {
    let name = asked.split_once('@').map_or(asked, |(name, _)| name);
    let is_asked =
        |model: &&ModelListing| model.name == name || hex::encode(model.digest).eq_ignore_ascii_case(name);
    let whole = |model: &ModelListing| {
        token_cost(model.context, model.price_input)
            .saturating_add(token_cost(model.context, model.price_output))
    };
    // A model that nobody offers yet has no price: its request gets the ordinary share.
    let whole = models.iter().filter(is_asked).map(whole).max().unwrap_or(NanoTon::ZERO);
    NanoTon(whole.0.saturating_mul(2).saturating_mul(answers as u64))
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let data: Vec<Value> = shared
        .peer
        .models()
        .await
        .into_iter()
        .map(|model| {
            json!({
                "id": format!("{}@{}", model.name, hex::encode(model.digest)),
                "object": "model",
                "created": 0,
                "owned_by": "cocoon",
                "cocoon": {
                    "name": model.name,
                    "digest": hex::encode(model.digest),
                    "context": model.context,
                    "workers": model.workers,
                    "price_input": model.price_input,
                    "price_output": model.price_output,
                    "price_unit": "nanoTON per million tokens, the lowest on offer",
                },
            })
        })
        .collect();
    Json(json!({"object": "list", "data": data}))
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.peer.status().await;
    let ready = status.ready();
    let body = json!({
        "status": if ready { "ok" } else { "starting" },
        "spent_nanoton": shared.spend.spent().0,
        "peer": status,
    });
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(body)).into_response()
}

fn error_response(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(error.body())).into_response();
    let (name, value) = match error.retry_after {
        Some(after) => (header::RETRY_AFTER, HeaderValue::from(after.as_secs())),
        // OpenAI's clients repeat a request that met 408, 409, 429 or 5xx twice, unless told not to.
        None => (HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false")),
    };
    response.headers_mut().insert(name, value);
    response
}

fn request_id() -> String {
    format!("{:024x}", rand::random::<u128>() >> 32)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use cocoon_client::ChatError;

    use super::*;

    #[test]
    fn clients_are_told_to_retry_only_what_may_succeed_and_was_not_paid_for() {
        let headers = |error: ApiError| {
            let response = error_response(&error);
            let text =
                |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            (text("x-should-retry"), text("retry-after"))
        };
        let failed = || ApiError::from(ChatError::AllWorkersFailed { legs: Vec::new() });
        assert_eq!(headers(failed().after_paying(NanoTon::ZERO)), (None, Some("1".into())));
        assert_eq!(headers(failed().after_paying(NanoTon(1))), (Some("false".into()), None));
        let late = ApiError::from(ChatError::Deadline { seconds: 5 });
        assert_eq!(headers(late), (Some("false".into()), None));
        let spent = ApiError::spend_cap(NanoTon(1), NanoTon(1));
        assert_eq!(headers(spent), (Some("false".into()), None));
    }

    #[test]
    fn the_likely_cost_is_that_of_the_model_that_was_asked_for() {
        let model = |name: &str, digest: u8, context| ModelListing {
            name: name.into(),
            digest: [digest; 32],
            context,
            workers: 1,
            price_input: 1_000_000,
            price_output: 2_000_000,
        };
        let models = [model("tiny", 1, 256), model("large", 2, 100_000)];
        let tiny = NanoTon(2 * 3 * 256);
        let digest = hex::encode([1; 32]);
        for asked in ["tiny".to_owned(), format!("tiny@{digest}"), digest.to_uppercase()] {
            assert_eq!(likely_cost(&models, &asked, 1), tiny, "{asked}");
            assert_eq!(likely_cost(&models, &asked, 3), NanoTon(3 * tiny.0), "{asked}");
        }
        assert_eq!(likely_cost(&models, "unknown", 1), NanoTon::ZERO);
    }
}
