//! The worker's end of a lane.

use thiserror::Error;

use super::HEADROOM;
use crate::{
    Address, NanoTon, SignedVoucher, VoucherError, VoucherKey,
    channel::{ChannelParams, OnChain, ParamsError, Stage},
};

/// Seconds past an agreement's deadline before a worker believes that it lapsed: the chain's clock
/// and its own may differ.
const AGREEMENT_GRACE_S: u64 = 600;

/// What a worker insists on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayeePolicy {
    /// The account that must be paid.
    pub worker: Address,
    /// The key that must agree to a cooperative close. **Each process that credits vouchers needs one of its
    /// own**, also where several are paid to one account: the channel is bound to it, so that no voucher is
    /// good at two workers.
    pub worker_key: [u8; 32],
    /// The TON network's global id.
    pub global_id: i32,
    /// Shortest acceptable close delay: the time there is to settle after the asker left.
    pub min_close_delay_s: u32,
    /// No service this close to the expiry, when anybody may refund the asker.
    pub expiry_margin_s: u32,
    /// No service beyond this much unsettled value in one channel.
    pub max_unsettled: NanoTon,
    /// Settle when there is more to collect than this many times the cost.
    pub settle_factor: u64,
}

impl PayeePolicy {
    /// Sensible values beside the worker's own identity.
    pub fn new(worker: Address, worker_key: [u8; 32], global_id: i32) -> Self {
        Self {
            worker,
            worker_key,
            global_id,
            min_close_delay_s: 600,
            expiry_margin_s: 600,
            max_unsettled: NanoTon(10_000_000_000),
            settle_factor: 100,
        }
    }
}

/// Checks and keeps the vouchers of one channel.
#[derive(Clone, Debug)]
pub struct Payee {
    params: ChannelParams,
    address: Address,
    policy: PayeePolicy,
    key: VoucherKey,
    chain: Option<OnChain>,
    newest: Option<SignedVoucher>,
    closing_until: Option<u64>,
}

/// A voucher that passed every check and waits to be made durable; see [`Payee::commit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an accepted voucher counts only after `Payee::commit`"]
pub struct Accepted {
    signed: SignedVoucher,
    delta: NanoTon,
}

impl Accepted {
    /// The voucher.
    pub fn signed(&self) -> &SignedVoucher {
        &self.signed
    }

    /// What it adds to the one before.
    pub fn delta(&self) -> NanoTon {
        self.delta
    }
}

impl Payee {
    /// A lane on the channel with these terms, if the policy can live with them.
    pub fn new(params: ChannelParams, policy: PayeePolicy) -> Result<Self, Refusal> {
        let address = params.address()?;
        if params.worker != policy.worker || params.worker_key != policy.worker_key {
            return Err(Refusal::NotOurs);
        }
        if params.close_delay_s < policy.min_close_delay_s {
            return Err(Refusal::CloseDelay { found: params.close_delay_s, min: policy.min_close_delay_s });
        }
        Ok(Self {
            key: VoucherKey::new(&params.client_key).map_err(Refusal::Voucher)?,
            params,
            address,
            policy,
            chain: None,
            newest: None,
            closing_until: None,
        })
    }

    /// Continues with what was stored. Never lowers; the stored voucher was checked when it came.
    pub fn restore(&mut self, newest: Option<SignedVoucher>, closing_until: Option<u64>) {
        if let Some(newest) = newest
            && newest.voucher.cumulative > self.cumulative()
        {
            self.newest = Some(newest);
        }
        self.closing_until = self.closing_until.max(closing_until);
    }

    /// Takes a confirmed read of the account. An older read than the last is ignored, and a read from
    /// the future counts as of now, so that an endpoint with a fast clock cannot keep itself fresh.
    pub fn observe(&mut self, mut chain: OnChain, now: u64) {
        chain.read_at = chain.read_at.min(now);
        if self.chain.is_none_or(|known| known.read_at <= chain.read_at) {
            self.chain = Some(chain);
        }
    }

    /// Whether the channel can be served now, apart from any voucher.
    pub fn ready(&self, now: u64) -> Result<(), Refusal> {
        if let Some(until) = self.closing_until
            && now <= until.saturating_add(AGREEMENT_GRACE_S)
        {
            return Err(Refusal::Closing);
        }
        let chain = self.chain.ok_or(Refusal::Unconfirmed)?;
        match chain.stage {
            Stage::Absent | Stage::Unopened => return Err(Refusal::NotOpen),
            Stage::Closing { .. } => return Err(Refusal::Closing),
            Stage::Open => {}
        }
        let age = now.saturating_sub(chain.read_at);
        let max = u64::from(self.params.close_delay_s / 2);
        if age > max {
            return Err(Refusal::StaleRead { age, max });
        }
        let margin = u64::from(self.policy.expiry_margin_s);
        if now.saturating_add(margin) >= u64::from(chain.expire_at) {
            return Err(Refusal::NearExpiry { expire_at: chain.expire_at });
        }
        Ok(())
    }

    /// Judges a voucher without taking it. The signature comes last, being the expensive part.
    pub fn check(&self, signed: &SignedVoucher, now: u64) -> Result<Accepted, Refusal> {
        self.ready(now)?;
        let voucher = &signed.voucher;
        if voucher.global_id != self.policy.global_id {
            return Err(Refusal::Network { found: voucher.global_id, expected: self.policy.global_id });
        }
        if voucher.channel != self.address || voucher.channel_id != self.params.channel_id {
            return Err(Refusal::OtherChannel);
        }
        let newest = self.counted();
        let delta = voucher.cumulative.saturating_sub(newest);
        if delta.is_zero() {
            return Err(Refusal::NotNewer { got: voucher.cumulative, newest });
        }
        let covered = self.capacity().saturating_sub(HEADROOM);
        if voucher.cumulative > covered {
            return Err(Refusal::BeyondDeposit { cumulative: voucher.cumulative, covered });
        }
        let unsettled = voucher.cumulative.saturating_sub(self.settled());
        if unsettled > self.policy.max_unsettled {
            return Err(Refusal::UnsettledCap { unsettled, cap: self.policy.max_unsettled });
        }
        self.key.verify(signed)?;
        Ok(Accepted { signed: *signed, delta })
    }

    /// Moves the lane on to a checked voucher that is now durable; returns what it adds. If a newer
    /// one was committed in between, it adds less, or nothing.
    pub fn commit(&mut self, accepted: Accepted) -> NanoTon {
        let cumulative = accepted.signed.voucher.cumulative;
        let delta = cumulative.saturating_sub(self.counted());
        if cumulative > self.cumulative() {
            self.newest = Some(accepted.signed);
        }
        delta
    }

    /// Where the next voucher is counted from. Normally the newest one; but if the chain has paid more than
    /// that, vouchers were lost here, and what they were worth was credited, and collected, before.
    fn counted(&self) -> NanoTon {
        self.cumulative().max(self.settled())
    }

    /// [`Payee::check`] and [`Payee::commit`] at once, where durability is handled elsewhere.
    pub fn accept(&mut self, signed: &SignedVoucher, now: u64) -> Result<NanoTon, Refusal> {
        let accepted = self.check(signed, now)?;
        Ok(self.commit(accepted))
    }

    /// From here on nothing is accepted, until the agreement to close has lapsed. Store this durably
    /// before signing the agreement.
    pub fn begin_closing(&mut self, deadline: u32) {
        self.closing_until = self.closing_until.max(Some(u64::from(deadline)));
    }

    /// Whether the worker agreed to close, or the asker asked the chain to.
    pub fn closing(&self) -> bool {
        self.closing_until.is_some() || self.chain.is_some_and(|chain| chain.close_at().is_some())
    }

    /// The best voucher: what to settle, and what to show an asker that reconnects.
    pub fn newest(&self) -> Option<&SignedVoucher> {
        self.newest.as_ref()
    }

    /// Total promised so far.
    pub fn cumulative(&self) -> NanoTon {
        self.newest.map_or(NanoTon::ZERO, |newest| newest.voucher.cumulative)
    }

    /// What the chain has paid, as last read.
    pub fn settled(&self) -> NanoTon {
        self.chain.map_or(NanoTon::ZERO, |chain| chain.settled)
    }

    /// Promised and not yet paid by the chain.
    pub fn unsettled(&self) -> NanoTon {
        self.cumulative().saturating_sub(self.settled())
    }

    /// What settling now would bring: never more than the deposit covers.
    pub fn collectable(&self) -> NanoTon {
        self.cumulative().min(self.capacity()).saturating_sub(self.settled())
    }

    /// When the channel can end, if that is near: it closes, an agreement to close is out, or its expiry is
    /// close. After this moment somebody may have the asker refunded, and nothing more is paid.
    pub fn ends_soon(&self, now: u64) -> Option<u64> {
        let chain = self.chain?;
        let expire_at = u64::from(chain.expire_at);
        let margin = u64::from(self.policy.expiry_margin_s).saturating_mul(2);
        let expiring = (now.saturating_add(margin) >= expire_at).then_some(expire_at);
        // An agreement can be carried out at once.
        let agreed = self.closing_until.map(|_| now);
        [expiring, agreed, chain.close_at().map(u64::from)].into_iter().flatten().min()
    }

    /// Whether to settle now, if settling costs `cost`: when it is worth it many times over; when the
    /// unsettled cap comes near and would stop service; and, for anything above the cost, when the
    /// channel is about to end.
    pub fn should_settle(&self, now: u64, cost: NanoTon) -> bool {
        let gain = self.collectable();
        let worth = cost.0.saturating_mul(self.policy.settle_factor);
        let pressing = gain.0 > worth || gain.0 > self.policy.max_unsettled.0 / 2;
        gain > cost && (pressing || self.ends_soon(now).is_some())
    }

    /// The channel's contract.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The channel's terms.
    pub fn params(&self) -> &ChannelParams {
        &self.params
    }

    /// The last confirmed read.
    pub fn on_chain(&self) -> Option<&OnChain> {
        self.chain.as_ref()
    }

    fn capacity(&self) -> NanoTon {
        self.chain.map_or(NanoTon::ZERO, |chain| chain.capacity())
    }
}

/// Whether the channel or one voucher is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedFor {
    /// No voucher on this channel would be taken now.
    Channel,
    /// Another voucher may be.
    Voucher,
}

/// Why a worker does not take a channel or a voucher.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Bad terms.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The channel pays somebody else.
    #[error("the channel's worker or worker_key is not this worker's; make a channel from its ad")]
    NotOurs,
    /// Too little time to settle.
    #[error("the channel's close_delay_s is {found}, this worker needs {min}")]
    CloseDelay {
        /// In the terms.
        found: u32,
        /// Needed.
        min: u32,
    },
    /// The account was never read.
    #[error("the channel is not confirmed on the chain yet; try again in a few seconds")]
    Unconfirmed,
    /// There is no open channel at the address.
    #[error("the channel is not open on the chain; send `open` with its deposit first")]
    NotOpen,
    /// It is ending.
    #[error("the channel is closing; open another")]
    Closing,
    /// It ends soon.
    #[error("the channel expires at {expire_at}, too soon; top it up with a later expiry")]
    NearExpiry {
        /// Unix time.
        expire_at: u32,
    },
    /// The chain cannot be read, so the asker could have closed unseen.
    #[error(
        "the worker's last read of the channel is {age} s old, at most {max} s are safe; the chain may be out"
    )]
    StaleRead {
        /// Seconds.
        age: u64,
        /// Half of the close delay.
        max: u64,
    },
    /// For another TON network.
    #[error("the voucher's global_id is {found}, this network's is {expected}")]
    Network {
        /// In the voucher.
        found: i32,
        /// This network's.
        expected: i32,
    },
    /// For another channel.
    #[error("the voucher's channel or channel_id is another channel's")]
    OtherChannel,
    /// Nothing added.
    #[error("the voucher's cumulative {got} is not above the newest, {newest}")]
    NotNewer {
        /// In the voucher.
        got: NanoTon,
        /// Held already.
        newest: NanoTon,
    },
    /// Not covered.
    #[error(
        "the voucher's cumulative {cumulative} exceeds the confirmed deposit, which covers {covered}; top up"
    )]
    BeyondDeposit {
        /// In the voucher.
        cumulative: NanoTon,
        /// Deposit less reserve and headroom.
        covered: NanoTon,
    },
    /// The worker wants to settle first.
    #[error("{unsettled} would be unsettled, this worker's cap is {cap}; wait until it has settled")]
    UnsettledCap {
        /// With this voucher.
        unsettled: NanoTon,
        /// Policy.
        cap: NanoTon,
    },
    /// Not the asker's signature.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
}

impl Refusal {
    /// A stable name for logs, metrics and the wire.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Params(_) => "channel-params",
            Self::NotOurs => "channel-not-ours",
            Self::CloseDelay { .. } => "channel-close-delay",
            Self::Unconfirmed => "channel-unconfirmed",
            Self::NotOpen => "channel-not-open",
            Self::Closing => "channel-closing",
            Self::NearExpiry { .. } => "channel-near-expiry",
            Self::StaleRead { .. } => "channel-stale-read",
            Self::Network { .. } => "voucher-network",
            Self::OtherChannel => "voucher-channel",
            Self::NotNewer { .. } => "voucher-not-newer",
            Self::BeyondDeposit { .. } => "voucher-beyond-deposit",
            Self::UnsettledCap { .. } => "voucher-unsettled-cap",
            Self::Voucher(_) => "voucher-signature",
        }
    }

    /// Whether another voucher on the same channel could do better.
    pub fn refused_for(&self) -> RefusedFor {
        if self.code().starts_with("voucher") { RefusedFor::Voucher } else { RefusedFor::Channel }
    }
}

#[cfg(test)]
#[path = "payee_tests.rs"]
mod tests;
