//! From a question to a verified worker that has it: discover, choose, attest, connect.

// A shell: steps are timed and deadlines kept with the machine's clock.
#![allow(clippy::disallowed_methods)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cocoon_p2p::core::{Ad, Ask as Wish, Candidate, ModelOffer, NoCandidate, PeerKey};
use cocoon_payments::token_cost;

use super::{
    Inner,
    answer::{Driver, LegStart, StepTimings},
    book::{Channel, Funding},
    error::{ChatError, FailedLeg},
    evidence::{AttestError, Attested},
    link::{Dial, LegHandle, Link},
    unix_now,
};
use crate::session::asker::{Ask, SessionError, Terms};

/// A peer that has just started hears its first ads within this time.
const DISCOVERY: Duration = Duration::from_secs(3);
/// How long a request waits for a channel that is being opened.
const OPENING: Duration = Duration::from_secs(30);
/// Workers tried for one answer.
const MAX_LEGS: usize = 8;

/// A worker has the request.
pub(super) struct StartedLeg {
    pub(super) worker: PeerKey,
    pub(super) start: LegStart,
    pub(super) handle: LegHandle,
}

/// Why no session with a worker came about.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Attest(#[from] AttestError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("its ad has an unusable peer id")]
    PeerId,
    #[error("the channel cannot be used: {0}")]
    Channel(String),
    #[error("the attempt was interrupted")]
    Interrupted,
}

/// Finds the next worker and gives it the request.
pub(super) async fn start_leg(driver: &mut Driver) -> Result<StartedLeg, ChatError> {
    let peer = driver.peer.clone();
    while driver.failed.len() < MAX_LEGS {
        let mut timings = StepTimings::default();
        let (candidate, channel) = find(&peer, driver, &mut timings).await?;
        let worker = candidate.peer.clone();
        let failed = match link(&peer, &channel, &candidate.ad, &candidate.offer, &mut timings).await {
            Ok(link) => match submit(driver, &candidate.offer, &link)? {
                Some(handle) => {
                    let start = announce(&link, &channel, timings);
                    return Ok(StartedLeg { worker, start, handle });
                }
                None => "its session is full or just ended".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        tracing::info!(%worker, why = %failed, "worker not used");
        driver.failed.push(FailedLeg { worker: worker.to_string(), why: failed });
        driver.tried.insert(worker);
    }
    Err(ChatError::AllWorkersFailed { legs: std::mem::take(&mut driver.failed) })
}

fn announce(link: &Link, channel: &Channel, mut timings: StepTimings) -> LegStart {
    timings.attest_ms = link.attested.took.as_secs_f64() * 1e3;
    timings.connect_ms = link.took.as_secs_f64() * 1e3;
    let verified = &link.attested.verified;
    LegStart {
        worker: channel.worker.to_string(),
        assurance: verified.assurance,
        root: verified.root.clone(),
        measurement: verified.measurement.to_string(),
        evidence_digest: hex::encode(verified.evidence_digest),
        channel: channel.address.to_string(),
        timings,
    }
}

fn submit(driver: &mut Driver, offer: &ModelOffer, link: &Link) -> Result<Option<LegHandle>, ChatError> {
    let max_cost = *driver.max_cost.get_or_insert_with(|| {
        // Nobody can be billed for more than the context holds, read and written once each.
        let input = token_cost(offer.context, offer.price_input);
        input.saturating_add(token_cost(offer.context, offer.price_output))
    });
    let left = max_cost.saturating_sub(driver.spent());
    if left.is_zero() && offer.price_output > 0 {
        let why = format!("{} are spent", driver.spent());
        return Err(ChatError::CostCeiling { max_cost, why });
    }
    Ok(link.ask(Ask { request: driver.request.clone(), max_cost: left }))
}

/// The best worker with a funded channel, waiting for one within bounds.
async fn find(
    peer: &Arc<Inner>,
    driver: &mut Driver,
    timings: &mut StepTimings,
) -> Result<(Candidate, Arc<Channel>), ChatError> {
    let began = Instant::now();
    let mut changes = peer.book.changes();
    let mut discovered = false;
    loop {
        changes.borrow_and_update();
        match candidates(peer, driver) {
            Ok(found) => {
                if !discovered {
                    discovered = true;
                    timings.discover_ms = millis(began);
                }
                if let Some(ready) = first_funded(peer, &found) {
                    timings.choose_ms = millis(began) - timings.discover_ms;
                    return Ok(ready);
                }
                if began.elapsed() >= OPENING {
                    return Err(ChatError::Funding {
                        why: format!("none was confirmed within {} s", OPENING.as_secs()),
                    });
                }
                // Before anything else: what failed the last time may be possible by now.
                peer.want(driver.request.model, &driver.tried);
                hopeless(peer, driver, &found)?;
            }
            Err(error) => {
                if driver.failed.is_empty() && began.elapsed() < DISCOVERY && may_pass(&error) {
                    let model = driver.request.model;
                    let rest = DISCOVERY.saturating_sub(began.elapsed());
                    if peer.net.directory().wait_for_model(&model, rest).await {
                        continue;
                    }
                }
                return Err(nobody(&error, driver));
            }
        }
        let rest = OPENING.saturating_sub(began.elapsed()).min(Duration::from_millis(500));
        // The book wakes us; the directory may have changed too, so look again now and then.
        let _ = tokio::time::timeout(rest.max(Duration::from_millis(10)), changes.changed()).await;
    }
}

/// Ads may still be on their way to a peer that has just started.
fn may_pass(why: &NoCandidate) -> bool {
    matches!(why, NoCandidate::UnknownModel { .. } | NoCandidate::NoWorkerOnline { .. })
}

fn nobody(why: &NoCandidate, driver: &mut Driver) -> ChatError {
    if !driver.failed.is_empty() {
        return ChatError::AllWorkersFailed { legs: std::mem::take(&mut driver.failed) };
    }
    match why {
        NoCandidate::Policy(_) | NoCandidate::Exhausted(_) => ChatError::Policy { why: why.to_string() },
        // The genesis knows the model; it is workers that are missing.
        _ => ChatError::NoWorkerOnline { model: driver.model_name.clone() },
    }
}

fn candidates(peer: &Inner, driver: &Driver) -> Result<Vec<Candidate>, NoCandidate> {
    let policy = &peer.policy;
    let wish = Wish {
        max_price_input: policy.max_price_input,
        max_price_output: policy.max_price_output,
        min_assurance_claim: policy.minimum as u8,
        expected_output: driver.request.sampling.max_tokens.unwrap_or(256),
        ..Wish::new(driver.request.model, &driver.tried)
    };
    peer.net.directory().choose(&wish, &mut rand::rng())
}

/// The first in the given order whose channel pays; one whose session is open already goes before
/// one that would have to be connected first.
fn first_funded(peer: &Inner, found: &[Candidate]) -> Option<(Candidate, Arc<Channel>)> {
    let now = unix_now();
    let funded = found.iter().filter_map(|candidate| {
        let channel = peer.book.get(&candidate.peer)?;
        let least = peer.genesis.quantum(candidate.offer.price_output);
        let fit = channel.is_usable(least, now)
            && peer.book.refusal(&candidate.peer, &candidate.ad.evidence_digest).is_none();
        fit.then_some((candidate, channel))
    });
    let mut cold = None;
    for (candidate, channel) in funded {
        if channel.link().is_some() {
            return Some((candidate.clone(), channel));
        }
        cold.get_or_insert((candidate, channel));
    }
    cold.map(|(candidate, channel)| (candidate.clone(), channel))
}

/// Ends the wait when it cannot end well.
fn hopeless(peer: &Inner, driver: &mut Driver, found: &[Candidate]) -> Result<(), ChatError> {
    let refused: Vec<_> = found
        .iter()
        .filter_map(|candidate| peer.book.refusal(&candidate.peer, &candidate.ad.evidence_digest))
        .collect();
    if refused.len() == found.len() {
        if !driver.failed.is_empty() {
            return Err(ChatError::AllWorkersFailed { legs: std::mem::take(&mut driver.failed) });
        }
        let why = refused.iter().map(|r| format!("{}: check {}: {}", r.worker, r.check, r.error));
        return Err(ChatError::Policy { why: why.collect::<Vec<_>>().join("; ") });
    }
    match peer.book.funding() {
        Funding::Fine => Ok(()),
        Funding::Empty { balance, needed } => {
            Err(ChatError::WalletEmpty { wallet: peer.wallet.address(), balance, needed })
        }
        Funding::Failed(why) => Err(ChatError::Funding { why }),
    }
}

/// The session with a worker: the open one, or a new one.
pub(super) async fn link(
    peer: &Arc<Inner>,
    channel: &Arc<Channel>,
    ad: &Arc<Ad>,
    offer: &ModelOffer,
    timings: &mut StepTimings,
) -> Result<Arc<Link>, LinkError> {
    if let Some(link) = current(channel, offer.digest) {
        (timings.attested_cached, timings.session_reused) = (true, true);
        return Ok(link);
    }
    // In a task of its own: a caller that goes away must not leave half a session behind.
    let (peer, channel, ad, offer) = (peer.clone(), channel.clone(), ad.clone(), offer.clone());
    let opening = tokio::spawn(async move {
        let mut timings = StepTimings::default();
        let _one = channel.connecting.lock().await;
        if let Some(link) = current(&channel, offer.digest) {
            (timings.attested_cached, timings.session_reused) = (true, true);
            return (timings, Ok(link));
        }
        let opened = open(&peer, &channel, &ad, &offer, &mut timings).await;
        if let Ok(link) = &opened {
            let old = channel.set_link(Some(link.clone()));
            drop(old);
            peer.book.touch();
        }
        (timings, opened)
    });
    let (measured, opened) = opening.await.map_err(|_| LinkError::Interrupted)?;
    timings.attested_cached = measured.attested_cached;
    timings.session_reused = measured.session_reused;
    opened
}

fn current(channel: &Channel, model: [u8; 32]) -> Option<Arc<Link>> {
    let link = channel.link()?;
    let fits = link.welcome.model == model && link.attested.verified.expires_at > unix_now();
    fits.then_some(link)
}

/// Attests and connects. The session is the caller's.
pub(super) async fn open(
    peer: &Arc<Inner>,
    channel: &Arc<Channel>,
    ad: &Ad,
    offer: &ModelOffer,
    timings: &mut StepTimings,
) -> Result<Arc<Link>, LinkError> {
    let (attested, cached) = attest(peer, ad, offer.digest, false).await?;
    timings.attested_cached = cached;
    Ok(Arc::new(dial(peer, channel, ad, offer, attested).await?))
}

/// Evidence that convinces, and whether it did so before. A refusal is remembered.
pub(super) async fn attest(
    peer: &Inner,
    ad: &Ad,
    model: [u8; 32],
    fresh: bool,
) -> Result<(Arc<Attested>, bool), LinkError> {
    let digest = ad.evidence_digest;
    if !fresh && let Some(known) = peer.attestations.known(&digest, unix_now()) {
        return Ok((known, true));
    }
    let id = ad.peer.peer_id().ok_or(LinkError::PeerId)?;
    match peer.attestations.fetch(&peer.net, id, digest, model, unix_now()).await {
        Ok(attested) => {
            peer.book.forgive(&ad.peer);
            Ok((attested, false))
        }
        Err(error) => {
            let check = match &error {
                AttestError::Refused(refused) => Some(refused.check()),
                AttestError::Unreadable(_) => Some("evidence"),
                AttestError::Fetch(_) | AttestError::Interrupted => None,
            };
            if let Some(check) = check {
                peer.book.refuse(&ad.peer, digest, check, error.to_string(), peer.now_ms());
            }
            Err(error.into())
        }
    }
}

/// Opens the attested channel itself.
pub(super) async fn dial(
    peer: &Arc<Inner>,
    channel: &Arc<Channel>,
    ad: &Ad,
    offer: &ModelOffer,
    attested: Arc<Attested>,
) -> Result<Link, LinkError> {
    let id = ad.peer.peer_id().ok_or(LinkError::PeerId)?;
    let digest = attested.verified.evidence_digest;
    let challenge = peer.must_challenge(&digest).then(rand::random::<[u8; 32]>);
    let terms = Terms {
        verified: attested.verified.clone(),
        collateral: attested.collateral.clone(),
        policy: peer.attestations.policy().clone(),
        challenge,
        worker: ad.peer.0.clone(),
        model: offer.digest,
        price_input: offer.price_input,
        price_output: offer.price_output,
        quantum: peer.genesis.quantum(offer.price_output),
    };
    let dial = Dial {
        net: peer.net.clone(),
        peer: id,
        addresses: Vec::new(),
        crypto: peer.crypto,
        terms,
        payer: channel.payer().map_err(|error| LinkError::Channel(error.to_string()))?,
        patience: peer.patience,
        attested,
        paid: channel.paid_total(),
    };
    let link = dial.open().await?;
    if challenge.is_some() {
        peer.attestations.bound(digest);
    }
    Ok(link)
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
