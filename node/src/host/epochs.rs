//! Keeping the enclave's evidence current: asks for a new epoch when the enclave connects and well before the
//! old one ends, serves the evidence to askers, and tells the ads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cocoon_attest::{Claims, Evidence};
use tokio::sync::{mpsc, watch};

use super::Worker;
use super::ads::unix_ms;
use super::link::News;
use crate::link::{Attest, Beacon, ToEnclave};

/// Claims start this much in the past, for askers whose clocks are behind.
const BACKDATE_S: u64 = 30;
/// A new epoch is made when this share of the old one is left, so that an outage of hours costs nothing.
const RENEW_AT: u64 = 3;
/// Evidence of older epochs stays available for askers that still hold an ad naming it.
const KEEP: usize = 3;
/// An enclave that does not deliver evidence is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a failure of chain or quoter.
const RETRY: Duration = Duration::from_secs(2);

/// The evidence that ads name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CurrentEvidence {
    pub(super) digest: [u8; 32],
    pub(super) not_after: u64,
    pub(super) image: String,
    pub(super) beacon: u32,
    /// The enclave connection it was made on; another process has other keys.
    pub(super) connection: u64,
}

/// Keeps evidence current for as long as the worker runs.
pub(super) async fn run(
    worker: Arc<Worker>,
    lasts_s: u64,
    mut news: mpsc::Receiver<News>,
    current: watch::Sender<Option<CurrentEvidence>>,
) {
    let mut enclave = worker.enclave.watch();
    let mut served = VecDeque::new();
    loop {
        let state = enclave.borrow_and_update().clone();
        let now = unix_ms() / 1000;
        let known = current.borrow().clone();
        let due = match known {
            _ if state.hello.is_none() => None,
            Some(known) if known.connection == state.connection => {
                Some(known.not_after.saturating_sub(lasts_s / RENEW_AT).saturating_sub(now))
            }
            _ => Some(0),
        };
        match due {
            Some(0) => {}
            wait => {
                let wait = wait.map_or(Duration::from_secs(3600), Duration::from_secs);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    changed = enclave.wait_for(|now| {
                        now.connection != state.connection || now.hello.is_some() != state.hello.is_some()
                    }) => if changed.is_err() { return },
                }
                continue;
            }
        }
        match attest(&worker, lasts_s, state.connection, &mut news).await {
            Ok((fresh, bytes)) => {
                if let Err(error) = worker.net.serve_evidence(fresh.digest, bytes.to_vec()) {
                    tracing::error!(%error, "the enclave's evidence cannot be served");
                } else {
                    served.push_back(fresh.digest);
                    if served.len() > KEEP
                        && let Some(old) = served.pop_front()
                    {
                        worker.net.withdraw_evidence(&old);
                    }
                    tracing::info!(digest = hex::encode(fresh.digest), until = fresh.not_after, "attested");
                    *worker.trouble_attesting.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        None;
                    current.send_replace(Some(fresh));
                    continue;
                }
            }
            Err(why) => {
                tracing::warn!(why, "no evidence; trying again");
                *worker.trouble_attesting.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                    Some(why);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn attest(
    worker: &Worker,
    lasts_s: u64,
    connection: u64,
    news: &mut mpsc::Receiver<News>,
) -> Result<(CurrentEvidence, Bytes), String> {
    let head =
        worker.chain.head().await.map_err(|error| format!("no block to name in the claims: {error}"))?;
    // What an earlier connection delivered late is of keys that are gone.
    while news.try_recv().is_ok() {}
    let not_before = unix_ms() / 1000 - BACKDATE_S;
    let attest = Attest {
        beacon: Beacon { seqno: head.seqno, hash: head.hash },
        not_before,
        not_after: not_before + lasts_s,
    };
    worker.enclave.send(ToEnclave::Attest(attest)).await;
    let mut enclave = worker.enclave.watch();
    let answer = tokio::select! {
        answer = tokio::time::timeout(PATIENCE, news.recv()) => answer,
        _ = enclave.wait_for(|now| now.connection != connection || now.hello.is_none()) => {
            return Err("the enclave went away".to_owned());
        }
    };
    let bytes = match answer {
        Ok(Some(News::Evidence(bytes))) => bytes,
        Ok(Some(News::AttestFailed(why))) => return Err(format!("the enclave could not attest: {why}")),
        Ok(None) | Err(_) => return Err("the enclave delivered no evidence".to_owned()),
    };
    let evidence = Evidence::decode(&bytes).map_err(|error| error.to_string())?;
    let claims = Claims::decode(&evidence.claims).map_err(|error| error.to_string())?;
    let current = CurrentEvidence {
        digest: evidence.digest(),
        not_after: claims.not_after,
        image: claims.image.to_string(),
        beacon: claims.beacon.seqno,
        connection,
    };
    Ok((current, bytes))
}
