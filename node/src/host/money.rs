//! The worker's side of every payment channel it serves.
//!
//! The rules of money are [`cocoon_payments::lane::Payee`]'s; this shell gives them a clock, the chain's
//! readings and a disk. The order is fixed: a voucher is checked, **written**, counted, and only then turned
//! into credit; what was written is forced to disk within [`GROUP_COMMIT`] by one task for all channels, so
//! that a burst of vouchers costs one `fdatasync`. A crash of this process loses nothing (the kernel has the
//! bytes), a crash of the machine at most what was credited in those milliseconds.
//!
//! One channel has one session at a time: a new session on a channel supersedes the old, which a reconnecting
//! asker may have left behind. It does so only once the channel's key has signed for it ([`super::claim`]) and
//! the enclave has answered its handshake: [`Money::admit`] looks, [`Money::take_over`] acts.
//!
//! A channel leaves again: when the chain shows that it is over ([`Money::sweep`]), or, where there are too many,
//! when nobody uses it and redeeming it would cost more than it brings.
#![allow(clippy::disallowed_methods, reason = "a shell: it gives the lanes their clock")]

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cocoon_client::session::outer::{RefusalCode, Voucher};
use cocoon_payments::channel::{ChannelParams, OnChain, Stage};
use cocoon_payments::lane::{Payee, PayeePolicy, Refusal};
use cocoon_payments::store::PayeeStore;
use cocoon_payments::{Address, NanoTon, SignedVoucher};
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Counters;
use super::ads::unix_ms;
use super::chain::{ChainView, FRESH};
use super::claim::{Claim, Handshakes};

/// A credited voucher is on the disk this soon after.
pub(super) const GROUP_COMMIT: Duration = Duration::from_millis(8);
/// Channels in memory. One that owes nothing worth redeeming and is not in use goes first.
const MAX_CHANNELS: usize = 4096;
/// A channel that nobody uses and that owes nothing is read this often, to see whether it is over.
const DORMANT: Duration = Duration::from_secs(600);
/// Of those, read in one round: so many reads an endpoint bears beside the ones that matter.
const DORMANT_READS: usize = 32;

/// Why a session ends or does not begin.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) code: RefusalCode,
    pub(super) message: String,
}

impl Stop {
    pub(super) fn new(code: RefusalCode, why: impl ToString) -> Self {
        Self { code, message: why.to_string() }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Params(_) | Refusal::NotOurs | Refusal::CloseDelay { .. } => RefusalCode::ChannelTerms,
            Refusal::Unconfirmed | Refusal::NotOpen => RefusalCode::ChannelUnknown,
            Refusal::Closing => RefusalCode::ChannelClosing,
            Refusal::NearExpiry { .. } => RefusalCode::ChannelExpiring,
            Refusal::StaleRead { .. } => RefusalCode::ChannelStale,
            Refusal::Network { .. } | Refusal::OtherChannel | Refusal::Voucher(_) => {
                RefusalCode::VoucherInvalid
            }
            Refusal::NotNewer { .. } => RefusalCode::VoucherStale,
            Refusal::BeyondDeposit { .. } | Refusal::UnsettledCap { .. } => RefusalCode::VoucherOverdraft,
            _ => RefusalCode::Internal,
        };
        Self { code, message: refusal.to_string() }
    }
}

/// A session's hold on its channel.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) channel: Address,
    /// The newest voucher, for the asker to go on from.
    pub(super) newest: Option<SignedVoucher>,
    /// Cancelled when another session takes the channel.
    pub(super) superseded: CancellationToken,
}

/// What a batch of vouchers came to.
#[derive(Debug, Default)]
pub(super) struct Paid {
    /// For the enclave, already stored.
    pub(super) credits: Vec<(u32, NanoTon)>,
    /// Why the rest was not taken.
    pub(super) refused: Option<Stop>,
}

/// A channel as people see it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ChannelView {
    pub(super) address: String,
    pub(super) client: String,
    /// Where redeeming pays to.
    pub(super) payout: String,
    pub(super) stage: String,
    pub(super) balance_nanoton: u64,
    pub(super) cumulative_nanoton: u64,
    pub(super) settled_nanoton: u64,
    pub(super) unsettled_nanoton: u64,
    pub(super) expire_at: u32,
    pub(super) in_use: bool,
}

struct Lane {
    payee: Payee,
    read: Option<Instant>,
    owner: Option<(u64, CancellationToken)>,
    opened_by: Handshakes,
    /// The newest reading that showed the channel open or closing.
    opened: Option<OnChain>,
    /// When the chain first showed no account here although there cannot be one any more, by the chain's
    /// clock; `None` once it shows one.
    absent_at: Option<u64>,
}

/// Every channel of this worker.
pub(super) struct Money {
    lanes: Mutex<BTreeMap<Address, Lane>>,
    /// Earned on channels that are over and forgotten, since this process started.
    past: AtomicU64,
    store: PayeeStore,
    policy: PayeePolicy,
    settle_cost: NanoTon,
    chain: Arc<ChainView>,
    counters: Arc<Counters>,
    /// Something was written that is not on the disk.
    unsynced: Notify,
    /// Something is worth redeeming.
    pub(super) due: Notify,
}

impl Money {
    /// Opens the store and takes up where the last run stopped.
    pub(super) fn open(
        store: PayeeStore,
        policy: PayeePolicy,
        settle_cost: NanoTon,
        chain: Arc<ChainView>,
        counters: Arc<Counters>,
    ) -> Self {
        let mut lanes = BTreeMap::new();
        for (_, stored) in store.channels() {
            // Stricter terms since then must not keep us from redeeming what we were given under the old
            // ones, and neither must another key of ours: redeeming pays the wallet and needs no key.
            let lenient = PayeePolicy {
                min_close_delay_s: policy.min_close_delay_s.min(stored.params.close_delay_s),
                worker_key: stored.params.worker_key,
                ..policy
            };
            match Payee::new(stored.params, lenient) {
                Ok(mut payee) => {
                    payee.restore(stored.newest, stored.closing_until);
                    lanes.insert(payee.address(), Lane::new(payee));
                }
                Err(error) => {
                    tracing::error!(%error, "a stored channel is not this wallet's; its vouchers cannot be redeemed with it");
                }
            }
        }
        Self {
            lanes: Mutex::new(lanes),
            past: AtomicU64::new(0),
            store,
            policy,
            settle_cost,
            chain,
            counters,
            unsynced: Notify::new(),
            due: Notify::new(),
        }
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<Address, Lane>> {
        // A panicking holder cannot have left a lane half changed: `Payee` commits in one assignment.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a channel that a session claims. It keeps its owner for now: the enclave may still refuse.
    pub(super) async fn admit(&self, claim: &Claim) -> Result<(), Stop> {
        let payee = Payee::new(claim.params, self.policy)?;
        let address = claim.address;
        let read = self.lanes().get(&address).and_then(|lane| lane.read);
        let fresh = read.is_some_and(|at| Instant::now().saturating_duration_since(at) < FRESH);
        let observed = match fresh {
            true => None,
            // The last reading may do; `ready` says how long.
            false => self
                .chain
                .read(&claim.params)
                .await
                .inspect_err(|error| tracing::debug!(%error, channel = %address, "cannot read a channel"))
                .ok(),
        };

        let now = unix_ms() / 1000;
        let mut lanes = self.lanes();
        if !lanes.contains_key(&address) {
            let mut lane = Lane::new(payee);
            if let Some(state) = observed {
                lane.observe(state, now);
            }
            // What the chain does not show takes no place here: terms are free to make up.
            lane.payee.ready(now)?;
            make_room(&mut lanes, self.settle_cost)?;
            lanes.insert(address, lane);
        }
        let lane = lanes.get_mut(&address).ok_or_else(forgotten)?;
        if let Some(state) = observed {
            lane.observe(state, now);
        }
        lane.payee.ready(now)?;
        lane.opened_by.check(&claim.handshake)?;
        let stored = self.store.add(lane.payee.params()).map_err(|error| {
            tracing::error!(%error, "a channel could not be stored");
            Stop::new(RefusalCode::Internal, "the worker cannot store vouchers; try another worker")
        })?;
        // A lane made a moment ago may be of a channel that was served, and forgotten from memory, long ago.
        lane.payee.restore(stored.newest, stored.closing_until);
        Ok(())
    }

    /// Gives an admitted channel to a session whose handshake the enclave has answered, and ends the session
    /// that had it.
    pub(super) fn take_over(&self, claim: &Claim, session: u64) -> Result<Attached, Stop> {
        let mut lanes = self.lanes();
        let lane = lanes.get_mut(&claim.address).ok_or_else(forgotten)?;
        lane.payee.ready(unix_ms() / 1000)?;
        // Again: another copy of it may have been faster.
        lane.opened_by.check(&claim.handshake)?;
        lane.opened_by.add(claim.handshake);
        let superseded = CancellationToken::new();
        if let Some((_, old)) = lane.owner.replace((session, superseded.clone())) {
            old.cancel();
        }
        Ok(Attached { channel: claim.address, newest: lane.payee.newest().copied(), superseded })
    }

    /// Ends a session's hold.
    pub(super) fn detach(&self, session: u64) {
        for lane in self.lanes().values_mut() {
            if lane.owner.as_ref().is_some_and(|(owner, _)| *owner == session) {
                lane.owner = None;
                // Nobody adds to it for now: a good moment to redeem it.
                self.due.notify_one();
            }
        }
    }

    /// Takes vouchers of one channel, oldest first. If the newest is good the others need no look: each only
    /// says less. Otherwise they are taken one by one up to the bad one.
    pub(super) fn pay(&self, channel: &Address, session: u64, vouchers: &[Voucher]) -> Paid {
        let now = unix_ms() / 1000;
        let mut paid = Paid::default();
        let mut lanes = self.lanes();
        let Some(lane) = lanes
            .get_mut(channel)
            .filter(|lane| lane.owner.as_ref().is_some_and(|(owner, _)| *owner == session))
        else {
            paid.refused = Some(Stop::new(RefusalCode::Busy, "another session took over the channel"));
            return paid;
        };
        let all = self.take(lane, vouchers, now, &mut paid);
        if all.is_err() && vouchers.len() > 1 {
            for voucher in vouchers {
                if let Err(stop) = self.take(lane, std::slice::from_ref(voucher), now, &mut paid) {
                    paid.refused = Some(stop);
                    break;
                }
            }
        } else {
            paid.refused = all.err();
        }
        let due = lane.payee.should_settle(now, self.settle_cost);
        drop(lanes);
        if !paid.credits.is_empty() {
            self.unsynced.notify_one();
        }
        if due {
            self.due.notify_one();
        }
        paid
    }

    /// Takes a run of vouchers by its newest.
    fn take(&self, lane: &mut Lane, vouchers: &[Voucher], now: u64, paid: &mut Paid) -> Result<(), Stop> {
        let Some(newest) = vouchers.iter().max_by_key(|voucher| voucher.signed.voucher.cumulative) else {
            return Ok(());
        };
        let accepted = lane.payee.check(&newest.signed, now)?;
        let mut rest = accepted.delta();
        let mut credits = Vec::new();
        for (stream, amount) in vouchers.iter().flat_map(|voucher| &voucher.allocations) {
            let amount = NanoTon(*amount);
            rest = rest.checked_sub(amount).ok_or_else(|| {
                let delta = accepted.delta();
                Stop::new(
                    RefusalCode::VoucherAllocation,
                    format!("field `allocations` of `voucher` exceeds the {delta} that the voucher adds"),
                )
            })?;
            credits.push((*stream, amount));
        }
        // What was not given to a stream is the session's: stream 0.
        if !rest.is_zero() {
            credits.push((0, rest));
        }
        self.store.append(accepted.signed()).map_err(|error| {
            tracing::error!(%error, "a voucher could not be stored; it was not credited");
            Stop::new(RefusalCode::Internal, "the worker cannot store vouchers; try another worker")
        })?;
        let _ = lane.payee.commit(accepted);
        self.counters.vouchers.fetch_add(vouchers.len() as u64, Relaxed);
        paid.credits.append(&mut credits);
        Ok(())
    }

    /// Forces what was written to the disk, again and again. Runs until the process ends.
    pub(super) async fn sync_forever(self: Arc<Self>) {
        loop {
            self.unsynced.notified().await;
            tokio::time::sleep(GROUP_COMMIT).await;
            self.sync().await;
        }
    }

    /// Forces what was written to the disk.
    pub(super) async fn sync(self: &Arc<Self>) {
        let money = self.clone();
        match tokio::task::spawn_blocking(move || money.store.sync()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "vouchers could not be forced to disk; check the disk of `state`")
            }
            Err(error) => tracing::error!(%error, "the task that forces vouchers to disk failed"),
        }
    }

    /// Reads the channels that matter, most urgent first, and forgets those that are over.
    pub(super) async fn refresh(&self) {
        for params in self.to_read(Instant::now()) {
            if let Err(error) = self.reread(&params).await {
                tracing::debug!(%error, "cannot read a channel");
            }
        }
        self.sweep();
    }

    /// What to read: channels in use, then those that close, those that owe something worth redeeming or were
    /// never read, and a few of the others, so that one that ends unseen is noticed in the end.
    fn to_read(&self, now: Instant) -> Vec<ChannelParams> {
        let rank = |lane: &Lane| match () {
            () if lane.owner.is_some() => 0,
            () if lane.payee.closing() => 1,
            () if lane.payee.collectable() > self.settle_cost || lane.read.is_none() => 2,
            () => 3,
        };
        let due = |lane: &Lane| lane.read.is_none_or(|at| now.saturating_duration_since(at) >= DORMANT);
        let lanes = self.lanes();
        let mut wanted: Vec<(u8, &Lane)> = lanes
            .values()
            .map(|lane| (rank(lane), lane))
            .filter(|(rank, lane)| *rank < 3 || lane.absent_at.is_some() || due(lane))
            .collect();
        // The longest unread first, so that every one has its turn.
        wanted.sort_by_key(|(rank, lane)| (*rank, lane.read));
        let urgent = wanted.partition_point(|(rank, _)| *rank < 3);
        wanted.truncate(urgent + DORMANT_READS);
        wanted.into_iter().map(|(_, lane)| *lane.payee.params()).collect()
    }

    /// Forgets channels that are over, here and on disk. What they still owed cannot be collected any more.
    fn sweep(&self) {
        let mut lanes = self.lanes();
        let over: Vec<Address> =
            lanes.iter().filter(|(_, lane)| lane.is_over()).map(|(address, _)| *address).collect();
        for address in over {
            if let Err(error) = self.store.forget(&address) {
                tracing::error!(%error, channel = %address, "a channel that is over could not be forgotten");
                continue;
            }
            if let Some(lane) = lanes.remove(&address) {
                let earned = lane.payee.cumulative();
                self.past.fetch_add(earned.0, Relaxed);
                tracing::info!(channel = %address, %earned, "a channel is over");
            }
        }
    }

    /// Reads one channel now.
    pub(super) async fn reread(&self, params: &ChannelParams) -> Result<(), super::chain::ViewError> {
        let state = self.chain.read(params).await?;
        if let Ok(address) = params.address()
            && let Some(lane) = self.lanes().get_mut(&address)
        {
            lane.observe(state, unix_ms() / 1000);
        }
        Ok(())
    }

    /// What should be redeemed now; `everything` that can be, if asked for by a person. What ends soonest comes
    /// first, then what is worth most: the wallet may not reach for all of it.
    pub(super) fn to_settle(&self, everything: bool) -> Vec<(ChannelParams, SignedVoucher)> {
        let now = unix_ms() / 1000;
        let worth = |payee: &Payee| match everything {
            true => !payee.collectable().is_zero(),
            false => payee.should_settle(now, self.settle_cost),
        };
        let lanes = self.lanes();
        let mut due: Vec<&Payee> =
            lanes.values().map(|lane| &lane.payee).filter(|payee| worth(payee)).collect();
        due.sort_by_key(|payee| (payee.ends_soon(now).unwrap_or(u64::MAX), Reverse(payee.collectable())));
        due.into_iter().filter_map(|payee| Some((*payee.params(), *payee.newest()?))).collect()
    }

    /// What the chain has paid out on a channel, as last read.
    pub(super) fn settled(&self, channel: &Address) -> NanoTon {
        self.lanes().get(channel).map_or(NanoTon::ZERO, |lane| lane.payee.settled())
    }

    /// Earned in total, and of that not yet redeemed.
    pub(super) fn totals(&self) -> (NanoTon, NanoTon) {
        let mut earned = NanoTon(self.past.load(Relaxed));
        let mut unsettled = NanoTon::ZERO;
        for lane in self.lanes().values() {
            earned = earned.saturating_add(lane.payee.cumulative());
            unsettled = unsettled.saturating_add(lane.payee.unsettled());
        }
        (earned, unsettled)
    }

    /// `fdatasync` calls so far.
    pub(super) fn fsyncs(&self) -> u64 {
        self.store.stats().fsyncs
    }

    /// Every channel, for people.
    pub(super) fn channels(&self) -> Vec<ChannelView> {
        self.lanes().iter().map(|(address, lane)| view(address, lane)).collect()
    }
}

impl Lane {
    fn new(payee: Payee) -> Self {
        let opened_by = Handshakes::default();
        Self { payee, read: None, owner: None, opened_by, opened: None, absent_at: None }
    }

    fn observe(&mut self, state: OnChain, now: u64) {
        self.read = Some(Instant::now());
        let gone = self.may_be_gone(state.read_at.min(now));
        if state.stage == Stage::Absent && self.was_open() && !gone {
            // A server that lags or lies: what is known stays, or its vouchers would count as worthless.
            return;
        }
        self.payee.observe(state, now);
        let newest = self.payee.on_chain().copied();
        self.opened = newest.filter(OnChain::opened).or(self.opened);
        self.absent_at = match newest {
            Some(seen) if seen.stage == Stage::Absent && gone => self.absent_at.or(Some(seen.read_at)),
            _ => None,
        };
    }

    /// Vouchers are only taken while the chain shows the channel open.
    fn was_open(&self) -> bool {
        self.opened.is_some() || !self.payee.cumulative().is_zero()
    }

    /// Whether the contract allows that nothing is at the address any more: it ends when its close delay or its
    /// life is over, or it was never opened.
    fn may_be_gone(&self, at: u64) -> bool {
        let params = self.payee.params();
        match self.opened {
            Some(known) => {
                let closed = known.close_at().is_some_and(|close_at| at >= u64::from(close_at));
                closed || at >= u64::from(known.expire_at)
            }
            None if self.was_open() => at >= u64::from(params.expire_at),
            None => at > u64::from(params.open_by),
        }
    }

    /// Whether the chain has shown at two moments that there is no account, when there could be none: it
    /// will never pay again. One look is not enough, since a lie or a fault of the endpoint would cost vouchers.
    fn is_over(&self) -> bool {
        let seen = self.absent_at.zip(self.payee.on_chain());
        self.owner.is_none() && seen.is_some_and(|(first, last)| last.read_at > first)
    }

    /// Whether nothing is lost by forgetting it until it comes back: the disk has what it holds.
    fn is_idle(&self, settle_cost: NanoTon) -> bool {
        let owes = match self.payee.on_chain() {
            Some(_) => self.payee.collectable() > settle_cost,
            None => !self.payee.cumulative().is_zero(),
        };
        self.owner.is_none() && !owes
    }
}

/// Forgets a channel that owes nothing worth a transaction, if there are too many: the one that owes least.
fn make_room(lanes: &mut BTreeMap<Address, Lane>, settle_cost: NanoTon) -> Result<(), Stop> {
    if lanes.len() < MAX_CHANNELS {
        return Ok(());
    }
    let idle = lanes.iter().filter(|(_, lane)| lane.is_idle(settle_cost));
    match idle.min_by_key(|(_, lane)| lane.payee.collectable()).map(|(address, _)| *address) {
        Some(address) => {
            lanes.remove(&address);
            Ok(())
        }
        None => Err(Stop::new(
            RefusalCode::Busy,
            "the worker holds as many channels as it may; try another worker",
        )),
    }
}

/// The channel gave way to another one while the enclave was asked.
fn forgotten() -> Stop {
    Stop::new(RefusalCode::Busy, "the worker holds as many channels as it may; try again")
}

fn view(address: &Address, lane: &Lane) -> ChannelView {
    let payee = &lane.payee;
    let chain = payee.on_chain();
    ChannelView {
        address: address.to_string(),
        client: payee.params().client.to_string(),
        payout: payee.params().worker.to_string(),
        stage: chain.map_or_else(|| "unread".to_owned(), |state| format!("{:?}", state.stage).to_lowercase()),
        balance_nanoton: chain.map_or(0, |state| state.balance.0),
        cumulative_nanoton: payee.cumulative().0,
        settled_nanoton: payee.settled().0,
        unsettled_nanoton: payee.unsettled().0,
        expire_at: chain.map_or(payee.params().expire_at, |state| state.expire_at),
        in_use: lane.owner.is_some(),
    }
}

#[cfg(test)]
#[path = "money_tests.rs"]
mod tests;
