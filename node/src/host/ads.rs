//! Saying what this worker offers: one signed ad, again before it expires and whenever it changes.
//!
//! Nothing is advertised that could not be served: no ad goes out before the enclave is connected, its
//! evidence is here and the chain's identity is checked, and none after the enclave has left; the last one
//! expires by itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cocoon_p2p::core::{Ad, ModelOffer, PeerKey, SignedAd};
use cocoon_p2p::{Keypair, Multiaddr};
use tokio::sync::watch;

use super::Worker;
use super::epochs::CurrentEvidence;
use super::link::EnclaveState;

/// An ad is repeated at least this often, so that a peer that missed one waits no longer.
const REPEAT: Duration = Duration::from_secs(30);
/// Changes closer together than this travel in one ad.
const SETTLE: Duration = Duration::from_millis(250);
/// A gossip message that nobody is there to take yet is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the last published ad said.
#[derive(Debug, Clone, Default)]
pub(super) struct Published {
    pub(super) sequence: u64,
    pub(super) at_unix: u64,
    pub(super) addresses: Vec<String>,
}

/// Publishes ads for as long as the worker runs.
pub(super) async fn run(
    worker: Arc<Worker>,
    keypair: Keypair,
    external: Vec<Multiaddr>,
    mut evidence: watch::Receiver<Option<CurrentEvidence>>,
    published: watch::Sender<Published>,
) {
    let mut enclave = worker.enclave.watch();
    let mut provided = None;
    let mut sequence = 0;
    let mut last: Option<Ad> = None;
    loop {
        let state = enclave.borrow_and_update().clone();
        let current = evidence.borrow_and_update().clone();
        let mut wait = REPEAT.min(Duration::from_secs(u64::from(worker.ad_ttl_s)) / 3);
        if let (Some(hello), Some(current)) = (&state.hello, current)
            && current.connection == state.connection
        {
            if provided != Some(hello.model_digest) {
                // Hear the others of this model: a gossip mesh is made of those who listen.
                worker.net.join_model(hello.model_digest).await;
                worker.net.provide(hello.model_digest).await;
                provided = Some(hello.model_digest);
            }
            let addresses = addresses(&worker, &external).await;
            // Rises across restarts too, as long as the clock does.
            sequence = (sequence + 1).max(unix_ms());
            let ad = ad(&worker, &state, hello, &current, addresses, sequence);
            match publish(&worker, &ad, &keypair).await {
                Ok(()) => {
                    published.send_replace(Published {
                        sequence,
                        at_unix: ad.issued_at,
                        addresses: ad.addresses.clone(),
                    });
                    last = Some(ad);
                }
                Err(error) => {
                    tracing::warn!(error, "an ad was not published; trying again");
                    wait = RETRY;
                }
            }
        }
        // The next ad: on time, or a moment after something that an asker would want to know.
        let timer = tokio::time::sleep(wait);
        tokio::pin!(timer);
        loop {
            tokio::select! {
                () = &mut timer => break,
                changed = enclave.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if material(last.as_ref(), &enclave.borrow_and_update()) {
                        tokio::time::sleep(SETTLE).await;
                        break;
                    }
                }
                changed = evidence.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
            }
        }
    }
}

/// Whether an asker would choose differently: room has come or gone, or another model is served.
fn material(last: Option<&Ad>, state: &EnclaveState) -> bool {
    let Some(last) = last else { return true };
    let Some(hello) = &state.hello else { return false };
    (last.free_slots == 0) != (state.load.free_slots == 0)
        || last.models.first().is_none_or(|offer| offer.digest != hello.model_digest)
}

async fn publish(worker: &Worker, ad: &Ad, keypair: &Keypair) -> Result<(), String> {
    let signed = SignedAd::sign(ad, keypair).map_err(|error| error.to_string())?;
    worker.net.publish_ad(signed).await.map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

async fn addresses(worker: &Worker, external: &[Multiaddr]) -> Vec<String> {
    if !external.is_empty() {
        return external.iter().map(Multiaddr::to_string).take(cocoon_p2p::core::MAX_ADDRESSES).collect();
    }
    let listening = worker.net.listen_addresses().await;
    let mut texts: Vec<String> = listening.iter().map(Multiaddr::to_string).collect();
    // What others see of us, where they could tell.
    if let Some(status) = worker.net.status().await {
        texts.splice(0..0, status.external.iter().map(Multiaddr::to_string));
    }
    let mut seen = std::collections::BTreeSet::new();
    texts.retain(|text| {
        !text.contains("/0.0.0.0/") && !text.contains("/ip6/::/") && seen.insert(text.clone())
    });
    texts.truncate(cocoon_p2p::core::MAX_ADDRESSES);
    texts
}

fn ad(
    worker: &Worker,
    state: &EnclaveState,
    hello: &crate::link::EnclaveHello,
    evidence: &CurrentEvidence,
    addresses: Vec<String>,
    sequence: u64,
) -> Ad {
    let now = unix_ms() / 1000;
    let load = state.load;
    Ad {
        network_id: worker.network_id,
        peer: PeerKey::from(worker.net.peer_id()),
        sequence,
        issued_at: now,
        expires_at: now + u64::from(worker.ad_ttl_s),
        addresses,
        models: vec![ModelOffer {
            digest: hello.model_digest,
            name: hello.model.clone(),
            context: hello.context,
            quantisation: hello.quantisation.clone(),
            price_input: worker.prices.input,
            price_cached_input: worker.prices.cached_input,
            price_output: worker.prices.output,
        }],
        free_slots: load.free_slots,
        queue_delay_ms: load.queue_ms,
        tokens_per_second: load.tokens_per_second,
        evidence_digest: evidence.digest,
        assurance: if hello.tee == "software-tee" { 1 } else { 2 },
        payout: worker.payout.to_bytes(),
        payee_key: worker.payee_key,
        close_delay_s: worker.min_close_delay_s,
        platform: None,
    }
}

/// Milliseconds since the Unix epoch.
#[allow(clippy::disallowed_methods, reason = "the shell's clock")]
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
