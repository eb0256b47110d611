//! What is believed of a channel's account.
//!
//! One endpoint is many servers: one lags behind, one was restored from a backup, one lies. A read
//! that is older than the newest changes nothing, and neither does one that the contract
//! (`payments/contracts/channel.tolk`) makes impossible: an open channel goes away only after its
//! close delay or its life is over.
//!
//! A channel that is forgotten takes its deposit with it, since nobody asks for the refund any
//! more. So forgetting needs two reads of different times that find nothing, both after the time
//! by which the contract must have been opened, before which no channel can end.

use cocoon_payments::{
    NanoTon,
    channel::{ChannelParams, OnChain, Stage},
};

/// A block of the channel's shard may be older than the masterchain block that dates the read.
const OPEN_SLACK_S: u64 = 60;
/// A top-up that was sent arrives within this time, or is sent again.
pub(super) const TOP_UP_MS: u64 = 60_000;

/// What a read changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// Nothing: it is older than what is known.
    Stale,
    /// Nothing: an open channel that is neither closing nor expired cannot have gone.
    Impossible,
    /// It was believed.
    Taken,
    /// It was believed, and the channel is open for the first time.
    Opened,
    /// It was believed, and the channel is over: it may be forgotten.
    Over,
}

/// See the module page. Reads no clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    open_by: u64,
    close_delay_s: u64,
    chain: Option<OnChain>,
    /// Milliseconds of the peer's clock.
    asked_at: u64,
    /// It was open once, in this life of the peer or in one before.
    opened: bool,
    closing: bool,
    /// Chain time of the first of the latest reads in a row that found nothing and may be right.
    gone_at: Option<u64>,
    top_up: Option<TopUp>,
}

#[derive(Debug, Clone, Copy)]
struct TopUp {
    /// What the contract could pay in total before. Unlike its balance, no redemption lowers that.
    capacity: NanoTon,
    until_ms: u64,
}

impl Sight {
    pub(super) fn new(params: &ChannelParams) -> Self {
        Self {
            open_by: u64::from(params.open_by),
            close_delay_s: u64::from(params.close_delay_s),
            chain: None,
            asked_at: 0,
            opened: false,
            closing: false,
            gone_at: None,
            top_up: None,
        }
    }

    /// Takes a read in, or not. `now_unix` bounds its date: one server whose clock runs ahead must
    /// not make every later read look old.
    pub(super) fn observe(&mut self, chain: OnChain, now_ms: u64, now_unix: u64) -> Read {
        self.asked_at = now_ms;
        let chain = OnChain { read_at: chain.read_at.min(now_unix), ..chain };
        if self.chain.is_some_and(|known| chain.read_at < known.read_at) {
            return Read::Stale;
        }
        let gone = chain.stage == Stage::Absent && self.may_be_gone(&chain);
        if self.opened && !chain.opened() && !gone {
            return Read::Impossible;
        }
        let first = chain.opened() && !self.opened;
        self.opened |= first;
        // An open channel that ended without our asking has expired; no more is paid through it.
        self.closing |= chain.close_at().is_some() || (self.opened && gone);
        self.chain = Some(chain);
        let before = std::mem::replace(&mut self.gone_at, gone.then_some(chain.read_at));
        match before.filter(|_| gone) {
            Some(before) if before < chain.read_at => Read::Over,
            // A second look at the same block is no second witness.
            Some(_) => Read::Taken,
            None if first => Read::Opened,
            None => Read::Taken,
        }
    }

    /// Whether nothing at the address can mean that nothing will ever be there again: the close delay that
    /// the chain showed is over, or the channel's life, or it was never opened. What this peer merely
    /// asked for ends nothing; unless a life of it before this one asked, then a whole close delay must
    /// have passed in which it could have seen the channel closing.
    fn may_be_gone(&self, chain: &OnChain) -> bool {
        let known = self.chain.filter(|known| known.opened());
        let expire_at = known.map_or(0, |known| known.expire_at).max(chain.expire_at);
        let closed = match known {
            Some(known) => known.close_at().is_some_and(|at| chain.read_at >= u64::from(at)),
            None => self.closing && chain.read_at >= self.open_by + OPEN_SLACK_S + self.close_delay_s,
        };
        let ended = !self.opened || closed || chain.read_at >= u64::from(expire_at);
        ended && chain.read_at > self.open_by + OPEN_SLACK_S
    }

    /// The newest state that was believed.
    pub(super) fn chain(&self) -> Option<OnChain> {
        self.chain
    }

    /// When the chain was last asked.
    pub(super) fn asked_at(&self) -> u64 {
        self.asked_at
    }

    pub(super) fn closing(&self) -> bool {
        self.closing
    }

    pub(super) fn begin_closing(&mut self) {
        self.closing = true;
    }

    /// It was open in an earlier life of the peer.
    pub(super) fn was_open(&mut self) {
        self.opened = true;
    }

    /// A top-up was sent when the contract could pay `capacity` in total.
    pub(super) fn expect_top_up(&mut self, capacity: NanoTon, now_ms: u64) {
        self.top_up = Some(TopUp { capacity, until_ms: now_ms + TOP_UP_MS });
    }

    /// Whether a top-up is on its way. The transfer that carries it is in the chain before its
    /// message has reached the channel.
    pub(super) fn awaits_top_up(&self, now_ms: u64) -> bool {
        let landed = |top_up: &TopUp| self.chain.is_some_and(|chain| chain.capacity() > top_up.capacity);
        self.top_up.is_some_and(|top_up| now_ms < top_up.until_ms && !landed(&top_up))
    }

    /// Whether the next read is likely to differ from the last.
    pub(super) fn is_changing(&self, now_ms: u64) -> bool {
        let opening = !self.opened && !self.closing;
        opening || self.gone_at.is_some() || self.awaits_top_up(now_ms)
    }
}

#[cfg(test)]
mod tests {
    use cocoon_payments::Address;

    use super::*;

    const OPEN_BY: u64 = 1_000;
    const EXPIRE_AT: u64 = 100_000;
    const NOW: u64 = 1_000_000;

    fn sight() -> Sight {
        Sight::new(&ChannelParams {
            client: Address::base([1; 32]),
            worker: Address::base([2; 32]),
            client_key: [3; 32],
            worker_key: [4; 32],
            channel_id: 5,
            close_delay_s: 3600,
            open_by: u32::try_from(OPEN_BY).unwrap(),
            expire_at: u32::try_from(EXPIRE_AT).unwrap(),
        })
    }

    fn at(read_at: u64, stage: Stage) -> OnChain {
        OnChain {
            stage,
            balance: NanoTon(1_000_000_000),
            settled: NanoTon::ZERO,
            expire_at: u32::try_from(EXPIRE_AT).unwrap(),
            read_at,
        }
    }

    /// Reads in order; what each changed.
    fn see(sight: &mut Sight, reads: &[(u64, Stage)]) -> Vec<Read> {
        reads.iter().map(|&(read_at, stage)| sight.observe(at(read_at, stage), 0, NOW)).collect()
    }

    #[test]
    fn an_open_channel_is_not_forgotten_however_often_it_is_not_found() {
        let mut sight = sight();
        assert_eq!(see(&mut sight, &[(900, Stage::Open)]), [Read::Opened]);
        let lies = [(2_000, Stage::Absent), (3_000, Stage::Absent), (4_000, Stage::Unopened)];
        assert_eq!(see(&mut sight, &lies), [Read::Impossible; 3]);
        assert_eq!(sight.chain().unwrap().stage, Stage::Open, "it goes on paying");
        // The same after a restart, before the chain was seen.
        let mut again = self::sight();
        again.was_open();
        assert_eq!(see(&mut again, &lies), [Read::Impossible; 3]);
        assert_eq!(see(&mut again, &[(900, Stage::Open)]), [Read::Taken]);
    }

    #[test]
    fn a_read_older_than_the_newest_changes_nothing() {
        let mut sight = sight();
        let reads = [(900, Stage::Closing { at: 5_000 }), (899, Stage::Open), (899, Stage::Absent)];
        assert_eq!(see(&mut sight, &reads), [Read::Opened, Read::Stale, Read::Stale]);
        assert_eq!(sight.chain().unwrap().close_at(), Some(5_000));
    }

    #[test]
    fn a_read_from_the_future_does_not_outdate_all_later_ones() {
        let mut sight = sight();
        assert_eq!(sight.observe(at(u64::MAX, Stage::Unopened), 0, 900), Read::Taken);
        assert_eq!(sight.observe(at(901, Stage::Open), 0, 901), Read::Opened);
    }

    #[test]
    fn a_closed_channel_is_over_at_the_second_read_that_finds_nothing() {
        let mut sight = sight();
        let closing = (5_000, Stage::Closing { at: 8_600 });
        assert_eq!(see(&mut sight, &[(900, Stage::Open), closing]), [Read::Opened, Read::Taken]);
        let reads = [(8_700, Stage::Absent), (8_700, Stage::Absent), (8_702, Stage::Absent)];
        assert_eq!(see(&mut sight, &reads), [Read::Taken, Read::Taken, Read::Over]);
    }

    #[test]
    fn a_wish_to_close_ends_nothing_and_neither_does_a_close_delay_that_runs() {
        let mut sight = sight();
        see(&mut sight, &[(900, Stage::Open)]);
        sight.begin_closing();
        let early = [(2_000, Stage::Absent), (3_000, Stage::Absent)];
        assert_eq!(see(&mut sight, &early), [Read::Impossible; 2]);
        let reads = [(5_000, Stage::Closing { at: 8_600 }), (8_598, Stage::Absent), (8_599, Stage::Absent)];
        assert_eq!(see(&mut sight, &reads), [Read::Taken, Read::Impossible, Read::Impossible]);

        // After a restart only the wish is known, not when the delay began.
        let mut again = self::sight();
        again.was_open();
        again.begin_closing();
        let delay_over = OPEN_BY + OPEN_SLACK_S + 3_600;
        let reads =
            [(delay_over - 1, Stage::Absent), (delay_over, Stage::Absent), (delay_over + 1, Stage::Absent)];
        assert_eq!(see(&mut again, &reads), [Read::Impossible, Read::Taken, Read::Over]);
    }

    #[test]
    fn a_read_that_finds_it_again_begins_the_count_anew() {
        let mut sight = sight();
        let closing = Stage::Closing { at: 8_600 };
        let reads = [
            (5_000, closing),
            (8_700, Stage::Absent),
            (8_701, closing),
            (8_702, Stage::Absent),
            (8_703, Stage::Absent),
        ];
        let expected = [Read::Opened, Read::Taken, Read::Taken, Read::Taken, Read::Over];
        assert_eq!(see(&mut sight, &reads), expected);
    }

    #[test]
    fn an_expired_channel_may_go_without_our_asking() {
        let mut sight = sight();
        see(&mut sight, &[(900, Stage::Open)]);
        let reads =
            [(EXPIRE_AT - 1, Stage::Absent), (EXPIRE_AT, Stage::Absent), (EXPIRE_AT + 1, Stage::Absent)];
        assert_eq!(see(&mut sight, &reads), [Read::Impossible, Read::Taken, Read::Over]);
        assert!(sight.closing(), "it is no channel that is being opened");
    }

    #[test]
    fn a_channel_that_was_never_opened_is_over_once_it_cannot_be() {
        let mut sight = sight();
        sight.begin_closing();
        let late = OPEN_BY + OPEN_SLACK_S;
        let reads = [
            (900, Stage::Absent),
            (950, Stage::Absent),
            (late, Stage::Absent),
            (late + 1, Stage::Absent),
            (late + 2, Stage::Absent),
        ];
        let expected = [Read::Taken, Read::Taken, Read::Taken, Read::Taken, Read::Over];
        assert_eq!(see(&mut sight, &reads), expected);
    }

    #[test]
    fn a_top_up_is_awaited_until_it_lands_or_its_time_is_over() {
        let mut sight = sight();
        see(&mut sight, &[(900, Stage::Open)]);
        let before = sight.chain().unwrap().capacity();
        assert!(!sight.is_changing(0));
        sight.expect_top_up(before, 5);
        assert!(sight.awaits_top_up(5) && sight.is_changing(5));
        assert!(!sight.awaits_top_up(5 + TOP_UP_MS), "it may be sent again");

        // A redemption in between is no arrival, and does not hide one.
        let redeemed =
            OnChain { settled: NanoTon(400), balance: NanoTon(999_999_600), ..at(901, Stage::Open) };
        sight.observe(redeemed, 6, NOW);
        assert!(sight.awaits_top_up(6));
        let landed = OnChain { balance: NanoTon(1_999_999_600), ..redeemed };
        sight.observe(landed, 7, NOW);
        assert!(!sight.awaits_top_up(7) && !sight.is_changing(7));
    }
}
