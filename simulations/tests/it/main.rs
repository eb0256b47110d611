//! The binary as users run it: equal seeds, equal traces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use serde_json::Value;

fn meet(seed: u64) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_cocoon-sim"))
        .args(["run", "meet", "--json", "--seed", &seed.to_string()])
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object on stdout")
}

#[test]
fn equal_seeds_give_equal_traces_and_different_seeds_different_ones() {
    let (first, again, other) = (meet(7), meet(7), meet(8));
    assert_eq!(first["trace_hash"], again["trace_hash"]);
    assert_eq!(first["results"], again["results"]);
    assert_eq!(first["virtual_s"], again["virtual_s"]);
    assert_ne!(first["trace_hash"], other["trace_hash"]);
}

#[test]
fn the_ad_arrives_after_at_least_one_link_latency_and_within_a_heartbeat_or_two() {
    let report = meet(3);
    let heard = report["results"]["ad_heard_after_ms"].as_f64().unwrap();
    assert!((5.0..5_000.0).contains(&heard), "{report}");
    assert!(report["virtual_s"].as_f64().unwrap() < 60.0, "{report}");
    assert!(report["events"].as_u64().unwrap() > 20, "{report}");
    let ways = report["results"]["found_by"].as_array().unwrap();
    assert!(ways.contains(&"bootstrap".into()) && ways.contains(&"gossip".into()), "{report}");
}

#[test]
fn an_unknown_scenario_is_refused_with_the_list_of_known_ones() {
    let output = Command::new(env!("CARGO_BIN_EXE_cocoon-sim")).args(["run", "nothing"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("meet"));
}
