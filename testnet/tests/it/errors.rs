//! Requests that cannot be served end soon, with an error that says why.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use cocoon_testnet::{cocoon, kill};
use serde_json::{Value, json};

use crate::support::{alone, control, up};

/// "Within a few seconds".
const SOON: Duration = Duration::from_secs(8);

fn question(model: &str) -> Value {
    json!({"model": model, "temperature": 0, "messages": [{"role": "user", "content": "What is 1+1?"}]})
}

#[tokio::test]
async fn each_refusal_says_which_it_was() {
    let _alone = alone().await;
    let testnet = up(&["--workers", "1"]);
    let refused = async |body: Value| {
        let started = Instant::now();
        let response = testnet.post(&body).await.unwrap();
        let status = response.status().as_u16();
        let error: Value = response.json().await.unwrap();
        assert!(started.elapsed() < SOON, "{error} took {:?}", started.elapsed());
        (
            status,
            error["error"]["code"].as_str().unwrap_or_default().to_owned(),
            error["error"]["message"].to_string(),
        )
    };
    let (status, code, message) = refused(question("no-such-model")).await;
    assert_eq!((status, code.as_str()), (404, "model_not_found"), "{message}");
    assert!(message.contains("no-such-model"));

    // With its worker gone, the model is known and nobody serves it.
    kill(testnet.pid("worker-1").unwrap());
    kill(testnet.pid("worker-1-enclave").unwrap());
    let (status, code, message) = refused(question("cocoon-tiny")).await;
    assert_eq!(status / 100, 5, "{code}: {message}");
    assert!(["no_worker_online", "all_workers_failed"].contains(&code.as_str()), "{code}: {message}");
}

#[tokio::test]
async fn an_empty_wallet_and_a_low_price_ceiling_are_told_apart() {
    let _alone = alone().await;
    let testnet = up(&["--workers", "1"]);
    let folder = tempfile::tempdir().unwrap();
    for (name, set, code) in [
        ("poor", "policy.assurance=test", "wallet_empty"),
        ("stingy", "policy.max_price_output=1", "refused_by_policy"),
    ] {
        let dir = folder.path().join(name);
        let init = Command::new(cocoon().unwrap())
            .args(["init", "--gateway"])
            .arg(&dir)
            .arg("--testnet")
            .arg(testnet.state())
            .output()
            .unwrap();
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let ready = dir.join("ready.json");
        let mut gateway = Command::new(cocoon().unwrap())
            .args(["gateway", "--set", "listen=127.0.0.1:0", "--set", set, "--config"])
            .arg(dir.join("gateway.toml"))
            .arg("--ready-file")
            .arg(&ready)
            .spawn()
            .unwrap();
        let url = testnet
            .eventually("the gateway's readiness", Duration::from_secs(20), || {
                let text = fs::read(&ready).unwrap_or_default();
                let value: Value = serde_json::from_slice(&text).unwrap_or_default();
                Ok(value["base_url"].as_str().map(str::to_owned))
            })
            .await
            .unwrap();
        let key = fs::read_to_string(dir.join("api.key")).unwrap();
        let started = Instant::now();
        let request = reqwest::Client::new().post(format!("{url}/chat/completions")).bearer_auth(key.trim());
        let error: Value = request.json(&question("cocoon-tiny")).send().await.unwrap().json().await.unwrap();
        gateway.kill().unwrap();
        gateway.wait().unwrap();
        assert_eq!(error["error"]["code"], code, "{name}: {error}");
        assert!(started.elapsed() < SOON, "{name} took {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn an_assurance_that_no_root_of_the_network_gives_is_refused_at_the_start() {
    let _alone = alone().await;
    let testnet = up(&["--workers", "1"]);
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("strict");
    let init = Command::new(cocoon().unwrap())
        .args(["init", "--gateway"])
        .arg(&dir)
        .arg("--testnet")
        .arg(testnet.state())
        .output()
        .unwrap();
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    let gateway = Command::new(cocoon().unwrap())
        .args([
            "gateway",
            "--set",
            "listen=127.0.0.1:0",
            "--set",
            "policy.assurance=confidential",
            "--config",
        ])
        .arg(dir.join("gateway.toml"))
        .output()
        .unwrap();
    assert!(!gateway.status.success());
    let words = String::from_utf8_lossy(&gateway.stderr);
    assert!(words.contains("assurance"), "the error does not say what to change: {words}");
}

#[tokio::test]
async fn a_client_that_hangs_up_stops_generation_and_payment() {
    let _alone = alone().await;
    let testnet = up(&["--workers", "1", "--echo", "3000x8", "--pace-ms", "5"]);
    let body = json!({
        "model": "echo", "stream": true, "messages": [{"role": "user", "content": "echo this for a long time"}],
    });
    let mut response = testnet.post(&body).await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    // The worker frees its slot, and what was paid stays far below the price of the whole answer.
    testnet
        .eventually("the end of the abandoned answer", Duration::from_secs(10), || {
            let status = control(&testnet, "worker-1", "status");
            Ok((status["load"]["active"].as_u64() == Some(0)).then_some(()))
        })
        .await
        .unwrap();
    let paid = |channels: &Value| {
        channels["channels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|channel| channel["cumulative_nanoton"].as_u64().unwrap())
            .sum::<u64>()
    };
    let after = paid(&control(&testnet, "worker-1", "channels"));
    let price = control(&testnet, "worker-1", "status")["prices"]["output"].as_u64().unwrap();
    assert!(after < 1000 * price / 1_000_000, "{after} nanoTON were paid for an answer that nobody wanted");
}
