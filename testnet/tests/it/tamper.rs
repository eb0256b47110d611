//! One changed byte anywhere is refused by the right party, which names the check.

use std::{fs, path::Path, process::Command};

use cocoon_testnet::cocoon;
use serde_json::Value;

use crate::support::{alone, json_file, up};

/// Flips one bit of a file at the first place after which `needle` stands, or in its middle.
fn flip(path: &Path, needle: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let at =
        bytes.windows(needle.len().max(1)).position(|window| window == needle).unwrap_or(bytes.len() / 2);
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn an_enclave_with_one_changed_byte_is_refused_by_its_measurement() {
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("cocoon");
    fs::copy(cocoon().unwrap(), &odd).unwrap();
    // A byte of a help text: the program works as before, and is another program.
    flip(&odd, b"Confidential compute open network");
    let testnet = up(&["--workers", "2", "--odd-enclave", &format!("2={}", odd.display())]);
    for _ in 0..6 {
        let answer = testnet.ask("What is 2+2?", |_| {}).await.unwrap();
        let legs = answer.receipt["legs"].as_array().unwrap();
        let good = json_file(&testnet.state().join("ready/worker-1.json"))["peer_id"].clone();
        assert!(legs.iter().all(|leg| leg["worker"] == good), "{legs:?}");
    }
    // The asker says whom it refused and by which check.
    let status = testnet.json(&["testnet", "status", "--json"]).unwrap();
    let gateway =
        status["processes"].as_array().unwrap().iter().find(|process| process["kind"] == "gateway").unwrap();
    let refusals = gateway["status"]["peer"]["refused"].as_array().unwrap();
    let bad = json_file(&testnet.state().join("ready/worker-2.json"))["peer_id"].clone();
    assert!(
        refusals.iter().any(|refusal| refusal["worker"] == bad && refusal["check"] == "measurement"),
        "{refusals:?}"
    );
}

#[test]
fn a_changed_byte_of_quote_or_claims_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("net");
    let run = |args: &[&str]| Command::new(cocoon().unwrap()).args(args).output().unwrap();
    let output = run(&["demo", "--json", "--question", "What is 2+2?", "--keep", keep.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let evidence = report["workers"][0]["evidence_file"].as_str().unwrap().to_owned();
    let genesis = keep.join("genesis.toml");
    let verify = |file: &str| {
        let output = run(&[
            "attest",
            "verify",
            file,
            "--assurance",
            "test",
            "--json",
            "--genesis",
            genesis.to_str().unwrap(),
        ]);
        (output.status.success(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default())
    };
    let (good, value) = verify(&evidence);
    assert!(good, "{value}");
    assert_eq!(value["assurance"], "test");
    assert_eq!(value["root"], "software-tee");

    // The measurement inside the quote, and the network id inside the claims.
    let bytes = fs::read(&evidence).unwrap();
    let measurement = hex::decode(value["measurement"].as_str().unwrap()).unwrap();
    let network = hex::decode(value["claims"]["network_id"].as_str().unwrap()).unwrap();
    let last = |needle: &[u8]| bytes.windows(needle.len()).rposition(|window| window == needle).unwrap();
    for (at, checks) in
        [(last(&measurement), &["quote-signature"][..]), (last(&network), &["report-data", "network-id"][..])]
    {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let file = folder.path().join("bad.bin");
        fs::write(&file, bad).unwrap();
        let (good, value) = verify(file.to_str().unwrap());
        assert!(!good);
        let check = value["check"].as_str().unwrap();
        assert!(checks.contains(&check), "byte {at} was refused by {check}, not by one of {checks:?}");
    }

    // Without --assurance test, a software TEE is never enough.
    let output = run(&["attest", "verify", &evidence, "--json", "--genesis", genesis.to_str().unwrap()]);
    assert!(!output.status.success());
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["check"], "assurance");
}

#[tokio::test]
async fn a_changed_byte_of_the_model_stops_its_enclave() {
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("net");
    let up = || {
        Command::new(cocoon().unwrap())
            .args(["testnet", "up", "--workers", "1", "--detach", "--json", "--state"])
            .arg(&state)
            .output()
            .unwrap()
    };
    let first = up();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let down =
        Command::new(cocoon().unwrap()).args(["testnet", "down", "--state"]).arg(&state).output().unwrap();
    assert!(down.status.success());
    flip(&state.join("models/cocoon-tiny/model.safetensors"), b"");
    let second = up();
    assert!(!second.status.success(), "an altered model was served");
    let words = String::from_utf8_lossy(&second.stderr);
    assert!(words.contains("model digest is"), "the error does not name the check: {words}");
}
