//! What a job brings, and what is known of it.

use std::time::Instant;

use super::JobId;
use super::blocks::BlockId;
use super::fair::{Claim, Rank};
use super::prefix::{Key, Salt};

/// On what terms a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Who asks. Fairness is between askers, however many jobs each has.
    pub asker: u64,
    /// Separates cached prefixes.
    pub salt: Salt,
    /// Higher is more urgent and, between askers, weighs more: a class-`p` job's tokens count `1 / (p + 1)`.
    pub priority: u8,
    /// When the answer is of no more use. The job ends then, paid or not.
    pub deadline: Option<Instant>,
}

impl Terms {
    /// Those of an asker whose prefixes nobody else finds again: `salt` is a secret of theirs, or random.
    pub fn of(asker: u64, salt: [u8; 32]) -> Self {
        Self { asker, salt: Salt(salt), priority: 0, deadline: None }
    }
}

/// A tokenised request.
#[derive(Clone, PartialEq, Eq)]
pub struct Sequence {
    /// The rendered conversation.
    pub prompt: Vec<u32>,
    /// Output that another worker has already released.
    pub prefix: Vec<u32>,
    /// Most output tokens, those of `prefix` included.
    pub limit: u32,
    /// Nothing remains but to say so.
    pub at_end: bool,
}

impl std::fmt::Debug for Sequence {
    /// Lengths only: what an asker wrote has no place in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Sequence");
        out.field("prompt", &self.prompt.len()).field("prefix", &self.prefix.len());
        out.field("limit", &self.limit).field("at_end", &self.at_end).finish()
    }
}

/// Why a job is over, where the scheduler is the one to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Over {
    /// The model ended its turn, or the prefix was complete.
    End,
    /// All output tokens of the limit are there.
    Length,
    /// It was cancelled.
    Cancelled,
    /// Its deadline has passed.
    Deadline,
}

/// The last word on a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub job: JobId,
    /// Why.
    pub over: Over,
    /// Tokens of prompt and prefix that were found in the cache.
    pub cached: u32,
}

/// A job.
pub(super) struct Job {
    pub(super) terms: Terms,
    /// When it came, and then when its price was known.
    pub(super) since: Instant,
    pub(super) prepared: bool,
    pub(super) paused: bool,
    /// Output tokens paid for, in all.
    pub(super) allowance: u32,
    /// Output tokens sampled here.
    pub(super) released: u32,
    /// Output tokens that are still within its limit.
    pub(super) left: u32,
    /// Prompt, prefix and what was sampled.
    pub(super) ids: Vec<u32>,
    /// Keys of the full blocks of `ids`, as far as they were needed.
    pub(super) keys: Vec<Key>,
    /// Blocks, in the order of positions. Empty unless the job is among those running.
    pub(super) table: Vec<BlockId>,
    /// Positions whose keys and values are in `table`. Less than `ids.len()`: the last token is computed when its
    /// successor is wanted.
    pub(super) computed: usize,
    /// Blocks at the front of `table` that need not be published any more.
    pub(super) published: usize,
    /// Tokens that were found in the cache when it first ran; none before.
    pub(super) cached: Option<usize>,
    /// Its standing, from when it first wanted to run, and when it last began to.
    pub(super) rank: Option<(Rank, Instant)>,
    /// It is paid for, and its reader keeps up.
    pub(super) wants: bool,
    /// It is among those running.
    pub(super) running: bool,
    /// When it ceased to want to run, as a count of such events.
    pub(super) rested: u64,
}

impl Job {
    pub(super) fn new(terms: Terms, since: Instant) -> Self {
        Self {
            terms,
            since,
            prepared: false,
            paused: false,
            allowance: 0,
            released: 0,
            left: 0,
            ids: Vec::new(),
            keys: Vec::new(),
            table: Vec::new(),
            computed: 0,
            published: 0,
            cached: None,
            rank: None,
            wants: false,
            running: false,
            rested: 0,
        }
    }

    /// Whether it should run, if there is a place.
    pub(super) fn may_run(&self) -> bool {
        self.prepared && !self.paused && self.released < self.allowance
    }

    /// Tokens to compute before the next can be sampled.
    pub(super) fn remaining(&self) -> usize {
        self.ids.len() - self.computed
    }

    pub(super) fn claim(&self) -> Option<Claim> {
        let Terms { asker, priority, deadline, .. } = self.terms;
        self.rank.map(|(rank, since)| Claim { asker, priority, deadline, rank, since })
    }

    pub(super) fn cached_tokens(&self) -> u32 {
        u32::try_from(self.cached.unwrap_or(0)).unwrap_or(u32::MAX)
    }
}
