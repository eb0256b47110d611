//! The server over real sockets.

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;

const KEY: &str = "k3y";
const SOMEBODY: &str = "0:1111111111111111111111111111111111111111111111111111111111111111";

struct Running {
    url: String,
    http: reqwest::Client,
    stop: watch::Sender<bool>,
    done: JoinHandle<Result<(), ChainServerError>>,
    dir: TempDir,
}

async fn start(faucet: bool) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let config = ChainServerConfig {
        dir: dir.path().to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        api_key: Some(KEY.to_owned()),
        block_interval: Duration::from_millis(20),
        faucet,
    };
    let server = bind(config).await.unwrap();
    let url = format!("http://{}", server.address());
    let (stop, stopped) = watch::channel(false);
    let done = tokio::spawn(server.serve(stopped));
    Running { url, http: reqwest::Client::new(), stop, done, dir }
}

impl Running {
    async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let request = self.http.post(format!("{}{path}", self.url));
        let request = request.header("x-api-key", KEY).header("content-type", "application/json");
        answer(request.body(body.to_owned())).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(format!("{}{path}", self.url)).header("authorization", format!("Bearer {KEY}")))
            .await
    }

    async fn stop(self) -> TempDir {
        self.stop.send(true).unwrap();
        self.done.await.unwrap().unwrap();
        self.dir
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).expect("every answer is JSON"))
}

#[tokio::test]
async fn granted_coins_are_there_when_the_faucet_answers_and_through_every_door() {
    let chain = start(true).await;
    let grant = json!({ "address": SOMEBODY, "amount": 1_500_000_000u64 }).to_string();
    assert_eq!(chain.post("/faucet", &grant).await.0, 200);
    let (_, rest) = chain.get(&format!("/api/v2/getAddressBalance?address={SOMEBODY}")).await;
    assert_eq!((&rest["ok"], &rest["result"]), (&json!(true), &json!("1500000000")));
    let params = json!({ "address": SOMEBODY });
    let (_, post) = chain.post("/api/v2/getAddressBalance", &params.to_string()).await;
    assert_eq!(post["result"], rest["result"]);
    let call = json!({ "id": "7", "jsonrpc": "2.0", "method": "getAddressBalance", "params": params });
    let (_, rpc) = chain.post("/api/v2/jsonRPC", &call.to_string()).await;
    assert_eq!((&rpc["result"], &rpc["id"], &rpc["jsonrpc"]), (&rest["result"], &json!("7"), &json!("2.0")));
    chain.stop().await;
}

#[tokio::test]
async fn refusals_have_toncenters_shape_whoever_refuses() {
    let chain = start(false).await;
    let without_key = answer(chain.http.get(format!("{}/health", chain.url))).await;
    let grant = json!({ "address": SOMEBODY, "amount": 1 }).to_string();
    let many = format!("\"{}\"", "x".repeat(2 << 20));
    for ((status, body), expected) in [
        (without_key, 401),
        (chain.get("/").await, 404),
        (chain.post("/faucet", &grant).await, 404),
        (chain.get("/api/v2/getEverything").await, 404),
        (chain.get("/api/v2/getAddressBalance").await, 422),
        (chain.post("/api/v2/jsonRPC", "{").await, 422),
        (chain.post("/api/v2/jsonRPC", "{}").await, 422),
        (chain.post("/api/v2/jsonRPC", "\"\u{fffd}\"").await, 422),
        (chain.post("/api/v2/sendBoc", &many).await, 413),
        (chain.post("/api/v2/sendBoc", "{\"boc\": \"AAAA\"}").await, 422),
    ] {
        assert_eq!(status, expected, "{body}");
        assert_eq!((&body["ok"], &body["code"]), (&json!(false), &json!(expected)));
        assert!(body["error"].is_string(), "{body}");
    }
    chain.stop().await;
}

#[tokio::test]
async fn an_idle_chain_makes_a_block_a_second_at_most() {
    let chain = start(false).await;
    let before = chain.get("/health").await.1;
    // Fifteen ticks of the block timer and more.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = chain.get("/health").await.1;
    let made = after["seqno"].as_u64().unwrap() - before["seqno"].as_u64().unwrap();
    assert!(made <= 2, "{made} empty blocks in 300 ms");
    chain.stop().await;
}

#[tokio::test]
async fn a_stopped_chain_goes_on_where_it_was() {
    let chain = start(true).await;
    let grant = json!({ "address": SOMEBODY, "amount": 5 }).to_string();
    assert_eq!(chain.post("/faucet", &grant).await.0, 200);
    let health = chain.get("/health").await.1;
    let dir = chain.stop().await;
    let reopened = LocalChain::open(dir.path()).unwrap();
    assert_eq!(hex::encode(reopened.zero_state()), health["zero_state"].as_str().unwrap());
    assert!(u64::from(reopened.head().seqno) >= health["seqno"].as_u64().unwrap());
}

#[tokio::test]
async fn only_loopback_is_served() {
    let config = ChainServerConfig {
        dir: "unused".into(),
        listen: SocketAddr::from(([0, 0, 0, 0], 0)),
        api_key: None,
        block_interval: Duration::from_secs(1),
        faucet: false,
    };
    assert!(matches!(bind(config).await, Err(ChainServerError::NotLoopback(_))));
}
