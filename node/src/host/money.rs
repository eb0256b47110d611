//! The worker's side of every payment channel it serves.
//!
//! The rules of money are [`cocoon_payments::lane::Payee`]'s; this shell gives them a clock, the chain's
//! readings and a disk. The order is fixed: a voucher is checked, **written**, counted, and only then turned
//! into credit; what was written is forced to disk within [`GROUP_COMMIT`] by one task for all channels, so
//! that a burst of vouchers costs one `fdatasync`. A crash of this process loses nothing (the kernel has the
//! bytes), a crash of the machine at most what was credited in those milliseconds.
//!
//! One channel has one session at a time: a new session on a channel supersedes the old, which a reconnecting
//! asker may have left behind.
#![allow(clippy::disallowed_methods, reason = "a shell: it gives the lanes their clock")]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cocoon_client::session::outer::{RefusalCode, Voucher};
use cocoon_payments::channel::{ChannelParams, OnChain};
use cocoon_payments::lane::{Payee, PayeePolicy, Refusal};
use cocoon_payments::store::PayeeStore;
use cocoon_payments::{Address, NanoTon, SignedVoucher};
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Counters;
use super::ads::unix_ms;
use super::chain::{ChainView, FRESH};

/// A credited voucher is on the disk this soon after.
pub(super) const GROUP_COMMIT: Duration = Duration::from_millis(8);
/// Channels remembered. One that owes nothing and is not in use is forgotten first.
const MAX_CHANNELS: usize = 4096;

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
}

/// Every channel of this worker.
pub(super) struct Money {
    lanes: Mutex<BTreeMap<Address, Lane>>,
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
            // ones.
            let lenient = PayeePolicy {
                min_close_delay_s: policy.min_close_delay_s.min(stored.params.close_delay_s),
                ..policy
            };
            match Payee::new(stored.params, lenient) {
                Ok(mut payee) => {
                    payee.restore(stored.newest, stored.closing_until);
                    lanes.insert(payee.address(), Lane { payee, read: None, owner: None });
                }
                Err(error) => {
                    tracing::error!(%error, "a stored channel is not this wallet's; its vouchers cannot be redeemed with it");
                }
            }
        }
        Self {
            lanes: Mutex::new(lanes),
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

    /// Checks a channel and gives it to a session.
    pub(super) async fn attach(&self, params: &[u8], session: u64) -> Result<Attached, Stop> {
        let params =
            ChannelParams::decode(params).map_err(|error| Stop::new(RefusalCode::ChannelTerms, error))?;
        let payee = Payee::new(params, self.policy)?;
        let address = payee.address();
        let read = self.lanes().get(&address).and_then(|lane| lane.read);
        let fresh = read.is_some_and(|at| Instant::now().saturating_duration_since(at) < FRESH);
        let observed = if fresh { None } else { Some(self.chain.read(&params).await) };

        let now = unix_ms() / 1000;
        let mut lanes = self.lanes();
        if !lanes.contains_key(&address) {
            make_room(&mut lanes)?;
            lanes.insert(address, Lane { payee, read: None, owner: None });
        }
        let Some(lane) = lanes.get_mut(&address) else {
            return Err(Stop::new(RefusalCode::Internal, "the channel was forgotten while it was read"));
        };
        match observed {
            Some(Ok(state)) => lane.observe(state, now),
            // The last reading may do; `ready` says how long.
            Some(Err(error)) => tracing::debug!(%error, channel = %address, "cannot read a channel"),
            None => {}
        }
        lane.payee.ready(now)?;
        let stored = self.store.add(lane.payee.params()).map_err(|error| {
            tracing::error!(%error, "a channel could not be stored");
            Stop::new(RefusalCode::Internal, "the worker cannot store vouchers; try another worker")
        })?;
        // A lane made a moment ago may be of a channel that was served, and forgotten from memory, long ago.
        lane.payee.restore(stored.newest, stored.closing_until);
        let superseded = CancellationToken::new();
        if let Some((_, old)) = lane.owner.replace((session, superseded.clone())) {
            old.cancel();
        }
        Ok(Attached { channel: address, newest: lane.payee.newest().copied(), superseded })
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

    /// Reads every channel that is in use or owes something.
    pub(super) async fn refresh(&self) {
        let wanted: Vec<ChannelParams> = self
            .lanes()
            .values()
            .filter(|lane| lane.owner.is_some() || lane.read.is_none() || !lane.payee.collectable().is_zero())
            .map(|lane| *lane.payee.params())
            .collect();
        for params in wanted {
            if let Err(error) = self.reread(&params).await {
                tracing::debug!(%error, "cannot read a channel");
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

    /// What should be redeemed now; `everything` that can be, if asked for by a person.
    pub(super) fn to_settle(&self, everything: bool) -> Vec<(ChannelParams, SignedVoucher)> {
        let now = unix_ms() / 1000;
        let worth = |payee: &Payee| match everything {
            true => !payee.collectable().is_zero(),
            false => payee.should_settle(now, self.settle_cost),
        };
        self.lanes()
            .values()
            .filter(|lane| worth(&lane.payee))
            .filter_map(|lane| Some((*lane.payee.params(), *lane.payee.newest()?)))
            .collect()
    }

    /// What the chain has paid out on a channel, as last read.
    pub(super) fn settled(&self, channel: &Address) -> NanoTon {
        self.lanes().get(channel).map_or(NanoTon::ZERO, |lane| lane.payee.settled())
    }

    /// Earned in total, and of that not yet redeemed.
    pub(super) fn totals(&self) -> (NanoTon, NanoTon) {
        let mut earned = NanoTon::ZERO;
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
    fn observe(&mut self, state: OnChain, now: u64) {
        self.payee.observe(state, now);
        self.read = Some(Instant::now());
    }
}

/// Forgets a channel that owes nothing, if there are too many.
fn make_room(lanes: &mut BTreeMap<Address, Lane>) -> Result<(), Stop> {
    if lanes.len() < MAX_CHANNELS {
        return Ok(());
    }
    let idle = lanes.iter().find(|(_, lane)| lane.owner.is_none() && lane.payee.unsettled().is_zero());
    match idle.map(|(address, _)| *address) {
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
