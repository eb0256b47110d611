//! Which worker should serve this request?
//!
//! Three steps. **Policy** drops every worker that the asker does not allow. **Score** estimates, per
//! remaining worker, how long the answer takes, made worse by its price relative to the others and by
//! the asker's own bad experience; a worker that was never measured gets a modest prior, and its claims
//! can only make the estimate worse, never better, so that boasting buys nothing. **Pick** takes the best
//! few with at most one per machine, public prefix and payout address, and orders them at random,
//! weighted by score: nobody can arrange to be *the* worker of a target, Sybils of one operator share
//! one place, and idle equals share the load.
//!
//! The caller tries the candidates in order; to fail over, it asks again with the failed ones excluded.
//! Integers only: the same directory, time and seed give the same order on every machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use rand::{Rng, RngExt};
use thiserror::Error;

use super::{
    ad::{Ad, ModelOffer, PeerKey},
    directory::{Directory, Entry},
};

/// Candidates returned at most, and the size of the lottery.
pub const SHORTLIST: usize = 8;

/// What a worker that was never measured is assumed to take to its first token.
const PRIOR_TTFT_MS: u64 = 500;
/// What a worker that was never measured is assumed to generate; claims below this count, above do not.
const PRIOR_TOKENS_PER_SECOND: u64 = 20;
/// Added to the wait of a worker without a free slot.
const NO_SLOT_MS: u64 = 2_000;
/// Consecutive failures beyond this many make a score no worse (2^6 = 64 times).
const MAX_FAILURE_DOUBLINGS: u32 = 6;
/// A worker is drawn at least this often relative to the best one (in 1/1024).
const MIN_WEIGHT: u64 = 32;

/// What the asker wants and allows.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    /// Digest of the model.
    pub model: [u8; 32],
    /// Ceiling in nanoTON per million input tokens.
    pub max_price_input: u64,
    /// Ceiling in nanoTON per million output tokens.
    pub max_price_output: u64,
    /// Workers not to consider: those that failed already, and oneself.
    pub exclude: &'a BTreeSet<PeerKey>,
    /// Lowest assurance a worker must claim (it still has to prove it).
    pub min_assurance_claim: u8,
    /// Context window the request needs.
    pub min_context: u32,
    /// Expected prompt length in tokens, for the price.
    pub expected_input: u32,
    /// Expected answer length in tokens, for time and price.
    pub expected_output: u32,
    /// Weight of price against time: 0 ignores price, 1000 lets a worker twice as dear as the median
    /// look twice as slow.
    pub price_weight: u16,
}

impl<'a> Ask<'a> {
    /// An ask with no ceilings, no assurance floor and a middling request.
    pub fn new(model: [u8; 32], exclude: &'a BTreeSet<PeerKey>) -> Self {
        Self {
            model,
            max_price_input: u64::MAX,
            max_price_output: u64::MAX,
            exclude,
            min_assurance_claim: 0,
            min_context: 0,
            expected_input: 256,
            expected_output: 256,
            price_weight: 500,
        }
    }
}

/// A worker to try.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The worker.
    pub peer: PeerKey,
    /// Its newest ad.
    pub ad: Arc<Ad>,
    /// Its offer for the model asked for.
    pub offer: ModelOffer,
    /// Estimated milliseconds to the end of the answer, made worse by price and failures; lower is better.
    pub score: u64,
}

/// How many workers each rule of the policy dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rejections {
    /// Dearer than the ceiling.
    pub price: usize,
    /// Claim less assurance than the floor.
    pub assurance: usize,
    /// Context window too small.
    pub context: usize,
    /// In the exclude list.
    pub excluded: usize,
}

impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.price, "above the price ceiling"),
            (self.assurance, "below the assurance floor"),
            (self.context, "with too small a context window"),
            (self.excluded, "already tried or excluded"),
        ];
        let mut first = true;
        for (count, why) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{}{count} {why}", if first { "" } else { ", " })?;
            first = false;
        }
        Ok(())
    }
}

/// Why there is nobody to try.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoCandidate {
    /// No worker ever offered this model here.
    #[error(
        "no worker has offered model {} here; list the models on offer and check the digest",
        short(model)
    )]
    UnknownModel {
        /// The model asked for.
        model: [u8; 32],
    },
    /// The model is known, but nobody offers it now.
    #[error("no worker for model {} is online right now; try again shortly", short(model))]
    NoWorkerOnline {
        /// The model asked for.
        model: [u8; 32],
    },
    /// Workers are online, but the asker's policy allows none of them.
    #[error(
        "the policy allows none of the workers that offer this model: {0}; raise a ceiling or lower a floor"
    )]
    Policy(Rejections),
    /// Every worker that the policy allows is in the exclude list.
    #[error("every worker that the policy allows was tried or excluded: {0}")]
    Exhausted(Rejections),
}

fn short(model: &[u8; 32]) -> String {
    hex::encode(&model[..6])
}

struct Scored<'d> {
    entry: &'d Entry,
    offer: &'d ModelOffer,
    score: u64,
}

/// Up to [`SHORTLIST`] workers to try, in order. See the module page.
pub fn choose(
    directory: &Directory,
    ask: &Ask<'_>,
    now: u64,
    rng: &mut impl Rng,
) -> Result<Vec<Candidate>, NoCandidate> {
    let mut rejections = Rejections::default();
    let mut online = 0usize;
    let mut allowed = Vec::new();
    for entry in directory.entries_for(&ask.model).filter(|entry| entry.ad.expires_at > now) {
        let Some(offer) = entry.ad.offer(&ask.model) else { continue };
        online += 1;
        // The order decides which rule is named: the ones the asker can change come first.
        if offer.price_input > ask.max_price_input || offer.price_output > ask.max_price_output {
            rejections.price += 1;
        } else if entry.ad.assurance < ask.min_assurance_claim {
            rejections.assurance += 1;
        } else if offer.context < ask.min_context {
            rejections.context += 1;
        } else if ask.exclude.contains(&entry.ad.peer) {
            rejections.excluded += 1;
        } else {
            allowed.push((entry, offer));
        }
    }
    if allowed.is_empty() {
        return Err(match () {
            () if rejections.excluded > 0 => NoCandidate::Exhausted(rejections),
            () if online > 0 => NoCandidate::Policy(rejections),
            () if directory.has_known(&ask.model) => NoCandidate::NoWorkerOnline { model: ask.model },
            () => NoCandidate::UnknownModel { model: ask.model },
        });
    }

    let mut costs: Vec<u128> = allowed.iter().map(|(_, offer)| cost(offer, ask)).collect();
    let middle = costs.len() / 2;
    let (_, &mut median, _) = costs.select_nth_unstable(middle);

    let mut scored: Vec<Scored<'_>> = allowed
        .into_iter()
        .map(|(entry, offer)| {
            let time = completion_ms(directory, entry, ask, now);
            Scored { entry, offer, score: price_adjusted(time, cost(offer, ask), median, ask) }
        })
        .collect();
    scored.sort_by(|a, b| (a.score, &a.entry.ad.peer).cmp(&(b.score, &b.entry.ad.peer)));

    let shortlist = diverse(scored);
    Ok(lottery(shortlist, rng))
}

/// Milliseconds until the answer is complete, as far as the asker can tell.
fn completion_ms(directory: &Directory, entry: &Entry, ask: &Ask<'_>, now: u64) -> u64 {
    let ad = &entry.ad;
    let history = directory.history(&ad.peer);
    let ttft = history.and_then(|h| h.ttft_ms()).map_or(PRIOR_TTFT_MS, u64::from);
    let believed = history.and_then(|h| h.tokens_per_second()).map_or(PRIOR_TOKENS_PER_SECOND, u64::from);
    let speed = believed.min(u64::from(ad.tokens_per_second)).max(1);
    let wait = u64::from(ad.queue_delay_ms) + if ad.free_slots == 0 { NO_SLOT_MS } else { 0 };
    let time = wait + ttft + u64::from(ask.expected_output) * 1_000 / speed;
    match history {
        None => time,
        Some(h) => {
            let doublings = h.failed_in_a_row(now).min(MAX_FAILURE_DOUBLINGS);
            (time * 1_024 / h.success_rate(now)) << doublings
        }
    }
}

fn cost(offer: &ModelOffer, ask: &Ask<'_>) -> u128 {
    u128::from(offer.price_input) * u128::from(ask.expected_input)
        + u128::from(offer.price_output) * u128::from(ask.expected_output)
}

/// The median is the yardstick because one bait offer cannot move it. Capped at four times the median,
/// so that price never drowns speed altogether.
fn price_adjusted(time: u64, cost: u128, median: u128, ask: &Ask<'_>) -> u64 {
    let ratio = match median {
        0 => 1_000,
        median => (cost.saturating_mul(1_000) / median).min(4_000) as u64,
    };
    let factor = 1_000 + u64::from(ask.price_weight.min(1_000)) * ratio / 1_000;
    (time.saturating_mul(factor) / 1_000).max(1)
}

/// The best [`SHORTLIST`] of which no two share a machine, a public prefix or a payout address.
fn diverse(scored: Vec<Scored<'_>>) -> Vec<Scored<'_>> {
    let (mut platforms, mut prefixes, mut payouts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut shortlist = Vec::with_capacity(SHORTLIST);
    for candidate in scored {
        let ad = &candidate.entry.ad;
        let taken = ad.platform.is_some_and(|platform| platforms.contains(&platform))
            || candidate.entry.prefixes.iter().any(|prefix| prefixes.contains(prefix))
            || payouts.contains(&ad.payout);
        if taken {
            continue;
        }
        platforms.extend(ad.platform);
        prefixes.extend(candidate.entry.prefixes.iter().copied());
        payouts.insert(ad.payout);
        shortlist.push(candidate);
        if shortlist.len() == SHORTLIST {
            break;
        }
    }
    shortlist
}

/// Draws without replacement, with a chance inversely proportional to the score.
fn lottery(shortlist: Vec<Scored<'_>>, rng: &mut impl Rng) -> Vec<Candidate> {
    let best = shortlist.first().map_or(1, |candidate| candidate.score);
    let mut pool: BTreeMap<usize, (u64, Scored<'_>)> = shortlist
        .into_iter()
        .map(|candidate| {
            let weight = (u128::from(best) * 1_024 / u128::from(candidate.score)) as u64;
            (weight.max(MIN_WEIGHT), candidate)
        })
        .enumerate()
        .collect();
    let mut drawn = Vec::with_capacity(pool.len());
    while !pool.is_empty() {
        let total: u64 = pool.values().map(|(weight, _)| weight).sum();
        let mut ticket = rng.random_range(0..total.max(1));
        let winner = pool.iter().find_map(|(place, (weight, _))| {
            let hit = ticket < *weight;
            ticket = ticket.saturating_sub(*weight);
            hit.then_some(*place)
        });
        let Some((_, candidate)) = winner.and_then(|place| pool.remove(&place)) else { break };
        drawn.push(Candidate {
            peer: candidate.entry.ad.peer.clone(),
            ad: candidate.entry.ad.clone(),
            offer: candidate.offer.clone(),
            score: candidate.score,
        });
    }
    drawn
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
