//! What a light peer does by itself, so that no request waits for the chain.
//!
//! It keeps `Config::channels` channels funded, each with another worker whose evidence it has
//! verified first: a worker that would be refused gets no deposit. It keeps a session open on each,
//! tops channels up before they run dry, refunds closed ones, and writes down what was promised.
//! A request that has used up all of these asks for one more ([`Inner::want`]).

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use cocoon_p2p::core::{Ad, Ask as Wish, Candidate, PeerKey};
use cocoon_payments::{
    Address, NanoTon,
    chain::{SubmitError, submit},
    channel::{self, ChannelParams, Stage, read_account},
    wallet::Outgoing,
};
use ed25519_dalek::SigningKey;
use tokio::sync::watch;

use super::{
    Inner,
    book::{Channel, ChannelStatus, Funding},
    legs,
    sight::Read,
    unix_now,
};

/// The pulse when nothing happens.
const PULSE: Duration = Duration::from_secs(1);
/// The pulse while a channel waits for something on the chain: its opening, a top-up, its end.
const PULSE_OPENING: Duration = Duration::from_millis(250);
/// Several ads often come together: look once.
const SETTLE: Duration = Duration::from_millis(30);
/// A channel that waits for something on the chain is looked at this often.
const POLL_OPENING_MS: u64 = 200;
/// An open channel is looked at this often: deposits change rarely, and by our own doing.
const POLL_OPEN_MS: u64 = 15_000;
/// After a failed transfer or session, wait this long.
const BACK_OFF_MS: u64 = 3_000;
/// Channels beyond the configured number that requests may ask for.
const EXTRA: usize = 4;
/// The contract must be opened within this time, or it never will be.
const OPEN_WINDOW_S: u64 = 600;
/// A channel lives this long unless topped up.
const LIFETIME_S: u64 = 14 * 86_400;

/// Runs until the peer is dropped or closed.
pub(super) async fn run(peer: Weak<Inner>, mut stop: watch::Receiver<bool>) {
    let (mut directory, kicked) = match peer.upgrade() {
        Some(peer) => (peer.net.directory().changes(), peer.kick.clone()),
        None => return,
    };
    loop {
        let pulse = {
            let Some(peer) = peer.upgrade() else { return };
            peer.keep().await;
            let now = peer.now_ms();
            let changing = peer.book.all().iter().any(|channel| channel.is_changing(now));
            if changing { PULSE_OPENING } else { PULSE }
        };
        tokio::select! {
            () = stopped(&mut stop) => return,
            changed = directory.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(SETTLE).await;
            }
            () = kicked.notified() => {}
            () = tokio::time::sleep(pulse) => {}
        }
    }
}

/// Resolves when the peer closes.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Inner {
    /// A request found no funded channel: open one with a worker for this model it has not tried.
    pub(super) fn want(&self, model: [u8; 32], tried: &BTreeSet<PeerKey>) {
        let mut wanted = self.wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *wanted = Some((model, tried.clone()));
        self.kick.notify_one();
    }

    async fn keep(self: &Arc<Self>) {
        self.read_channels().await;
        self.persist();
        self.refund();
        self.fund().await;
        self.warm();
    }

    /// Asks the chain about channels whose last answer is old.
    async fn read_channels(&self) {
        let now = self.now_ms();
        for channel in self.book.all() {
            let every = if channel.is_changing(now) { POLL_OPENING_MS } else { POLL_OPEN_MS };
            if channel.read_at() == 0 || channel.read_at() + every <= now {
                self.read_channel(&channel).await;
            }
        }
    }

    pub(super) async fn read_channel(&self, channel: &Channel) {
        let before = channel.status();
        let state = match self.chain.account(&channel.address).await {
            Ok(account) => read_account(&channel.params, &account).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match state {
            Ok(state) => {
                let read = channel.observe(state, self.now_ms(), unix_now());
                match read {
                    // A transfer that is under way has the first word; the next read says it again.
                    Read::Over if !self.is_funding() => {
                        tracing::info!(channel = %channel.address, "channel is over");
                        self.forget(channel);
                        return;
                    }
                    Read::Impossible => {
                        let stage = state.stage;
                        tracing::warn!(channel = %channel.address, ?stage, "the chain endpoint lags or lies");
                    }
                    Read::Opened => self.note_opened(channel),
                    Read::Over | Read::Stale | Read::Taken => {}
                }
                if before != channel.status() {
                    tracing::info!(channel = %channel.address, status = ?channel.status(), "channel");
                    self.book.touch();
                }
            }
            Err(error) => tracing::warn!(channel = %channel.address, %error, "channel cannot be read"),
        }
    }

    fn note_opened(&self, channel: &Channel) {
        // A channel that is being closed keeps that status on disk.
        if channel.status() == ChannelStatus::Open
            && let Err(error) = self.vault.opened(&channel.address)
        {
            tracing::warn!(channel = %channel.address, %error, "cannot write the channel's state");
        }
    }

    fn forget(&self, channel: &Channel) {
        if let Err(error) = self.vault.over(&channel.address) {
            tracing::warn!(%error, "a finished channel could not be removed from disk");
        }
        self.book.remove(&channel.worker);
    }

    /// Writes down what was promised since the last time.
    pub(super) fn persist(&self) {
        for channel in self.book.all() {
            if let Some(paid) = channel.unpersisted()
                && let Err(error) = self.vault.paid(&channel.address, paid)
            {
                tracing::warn!(channel = %channel.address, %error, "cannot write the channel's state");
            }
        }
    }

    /// Opens and tops up what is missing, in one transfer.
    async fn fund(self: &Arc<Self>) {
        if self.is_funding() || self.now_ms() < self.fund_after() {
            return;
        }
        let (now, now_ms) = (unix_now(), self.now_ms());
        let mut jobs = Vec::new();
        let (mut good, mut held) = (0, 0);
        for channel in self.book.all() {
            let status = channel.status();
            held += usize::from(status != ChannelStatus::Closing);
            match status {
                ChannelStatus::Opening => good += 1,
                ChannelStatus::Open if self.offers(&channel.worker) => {
                    good += 1;
                    let low = NanoTon(self.deposit.0 / 4);
                    let dry = channel.available() < low || !channel.is_usable(NanoTon(1), now);
                    if dry && !channel.awaits_top_up(now_ms) {
                        let capacity = channel.capacity();
                        jobs.push(Job::TopUp { channel, capacity });
                    }
                }
                _ => {}
            }
        }
        let wanted = self.take_wanted();
        let openings = openings(self.target, good, held, wanted.is_some());
        if openings == 0 && wanted.is_some() && good == 0 && self.target > 0 {
            // Said at once: the request would only wait for what cannot come.
            self.book.set_funding(Funding::Failed(format!(
                "the deposits of {held} channels are with workers that are offline; close one of them"
            )));
        }
        if openings > 0 {
            // There is room again: an earlier failure says nothing about this attempt.
            if matches!(self.book.funding(), Funding::Failed(_)) {
                self.book.set_funding(Funding::Fine);
            }
            for (ad, close_delay_s) in self.prospects(openings, wanted).await {
                match self.new_channel(&ad, close_delay_s) {
                    Ok(channel) => jobs.push(Job::Open(self.book.insert(channel))),
                    Err(error) => {
                        tracing::warn!(worker = %ad.peer, %error, "no channel");
                        let digest = ad.evidence_digest;
                        self.book.refuse(&ad.peer, digest, "channel-terms", error, self.now_ms());
                    }
                }
            }
        }
        if !jobs.is_empty() {
            self.set_funding(true);
            let peer = self.clone();
            tokio::spawn(async move { peer.transfer(jobs).await });
        }
    }

    /// Workers worth a deposit: allowed, verified, without a channel.
    async fn prospects(
        self: &Arc<Self>,
        count: usize,
        wanted: Option<([u8; 32], BTreeSet<PeerKey>)>,
    ) -> Vec<(Arc<Ad>, u32)> {
        let mut exclude: BTreeSet<PeerKey> = self.book.all().iter().map(|c| c.worker.clone()).collect();
        let mut models: Vec<[u8; 32]> = Vec::new();
        if let Some((model, tried)) = wanted {
            exclude.extend(tried);
            models.push(model);
        }
        models.extend(self.genesis.models().iter().map(|known| known.digest));
        let mut found = Vec::new();
        for model in models {
            for candidate in self.shortlist(model, &exclude) {
                if found.len() == count {
                    return found;
                }
                let ad = candidate.ad;
                if self.book.refusal(&ad.peer, &ad.evidence_digest).is_some() {
                    continue;
                }
                match legs::attest(self, &ad, model, false).await {
                    Ok(_) => {
                        exclude.insert(ad.peer.clone());
                        let delay = ad.close_delay_s.max(self.genesis.params().close_delay_s);
                        found.push((ad, delay));
                    }
                    Err(error) => tracing::debug!(worker = %ad.peer, %error, "not attested"),
                }
            }
        }
        found
    }

    #[allow(clippy::disallowed_methods)] // A shell: the lottery needs entropy.
    fn shortlist(&self, model: [u8; 32], exclude: &BTreeSet<PeerKey>) -> Vec<Candidate> {
        let wish = Wish {
            max_price_input: self.policy.max_price_input,
            max_price_output: self.policy.max_price_output,
            min_assurance_claim: self.policy.minimum as u8,
            ..Wish::new(model, exclude)
        };
        self.net.directory().choose(&wish, &mut rand::rng()).unwrap_or_default()
    }

    fn offers(&self, worker: &PeerKey) -> bool {
        self.net.directory().read(|directory| directory.get(worker).is_some())
    }

    /// Terms and key of a new channel, on disk before a coin moves.
    fn new_channel(&self, ad: &Ad, close_delay_s: u32) -> Result<Channel, String> {
        let seed: [u8; 32] = rand::random();
        let key = SigningKey::from_bytes(&seed);
        let now = unix_now();
        let time = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        let params = ChannelParams {
            client: self.wallet.address(),
            worker: Address::from_bytes(&ad.payout),
            client_key: key.verifying_key().to_bytes(),
            worker_key: ad.payee_key,
            channel_id: rand::random(),
            close_delay_s,
            open_by: time(now + OPEN_WINDOW_S),
            expire_at: time(now + LIFETIME_S + 2 * u64::from(close_delay_s)),
        };
        let channel = Channel::new(ad.peer.clone(), params, self.genesis.global_id(), key, NanoTon::ZERO)
            .map_err(|error| error.to_string())?;
        self.vault.add(&channel).map_err(|error| error.to_string())?;
        Ok(channel)
    }

    async fn transfer(self: Arc<Self>, mut jobs: Vec<Job>) {
        let outcome = loop {
            match self.send(&jobs).await {
                // Fewer are better than none.
                Err(SubmitError::Balance { .. }) if jobs.len() > 1 => {
                    if let Some(Job::Open(channel)) = jobs.pop() {
                        self.forget(&channel);
                    }
                }
                outcome => break outcome,
            }
        };
        let funding = match &outcome {
            Ok(()) => Funding::Fine,
            Err(SubmitError::Balance { have, need, .. }) => Funding::Empty { balance: *have, needed: *need },
            Err(error) => Funding::Failed(error.to_string()),
        };
        if let Err(error) = &outcome {
            tracing::warn!(%error, "channels could not be funded");
            self.back_off();
            // A transfer whose fate is unknown may yet be included: keep its channels.
            if !matches!(error, SubmitError::Unknown { .. }) {
                for job in &jobs {
                    if let Job::Open(channel) = job {
                        self.forget(channel);
                    }
                }
            }
        }
        for job in &jobs {
            if let Job::TopUp { channel, capacity } = job
                && matches!(outcome, Ok(()) | Err(SubmitError::Unknown { .. }))
            {
                channel.expect_top_up(*capacity, self.now_ms());
            }
            self.read_channel(job.channel()).await;
        }
        self.set_funding(false);
        self.book.set_funding(funding);
        self.kick.notify_one();
    }

    async fn send(&self, jobs: &[Job]) -> Result<(), SubmitError> {
        let mut messages = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job.message(self.deposit) {
                Ok(message) => messages.push(message),
                // Terms were checked when the channel was made, so its cells can be built.
                Err(error) => tracing::error!(%error, "a channel message could not be built"),
            }
        }
        tracing::info!(channels = jobs.len(), deposit = %self.deposit, "funding");
        submit(self.chain.as_ref(), &self.wallet, &messages).await.map(|_| ())
    }

    /// Collects deposits whose close delay or life is over.
    fn refund(self: &Arc<Self>) {
        let now = unix_now();
        for channel in self.book.all() {
            let Some(state) = channel.chain() else { continue };
            let due = match state.stage {
                Stage::Closing { at } => u64::from(at) <= now,
                Stage::Open => u64::from(state.expire_at) <= now,
                _ => false,
            };
            if due && !self.is_funding() && self.now_ms() >= self.fund_after() {
                self.set_funding(true);
                let peer = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = peer.call(&channel, channel::finalize()).await {
                        tracing::warn!(channel = %channel.address, %error, "refund failed");
                        peer.back_off();
                    }
                    peer.read_channel(&channel).await;
                    peer.set_funding(false);
                });
            }
        }
    }

    /// Sends a bodied message to a channel's contract.
    pub(super) async fn call<E: std::fmt::Display>(
        &self,
        channel: &Channel,
        body: Result<cocoon_payments::cell::ArcCell, E>,
    ) -> Result<(), String> {
        let body = body.map_err(|error| error.to_string())?;
        let message = Outgoing::call(channel.address, channel::SETTLE_VALUE, body);
        let sent = submit(self.chain.as_ref(), &self.wallet, &[message]).await;
        sent.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Opens sessions on funded channels, so that the first request finds one.
    fn warm(self: &Arc<Self>) {
        let now_unix = unix_now();
        for channel in self.book.all() {
            let cold = channel.is_usable(NanoTon(1), now_unix) && channel.link().is_none();
            if !cold || !channel.may_connect(self.now_ms()) {
                continue;
            }
            let Some(ad) = self.net.directory().read(|directory| directory.get(&channel.worker).cloned())
            else {
                continue;
            };
            let Some(offer) = ad.models.iter().find(|offer| self.knows(&offer.digest)).cloned() else {
                continue;
            };
            channel.connect_after(self.now_ms() + BACK_OFF_MS);
            let (peer, channel) = (self.clone(), channel.clone());
            tokio::spawn(async move {
                let opened = legs::link(&peer, &channel, &ad, &offer, &mut Default::default()).await;
                if let Err(error) = opened {
                    tracing::debug!(worker = %channel.worker, %error, "no session");
                }
            });
        }
    }

    fn knows(&self, model: &[u8; 32]) -> bool {
        self.genesis.models().iter().any(|known| known.digest == *model)
    }

    fn back_off(&self) {
        self.fund_after.store(self.now_ms() + BACK_OFF_MS, std::sync::atomic::Ordering::Relaxed);
    }

    fn take_wanted(&self) -> Option<([u8; 32], BTreeSet<PeerKey>)> {
        self.wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

/// How many channels to open: up to `target` good ones, and one more for a request that found none.
/// Channels with workers that are not offered now are not good, but they are `held`: their
/// deposits are locked too, so together there are never more than [`EXTRA`] beyond the target.
fn openings(target: usize, good: usize, held: usize, wanted: bool) -> usize {
    let room = (target + EXTRA).saturating_sub(held);
    target.saturating_sub(good).max(usize::from(wanted)).min(room)
}

/// One message of a funding transfer.
#[derive(Debug)]
enum Job {
    Open(Arc<Channel>),
    TopUp {
        channel: Arc<Channel>,
        /// What the contract could pay in total before.
        capacity: NanoTon,
    },
}

impl Job {
    fn channel(&self) -> &Channel {
        match self {
            Self::Open(channel) | Self::TopUp { channel, .. } => channel,
        }
    }

    fn message(&self, deposit: NanoTon) -> Result<Outgoing, channel::ParamsError> {
        match self {
            Self::Open(channel) => {
                let message = Outgoing::call(channel.address, deposit, channel::open()?);
                Ok(message.with_state_init(channel.params.state_init()?))
            }
            Self::TopUp { channel, .. } => {
                let expire_at = unix_now() + LIFETIME_S + 2 * u64::from(channel.params.close_delay_s);
                let expire_at = u32::try_from(expire_at).unwrap_or(u32::MAX);
                Ok(Outgoing::call(channel.address, deposit, channel::top_up(expire_at)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deposits_with_workers_that_left_are_bounded() {
        assert_eq!(openings(2, 0, 0, false), 2);
        assert_eq!(openings(2, 2, 2, false), 0);
        assert_eq!(openings(2, 2, 2, true), 1, "a request may ask for one more");
        assert_eq!(openings(2, 0, 2, false), 2, "both workers left: two others serve");
        assert_eq!(openings(2, 0, 5, false), 1);
        // However often the directory comes back with others.
        assert_eq!(openings(2, 0, 2 + EXTRA, true), 0);
        assert_eq!(openings(2, 0, 100, true), 0);
    }
}
