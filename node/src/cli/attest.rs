//! `cocoon attest`: looks at evidence and verifies it, offline.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::{Args as ClapArgs, Subcommand};
use cocoon_attest::{Assurance, Claims, Evidence, Expect, Live, verify};
use cocoon_client::genesis::Genesis;
use serde_json::{Value, json};

use super::output;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what evidence claims, without believing it
    Show {
        /// An evidence file, as `cocoon demo --keep` leaves them
        evidence: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Verify evidence: quote, collateral, claims, measurement, model
    Verify {
        /// An evidence file
        evidence: PathBuf,
        /// The genesis file of the network, which names roots and allowed measurements
        #[arg(long)]
        genesis: PathBuf,
        /// Least assurance to accept: confidential, test or open
        #[arg(long, default_value = "confidential")]
        assurance: Assurance,
        /// Verify as of this moment, in unix seconds, instead of now
        #[arg(long, value_name = "SECONDS")]
        at: Option<u64>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Show { evidence, json } => show(evidence, *json),
        Command::Verify { evidence, genesis, assurance, at, json } => {
            check(evidence, genesis, *assurance, at.unwrap_or_else(unix_now), *json)
        }
    }
}

fn show(path: &Path, json: bool) -> anyhow::Result<()> {
    let evidence = Evidence::decode(&read(path)?)?;
    let claims = Claims::decode(&evidence.claims)?;
    let value = json!({
        "verified": false,
        "digest": hex::encode(evidence.digest()),
        "claims": claims_json(&claims),
        "quote_bytes": evidence.quote.len(),
        "collateral_bytes": evidence.collateral.len(),
    });
    print(&value, json);
    if !json {
        output::note("nothing of this is verified; `cocoon attest verify` does that");
    }
    Ok(())
}

fn check(path: &Path, genesis: &Path, assurance: Assurance, now: u64, json: bool) -> anyhow::Result<()> {
    let bytes = read(path)?;
    let genesis = Genesis::load(genesis)?;
    let policy = genesis.policy(assurance, Live::Off);
    // Whose evidence it is, only the file says; the rest is checked against the genesis.
    let claims = Claims::decode(&Evidence::decode(&bytes)?.claims)?;
    let expect = Expect { peer_id: &claims.peer_id, model_digest: None, evidence_digest: None };
    match verify(&bytes, &expect, &policy, now) {
        Ok(verified) => {
            let value = json!({
                "verified": true,
                "assurance": verified.assurance.to_string(),
                "root": verified.root,
                "tcb_status": verified.tcb_status,
                "advisories": verified.advisories,
                "measurement": verified.measurement.to_string(),
                "expires_at": verified.expires_at,
                "digest": hex::encode(verified.evidence_digest),
                "claims": claims_json(&verified.claims),
            });
            print(&value, json);
            Ok(())
        }
        Err(error) => {
            let check = error.check();
            if json {
                output::json(&json!({"verified": false, "check": check, "error": error.to_string()}));
            }
            Err(error).with_context(|| format!("refused by the check `{check}`"))
        }
    }
}

fn claims_json(claims: &Claims) -> Value {
    json!({
        "network_id": hex::encode(claims.network_id),
        "noise_key": hex::encode(claims.noise_key),
        "receipt_key": hex::encode(claims.receipt_key),
        "peer_id": cocoon_p2p::PeerId::from_bytes(&claims.peer_id).map_or_else(|_| hex::encode(&claims.peer_id), |id| id.to_string()),
        "image": claims.image.to_string(),
        "config_digest": hex::encode(claims.config_digest),
        "model_digest": hex::encode(claims.model_digest),
        "not_before": claims.not_before,
        "not_after": claims.not_after,
        "beacon": {"seqno": claims.beacon.seqno, "hash": hex::encode(claims.beacon.hash)},
    })
}

fn print(value: &Value, json: bool) {
    if json {
        output::json(value);
        return;
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(inner) => {
                output::line(format!("{key}:"));
                for (key, value) in inner {
                    output::line(format!("    {key:<16} {}", plain(value)));
                }
            }
            other => output::line(format!("{key:<20} {}", plain(other))),
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[allow(clippy::disallowed_methods, reason = "a person asks whether evidence is valid now")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
