//! The demo's report says what the chain, the evidence and the receipts say.

use std::{collections::BTreeSet, process::Command};

use cocoon_attest::{Assurance, Expect, Live, verify};
use cocoon_client::genesis::Genesis;
use cocoon_payments::{
    Address,
    chain::{Chain as _, Toncenter},
};
use cocoon_testnet::{cocoon, kill};
use serde_json::Value;

use crate::support::{alone, json_file, up};

#[tokio::test]
async fn every_value_of_the_report_can_be_derived_from_the_state_it_leaves() {
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("net");
    let output =
        Command::new(cocoon().unwrap()).args(["demo", "--json", "--keep"]).arg(&state).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["warning"], "software TEE — test network");
    assert!(words.contains("software TEE"), "the warning is not in plain sight");

    // Network and trust: from the genesis file and the evidence's bytes.
    let genesis = Genesis::load(state.join("genesis.toml")).unwrap();
    assert_eq!(report["network"]["network_id"], hex::encode(genesis.network_id()));
    let policy = genesis.policy(Assurance::Test, Live::Off);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let workers = report["workers"].as_array().unwrap();
    assert!(!workers.is_empty());
    for worker in workers {
        let bytes = std::fs::read(worker["evidence_file"].as_str().unwrap()).unwrap();
        let claims =
            cocoon_attest::Claims::decode(&cocoon_attest::Evidence::decode(&bytes).unwrap().claims).unwrap();
        let expect = Expect { peer_id: &claims.peer_id, model_digest: None, evidence_digest: None };
        let verified = verify(&bytes, &expect, &policy, now).unwrap();
        assert_eq!(worker["root"], verified.root.as_str());
        assert_eq!(worker["measurement"], verified.measurement.to_string());
        assert_eq!(worker["assurance"], "test");
        assert_eq!(worker["receipt_key"], hex::encode(verified.claims.receipt_key));
        assert_eq!(worker["evidence_digest"], hex::encode(verified.evidence_digest));
    }
    let peers = report["peers"].as_array().unwrap();
    let found: BTreeSet<&str> = peers.iter().filter_map(|peer| peer["peer"].as_str()).collect();
    assert!(workers.iter().all(|worker| found.contains(worker["worker"].as_str().unwrap())), "{found:?}");

    // Money: what the answers cost, what the vouchers say, and what the chain did.
    let answers = report["answers"].as_array().unwrap();
    let mut costs = std::collections::BTreeMap::<String, u64>::new();
    for answer in answers {
        assert!(!answer["answer"].as_str().unwrap().is_empty());
        let legs = answer["receipt"]["legs"].as_array().unwrap();
        let total: u64 = legs.iter().map(|leg| leg["cost"].as_u64().unwrap()).sum();
        assert_eq!(answer["cost_nanoton"].as_u64().unwrap(), total);
        for leg in legs {
            *costs.entry(leg["channel"].as_str().unwrap().to_owned()).or_default() +=
                leg["cost"].as_u64().unwrap();
        }
    }
    let ready = folder.path().join("chain.json");
    let mut chain = Command::new(cocoon().unwrap())
        .args(["testnet", "chain", "--block-ms", "60000", "--dir"])
        .arg(state.join("chain"))
        .arg("--key-file")
        .arg(state.join("chain.key"))
        .arg("--ready-file")
        .arg(&ready)
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !ready.exists() {
        assert!(std::time::Instant::now() < deadline, "the kept chain does not start");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let key = std::fs::read_to_string(state.join("chain.key")).unwrap();
    let client =
        Toncenter::new(json_file(&ready)["url"].as_str().unwrap(), Some(key.trim().to_owned())).unwrap();
    assert_eq!(client.identity().await.unwrap().global_id, genesis.global_id());
    let settlements = report["settlements"].as_array().unwrap();
    assert!(!settlements.is_empty());
    for settlement in settlements {
        let channel: Address = settlement["channel"].as_str().unwrap().parse().unwrap();
        let history = client.transactions(&channel, 20).await.unwrap();
        let hash = settlement["transaction"].as_str().unwrap();
        let transaction = history
            .iter()
            .find(|one| hex::encode(one.hash) == hash)
            .expect("the transaction is not on the chain");
        assert!(transaction.succeeded());
        assert_eq!(settlement["gas_used"].as_u64(), transaction.gas_used);
        assert_eq!(settlement["fees_nanoton"].as_u64().unwrap(), transaction.fees.0);
        let account = client.account(&channel).await.unwrap();
        assert_eq!(settlement["balance_nanoton"].as_u64().unwrap(), account.balance.0);
        let settled = settlement["settled_nanoton"].as_u64().unwrap();
        assert_eq!(settled, settlement["newest_voucher_nanoton"].as_u64().unwrap());
        let cost = costs[settlement["channel"].as_str().unwrap()];
        assert!(settled >= cost, "settled {settled}, less than the {cost} that the answers cost");
    }
    chain.kill().unwrap();
    chain.wait().unwrap();

    let steps = report["steps_ms"].as_object().unwrap();
    for step in ["1_discover", "2_choose", "3_attest", "4_connect", "5_pay_and_run", "6_settle"] {
        assert!(steps[step].as_f64().unwrap() > 0.0, "step {step} took no time at all");
    }
    assert_eq!(json_file(&state.join("demo/report.json")), report);
}

#[tokio::test]
async fn the_demo_fails_when_a_process_is_missing() {
    let _alone = alone().await;
    for victim in ["chain", "worker-1-enclave", "worker-1"] {
        let testnet = up(&["--workers", "1"]);
        kill(testnet.pid(victim).unwrap());
        let output = Command::new(cocoon().unwrap())
            .args(["demo", "--json", "--testnet"])
            .arg(testnet.state())
            .output()
            .unwrap();
        assert!(!output.status.success(), "the demo does not notice that {victim} is gone");
        assert!(output.stdout.is_empty());
        assert!(String::from_utf8_lossy(&output.stderr).contains(victim), "the error does not name {victim}");
    }
}
