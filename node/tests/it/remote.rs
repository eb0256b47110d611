//! An engine that another server computes: a real runner, real connections, and a server that really computes, with
//! the embedded model. It speaks as vLLM does, or as servers that send text only, and can be told to misbehave.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cocoon_inference::constraint::Grammar;
use cocoon_inference::engine::frontend::Frontend;
use cocoon_inference::runner::{Event, JobHandle, Runner, RunnerLimits, Terms};
use cocoon_inference::text::TextStream;
use cocoon_inference::{
    BurnEngine, ChatRole, Engine as _, FinishReason, GenerateRequest, Message, Sampling, Token, Usage,
    complete,
};
use cocoon_node::config::ServerConfig;
use cocoon_node::enclave::remote::{RemoteEngine, RemoteError};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const SALT: [u8; 32] = [7; 32];

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Sends ids beside the text.
    Ids,
    /// Sends text alone.
    Text,
    /// Never ends an answer before it must.
    Endless,
    /// Refuses.
    Refuses,
    /// Closes the connection after a token.
    BreaksOff,
    /// Sends what is no event of the API.
    Garbage,
    /// Sends more than was ordered.
    Generous,
    /// Sends ids that the model has not.
    ForeignIds,
    /// Has no room.
    Full,
    /// Follows a form that is "left".
    Form,
    /// Stops in the middle of it.
    HalfForm,
    /// Sends everything in one event.
    Burst,
}

struct Server {
    engine: BurnEngine,
    frontend: Frontend,
    manner: Manner,
    /// `max_tokens` of each order.
    orders: Mutex<Vec<u32>>,
    /// Connections on which tokens are sent.
    open: Arc<AtomicUsize>,
}

/// Counts a connection until it is closed.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn completions(State(server): State<Arc<Server>>, Json(order): Json<Value>) -> Response {
    let ids =
        order["prompt"].as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap());
    let ids: Vec<u32> = ids.collect();
    let most = order["max_tokens"].as_u64().unwrap();
    assert_eq!((order["model"].as_str(), order["stream"].as_bool()), (Some("tiny"), Some(true)));
    server.orders.lock().unwrap().push(u32::try_from(most).unwrap());
    if server.manner == Manner::Refuses {
        let error = json!({"error": {"message": "the cache is on fire"}});
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response();
    }
    let (sender, chunks) = unbounded_channel::<String>();
    let computing = Arc::clone(&server);
    spawn_blocking(move || compute(&computing, ids, most, &|chunk| sender.send(chunk).is_ok()));
    server.open.fetch_add(1, Ordering::SeqCst);
    let breaks = server.manner == Manner::BreaksOff;
    // The connection counts as open for as long as somebody may read from it.
    let reading = (chunks, Open(Arc::clone(&server.open)), 0);
    let events = futures::stream::unfold(reading, move |(mut chunks, open, sent)| async move {
        let chunk = chunks.recv().await?;
        let chunk = if breaks && sent > 0 { Err(std::io::Error::other("gone")) } else { Ok(chunk) };
        Some((chunk, (chunks, open, sent + 1)))
    });
    Body::from_stream(events).into_response()
}

/// Computes tokens and hands over events, until nobody wants them.
fn compute(server: &Server, ids: Vec<u32>, most: u64, send: &dyn Fn(String) -> bool) {
    let tokenizer = server.engine.tokenizer();
    let (mut text, mut next) = (TextStream::new(&[]), ids.clone());
    let mut sequence = server.engine.sequence(ids.len() + usize::try_from(most).unwrap());
    let event = |text: String, id: Option<u32>, reason: Option<&str>| {
        let mut choice = json!({"index": 0, "text": text, "finish_reason": reason, "logprobs": null});
        if server.manner != Manner::Text {
            choice["token_ids"] = json!(id.into_iter().collect::<Vec<u32>>());
        }
        format!("data: {}\n\n", json!({"object": "text_completion", "choices": [choice]}))
    };
    let most = if server.manner == Manner::Generous { most + 500 } else { most };
    for made in 0..most {
        match server.manner {
            Manner::Form | Manner::HalfForm => {
                for piece in
                    if server.manner == Manner::Form { &["l", "e", "f", "t"][..] } else { &["l", "e"] }
                {
                    send(event((*piece).into(), Some(tokenizer.encode(piece).unwrap()[0]), None));
                }
                send(event(String::new(), None, Some("stop")));
                return;
            }
            Manner::Burst => {
                let ids = vec![tokenizer.encode("a").unwrap()[0]; usize::try_from(most).unwrap()];
                let choice =
                    json!({"text": "a".repeat(ids.len()), "token_ids": ids, "finish_reason": "length"});
                send(format!("data: {}\n\n", json!({"choices": [choice]})));
                return;
            }
            Manner::Garbage => {
                send("data: {\"choices\": 7}\n\n".into());
                return;
            }
            Manner::ForeignIds => {
                send(event("x".into(), Some(9_999_999), None));
                return;
            }
            Manner::Full => {
                send(event(String::new(), None, Some("length")));
                return;
            }
            // Real ones take their time too; it leaves others some to hang up in.
            Manner::Endless => std::thread::sleep(Duration::from_millis(2)),
            _ => {}
        }
        let id = match server.manner {
            Manner::Endless | Manner::Generous => tokenizer.encode("a").unwrap()[0],
            _ => {
                let logits = sequence.feed(&next).unwrap();
                let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
                u32::try_from(best.unwrap().0).unwrap()
            }
        };
        if server.frontend.end_tokens().contains(&id) {
            send(event(text.finish(), None, Some("stop")));
            return;
        }
        next = vec![id];
        let piece = text.push(tokenizer.bytes(id));
        let reason = (made + 1 == most).then_some("length");
        if !send(event(piece, Some(id), reason)) {
            return;
        }
    }
}

async fn models() -> Json<Value> {
    Json(json!({"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 4096}]}))
}

/// A server, and the engine that asks it.
struct World {
    server: Arc<Server>,
    engine: Arc<RemoteEngine>,
    task: JoinHandle<()>,
    config: ServerConfig,
    folder: tempfile::TempDir,
}

fn frontend(folder: &Path) -> Frontend {
    Frontend::open(folder, None, &mut |_, _| ()).unwrap()
}

async fn world(manner: Manner) -> World {
    let folder = tempfile::tempdir().unwrap();
    cocoon_inference::embedded::write_to(folder.path()).unwrap();
    let server = Arc::new(Server {
        engine: BurnEngine::embedded().unwrap(),
        frontend: frontend(folder.path()),
        manner,
        orders: Mutex::default(),
        open: Arc::default(),
    });
    let app = axum::Router::new()
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .with_state(Arc::clone(&server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let config = ServerConfig { url, model: String::new(), patience: PATIENCE };
    let engine = Arc::new(connect(folder.path(), config.clone()).await.unwrap());
    World { server, engine, task, config, folder }
}

async fn connect(folder: &Path, config: ServerConfig) -> Result<RemoteEngine, RemoteError> {
    let (frontend, runtime) = (frontend(folder), tokio::runtime::Handle::current());
    spawn_blocking(move || RemoteEngine::connect(frontend, &config, &runtime)).await.unwrap()
}

impl World {
    fn request(&self, question: &str) -> GenerateRequest {
        let messages = vec![Message::new(ChatRole::User, question)];
        GenerateRequest::new(self.engine.info().digest, messages, Sampling::default())
    }

    fn runner(&self) -> Runner {
        Runner::spawn(Arc::clone(&self.engine) as _, RunnerLimits::default()).unwrap()
    }
}

fn submit(runner: &Runner, request: GenerateRequest) -> (JobHandle, UnboundedReceiver<Event>) {
    let (sender, events) = unbounded_channel();
    let sink = move |event| drop(sender.send(event));
    (runner.submit(request, Terms::of(1, SALT), Box::new(sink)).unwrap(), events)
}

async fn event(events: &mut UnboundedReceiver<Event>) -> Event {
    timeout(PATIENCE, events.recv()).await.expect("something happens").expect("there is an end")
}

/// Pays for so many tokens in all, and waits until just these have come.
async fn pay(job: &JobHandle, events: &mut UnboundedReceiver<Event>, made: &mut Vec<Token>, paid: u32) {
    job.allow(paid);
    while made.len() < paid as usize {
        match event(events).await {
            Event::Prepared { .. } => {}
            Event::Tokens(tokens) => made.extend(tokens),
            end => panic!("{end:?}"),
        }
    }
    assert_eq!(made.len(), paid as usize);
}

/// The rest of an answer.
async fn rest(events: &mut UnboundedReceiver<Event>) -> (Vec<Token>, Event) {
    let mut tokens = Vec::new();
    loop {
        match event(events).await {
            Event::Prepared { .. } => {}
            Event::Tokens(more) => tokens.extend(more),
            end => return (tokens, end),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_the_model_however_the_server_sends_them() {
    for manner in [Manner::Ids, Manner::Text] {
        let world = world(manner).await;
        let request = world.request("What is a voucher?");
        let own = BurnEngine::embedded().unwrap();
        let expected = {
            let request = request.clone();
            spawn_blocking(move || complete(&own, &request, |_| ()).unwrap()).await.unwrap()
        };
        let runner = world.runner();
        let (job, mut events) = submit(&runner, request);
        job.allow(u32::MAX);
        let (tokens, end) = rest(&mut events).await;
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        let Event::Finished { reason, text, usage } = end else { panic!("{end:?}") };
        let whole = tokens.into_iter().map(|token| token.text).collect::<String>() + &text;
        assert_eq!((whole, reason), (expected.text, expected.reason));
        assert_eq!(usage.prompt_tokens, expected.usage.prompt_tokens);
        if manner == Manner::Ids {
            assert_eq!(ids, expected.ids);
        }
        // Text that was written again may take another number of ids; all of them were counted.
        assert_eq!(usage.completion_tokens as usize, ids.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_ordered_that_is_not_paid_for() {
    let world = world(Manner::Ids).await;
    let runner = world.runner();
    let (job, mut events) = submit(&runner, world.request("What is a voucher?"));
    let mut made = Vec::new();
    for paid in [1, 4, 9] {
        pay(&job, &mut events, &mut made, paid).await;
    }
    assert_eq!(*world.server.orders.lock().unwrap(), [1, 3, 5]);
    job.allow(u32::MAX);
    let (tokens, end) = rest(&mut events).await;
    made.extend(tokens);
    let expected = complete(&world.server.engine, &world.request("What is a voucher?"), |_| ()).unwrap();
    assert_eq!(made.iter().map(|token| token.id).collect::<Vec<_>>(), expected.ids, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_answers_at_once_and_limits_of_length_are_kept() {
    let world = world(Manner::Ids).await;
    let runner = world.runner();
    let mut jobs = Vec::new();
    for i in 0..12 {
        let mut request = world.request(&format!("What is {i}+34?"));
        request.sampling.max_tokens = Some(3);
        let (job, events) = submit(&runner, request);
        job.allow(u32::MAX);
        jobs.push((job, events));
    }
    for (_job, mut events) in jobs {
        let (tokens, end) = rest(&mut events).await;
        assert_eq!(tokens.len(), 3);
        let Event::Finished {
            reason: FinishReason::Length, usage: Usage { completion_tokens: 3, .. }, ..
        } = end
        else {
            panic!("{end:?}")
        };
    }
    assert!(world.server.orders.lock().unwrap().iter().all(|&order| order <= 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hangs_up_frees_the_server() {
    let world = world(Manner::Endless).await;
    let runner = world.runner();
    let (job, mut events) = submit(&runner, world.request("Go on."));
    job.allow(u32::MAX);
    while !matches!(event(&mut events).await, Event::Tokens(_)) {}
    assert_eq!(world.server.open.load(Ordering::SeqCst), 1);
    drop(job);
    let (_, end) = rest(&mut events).await;
    assert!(matches!(end, Event::Finished { reason: FinishReason::Cancelled, .. }), "{end:?}");
    let closed = async {
        while world.server.open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, closed).await.expect("the server hears of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_are_found_here() {
    let world = world(Manner::Ids).await;
    let mut request = world.request("What is a voucher?");
    let whole = complete(&world.server.engine, &request, |_| ()).unwrap().text;
    request.sampling.stop = vec![whole[8..14].to_owned()];
    let runner = world.runner();
    let (job, mut events) = submit(&runner, request);
    job.allow(u32::MAX);
    let (tokens, end) = rest(&mut events).await;
    let Event::Finished { reason: FinishReason::Stop, text, .. } = end else { panic!("{end:?}") };
    let found = tokens.into_iter().map(|token| token.text).collect::<String>() + &text;
    assert_eq!(found, whole[..whole.find(&whole[8..14]).unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_a_form_is_found_out() {
    let world = world(Manner::Ids).await;
    let mut request = world.request("What is a voucher?");
    request.structure.grammar = Some(Grammar::Choice(vec!["left".into(), "right".into()]));
    let runner = world.runner();
    let (job, mut events) = submit(&runner, request);
    job.allow(u32::MAX);
    let (tokens, end) = rest(&mut events).await;
    let Event::Failed(why) = end else { panic!("{end:?}") };
    assert!(why.contains("grammar") && tokens.is_empty(), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_is_ordered_as_a_whole_and_released_as_it_is_paid() {
    for (manner, whole) in [(Manner::Form, true), (Manner::HalfForm, false)] {
        let world = world(manner).await;
        let mut request = world.request("Which way?");
        request.structure.grammar = Some(Grammar::Choice(vec!["left".into(), "right".into()]));
        request.sampling.max_tokens = Some(50);
        let runner = world.runner();
        let (job, mut events) = submit(&runner, request.clone());
        let mut made = Vec::new();
        for paid in [1, 2] {
            pay(&job, &mut events, &mut made, paid).await;
        }
        job.allow(u32::MAX);
        let (tokens, end) = rest(&mut events).await;
        made.extend(tokens);
        assert_eq!(*world.server.orders.lock().unwrap(), [50]);
        if whole {
            let Event::Finished { reason: FinishReason::Stop, text, .. } = end else { panic!("{end:?}") };
            let said = made.into_iter().map(|token| token.text).collect::<String>() + &text;
            assert_eq!(said, "left");
        } else {
            let Event::Failed(why) = end else { panic!("{end:?}") };
            assert!(why.contains("before its form was complete"), "{why}");
        }
        request.prefix = made_prefix(&world);
        let (_job, mut events) = submit(&runner, request);
        let (_, end) = rest(&mut events).await;
        assert!(matches!(end, Event::Rejected(_)), "a server cannot begin in the middle of a form: {end:?}");
    }
}

fn made_prefix(world: &World) -> Vec<u32> {
    world.server.engine.tokenizer().encode("l").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tokens_in_one_event_are_handed_on() {
    let world = world(Manner::Burst).await;
    let mut request = world.request("Go on.");
    request.sampling.max_tokens = Some(300);
    let runner = world.runner();
    let (job, mut events) = submit(&runner, request);
    job.allow(u32::MAX);
    let (tokens, end) = rest(&mut events).await;
    assert!(matches!(end, Event::Finished { reason: FinishReason::Length, .. }), "{end:?}");
    assert_eq!(tokens.len(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_server_is_told_apart() {
    for (manner, expected) in [
        (Manner::Refuses, "HTTP status 500: {\"error\":{\"message\":\"the cache is on fire\"}}"),
        (Manner::BreaksOff, ""),
        (Manner::Garbage, "an event is not its API's"),
        (Manner::Generous, "more than were ordered"),
        (Manner::ForeignIds, "ids that the model has not"),
        (Manner::Full, "without a token"),
    ] {
        let world = world(manner).await;
        let runner = world.runner();
        let mut request = world.request("What is a voucher?");
        request.sampling.max_tokens = Some(20);
        let (job, mut events) = submit(&runner, request);
        job.allow(u32::MAX);
        let (_, end) = rest(&mut events).await;
        // A generous server's first tokens are good.
        if manner == Manner::Generous && matches!(end, Event::Finished { .. }) {
            continue;
        }
        let Event::Failed(why) = end else { panic!("{manner:?}: {end:?}") };
        assert!(
            why.starts_with("the inference server failed: ") && why.contains(expected),
            "{manner:?}: {why}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_another_model_or_is_not_there_is_named() {
    let world = world(Manner::Ids).await;
    let other = ServerConfig { model: "large".into(), ..world.config.clone() };
    let error = connect(world.folder.path(), other).await.unwrap_err().to_string();
    assert!(error.contains("\"tiny\", not \"large\"") && error.contains("served_model"), "{error}");
    let gone = ServerConfig { url: "http://127.0.0.1:9/v1".into(), patience: Duration::ZERO, ..world.config };
    let error = connect(world.folder.path(), gone).await.unwrap_err().to_string();
    assert!(error.contains("did not answer") && error.contains("server_patience_s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_takes_no_more_requests() {
    let world = world(Manner::Ids).await;
    assert!(world.engine.ready());
    world.task.abort();
    let gone = async {
        while world.engine.ready() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("it is noticed");
}

/// Any server that is running: `COCOON_SERVER` is the base of its API, `COCOON_SERVER_MODEL` the folder of its model.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a server, named by COCOON_SERVER and COCOON_SERVER_MODEL"]
async fn a_real_server_answers_as_it_is_paid() {
    let folder = std::path::PathBuf::from(std::env::var("COCOON_SERVER_MODEL").unwrap());
    let url = std::env::var("COCOON_SERVER").unwrap();
    let config = ServerConfig { url, model: String::new(), patience: PATIENCE };
    let engine = Arc::new(connect(&folder, config).await.unwrap());
    let runner = Runner::spawn(Arc::clone(&engine) as _, RunnerLimits::default()).unwrap();
    let answer = async |logprobs, steps: &[u32]| {
        let messages = vec![Message::new(ChatRole::User, "What is a voucher?")];
        let sampling = Sampling { max_tokens: Some(24), logprobs, ..Sampling::default() };
        let request = GenerateRequest::new(engine.info().digest, messages, sampling);
        let (job, mut events) = submit(&runner, request);
        let mut made = Vec::new();
        for &paid in steps {
            pay(&job, &mut events, &mut made, paid).await;
        }
        job.allow(u32::MAX);
        let (tokens, end) = rest(&mut events).await;
        made.extend(tokens);
        println!("{end:?}");
        assert!(matches!(end, Event::Finished { .. }), "{end:?}");
        made
    };
    let whole = answer(Some(2), &[]).await;
    assert!(
        whole
            .iter()
            .all(|token| token.logprobs.as_ref().is_some_and(|l| l.logprob <= 0.0 && l.top.len() == 2))
    );
    let text = |tokens: &[Token]| tokens.iter().map(|token| token.text.as_str()).collect::<String>();
    let pieces = answer(None, &[1, 5, 6]).await;
    println!("{:?}\n{:?}", text(&whole), text(&pieces));
}
