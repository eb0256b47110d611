//! Why a light peer does not start, and why a chat does not answer.

use std::fmt;

use cocoon_p2p::NetError;
use cocoon_payments::{
    Address, NanoTon,
    chain::{ChainError, ToncenterError},
    store::StoreError,
};

/// Why a light peer does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The overlay.
    #[error("cannot join the network: {0}")]
    Net(#[from] NetError),
    /// The endpoint's address or key.
    #[error("the chain endpoint cannot be used: {0}")]
    Endpoint(#[from] ToncenterError),
    /// The chain does not answer.
    #[error("cannot read the chain's identity: {0}")]
    Chain(#[from] ChainError),
    /// Another chain: signing anything for it would be a mistake.
    #[error("the chain endpoint serves another chain: {field} is {found}, the genesis says {expected}")]
    WrongChain {
        /// Which part of the identity.
        field: &'static str,
        /// What the endpoint says.
        found: String,
        /// What the genesis says.
        expected: String,
    },
    /// Channels and keys cannot be kept.
    #[error("the state directory cannot be used: {0}")]
    Store(#[from] StoreError),
    /// A root of trust, below which the policy asks.
    #[error("the policy asks for `{minimum}`, but no trust root of this network reaches it; {hint}")]
    Unreachable {
        /// The policy's minimum.
        minimum: cocoon_attest::Assurance,
        /// What to do.
        hint: &'static str,
    },
}

/// One worker that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedLeg {
    /// Its peer id.
    pub worker: String,
    /// Why it failed.
    pub why: String,
}

impl fmt::Display for FailedLeg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.worker, self.why)
    }
}

/// Why there is no (further) answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The network has no such model.
    #[error("model `{model}` is unknown on this network; known: {}", list(known))]
    UnknownModel {
        /// As asked for.
        model: String,
        /// Names that would do.
        known: Vec<String>,
    },
    /// The model is known, but no worker offers it now.
    #[error("no worker for model `{model}` is online right now; try again shortly")]
    NoWorkerOnline {
        /// As asked for.
        model: String,
    },
    /// The wallet cannot fund a channel, and none is left.
    #[error(
        "the wallet {wallet} holds {balance}, a channel needs {needed}; send it TON or lower the deposit"
    )]
    WalletEmpty {
        /// The wallet to fund.
        wallet: Address,
        /// What it holds.
        balance: NanoTon,
        /// What a channel needs, fees included.
        needed: NanoTon,
    },
    /// Workers are online, but the asker's own policy allows none.
    #[error("refused by policy: {why}")]
    Policy {
        /// Which rule, and what was found.
        why: String,
    },
    /// The prompt does not fit the model.
    #[error("the prompt has {prompt} tokens and the model's context holds {limit}; shorten the messages")]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: u32,
        /// The model's context.
        limit: u32,
    },
    /// A field of the request cannot be used.
    #[error("field `{field}`: {why}")]
    Invalid {
        /// Which.
        field: String,
        /// Why.
        why: String,
    },
    /// The request's own price ceiling.
    #[error("the request may cost {max_cost}, {why}; raise max_cost")]
    CostCeiling {
        /// The ceiling.
        max_cost: NanoTon,
        /// What reached it.
        why: String,
    },
    /// Time is up.
    #[error("the deadline of {seconds} s passed before the answer was complete")]
    Deadline {
        /// The deadline.
        seconds: u64,
    },
    /// Every worker that could be tried failed.
    #[error("every worker that was tried failed: {}", list(legs))]
    AllWorkersFailed {
        /// Who, and why.
        legs: Vec<FailedLeg>,
    },
    /// A channel could not be opened in time.
    #[error("no payment channel could be opened: {why}")]
    Funding {
        /// What happened on the chain.
        why: String,
    },
    /// The peer was closed.
    #[error("this light peer was closed; start it again")]
    Closed,
    /// A fault of this program.
    #[error("internal fault: {what}")]
    Internal {
        /// What went wrong.
        what: String,
    },
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => "none".into(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
