//! Sending from a wallet, and knowing what became of it.
//!
//! An endpoint that took a message has promised nothing, and one that answered with an error has
//! refused nothing: a proxy in front of it may have failed after the message went through, or the
//! message may be there from an earlier attempt. A transfer is in the chain when the wallet's
//! sequence number has passed its own, and can never be once the chain's clock has passed its expiry:
//! once it has tried to send, [`submit`] waits for one or the other, so that no coin is ever in doubt.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::{AccountState, AccountStatus, Chain, ChainError, TransactionInfo};
use crate::{
    NanoTon, cell,
    wallet::{Outgoing, Wallet, WalletError, seqno},
};

/// Seconds of chain time in which a transfer may be included.
const VALID_S: u64 = 60;
/// Kept for the fees of the transfer and of each message.
const FEE_MARGIN: NanoTon = NanoTon(5_000_000);
const POLL: Duration = Duration::from_millis(200);
const POLL_MAX: Duration = Duration::from_secs(2);
/// Between polls, before a message that the endpoint did not confirm is sent again.
const POLL_RESEND: Duration = Duration::from_secs(1);
/// Wall-clock limit, for a chain that stands still or an endpoint that is gone.
const PATIENCE: Duration = Duration::from_secs(180);
/// A block of the wallet's shard may be older than the masterchain block that first names it.
const EXPIRY_SLACK_S: u64 = 20;
/// How far back the transfer's transaction is looked for.
const RECENT: usize = 16;

/// A transfer that is in the chain.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Its sequence number.
    pub seqno: u32,
    /// Hash of the external message.
    pub message_hash: [u8; 32],
    /// The wallet's transaction, if the endpoint still shows it. What the messages did at their
    /// destinations is another question: read the accounts.
    pub transaction: Option<TransactionInfo>,
}

/// Why a transfer was not made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// It could not be signed.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The chain could not be read; nothing was sent.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Not enough coins.
    #[error("the wallet {wallet} has {have}, {need} are needed with fees; send coins to it")]
    Balance {
        /// The wallet's address.
        wallet: crate::Address,
        /// Its balance.
        have: NanoTon,
        /// What the transfer takes.
        need: NanoTon,
    },
    /// The account at the wallet's address is unusable.
    #[error("the account {wallet} is not a usable wallet v5r1: {why}")]
    Account {
        /// The wallet's address.
        wallet: crate::Address,
        /// What is wrong.
        why: &'static str,
    },
    /// Its time passed without it. It will never be included, so it is safe to send another.
    #[error("the transfer expired before a block took it; it is safe to try again")]
    Expired,
    /// Every attempt to send it was answered with an error, and its time passed without it. It will
    /// never be included, so it is safe to send another.
    #[error("the transfer expired before a block took it, and sending it had failed: {source}")]
    Refused {
        /// What the endpoint answered.
        source: ChainError,
    },
    /// Neither inclusion nor expiry could be seen. **It may yet be included**: look at the wallet's
    /// sequence number before sending again.
    #[error(
        "after {waited_s} s the chain shows the transfer (number {seqno}) neither included nor expired; do not repeat it before the chain answers"
    )]
    Unknown {
        /// Seconds waited.
        waited_s: u64,
        /// The transfer's sequence number.
        seqno: u32,
    },
}

/// Sends `messages` from `wallet` in one transfer and waits until it is in a block. Transfers of one
/// [`Wallet`] queue up behind each other.
pub async fn submit(
    chain: &dyn Chain,
    wallet: &Wallet,
    messages: &[Outgoing],
) -> Result<Submitted, SubmitError> {
    let _sending = wallet.sending.lock().await;
    let address = wallet.address();
    let account = chain.account(&address).await?;
    let seqno = wallet_seqno(wallet, &account)?;
    let fees = FEE_MARGIN.checked_mul(1 + messages.len() as u64);
    let need = NanoTon::checked_sum(messages.iter().map(|message| message.amount).chain(fees));
    let need = need.unwrap_or(NanoTon::MAX);
    if account.balance < need {
        return Err(SubmitError::Balance { wallet: address, have: account.balance, need });
    }
    // The chain's clock, not ours: it is the chain that compares.
    let valid_until = account.unixtime.max(chain.head().await?.unixtime).saturating_add(VALID_S);
    let valid_until = u32::try_from(valid_until).unwrap_or(u32::MAX);
    let transfer = wallet.transfer(seqno, valid_until, messages)?;
    // Whatever the answer, the message may have arrived: from here on only the wallet's sequence
    // number or the expiry decides.
    let mut refused = chain.send(&transfer.boc).await.err();
    if let Some(error) = &refused {
        tracing::warn!(%error, seqno, "the transfer was not confirmed; waiting for it or its expiry");
    }

    let started = Instant::now();
    let mut pause = POLL;
    loop {
        sleep(pause).await;
        pause = (pause * 5 / 4).min(POLL_MAX);
        // An endpoint that fails leaves the transfer in doubt, so it is asked again.
        if let Ok(account) = chain.account(&address).await {
            let now = wallet_seqno(wallet, &account).ok();
            if now.is_some_and(|now| now > seqno) {
                let transaction = find(chain, wallet, &transfer.body_hash).await;
                return Ok(Submitted { seqno, message_hash: transfer.hash, transaction });
            }
            // A read without a usable wallet, or of one that went back, says nothing about expiry.
            if now == Some(seqno) && account.unixtime > u64::from(valid_until) + EXPIRY_SLACK_S {
                return Err(refused.map_or(SubmitError::Expired, |source| SubmitError::Refused { source }));
            }
            // A node may have dropped it. Sending the same message twice includes it once.
            if pause == POLL_MAX || (refused.is_some() && pause >= POLL_RESEND) {
                // The first refusal says why; later ones may only say that the message is known.
                if chain.send(&transfer.boc).await.is_ok() {
                    refused = None;
                }
            }
        }
        if started.elapsed() > PATIENCE {
            return Err(SubmitError::Unknown { waited_s: started.elapsed().as_secs(), seqno });
        }
    }
}

fn wallet_seqno(wallet: &Wallet, account: &AccountState) -> Result<u32, SubmitError> {
    let fail = |why| SubmitError::Account { wallet: wallet.address(), why };
    match account.status {
        AccountStatus::Absent | AccountStatus::Uninit => Ok(0),
        AccountStatus::Frozen => Err(fail("it is frozen for debt")),
        AccountStatus::Active => {
            let data = account.data.as_deref().ok_or_else(|| fail("the endpoint sent no data"))?;
            let data = cell::parse(data).map_err(|_| fail("its data cannot be read"))?;
            seqno(&data).map_err(|_| fail("its data is not a wallet's"))
        }
    }
}

/// The transfer's transaction. It is a courtesy: the transfer is in the chain whether or not the
/// endpoint can show it.
async fn find(chain: &dyn Chain, wallet: &Wallet, body_hash: &[u8; 32]) -> Option<TransactionInfo> {
    let recent = chain.transactions(&wallet.address(), RECENT).await.ok()?;
    recent.into_iter().find(|transaction| {
        transaction
            .in_msg
            .as_ref()
            .is_some_and(|message| message.source.is_none() && message.body_hash == *body_hash)
    })
}
