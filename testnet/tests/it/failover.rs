//! A worker is killed in the middle of an answer.

use std::{process::Command, time::Duration};

use cocoon_testnet::{cocoon, kill};
use serde_json::Value;

use crate::support::{alone, control, process_of, settled_on_chain, up};

/// Long enough an answer to be killed in the middle of.
const QUESTION: &str = "What is a voucher? Answer in upper case.";
/// The token after whose arrival the worker dies.
const KILL_AT: usize = 10;

#[tokio::test]
async fn an_answer_survives_the_death_of_its_worker_and_no_token_is_paid_twice() {
    let _alone = alone().await;
    // A paced engine: the answer takes long enough that token 10 is not followed by the end at once.
    let testnet = up(&["--workers", "2", "--pace-ms", "20"]);
    let whole = testnet.ask(QUESTION, |_| {}).await.unwrap();
    let tokens = whole.usage["completion_tokens"].as_u64().unwrap();
    assert!(tokens >= 40, "the answer is too short to test with: {:?}", whole.text);

    // The stream's first event names the worker; its two processes die when token 10 has arrived.
    let mut dead = None;
    let answer = testnet
        .ask_watching(QUESTION, |seen, worker| {
            if seen == KILL_AT && dead.is_none() {
                let process = process_of(&testnet, worker);
                kill(testnet.pid(&process).unwrap());
                kill(testnet.pid(&format!("{process}-enclave")).unwrap());
                dead = Some((process, worker.to_owned()));
            }
        })
        .await
        .unwrap();
    let (process, worker) = dead.expect("the answer had fewer than ten tokens");

    assert_eq!(answer.text, whole.text, "the answer differs from an uninterrupted run");
    let legs = answer.receipt["legs"].as_array().unwrap();
    assert_eq!(legs.len(), 2, "{legs:?}");
    assert_eq!(legs[0]["worker"], worker.as_str());
    assert_ne!(legs[1]["worker"], worker.as_str());
    assert!(legs[0]["signed"].is_null(), "a dead enclave signs nothing");
    assert!(legs[1]["signed"].is_object());
    let output = |leg: &Value| leg["output_tokens"].as_u64().unwrap();
    assert!(output(&legs[0]) >= KILL_AT as u64);
    assert_eq!(output(&legs[0]) + output(&legs[1]), tokens, "a token was paid for twice or not at all");
    let costs: u64 = legs.iter().map(|leg| leg["cost"].as_u64().unwrap()).sum();
    assert_eq!(answer.receipt["total"].as_u64().unwrap(), costs);

    // The dead worker comes back on the state that it left (a host is ready once its enclave is attested), and
    // each worker redeems its newest voucher.
    let mut enclave = Command::new(cocoon().unwrap())
        .args(["enclave", "--config"])
        .arg(testnet.state().join(&process).join("enclave.toml"))
        .spawn()
        .unwrap();
    let config = testnet.state().join(&process).join("host.toml");
    let ready = testnet.state().join("ready").join(format!("{process}.json"));
    std::fs::remove_file(&ready).unwrap();
    let mut revived = Command::new(cocoon().unwrap())
        .args(["node", "--config"])
        .arg(config)
        .arg("--ready-file")
        .arg(&ready)
        .spawn()
        .unwrap();
    testnet
        .eventually("the revived host's readiness", Duration::from_secs(20), || {
            Ok(ready.exists().then_some(()))
        })
        .await
        .unwrap();
    let mut settled = 0;
    for name in ["worker-1", "worker-2"] {
        let reply = control(&testnet, name, "settle");
        assert!(reply["error"].is_null(), "{name}: {reply}");
        let quantum = control(&testnet, name, "status")["prices"]["quantum_nanoton"].as_u64().unwrap();
        for channel in control(&testnet, name, "channels")["channels"].as_array().unwrap() {
            let text = |field: &str| channel[field].as_str().unwrap();
            let newest = channel["cumulative_nanoton"].as_u64().unwrap();
            let on_chain = settled_on_chain(&testnet, text("address"), text("payout")).await;
            assert_eq!(on_chain, newest, "{name} did not settle to its newest voucher");
            // What the askers' receipts say was metered on this channel, over both answers.
            let metered: u64 = [&whole.receipt, &answer.receipt]
                .iter()
                .flat_map(|receipt| receipt["legs"].as_array().unwrap())
                .filter(|leg| leg["channel"] == text("address"))
                .map(|leg| leg["cost"].as_u64().unwrap())
                .sum();
            assert!(newest >= metered, "{name} was paid {newest}, less than the {metered} that was metered");
            assert!(
                newest - metered <= quantum,
                "{name} was paid {newest} for {metered}: more than one quantum ahead"
            );
            settled += 1;
        }
    }
    assert!(settled >= 2, "both workers must have been paid");
    for child in [&mut revived, &mut enclave] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
