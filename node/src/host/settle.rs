//! Redeeming vouchers on the chain.
//!
//! One task does it all, since transfers of one wallet queue up behind each other anyway: when a channel's
//! unredeemed value is worth many times what redeeming costs, when it is closing or about to expire, and when
//! a person asks. Several channels go into one transfer. A transfer that is in the chain proves nothing about
//! what its messages did, so each channel is read until it shows the money, and tried again later if it does
//! not.
//!
//! A transfer lends coins to its messages, so a wallet that is nearly empty cannot make a large one. Then a
//! smaller one is made, down to a single channel ([`Round`]): what it brings in pays for the next.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cocoon_payments::cell::TonCellError;
use cocoon_payments::chain::{SubmitError, submit};
use cocoon_payments::channel::{self, ChannelParams};
use cocoon_payments::wallet::{Outgoing, Wallet};
use cocoon_payments::{NanoTon, SignedVoucher};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::Worker;

/// Channels per transfer: far below the wallet's limit, and one failure costs little.
const BATCH: usize = 16;
/// How long a channel may take to show the money: an internal message is a block or two behind its transfer.
const SETTLES_WITHIN: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(250);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(30);

/// What became of one channel.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Settlement {
    channel: String,
    cumulative_nanoton: u64,
    settled_nanoton: u64,
    message_hash: String,
    transaction: Option<String>,
    error: Option<String>,
}

impl Settlement {
    /// A channel that no transfer named.
    fn not_made(voucher: &SignedVoucher, why: String) -> Self {
        Self {
            channel: voucher.voucher.channel.to_string(),
            cumulative_nanoton: voucher.voucher.cumulative.0,
            settled_nanoton: 0,
            message_hash: String::new(),
            transaction: None,
            error: Some(why),
        }
    }
}

/// A person's wish to redeem everything, and where to say what became of it.
pub(super) type Wish = oneshot::Sender<Result<Vec<Settlement>, String>>;

/// Redeems for as long as the worker runs.
pub(super) async fn run(
    worker: Arc<Worker>,
    wallet: Wallet,
    refresh: Duration,
    mut wishes: mpsc::Receiver<Wish>,
) {
    let mut ticks = tokio::time::interval(refresh);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut not_before = tokio::time::Instant::now();
    loop {
        let wish = tokio::select! {
            _ = ticks.tick() => {
                worker.money.refresh().await;
                None
            }
            () = worker.money.due.notified() => None,
            wish = wishes.recv() => match wish {
                Some(wish) => Some(wish),
                None => return,
            },
        };
        if wish.is_some() {
            worker.money.refresh().await;
        } else if tokio::time::Instant::now() < not_before {
            continue;
        }
        let due = worker.money.to_settle(wish.is_some());
        let mut round = Round::new(&due);
        while let Some(portion) = round.next() {
            let result = settle(&worker, &wallet, portion).await;
            round.answered(result);
        }
        let Round { done, failed, .. } = round;
        if let Some(error) = &failed {
            let channels = due.len() - done.len();
            tracing::warn!(%error, channels, "vouchers could not be redeemed; trying again later");
        }
        if failed.is_some() || done.iter().any(|settlement| settlement.error.is_some()) {
            not_before = tokio::time::Instant::now() + RETRY;
        }
        if let Some(wish) = wish {
            let _ = wish.send(answer(&due, done, failed));
        }
    }
}

/// What a person hears: what was redeemed and what was not, or, if nothing was, why.
fn answer(
    due: &[Due],
    mut done: Vec<Settlement>,
    failed: Option<SettleError>,
) -> Result<Vec<Settlement>, String> {
    let Some(error) = failed else { return Ok(done) };
    let why = error.to_string();
    if done.is_empty() {
        return Err(why);
    }
    let rest = due.get(done.len()..).unwrap_or_default();
    done.extend(rest.iter().map(|(_, voucher)| Settlement::not_made(voucher, why.clone())));
    Ok(done)
}

/// A channel and what to redeem on it.
type Due = (ChannelParams, SignedVoucher);

/// Why a transfer was not made.
#[derive(Debug, Error)]
enum SettleError {
    #[error("a message to a channel could not be built: {0}")]
    Message(#[from] TonCellError),
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

impl SettleError {
    /// Whether a smaller transfer may do.
    fn is_for_want_of_coins(&self) -> bool {
        matches!(self, Self::Submit(SubmitError::Balance { .. }))
    }
}

/// One round of redeeming: what is due, in its order, with as many channels at once as the wallet can pay for.
/// It ends at the first transfer that cannot be made at all; what was done is the beginning of what was due.
struct Round<'a, T, S> {
    rest: &'a [T],
    size: usize,
    done: Vec<S>,
    failed: Option<SettleError>,
}

impl<'a, T, S> Round<'a, T, S> {
    fn new(due: &'a [T]) -> Self {
        Self { rest: due, size: BATCH, done: Vec::with_capacity(due.len()), failed: None }
    }

    /// The channels of the next transfer; `None` at the end.
    fn next(&self) -> Option<&'a [T]> {
        let portion = self.rest.get(..self.size.min(self.rest.len()))?;
        (!portion.is_empty() && self.failed.is_none()).then_some(portion)
    }

    /// What became of that transfer.
    fn answered(&mut self, result: Result<Vec<S>, SettleError>) {
        let tried = self.size.min(self.rest.len());
        match result {
            Ok(mut settled) => {
                self.done.append(&mut settled);
                self.rest = self.rest.get(tried..).unwrap_or_default();
                // It brought something in, so the next may be larger.
                self.size = (self.size * 2).min(BATCH);
            }
            Err(error) if error.is_for_want_of_coins() && tried > 1 => {
                tracing::debug!(%error, channels = tried, "redeeming fewer channels at once");
                self.size = tried / 2;
            }
            Err(error) => self.failed = Some(error),
        }
    }
}

async fn settle(worker: &Worker, wallet: &Wallet, batch: &[Due]) -> Result<Vec<Settlement>, SettleError> {
    let messages = batch
        .iter()
        .map(|(_, voucher)| {
            let body = channel::settle(voucher)?;
            Ok(Outgoing::call(voucher.voucher.channel, channel::SETTLE_VALUE, body))
        })
        .collect::<Result<Vec<_>, TonCellError>>()?;
    let submitted = submit(worker.chain.chain(), wallet, &messages).await?;
    let mut settlements = Vec::with_capacity(batch.len());
    for (params, voucher) in batch {
        let wanted = voucher.voucher.cumulative;
        let settled = shows(worker, params, voucher).await;
        let error = (settled < wanted).then(|| {
            format!("the channel shows {settled} of {wanted} redeemed; its deposit may be used up, or the chain is slow")
        });
        if error.is_none() {
            worker.counters.settlements.fetch_add(1, Relaxed);
            tracing::info!(channel = %voucher.voucher.channel, %settled, "redeemed");
        }
        settlements.push(Settlement {
            channel: voucher.voucher.channel.to_string(),
            cumulative_nanoton: wanted.0,
            settled_nanoton: settled.0,
            message_hash: hex::encode(submitted.message_hash),
            transaction: submitted.transaction.as_ref().map(|transaction| hex::encode(transaction.hash)),
            error,
        });
    }
    Ok(settlements)
}

/// Waits until the chain shows that a voucher was redeemed; returns what it shows in the end.
async fn shows(worker: &Worker, params: &ChannelParams, voucher: &SignedVoucher) -> NanoTon {
    let channel = voucher.voucher.channel;
    let deadline = tokio::time::Instant::now() + SETTLES_WITHIN;
    loop {
        if let Err(error) = worker.money.reread(params).await {
            tracing::debug!(%error, %channel, "cannot read a channel");
        }
        let settled = worker.money.settled(&channel);
        if settled >= voucher.voucher.cumulative || tokio::time::Instant::now() > deadline {
            return settled;
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use cocoon_payments::Address;

    use super::*;

    /// A wallet that can make transfers to so many channels, and gains for each that it redeems.
    struct Purse {
        channels: usize,
        gain: usize,
        tried: Vec<usize>,
    }

    impl Purse {
        fn settle(&mut self, batch: &[usize]) -> Result<Vec<usize>, SettleError> {
            self.tried.push(batch.len());
            if batch.len() > self.channels {
                let (wallet, have, need) = (Address::base([1; 32]), NanoTon(1), NanoTon(2));
                return Err(SubmitError::Balance { wallet, have, need }.into());
            }
            self.channels += self.gain * batch.len();
            Ok(batch.to_vec())
        }

        fn settle_all(&mut self, due: usize) -> (Vec<usize>, Option<SettleError>) {
            let due: Vec<usize> = (0..due).collect();
            let mut round = Round::new(&due);
            while let Some(portion) = round.next() {
                round.answered(self.settle(portion));
            }
            (round.done, round.failed)
        }
    }

    #[test]
    fn a_poor_wallet_redeems_little_by_little_and_all_in_the_end() {
        let mut purse = Purse { channels: 1, gain: 1, tried: Vec::new() };
        let (done, failed) = purse.settle_all(20);
        assert_eq!(done, (0..20).collect::<Vec<_>>(), "everything, once, in order");
        assert!(failed.is_none());
        assert_eq!(purse.tried, [16, 8, 4, 2, 1, 2, 4, 8, 5]);
    }

    #[test]
    fn an_empty_wallet_is_tried_once_per_size_and_then_left_alone() {
        let mut purse = Purse { channels: 0, gain: 0, tried: Vec::new() };
        let (done, failed) = purse.settle_all(5);
        assert!(done.is_empty());
        assert!(failed.is_some_and(|error| error.is_for_want_of_coins()));
        assert_eq!(purse.tried, [5, 2, 1]);
    }

    #[test]
    fn other_failures_are_not_tried_again_with_less() {
        let due = [1, 2, 3];
        let mut round: Round<'_, i32, i32> = Round::new(&due);
        assert_eq!(round.next(), Some(&due[..]));
        round.answered(Err(SubmitError::Expired.into()));
        assert_eq!(round.next(), None);
        assert!(matches!(round.failed, Some(SettleError::Submit(SubmitError::Expired))));
    }

    #[test]
    fn what_was_not_redeemed_is_reported_with_the_reason() {
        let voucher = |n| {
            let voucher = cocoon_payments::Voucher {
                global_id: -217,
                channel: Address::base([n; 32]),
                channel_id: 1,
                cumulative: NanoTon(u64::from(n)),
            };
            voucher.sign(&ed25519_dalek::SigningKey::from_bytes(&[1; 32]))
        };
        let params = ChannelParams {
            client: Address::base([1; 32]),
            worker: Address::base([2; 32]),
            client_key: [1; 32],
            worker_key: [2; 32],
            channel_id: 1,
            close_delay_s: 600,
            open_by: 1,
            expire_at: 2,
        };
        let due = [(params, voucher(1)), (params, voucher(2))];
        let failed = || Some(SettleError::Submit(SubmitError::Expired));
        let done = Settlement { error: None, ..Settlement::not_made(&due[0].1, String::new()) };
        let answered = answer(&due, vec![done.clone()], failed()).unwrap();
        assert_eq!(answered.len(), 2);
        assert!(answered[0].error.is_none());
        assert_eq!(answered[1].cumulative_nanoton, 2);
        assert!(answered[1].error.as_ref().is_some_and(|error| error.contains("expired")));
        assert!(answer(&due, Vec::new(), failed()).is_err());
        assert_eq!(answer(&due, vec![done.clone(), done], None).unwrap().len(), 2);
    }
}
