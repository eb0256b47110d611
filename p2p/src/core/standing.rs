//! How much a peer has misbehaved, and what follows.
//!
//! Offences cost points; points halve every ten minutes; a peer with [`BAN_POINTS`] is banned for an
//! hour. A single slip (a malformed ad) never bans, because software has bugs; the third does. The table
//! is bounded: when it is full, the peer with the fewest points is forgotten, so that a flood of
//! one-offence peers cannot launder a real offender.

use std::collections::BTreeMap;

use super::ad::PeerKey;

const HALF_LIFE_S: u64 = 600;
/// Points at which a peer is banned.
pub const BAN_POINTS: u32 = 100;
/// How long a ban lasts.
pub const BAN_S: u64 = 3_600;
/// Peers remembered.
const MAX_PEERS: usize = 4_096;

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offence {
    /// Sent an ad that only a broken or hostile peer can have made or let through.
    MalformedAd,
    /// Sent evidence whose digest is not the one asked for.
    WrongEvidence,
    /// Sent a frame larger than agreed, or one that does not decode.
    BadFrame,
    /// Asks more often than it may.
    Flood,
}

impl Offence {
    /// Points it costs.
    pub fn points(self) -> u32 {
        match self {
            Self::MalformedAd => 34,
            Self::WrongEvidence => 50,
            Self::BadFrame => 20,
            Self::Flood => 5,
        }
    }
}

/// What to do with a peer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Keep it, with this many points.
    Tolerate(u32),
    /// Disconnect it and accept nothing from it until this time.
    Ban {
        /// Unix seconds.
        until: u64,
    },
}

#[derive(Debug, Clone, Copy)]
struct Record {
    points: u32,
    updated_at: u64,
    banned_until: u64,
}

impl Record {
    fn points(&self, now: u64) -> u32 {
        let elapsed = now.saturating_sub(self.updated_at);
        let halved = u64::from(self.points.checked_shr((elapsed / HALF_LIFE_S).min(31) as u32).unwrap_or(0));
        (halved - halved * (elapsed % HALF_LIFE_S) / (2 * HALF_LIFE_S)) as u32
    }
}

/// See the module page.
#[derive(Debug, Default)]
pub struct Standing {
    records: BTreeMap<PeerKey, Record>,
}

impl Standing {
    /// Adds an offence. `now` is unix seconds.
    pub fn record(&mut self, peer: &PeerKey, offence: Offence, now: u64) -> Verdict {
        if !self.records.contains_key(peer) && self.records.len() >= MAX_PEERS {
            let mildest = self.records.iter().min_by_key(|(_, r)| (r.banned_until > now, r.points(now)));
            if let Some(mildest) = mildest.map(|(peer, _)| peer.clone()) {
                self.records.remove(&mildest);
            }
        }
        let fresh = Record { points: 0, updated_at: now, banned_until: 0 };
        let record = self.records.entry(peer.clone()).or_insert(fresh);
        record.points = record.points(now).saturating_add(offence.points());
        record.updated_at = now;
        if record.points >= BAN_POINTS {
            record.banned_until = now.saturating_add(BAN_S);
        }
        self.verdict(peer, now)
    }

    /// What to do with a peer now.
    pub fn verdict(&self, peer: &PeerKey, now: u64) -> Verdict {
        match self.records.get(peer) {
            Some(record) if record.banned_until > now => Verdict::Ban { until: record.banned_until },
            Some(record) => Verdict::Tolerate(record.points(now)),
            None => Verdict::Tolerate(0),
        }
    }

    /// Forgets what has decayed and names the peers whose ban is over.
    pub fn expire(&mut self, now: u64) -> Vec<PeerKey> {
        let mut pardoned = Vec::new();
        self.records.retain(|peer, record| {
            if record.banned_until != 0 && record.banned_until <= now {
                pardoned.push(peer.clone());
                return false;
            }
            record.banned_until != 0 || record.points(now) > 0
        });
        pardoned
    }

    /// Peers banned now.
    pub fn banned(&self, now: u64) -> usize {
        self.records.values().filter(|record| record.banned_until > now).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(n: u16) -> PeerKey {
        PeerKey(n.to_be_bytes().to_vec())
    }

    #[test]
    fn one_slip_is_tolerated_a_habit_is_banned_and_a_ban_ends() {
        let mut standing = Standing::default();
        assert_eq!(standing.record(&peer(1), Offence::MalformedAd, 10), Verdict::Tolerate(34));
        assert_eq!(standing.record(&peer(1), Offence::MalformedAd, 10), Verdict::Tolerate(68));
        assert_eq!(standing.record(&peer(1), Offence::MalformedAd, 10), Verdict::Ban { until: 10 + BAN_S });
        assert!(standing.expire(9 + BAN_S).is_empty());
        assert_eq!(standing.expire(10 + BAN_S), vec![peer(1)]);
        assert_eq!(standing.verdict(&peer(1), 10 + BAN_S), Verdict::Tolerate(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn the_table_stays_bounded_and_keeps_the_banned(n in 4_090u16..4_200) {
            let mut standing = Standing::default();
            for _ in 0..4 { standing.record(&peer(u16::MAX), Offence::MalformedAd, 5); }
            for i in 0..n { standing.record(&peer(i), Offence::Flood, 5); }
            prop_assert!(standing.records.len() <= MAX_PEERS);
            prop_assert_eq!(standing.verdict(&peer(u16::MAX), 5), Verdict::Ban { until: 5 + BAN_S });
        }
    }
}
