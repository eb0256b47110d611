//! Serves the embedded local chain over HTTP on loopback, in the shape of toncenter's API v2.
//!
//! `POST /api/v2/jsonRPC` and `/api/v2/METHOD` (GET with a query, POST with JSON) answer as toncenter does,
//! so that any TON SDK that speaks to toncenter speaks to this chain; `POST /faucet` gives coins. A
//! timer produces a block every `block_interval` while there is something to put into it, and one a second
//! while there is not.
//!
//! The chain blocks: it waits for the disk and runs contracts. So every call runs on a blocking thread, at
//! most `MAX_CALLS` at once, and further ones wait their turn.

// A shell: blocks are dated by the machine's clock.
#![allow(clippy::disallowed_methods, reason = "the chain's server is an async shell")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use cocoon_payments::{
    Address, NanoTon,
    local::{FaucetError, LocalChain, LocalChainError, ToncenterError, toncenter},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::MissedTickBehavior,
};

use crate::http::guard::{GuardConfig, guard};

/// Calls that run at once. Each may hold a processor for a million gas, some tens of milliseconds.
const MAX_CALLS: usize = 16;

/// How the chain is kept and served.
#[derive(Debug, Clone)]
pub struct ChainServerConfig {
    /// The chain's folder; a new chain is made in it if there is none.
    pub dir: PathBuf,
    /// Loopback address; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The key that every request must carry.
    pub api_key: Option<String>,
    /// Time between blocks.
    pub block_interval: Duration,
    /// Whether coins are given away.
    pub faucet: bool,
}

/// Why the chain could not be served.
#[derive(Debug, Error)]
pub enum ChainServerError {
    /// The chain cannot be opened or has failed.
    #[error(transparent)]
    Chain(#[from] LocalChainError),
    /// Only loopback addresses are served.
    #[error("{0} is not a loopback address; the local chain gives coins away and is for this machine only")]
    NotLoopback(SocketAddr),
    /// The address cannot be bound, or the accept loop failed.
    #[error("cannot serve the chain on {listen}: {source}; choose another port, or 127.0.0.1:0")]
    Listen {
        /// The configured address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A chain whose port is bound.
#[derive(Debug)]
pub struct Server {
    chain: Arc<LocalChain>,
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    block_interval: Duration,
}

/// Opens the chain and binds the port. Nothing is answered, and no block made, before [`Server::serve`].
///
/// # Errors
/// [`ChainServerError`].
pub async fn bind(config: ChainServerConfig) -> Result<Server, ChainServerError> {
    if !config.listen.ip().is_loopback() {
        return Err(ChainServerError::NotLoopback(config.listen));
    }
    let chain = Arc::new(LocalChain::open_or_create(&config.dir, unix_now())?);
    let listen = |source| ChainServerError::Listen { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let mut guards = GuardConfig::loopback(address.port(), config.api_key);
    guards.refusal = |status, code, message| json!({"ok": false, "error": format!("{code}: {message}"), "code": status.as_u16()});
    let mut router = Router::new()
        .route("/api/v2/jsonRPC", post(json_rpc))
        .route("/api/v2/{method}", get(rest_get).post(rest_post))
        .route("/health", get(health));
    if config.faucet {
        router = router.route("/faucet", post(faucet));
    }
    let served = Served { chain: Arc::clone(&chain), calls: Arc::new(Semaphore::new(MAX_CALLS)) };
    let router = guard(router.fallback(unknown_path).with_state(served), guards);
    Ok(Server { chain, listener, address, router, block_interval: config.block_interval })
}

impl Server {
    /// Where the chain answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes blocks and answers requests until `stop` turns true, then makes a last block of what waits.
    ///
    /// # Errors
    /// When a block cannot be made (the disk is full, say) or the accept loop fails.
    pub async fn serve(self, stop: watch::Receiver<bool>) -> Result<(), ChainServerError> {
        let Self { chain, listener, address, router, block_interval } = self;
        let mut stopped = stop;
        let (quiet, nobody_asks) = watch::channel(false);
        let answer = async {
            let server = axum::serve(listener, router).with_graceful_shutdown(async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            });
            server.await.map_err(|source| ChainServerError::Listen { listen: address, source })?;
            let _ = quiet.send(true);
            Ok(())
        };
        let blocks =
            async { make_blocks(&chain, block_interval, nobody_asks).await.map_err(ChainServerError::from) };
        tokio::try_join!(answer, blocks)?;
        if chain.has_work()? {
            produce(&chain).await?;
        }
        Ok(())
    }
}

/// Makes blocks at the ticks until nobody can ask for anything any more. Never leaves one half made: the
/// file is free when it returns.
async fn make_blocks(
    chain: &Arc<LocalChain>,
    interval: Duration,
    mut nobody_asks: watch::Receiver<bool>,
) -> Result<(), LocalChainError> {
    let mut ticks = tokio::time::interval(interval);
    // After a pause of the machine, one block is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = nobody_asks.wait_for(|quiet| *quiet) => return Ok(()),
        }
        if chain.has_work()? || unix_now() > chain.head().unixtime {
            produce(chain).await?;
        }
    }
}

async fn produce(chain: &Arc<LocalChain>) -> Result<(), LocalChainError> {
    let chain = Arc::clone(chain);
    match spawn_blocking(move || chain.produce_block(unix_now())).await {
        Ok(made) => made.map(|_| ()),
        // Only a runtime that shuts down cancels a blocking task; there is no block to make any more.
        Err(_) => Ok(()),
    }
}

/// What the routes share.
#[derive(Clone)]
struct Served {
    chain: Arc<LocalChain>,
    calls: Arc<Semaphore>,
}

impl Served {
    /// Runs a call where it may block. `None` while the server shuts down.
    async fn run<T: Send + 'static>(self, call: impl FnOnce(&LocalChain) -> T + Send + 'static) -> Option<T> {
        let permit = self.calls.acquire_owned().await.ok()?;
        let chain = self.chain;
        let done = spawn_blocking(move || {
            // A client that goes away must not make room before its call is over.
            let _permit = permit;
            call(&chain)
        });
        done.await.ok()
    }
}

#[derive(Deserialize)]
struct Call {
    method: String,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    id: Value,
}

async fn json_rpc(State(served): State<Served>, body: Result<Bytes, BytesRejection>) -> Response {
    let call: Call = match read(body) {
        Ok(call) => call,
        Err(refusal) => return *refusal,
    };
    let id = call.id.clone();
    reply(run(served, call.method, call.params).await, id)
}

async fn rest_get(
    State(served): State<Served>,
    Path(method): Path<String>,
    query: Result<Query<BTreeMap<String, String>>, QueryRejection>,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(rejection) => return refuse(422, rejection.body_text(), Value::Null),
    };
    let params = query.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    reply(run(served, method, Value::Object(params)).await, Value::Null)
}

async fn rest_post(
    State(served): State<Served>,
    Path(method): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match read(body) {
        Ok(params) => reply(run(served, method, params).await, Value::Null),
        Err(refusal) => *refusal,
    }
}

/// Reads a JSON body, or says in toncenter's shape why it cannot be read.
fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Box<Response>> {
    let body = body.map_err(|rejection| {
        Box::new(refuse(rejection.status().as_u16(), rejection.body_text(), Value::Null))
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        Box::new(refuse(422, format!("the body is not the JSON that belongs here: {error}"), Value::Null))
    })
}

async fn run(served: Served, method: String, params: Value) -> Result<Value, ToncenterError> {
    let params = if params.is_null() { json!({}) } else { params };
    let result = served.run(move |chain| toncenter(chain, &method, &params)).await;
    result.unwrap_or_else(|| Err(ToncenterError { code: 503, message: STOPPING.to_owned() }))
}

/// Said to calls that come too late.
const STOPPING: &str = "the chain is shutting down";

async fn unknown_path() -> Response {
    refuse(404, "there is nothing here; the API is under /api/v2".to_owned(), Value::Null)
}

fn reply(result: Result<Value, ToncenterError>, id: Value) -> Response {
    match result {
        Ok(result) => Json(json!({"ok": true, "result": result, "jsonrpc": "2.0", "id": id})).into_response(),
        Err(error) => refuse(error.code, error.message, id),
    }
}

fn refuse(code: u16, message: String, id: Value) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({"ok": false, "error": message, "code": code, "jsonrpc": "2.0", "id": id});
    (status, Json(body)).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    address: Address,
    /// NanoTON.
    amount: u64,
}

/// Gives coins, and makes a block at once so that they are there when the answer is.
async fn faucet(State(served): State<Served>, body: Result<Bytes, BytesRejection>) -> Response {
    let Grant { address, amount } = match read(body) {
        Ok(grant) => grant,
        Err(refusal) => return *refusal,
    };
    let granted = served.run(move |chain| {
        chain.faucet(&address, NanoTon(amount))?;
        if let Err(error) = chain.produce_block(unix_now()) {
            tracing::error!(%error, "no block could be made; the grant waits for the next");
        }
        Ok(())
    });
    match granted.await {
        Some(Ok(())) => Json(json!({"ok": true, "result": {"@type": "ok"}})).into_response(),
        Some(Err(error @ FaucetError::Full)) => refuse(429, error.to_string(), Value::Null),
        Some(Err(error)) => refuse(422, error.to_string(), Value::Null),
        None => refuse(503, STOPPING.to_owned(), Value::Null),
    }
}

async fn health(State(Served { chain, .. }): State<Served>) -> Json<Value> {
    let head = chain.head();
    Json(json!({
        "status": "ok",
        "kind": "simulated local chain, not TON",
        "global_id": chain.global_id(),
        "zero_state": hex::encode(chain.zero_state()),
        "seqno": head.seqno,
        "pending": chain.pending(),
    }))
}

fn unix_now() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
