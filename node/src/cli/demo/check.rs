//! Reads everything again: evidence from its bytes, receipts from their signatures, money from the chain.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use cocoon_attest::{Expect, Live, verify};
use cocoon_client::{LightPeer, genesis::Genesis};
use cocoon_payments::{
    Address,
    chain::{Chain as _, MessageInfo, Toncenter, TransactionInfo},
};
use serde_json::{Value, json};

use super::{Stage, ask::Asked};
use crate::{host::control, localnet::Kind};

/// How many of a channel's transactions are looked through.
const HISTORY: usize = 20;

/// Verifies each answering worker's evidence again and the signatures of its receipts.
pub(super) fn workers(
    stage: &Stage,
    peer: &LightPeer,
    answers: &[Asked],
    folder: &Path,
) -> anyhow::Result<Vec<Value>> {
    let genesis = Genesis::load(stage.layout.genesis())?;
    let policy = genesis.policy(cocoon_attest::Assurance::Test, Live::Off);
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    for leg in answers.iter().flat_map(|answer| &answer.receipt.legs) {
        let worker = leg.worker.to_string();
        let evidence =
            peer.evidence(&worker).with_context(|| format!("no evidence of {worker} is at hand"))?;
        let id: cocoon_p2p::PeerId = worker.parse().context("a worker's peer id")?;
        let expect = Expect { peer_id: &id.to_bytes(), model_digest: None, evidence_digest: None };
        let verified = verify(&evidence, &expect, &policy, unix_now()).map_err(|error| {
            anyhow::anyhow!("evidence of {worker} does not verify ({}): {error}", error.check())
        })?;
        let receipt = leg.signed.as_ref().with_context(|| format!("{worker} signed no receipt"))?;
        receipt.verify().with_context(|| format!("a receipt of {worker} is not signed by its key"))?;
        ensure!(
            receipt.key == verified.claims.receipt_key,
            "a receipt of {worker} is signed by a key that its evidence does not name"
        );
        ensure!(receipt.receipt.cost == leg.cost, "a receipt of {worker} states another cost than the leg");
        let entry = found.entry(worker.clone()).or_insert_with(|| {
            let file = folder.join(format!("evidence-{worker}.bin"));
            json!({
                "worker": worker,
                "assurance": verified.assurance.to_string(),
                "root": verified.root,
                "tcb_status": verified.tcb_status,
                "measurement": verified.measurement.to_string(),
                "model_digest": hex::encode(verified.claims.model_digest),
                "evidence_digest": hex::encode(verified.evidence_digest),
                "evidence_file": file,
                "receipt_key": hex::encode(verified.claims.receipt_key),
                "receipts_verified": 0,
            })
        });
        entry["receipts_verified"] = (entry["receipts_verified"].as_u64().unwrap_or(0) + 1).into();
        let file = folder.join(format!("evidence-{worker}.bin"));
        std::fs::write(&file, &evidence).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(found.into_values().collect())
}

/// Has each paid worker redeem its newest voucher, and reads the settlement back from the chain.
pub(super) async fn settle(stage: &Stage, answers: &[Asked]) -> anyhow::Result<Vec<Value>> {
    let chain = Toncenter::new(&stage.network.chain.url, Some(stage.network.chain.api_key()?))?;
    let paid: BTreeSet<String> =
        answers.iter().flat_map(|answer| &answer.receipt.legs).map(|leg| leg.worker.to_string()).collect();
    let mut settlements = Vec::new();
    for worker in paid {
        let socket = control_of(stage, &worker).await?;
        let started = Instant::now();
        let reply = control::request(&socket, &json!({"cmd": "settle"})).await?;
        let took = started.elapsed();
        if let Some(error) = reply["error"].as_str() {
            bail!("{worker} could not settle: {error}");
        }
        let channels = control::request(&socket, &json!({"cmd": "channels"})).await?;
        for channel in channels["channels"].as_array().into_iter().flatten() {
            let address: Address =
                channel["address"].as_str().unwrap_or_default().parse().context("a channel's address")?;
            let history = chain.transactions(&address, HISTORY).await?;
            let payout = channel["payout"].as_str().and_then(|text| text.parse::<Address>().ok());
            let Some(transaction) = history.iter().find(|transaction| pays(transaction, payout.as_ref()))
            else {
                continue;
            };
            let account = chain.account(&address).await?;
            settlements.push(json!({
                "worker": worker,
                "channel": address.to_string(),
                "newest_voucher_nanoton": channel["cumulative_nanoton"],
                "settled_nanoton": channel["settled_nanoton"],
                "balance_nanoton": account.balance.0,
                "transaction": hex::encode(transaction.hash),
                "lt": transaction.lt,
                "unixtime": transaction.now,
                "gas_used": transaction.gas_used,
                "fees_nanoton": transaction.fees.0,
                "exit_code": transaction.exit_code,
                // The first message pays; a later one to the same wallet returns what the call left over.
                "paid_to_worker_nanoton": payment(transaction, payout.as_ref()).map(|message| message.value.0),
                "settle_ms": took.as_secs_f64() * 1e3,
            }));
        }
    }
    ensure!(!settlements.is_empty(), "no settlement is on the chain");
    Ok(settlements)
}

/// Whether a channel's transaction paid its worker.
fn pays(transaction: &TransactionInfo, payout: Option<&Address>) -> bool {
    transaction.succeeded() && transaction.out_msgs.len() > 1 && payment(transaction, payout).is_some()
}

/// The message with which a channel pays: `settle` sends it before anything else.
fn payment<'a>(transaction: &'a TransactionInfo, payout: Option<&Address>) -> Option<&'a MessageInfo> {
    let first = transaction.out_msgs.first()?;
    (first.destination.as_ref() == payout && first.value.0 > 0).then_some(first)
}

/// The control socket of the host whose peer id is `worker`.
async fn control_of(stage: &Stage, worker: &str) -> anyhow::Result<std::path::PathBuf> {
    for process in stage.network.processes.iter().filter(|process| process.kind == Kind::Host) {
        let ready = std::fs::read(stage.layout.ready(&process.name)).unwrap_or_default();
        let ready: Value = serde_json::from_slice(&ready).unwrap_or_default();
        if ready["peer_id"] == worker {
            return Ok(stage.layout.process(&process.name).join("state/control.sock"));
        }
    }
    bail!("no host of this network is {worker}")
}

#[allow(clippy::disallowed_methods, reason = "evidence is verified as of now")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
