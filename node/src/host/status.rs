//! How a host is doing, in the words of the person who runs it: reachable? visible? attested? priced?
//! earning? and if no work comes, why.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cocoon_client::genesis::Genesis;
use cocoon_p2p::{Net, core::PeerKey, net::NetStatus};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::Worker;
use super::ads::{Published, unix_ms};
use super::control::Answers;
use super::epochs::CurrentEvidence;
use super::settle::Wish;

/// Redeeming waits for the chain.
const SETTLE_PATIENCE: Duration = Duration::from_secs(120);

/// Answers for a worker.
pub(super) struct Status {
    worker: Arc<Worker>,
    network: String,
    evidence: watch::Receiver<Option<CurrentEvidence>>,
    ad: watch::Receiver<Published>,
    wishes: mpsc::Sender<Wish>,
    started: u64,
}

impl Status {
    pub(super) fn new(
        worker: Arc<Worker>,
        genesis: &Genesis,
        evidence: watch::Receiver<Option<CurrentEvidence>>,
        ad: watch::Receiver<Published>,
        wishes: mpsc::Sender<Wish>,
    ) -> Self {
        Self { worker, network: genesis.name().to_owned(), evidence, ad, wishes, started: unix_ms() / 1000 }
    }

    async fn status(&self) -> Value {
        let worker = &self.worker;
        let now = unix_ms() / 1000;
        let net = worker.net.status().await;
        let enclave = worker.enclave.state();
        let evidence = self.evidence.borrow().clone();
        let ad = self.ad.borrow().clone();
        let (earned, unsettled) = worker.money.totals();
        let channels = worker.money.channels();
        let trouble = worker.trouble_attesting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let counters = &worker.counters;
        let sessions = counters.sessions.load(Relaxed);
        let attested = evidence
            .as_ref()
            .is_some_and(|evidence| enclave.hello.is_some() && evidence.connection == enclave.connection);

        let mut why_no_jobs = Vec::new();
        if enclave.hello.is_none() {
            why_no_jobs.push("the enclave is not connected: start `cocoon enclave`".to_owned());
        } else if !attested {
            why_no_jobs
                .push(format!("not attested: {}", trouble.as_deref().unwrap_or("evidence is being made")));
        }
        if let Some(net) = &net
            && net.connected_peers == 0
        {
            why_no_jobs.push("no peer is connected: check `network.bootstrap` and the firewall".to_owned());
        }
        if ad.sequence == 0 {
            why_no_jobs.push("no ad was published yet".to_owned());
        } else if now > ad.at_unix + u64::from(worker.ad_ttl_s) {
            why_no_jobs.push("the last ad has expired".to_owned());
        }
        let market = enclave.hello.as_ref().map(|hello| Market::of(worker, &hello.model_digest));
        if let Some(market) = &market
            && !market.is_fair(worker.prices.output)
        {
            why_no_jobs.push(format!(
                "the output price is {} nanoTON per million tokens, the median of {} others is {}: lower \
                 `prices.output` to be chosen more often",
                worker.prices.output, market.others, market.median_output
            ));
        }
        if why_no_jobs.is_empty() && sessions == 0 {
            why_no_jobs.push("none has asked yet".to_owned());
        }

        json!({
            "role": "worker",
            "network": self.network,
            "peer_id": worker.net.peer_id().to_string(),
            "uptime_s": now.saturating_sub(self.started),
            "reachable": net.as_ref().map(|net| net.reachability.clone()),
            "visible": ad.sequence > 0 && now <= ad.at_unix + u64::from(worker.ad_ttl_s),
            "attested": attested,
            "priced": market.as_ref().map(|market| market.is_fair(worker.prices.output)),
            "market": market.as_ref().map(|market| json!({
                "others": market.others, "median_output": market.median_output,
            })),
            "earning": sessions > 0 && earned.0 > 0,
            "why_no_jobs": why_no_jobs,
            "model": enclave.hello.as_ref().map(|hello| format!("{}@{}", hello.model, hex::encode(hello.model_digest))),
            "tee": enclave.hello.as_ref().map(|hello| hello.tee.clone()),
            "evidence": evidence.map(|evidence| json!({
                "digest": hex::encode(evidence.digest), "image": evidence.image,
                "not_after": evidence.not_after, "beacon_seqno": evidence.beacon,
            })),
            "ad": {"sequence": ad.sequence, "published_at": ad.at_unix, "addresses": ad.addresses},
            "load": {
                "active": enclave.load.active, "queued": enclave.load.queued, "free_slots": enclave.load.free_slots,
                "queue_ms": enclave.load.queue_ms, "tokens_per_second": enclave.load.tokens_per_second,
            },
            "prices": {
                "input": worker.prices.input, "cached_input": worker.prices.cached_input,
                "output": worker.prices.output, "quantum_nanoton": worker.quantum.0,
            },
            "payout": worker.payout.to_string(),
            "sessions": sessions,
            "sessions_refused": counters.refused.load(Relaxed),
            "channels": channels.len(),
            "channels_in_use": channels.iter().filter(|channel| channel.in_use).count(),
            "vouchers": counters.vouchers.load(Relaxed),
            "fsyncs": worker.money.fsyncs(),
            "settlements": counters.settlements.load(Relaxed),
            "earned_nanoton": earned.0,
            "settled_nanoton": channels.iter().map(|channel| channel.settled_nanoton).sum::<u64>(),
            "unsettled_nanoton": unsettled.0,
            "overlay": net,
        })
    }

    async fn settle(&self) -> Result<Value, String> {
        let (wish, done) = oneshot::channel();
        if self.wishes.try_send(wish).is_err() {
            return Err("redeeming is already under way; ask again in a moment".to_owned());
        }
        match tokio::time::timeout(SETTLE_PATIENCE, done).await {
            Ok(Ok(Ok(settled))) => Ok(json!({ "settled": settled })),
            Ok(Ok(Err(why))) => Err(why),
            Ok(Err(_)) => Err("the host shuts down".to_owned()),
            Err(_) => Err("the chain did not answer within two minutes; redeeming goes on".to_owned()),
        }
    }
}

/// What the other workers of a model ask for it.
struct Market {
    others: usize,
    /// In nanoTON per million output tokens; 0 without others.
    median_output: u64,
}

impl Market {
    fn of(worker: &Worker, model: &[u8; 32]) -> Self {
        let own = PeerKey::from(worker.net.peer_id());
        let prices = worker.net.directory().read(|directory| {
            let others = directory.for_model(model).filter(|ad| ad.peer != own);
            others.filter_map(|ad| ad.offer(model)).map(|offer| offer.price_output).collect()
        });
        Self::from_prices(prices)
    }

    fn from_prices(mut prices: Vec<u64>) -> Self {
        prices.sort_unstable();
        Self { others: prices.len(), median_output: prices.get(prices.len() / 2).copied().unwrap_or(0) }
    }

    /// Askers weigh price against speed: up to half above the median still gets work.
    fn is_fair(&self, output: u64) -> bool {
        self.others == 0 || output <= self.median_output.saturating_add(self.median_output / 2)
    }
}

impl Answers for Status {
    async fn answer(&self, command: &str) -> Result<Value, String> {
        match command {
            "status" => Ok(self.status().await),
            "channels" => Ok(json!({ "channels": self.worker.money.channels() })),
            "settle" => self.settle().await,
            other => Err(unknown(other, "status, channels or settle")),
        }
    }
}

/// Answers for a bootstrap peer.
pub(super) struct Bootstrap {
    net: Net,
    network: String,
    started: u64,
}

impl Bootstrap {
    pub(super) fn new(net: Net, network: String) -> Self {
        Self { net, network, started: unix_ms() / 1000 }
    }
}

impl Answers for Bootstrap {
    async fn answer(&self, command: &str) -> Result<Value, String> {
        if command != "status" {
            return Err(unknown(command, "status: a bootstrap peer has no channels"));
        }
        let net: Option<NetStatus> = self.net.status().await;
        Ok(json!({
            "role": "bootstrap",
            "network": self.network,
            "peer_id": self.net.peer_id().to_string(),
            "uptime_s": (unix_ms() / 1000).saturating_sub(self.started),
            "reachable": net.as_ref().map(|net| net.reachability.clone()),
            "overlay": net,
        }))
    }
}

fn unknown(command: &str, known: &str) -> String {
    let shown: String = command.chars().take(40).collect();
    format!("unknown command `{shown}`; use {known}")
}

#[cfg(test)]
mod tests {
    use super::Market;

    #[test]
    fn a_price_is_fair_up_to_half_above_the_median_of_the_others() {
        assert!(Market::from_prices(Vec::new()).is_fair(u64::MAX), "nobody to compare with");
        let market = Market::from_prices(vec![300, 100, 200]);
        assert_eq!((market.others, market.median_output), (3, 200));
        assert!(market.is_fair(300));
        assert!(!market.is_fair(301));
        assert!(Market::from_prices(vec![u64::MAX]).is_fair(u64::MAX));
    }
}
