//! What the host knows of the chain, and how sure it may be.
//!
//! The endpoint is a stranger: before anything is served, its global id and zero state must be those of the
//! genesis file. After that its answers are cached: opening a session costs a read only if the last one is
//! older than [`FRESH`], and a channel that is being served is read again in the background. A read that
//! fails changes nothing; how long an old one may be relied on is the payee's rule
//! ([`cocoon_payments::lane::Payee`]), not this module's.
#![allow(clippy::disallowed_methods, reason = "a shell: it dates what it read")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cocoon_client::genesis::Genesis;
use cocoon_payments::chain::{Chain, ChainError, ChainIdentity, Head};
use cocoon_payments::channel::{ChannelParams, OnChain, ReadError, read_account};
use thiserror::Error;

/// A reading younger than this is as good as a new one.
pub(super) const FRESH: Duration = Duration::from_secs(5);
/// Pause between attempts to reach a chain that does not answer at start.
const RETRY: Duration = Duration::from_millis(500);
/// Masterchain blocks come every few seconds; a beacon needs no newer one.
const HEAD_FRESH: Duration = Duration::from_secs(3);

/// Why a channel could not be read.
#[derive(Debug, Error)]
pub(super) enum ViewError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Account(#[from] ReadError),
}

/// The chain that the genesis names, reached through an endpoint whose identity was checked.
#[derive(Debug)]
pub(super) struct ChainView {
    chain: Arc<dyn Chain>,
    head: Mutex<Option<(Instant, Head)>>,
}

/// The endpoint is on another chain. Nothing it says can be used.
#[derive(Debug, Error)]
#[error(
    "the chain endpoint has global id {} and zero state {}, genesis \"{name}\" names {} and {}; \
     point `chain.url` at the right chain",
    found.global_id, hex::encode(found.zero_state), expected.global_id, hex::encode(expected.zero_state)
)]
pub struct WrongChain {
    name: String,
    found: ChainIdentity,
    expected: ChainIdentity,
}

impl ChainView {
    /// Waits until the endpoint answers and checks which chain it is on.
    pub(super) async fn check(chain: Arc<dyn Chain>, genesis: &Genesis) -> Result<Self, WrongChain> {
        let expected = ChainIdentity { global_id: genesis.global_id(), zero_state: genesis.zero_state() };
        let mut said = false;
        loop {
            match chain.identity().await {
                Ok(found) if found == expected => return Ok(Self { chain, head: Mutex::new(None) }),
                Ok(found) => return Err(WrongChain { name: genesis.name().to_owned(), found, expected }),
                Err(error) if !said => {
                    tracing::warn!(%error, "the chain does not answer; nothing is served before it does; trying again");
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Takes an endpoint at its word.
    #[cfg(test)]
    pub(super) fn unchecked(chain: Arc<dyn Chain>) -> Self {
        Self { chain, head: Mutex::new(None) }
    }

    /// For messages that change the chain.
    pub(super) fn chain(&self) -> &dyn Chain {
        self.chain.as_ref()
    }

    /// The newest block, at most a few seconds old.
    pub(super) async fn head(&self) -> Result<Head, ChainError> {
        let cached = *self.head.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, head)) = cached
            && at.elapsed() < HEAD_FRESH
        {
            return Ok(head);
        }
        let head = self.chain.head().await?;
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), head));
        Ok(head)
    }

    /// Reads a channel's account and checks that it is the channel with these terms.
    pub(super) async fn read(&self, params: &ChannelParams) -> Result<OnChain, ViewError> {
        let address = params.address().map_err(ReadError::from)?;
        let account = self.chain.account(&address).await?;
        Ok(read_account(params, &account)?)
    }
}
