//! The asker's end of a lane.

use std::fmt;

use ed25519_dalek::SigningKey;
use thiserror::Error;

use super::{HEADROOM, possession};
use crate::{
    Address, NanoTon, SignedVoucher, Voucher, VoucherError, VoucherKey,
    channel::{ChannelParams, OnChain, ParamsError, RESERVE},
};

/// Signs vouchers on one channel. There must be one per channel, ever: two that do not know of each
/// other would promise the same coins twice (which costs nothing but confusion: vouchers are totals).
pub struct Payer {
    params: ChannelParams,
    address: Address,
    global_id: i32,
    key: SigningKey,
    check: VoucherKey,
    cumulative: NanoTon,
    capacity: NanoTon,
    settled: NanoTon,
    closing: bool,
}

impl Payer {
    /// A lane on the channel with these terms, funded with `deposit`. Continue an older lane with
    /// [`Payer::raise_to`].
    pub fn new(
        params: ChannelParams,
        global_id: i32,
        key: SigningKey,
        deposit: NanoTon,
    ) -> Result<Self, PayerError> {
        let address = params.address()?;
        if key.verifying_key().to_bytes() != params.client_key {
            return Err(PayerError::Key);
        }
        Ok(Self {
            check: VoucherKey::new(&params.client_key)?,
            params,
            address,
            global_id,
            key,
            cumulative: NanoTon::ZERO,
            capacity: deposit.saturating_sub(RESERVE).saturating_sub(HEADROOM),
            settled: NanoTon::ZERO,
            closing: false,
        })
    }

    /// Signs a voucher that pays `amount` more than the one before.
    pub fn pay(&mut self, amount: NanoTon) -> Result<SignedVoucher, PayError> {
        if self.closing {
            return Err(PayError::Closing);
        }
        if amount.is_zero() {
            return Err(PayError::Nothing);
        }
        let available = self.available();
        if amount > available {
            return Err(PayError::Deposit { need: amount, available });
        }
        self.cumulative = self.cumulative.saturating_add(amount);
        Ok(self.newest())
    }

    /// The newest voucher again; signing is deterministic. Worthless while nothing was paid.
    pub fn newest(&self) -> SignedVoucher {
        Voucher {
            global_id: self.global_id,
            channel: self.address,
            channel_id: self.params.channel_id,
            cumulative: self.cumulative,
        }
        .sign(&self.key)
    }

    /// Takes note of the newest voucher that the worker holds, for an asker whose own memory may be
    /// older. It counts because it carries this lane's signature. Returns the cumulative amount, which
    /// never falls.
    pub fn adopt(&mut self, newest: &SignedVoucher) -> Result<NanoTon, AdoptError> {
        let voucher = &newest.voucher;
        if voucher.global_id != self.global_id
            || voucher.channel != self.address
            || voucher.channel_id != self.params.channel_id
        {
            return Err(AdoptError::OtherChannel);
        }
        self.check.verify(newest)?;
        self.raise_to(voucher.cumulative);
        Ok(self.cumulative)
    }

    /// Continues from what was signed in an earlier life. Never lowers.
    pub fn raise_to(&mut self, cumulative: NanoTon) {
        self.cumulative = self.cumulative.max(cumulative);
    }

    /// Takes the account's newest state: the deposit may have grown, or the channel be closing.
    pub fn observe(&mut self, chain: &OnChain) {
        self.capacity = chain.capacity().saturating_sub(HEADROOM);
        self.closing |= chain.close_at().is_some();
        // A channel that is over reads as one that paid nothing, and an endpoint may lag.
        self.settled = self.settled.max(chain.settled);
        self.raise_to(chain.settled);
    }

    /// Stops paying: the asker is about to close. Nothing resumes it.
    pub fn begin_closing(&mut self) {
        self.closing = true;
    }

    /// Total promised so far.
    pub fn cumulative(&self) -> NanoTon {
        self.cumulative
    }

    /// What the chain has paid the worker, as far as this end has seen. A worker counts no voucher below it.
    pub fn settled(&self) -> NanoTon {
        self.settled
    }

    /// Proves to a worker that this end holds the channel's key: signs what names the session. See
    /// [`super::verify_session`].
    pub fn sign_session(&self, statement: &[u8]) -> [u8; 64] {
        possession::sign(&self.key, statement)
    }

    /// What can still be paid.
    pub fn available(&self) -> NanoTon {
        self.capacity.saturating_sub(self.cumulative)
    }

    /// The channel's contract.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The channel's terms.
    pub fn params(&self) -> &ChannelParams {
        &self.params
    }

    /// Whether [`Payer::pay`] is over.
    pub fn closing(&self) -> bool {
        self.closing
    }

    /// The key that signs vouchers; a cooperative close needs it too.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }
}

impl fmt::Debug for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payer")
            .field("channel", &self.address)
            .field("cumulative", &self.cumulative)
            .field("capacity", &self.capacity)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

/// Why a lane cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PayerError {
    /// Bad terms.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The key is not the one in the terms.
    #[error("the signing key does not belong to the channel's client_key")]
    Key,
    /// The key is unusable.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
}

/// Why nothing was paid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PayError {
    /// A voucher must add something.
    #[error("a voucher must add more than nothing")]
    Nothing,
    /// The deposit does not cover it.
    #[error("the channel has {available} left, {need} are needed; top it up or open another")]
    Deposit {
        /// Asked for.
        need: NanoTon,
        /// Left.
        available: NanoTon,
    },
    /// The channel is being closed.
    #[error("the channel is closing; open another")]
    Closing,
}

/// Why a voucher shown by the worker is not this lane's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// Of another channel or network.
    #[error("the worker showed a voucher of another channel")]
    OtherChannel,
    /// Not signed by this asker.
    #[error("the worker showed a voucher that this asker did not sign: {0}")]
    Voucher(#[from] VoucherError),
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::channel::{
        Stage,
        tests_support::{key, params},
    };

    fn payer() -> Payer {
        Payer::new(params(), -217, key(1), NanoTon(1_000_000_000)).unwrap()
    }

    #[test]
    fn an_asker_never_promises_more_than_the_deposit() {
        let mut payer = payer();
        let all = payer.available();
        assert_eq!(all, NanoTon(1_000_000_000 - RESERVE.0 - HEADROOM.0));
        payer.pay(all).unwrap();
        assert_eq!(payer.pay(NanoTon(1)), Err(PayError::Deposit { need: NanoTon(1), available: NanoTon(0) }));
        assert_eq!(payer.pay(NanoTon::ZERO), Err(PayError::Nothing));
        assert_eq!(payer.cumulative(), all, "a refused payment changes nothing");
    }

    #[test]
    fn an_asker_that_forgot_learns_from_its_own_signature() {
        let mut before = payer();
        let newest = before.pay(NanoTon(500)).unwrap();
        let mut after = payer();
        assert_eq!(after.adopt(&newest), Ok(NanoTon(500)));
        assert_eq!(after.pay(NanoTon(1)).unwrap().voucher.cumulative, NanoTon(501));
        // Shown an older one again, it does not go back.
        assert_eq!(after.adopt(&newest), Ok(NanoTon(501)));
    }

    #[test]
    fn a_voucher_that_the_asker_did_not_sign_is_not_adopted() {
        let mut payer = payer();
        let good = payer.pay(NanoTon(500)).unwrap();
        let forged = good.voucher.sign(&key(9));
        assert!(matches!(payer.adopt(&forged), Err(AdoptError::Voucher(_))));
        let mut elsewhere = good.voucher;
        elsewhere.channel_id += 1;
        assert_eq!(payer.adopt(&elsewhere.sign(&key(1))), Err(AdoptError::OtherChannel));
        assert_eq!(payer.cumulative(), NanoTon(500));
    }

    #[test]
    fn a_closing_channel_pays_no_more() {
        let mut payer = payer();
        payer.observe(&OnChain {
            stage: Stage::Closing { at: 5 },
            balance: NanoTon(1_000_000_000),
            settled: NanoTon::ZERO,
            expire_at: params().expire_at,
            read_at: 0,
        });
        assert_eq!(payer.pay(NanoTon(1)), Err(PayError::Closing));
    }

    #[test]
    fn what_the_chain_paid_is_remembered_and_never_falls() {
        let read = |settled| OnChain {
            stage: Stage::Open,
            balance: NanoTon(1_000_000_000),
            settled: NanoTon(settled),
            expire_at: params().expire_at,
            read_at: 0,
        };
        let mut payer = payer();
        payer.observe(&read(700));
        assert_eq!((payer.settled(), payer.cumulative()), (NanoTon(700), NanoTon(700)));
        payer.observe(&read(0));
        assert_eq!(payer.settled(), NanoTon(700));
    }

    #[test]
    fn a_foreign_key_makes_no_lane() {
        assert_eq!(Payer::new(params(), -217, key(9), NanoTon(1)).unwrap_err(), PayerError::Key);
    }

    proptest! {
        #[test]
        fn vouchers_only_rise(
            amounts in vec(0u64..400_000_000, 1..12),
            shown in vec(any::<prop::sample::Index>(), 1..12),
        ) {
            let mut payer = payer();
            let mut made = Vec::new();
            for (amount, shown) in amounts.into_iter().zip(shown) {
                let before = payer.cumulative();
                if let Ok(signed) = payer.pay(NanoTon(amount)) {
                    prop_assert_eq!(signed.voucher.cumulative.0, before.0 + amount);
                    made.push(signed);
                }
                if !made.is_empty() {
                    payer.adopt(shown.get(&made)).unwrap();
                }
                prop_assert!(payer.cumulative() >= before);
            }
        }
    }
}
