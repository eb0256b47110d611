//! Redeeming vouchers on the chain.
//!
//! One task does it all, since transfers of one wallet queue up behind each other anyway: when a channel's
//! unredeemed value is worth many times what redeeming costs, when it is closing or about to expire, and when
//! a person asks. Several channels go into one transfer. A transfer that is in the chain proves nothing about
//! what its messages did, so each channel is read until it shows the money, and tried again later if it does
//! not.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cocoon_payments::chain::submit;
use cocoon_payments::channel::{self, ChannelParams};
use cocoon_payments::wallet::{Outgoing, Wallet};
use cocoon_payments::{NanoTon, SignedVoucher};
use serde::Serialize;
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
        let mut done = Vec::new();
        let mut failed = None;
        for batch in due.chunks(BATCH) {
            match settle(&worker, &wallet, batch).await {
                Ok(mut settled) => done.append(&mut settled),
                Err(error) => {
                    tracing::warn!(
                        error,
                        channels = batch.len(),
                        "vouchers could not be redeemed; trying again later"
                    );
                    failed = Some(error);
                    break;
                }
            }
        }
        if failed.is_some() || done.iter().any(|settlement| settlement.error.is_some()) {
            not_before = tokio::time::Instant::now() + RETRY;
        }
        if let Some(wish) = wish {
            let _ = wish.send(match failed {
                Some(error) => Err(error),
                None => Ok(done),
            });
        }
    }
}

async fn settle(
    worker: &Worker,
    wallet: &Wallet,
    batch: &[(ChannelParams, SignedVoucher)],
) -> Result<Vec<Settlement>, String> {
    let messages = batch
        .iter()
        .map(|(_, voucher)| {
            let body = channel::settle(voucher).map_err(|error| error.to_string())?;
            Ok(Outgoing::call(voucher.voucher.channel, channel::SETTLE_VALUE, body))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let submitted =
        submit(worker.chain.chain(), wallet, &messages).await.map_err(|error| error.to_string())?;
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
