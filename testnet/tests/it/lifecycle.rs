//! Networks come up side by side, survive being killed, and leave nothing behind.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::Duration,
};

use cocoon_testnet::{cocoon, kill};
use nix::{
    sys::signal::{Signal, kill as signal},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{alive, alone, up};

fn pids(info: &Value) -> Vec<u32> {
    let processes = info["processes"].as_array().unwrap();
    processes.iter().map(|process| u32::try_from(process["pid"].as_u64().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn two_networks_run_side_by_side_and_do_not_mix() {
    let _alone = alone().await;
    let (one, two) = (up(&["--workers", "1"]), up(&["--workers", "1"]));
    assert_ne!(one.info["network_id"], two.info["network_id"]);
    assert_ne!(one.info["base_url"], two.info["base_url"]);
    for testnet in [&one, &two] {
        assert!(testnet.ask("What is 3+4?", |_| {}).await.unwrap().text.contains('7'));
    }
    // One network's key opens nothing on the other.
    let key = one.info["api_key"].as_str().unwrap();
    let url = format!("{}/models", two.info["base_url"].as_str().unwrap());
    let refused = reqwest::Client::new().get(url).bearer_auth(key).send().await.unwrap();
    assert_eq!(refused.status(), 401);
}

#[tokio::test]
async fn a_killed_network_leaves_no_process_and_comes_back_with_its_channels() {
    let _alone = alone().await;
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let output = Command::new(cocoon().unwrap())
            .args(["testnet", "up", "--workers", "1", "--detach", "--json", "--state"])
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let run = |args: &[&str]| {
        Command::new(cocoon().unwrap()).args(args).arg("--state").arg(folder.path()).output().unwrap()
    };
    let ask = || {
        let output = run(&["chat", "--json", "What is 12+34?"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let first = start();
    let before = ask();
    assert!(before["answer"].as_str().unwrap().contains("46"));

    kill(u32::try_from(first["supervisor"].as_u64().unwrap()).unwrap());
    let gone = std::time::Instant::now() + Duration::from_secs(10);
    while pids(&first).into_iter().any(alive) {
        assert!(std::time::Instant::now() < gone, "processes outlive their supervisor");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let nothing = run(&["testnet", "status"]);
    assert_eq!(nothing.status.code(), Some(3), "a dead network counts as running");

    let second = start();
    assert_eq!(second["network_id"], first["network_id"]);
    let after = ask();
    let channel = |answer: &Value| answer["receipt"]["legs"][0]["channel"].clone();
    assert_eq!(channel(&after), channel(&before), "the channel and its deposit were forgotten");
    let channels = run(&["channel", "list", "--json"]);
    let list: Value = serde_json::from_slice(&channels.stdout).unwrap();
    let paid: u64 = list["channels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|channel| channel["cumulative_nanoton"].as_u64().unwrap())
        .sum();
    let cost = |answer: &Value| answer["receipt"]["total"].as_u64().unwrap();
    assert!(paid >= cost(&before) + cost(&after), "vouchers from before the crash are lost");
    assert!(run(&["testnet", "down"]).status.success());
    assert!(!pids(&second).into_iter().any(alive), "processes outlive `testnet down`");
}

#[test]
fn ctrl_c_in_the_foreground_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(cocoon().unwrap())
        .args(["testnet", "up", "--workers", "1", "--json", "--state"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The JSON object is printed when the network is ready; its end is the first line that is `}` alone.
    let mut text = String::new();
    let mut out = child.stdout.take().unwrap();
    let mut byte = [0];
    while !text.ends_with("\n}\n") {
        assert!(out.read(&mut byte).unwrap() > 0, "the network did not come up: {text}");
        text.push(char::from(byte[0]));
    }
    let info: Value = serde_json::from_str(&text).unwrap();
    signal(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!pids(&info).into_iter().any(alive), "processes outlive Ctrl-C");
}
