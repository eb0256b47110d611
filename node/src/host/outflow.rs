//! What waits for one asker, and what follows from it.
//!
//! An asker decides how much the host has to say: every record it sends may be answered. One that sends and
//! never reads must not make the host remember what it does not read. From mild to hard:
//!
//! | waiting for the asker | what the session does |
//! |---|---|
//! | [`PAUSE_AT`] | its tokens are paused at the enclave, and nothing more is read from it |
//! | [`RESUME_AT`] | its tokens go on |
//! | [`CAP`] | it ends: refusals and quotes are not paused, and a turn may bring many |
//! | anything, for [`STALL`] | it ends: the transport takes nothing, whatever else the asker does |
//!
//! Nothing here reads a clock: callers pass `now`.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes waiting at which the enclave session is paused and the asker is read no further.
pub(super) const PAUSE_AT: usize = 256 * 1024;
/// Bytes waiting at which a paused session goes on.
pub(super) const RESUME_AT: usize = 64 * 1024;
/// More than this never waits for one asker. All answers to what was read before [`PAUSE_AT`] fit many times.
const CAP: usize = 4 * 1024 * 1024;
/// An asker whose transport takes nothing for this long is gone.
const STALL: Duration = Duration::from_secs(30);

/// Why a session ends on account of what it left unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overrun {
    /// The transport takes nothing.
    Stalled,
    /// Too much waits.
    Full,
}

impl Overrun {
    /// For the goodbye.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Stalled => "the asker reads nothing",
            Self::Full => "the asker reads too slowly for what it asks",
        }
    }
}

/// Watches the transport take bytes.
#[derive(Debug)]
pub(super) struct Outflow {
    accepted: u64,
    waiting: bool,
    /// When the transport last took a byte, or something began to wait.
    since: Instant,
}

impl Outflow {
    pub(super) fn new(now: Instant) -> Self {
        Self { accepted: 0, waiting: false, since: now }
    }

    /// Whether the asker may be read on with this much waiting for it.
    pub(super) fn may_read(queued: usize) -> bool {
        queued <= PAUSE_AT
    }

    /// Whether this much may wait at all.
    pub(super) fn fits(queued: usize) -> Result<(), Overrun> {
        if queued > CAP { Err(Overrun::Full) } else { Ok(()) }
    }

    /// Looks at the writer after a turn: bytes `queued`, bytes `accepted` by the transport since the beginning,
    /// and whether anything is `waiting` to be written or flushed. What the asker sends plays no part: one that
    /// keeps talking and never listens is as good as gone.
    pub(super) fn turn(
        &mut self,
        queued: usize,
        accepted: u64,
        waiting: bool,
        now: Instant,
    ) -> Result<(), Overrun> {
        let begins = waiting && !self.waiting;
        if begins || !waiting || accepted != self.accepted {
            self.since = now;
        }
        (self.accepted, self.waiting) = (accepted, waiting);
        Self::fits(queued)?;
        if waiting && now.saturating_duration_since(self.since) > STALL {
            Err(Overrun::Stalled)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_asker_that_sends_on_but_takes_nothing_is_let_go() {
        let mut now = Instant::now();
        let mut out = Outflow::new(now);
        assert_eq!(out.turn(100, 0, true, now), Ok(()));
        // A turn a second, as if frames kept coming in.
        for _ in 0..STALL.as_secs() {
            now += SECOND;
            assert_eq!(out.turn(100, 0, true, now), Ok(()));
        }
        now += SECOND;
        assert_eq!(out.turn(100, 0, true, now), Err(Overrun::Stalled));
    }

    #[test]
    fn a_slow_reader_is_kept_and_an_idle_one_too() {
        let mut now = Instant::now();
        let mut out = Outflow::new(now);
        for accepted in 0..10 {
            now += STALL;
            assert_eq!(out.turn(100_000, accepted, true, now), Ok(()), "a byte in {STALL:?} is something");
        }
        now += STALL * 100;
        assert_eq!(out.turn(0, 20, false, now), Ok(()));
        now += STALL * 100;
        assert_eq!(out.turn(50, 20, true, now), Ok(()), "the clock starts when something begins to wait");
        now += STALL + SECOND;
        assert_eq!(out.turn(50, 20, true, now), Err(Overrun::Stalled));
    }

    #[test]
    fn what_waits_is_bounded_however_fast_the_asker_reads() {
        let now = Instant::now();
        let mut out = Outflow::new(now);
        assert!(Outflow::may_read(PAUSE_AT) && !Outflow::may_read(PAUSE_AT + 1));
        assert_eq!(out.turn(CAP, 1, true, now), Ok(()));
        assert_eq!(out.turn(CAP + 1, 2, true, now), Err(Overrun::Full));
    }
}
