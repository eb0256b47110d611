//! The report, for people, from the same values as the JSON.

use cocoon_payments::NanoTon;
use serde_json::{Value, json};

use super::{Say, ask::Asked};

/// How long each of the six steps took, in milliseconds: the first answer's, where a later one reuses it.
pub(super) fn steps(answers: &[Asked], settlements: &[Value], join_ms: f64) -> Value {
    let first = answers.first();
    let start = first.and_then(|answer| answer.starts.first());
    let timing =
        |pick: fn(&cocoon_client::StepTimings) -> f64| start.map_or(0.0, |start| pick(&start.timings));
    let settle = settlements.iter().filter_map(|one| one["settle_ms"].as_f64()).fold(0.0, f64::max);
    json!({
        "1_discover": timing(|timings| timings.discover_ms),
        "2_choose": timing(|timings| timings.choose_ms),
        "3_attest": timing(|timings| timings.attest_ms),
        "4_connect": timing(|timings| timings.connect_ms),
        "5_pay_and_run": first.map_or(0.0, |answer| answer.total_ms),
        "6_settle": settle,
        "join": join_ms,
    })
}

pub(super) fn print(report: &Value, say: Say) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
    let ms = |name: &str| report["steps_ms"][name].as_f64().unwrap_or(0.0);

    say.line("\n── what happened ──────────────────────────────────────────────");
    say.line(format!("network    {}, {}", text(&report["network"]["name"]), text(&report["warning"])));
    say.line(format!("1 discover {:.1} ms", ms("1_discover")));
    for peer in list("peers") {
        say.line(format!("             {} found by {}", text(&peer["peer"]), text(&peer["how"])));
    }
    say.line(format!("2 choose   {:.2} ms among the workers above", ms("2_choose")));
    say.line(format!("3 attest   {:.1} ms", ms("3_attest")));
    for worker in list("workers") {
        say.line(format!("             {}", text(&worker["worker"])));
        say.line(format!(
            "             {} — root {}, TCB {}, measurement {}…",
            text(&worker["assurance"]),
            text(&worker["root"]),
            text(&worker["tcb_status"]),
            text(&worker["measurement"]).get(..16).unwrap_or_default(),
        ));
        say.line(format!("             {} receipts signed by its attested key", worker["receipts_verified"]));
    }
    say.line(format!("4 connect  {:.1} ms to a Noise channel that ends inside the enclave", ms("4_connect")));
    say.line(format!("5 pay, run {:.0} ms for the first answer", ms("5_pay_and_run")));
    for answer in list("answers") {
        say.line(format!(
            "             {} for {} + {} tokens: {}",
            NanoTon(answer["cost_nanoton"].as_u64().unwrap_or(0)),
            answer["usage"]["prompt_tokens"],
            answer["usage"]["completion_tokens"],
            text(&answer["question"]),
        ));
    }
    say.line(format!("6 settle   {:.0} ms on the local chain", ms("6_settle")));
    for one in list("settlements") {
        let ton = |name: &str| NanoTon(one[name].as_u64().unwrap_or(0));
        say.line(format!("             transaction {}", text(&one["transaction"])));
        say.line(format!(
            "             channel {}: {} to the worker, gas {}, fees {}; it still holds {}",
            text(&one["channel"]),
            ton("paid_to_worker_nanoton"),
            one["gas_used"],
            ton("fees_nanoton"),
            ton("balance_nanoton"),
        ));
    }
    say.line(format!(
        "ready in {:.1} s, all of it in {:.1} s",
        report["network"]["ready_ms"].as_f64().unwrap_or(0.0) / 1e3,
        report["total_s"].as_f64().unwrap_or(0.0)
    ));
    if let Some(state) = report["state"].as_str() {
        say.line(format!("state kept in {state}"));
    }
}
