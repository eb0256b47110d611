#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn limits() -> AdmissionLimits {
    AdmissionLimits {
        slots: 2,
        queued: 3,
        queued_per_asker: 2,
        per_asker: Rate { burst: 4, every: 1_000 },
        askers: 8,
        max_wait: Duration::from_secs(10),
    }
}

fn open(admission: &mut Admission, asker: u8, session: u64, now: Instant) -> Effect {
    let input = Input::Opened { asker: PeerKey(vec![asker]), session: SessionId(session) };
    admission.handle(input, now).remove(0)
}

#[test]
fn sessions_are_admitted_then_queued_then_refused_and_the_queue_moves_up_in_order() {
    let now = Instant::now();
    let mut admission = Admission::new(limits(), now);
    assert_eq!(open(&mut admission, 1, 1, now), Effect::Admit(SessionId(1)));
    assert_eq!(open(&mut admission, 1, 2, now), Effect::Admit(SessionId(2)));
    assert!(matches!(open(&mut admission, 1, 3, now), Effect::Queue { .. }));
    assert!(matches!(open(&mut admission, 2, 4, now), Effect::Queue { .. }));
    assert!(matches!(open(&mut admission, 3, 5, now), Effect::Queue { .. }));
    assert!(matches!(open(&mut admission, 4, 6, now), Effect::Refuse { reason: Refusal::Busy, .. }));
    let effects = admission.handle(Input::Closed { session: SessionId(1) }, now);
    assert_eq!(effects, vec![Effect::Admit(SessionId(3))]);
}

#[test]
fn one_asker_cannot_take_the_whole_queue_nor_open_without_end() {
    let now = Instant::now();
    let mut admission = Admission::new(limits(), now);
    for session in 1..=4 {
        open(&mut admission, 1, session, now);
    }
    let fast = open(&mut admission, 1, 5, now);
    assert!(
        matches!(fast, Effect::Refuse { reason: Refusal::TooFast { wait }, .. } if wait == Duration::from_secs(1))
    );
    let share = open(&mut admission, 1, 6, now + Duration::from_secs(1));
    assert!(matches!(share, Effect::Refuse { reason: Refusal::QueueShare { queued: 2 }, .. }));
}

#[test]
fn nobody_waits_longer_than_promised() {
    let now = Instant::now();
    let mut admission = Admission::new(limits(), now);
    for (asker, session) in [(1, 1), (2, 2), (3, 3)] {
        open(&mut admission, asker, session, now);
    }
    let due = admission.poll_timeout().unwrap();
    assert_eq!(due, now + Duration::from_secs(10));
    assert!(admission.handle(Input::Timeout, now + Duration::from_secs(9)).is_empty());
    let effects = admission.handle(Input::Timeout, due);
    assert!(matches!(
        effects[..],
        [Effect::Refuse { session: SessionId(3), reason: Refusal::Waited { .. } }]
    ));
    assert_eq!(admission.poll_timeout(), None);
}

proptest! {
    #[test]
    fn slots_and_queue_stay_bounded_and_every_session_ends_once(
        steps in prop::collection::vec((0u8..12, 0u64..40, 0u64..4_000, 0u8..4), 1..200)
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut admission = Admission::new(limits(), now);
        let (mut next, mut running, mut waiting) = (0u64, BTreeSet::new(), BTreeSet::new());
        for (asker, pick, wait, action) in steps {
            now += Duration::from_millis(wait);
            let effects = match action {
                0 => {
                    let all: Vec<u64> = running.iter().chain(&waiting).copied().collect();
                    let Some(session) = all.get(pick as usize % all.len().max(1)).copied() else { continue };
                    running.remove(&session);
                    waiting.remove(&session);
                    admission.handle(Input::Closed { session: SessionId(session) }, now)
                }
                1 => admission.handle(Input::Timeout, now),
                _ => {
                    next += 1;
                    let input = Input::Opened { asker: PeerKey(vec![asker]), session: SessionId(next) };
                    admission.handle(input, now)
                }
            };
            for effect in effects {
                match effect {
                    Effect::Admit(SessionId(id)) => { waiting.remove(&id); prop_assert!(running.insert(id)); }
                    Effect::Queue { session, expected_wait } => {
                        prop_assert!(waiting.insert(session.0));
                        prop_assert!(expected_wait <= limits().max_wait);
                    }
                    Effect::Refuse { session, .. } => { waiting.remove(&session.0); prop_assert!(!running.contains(&session.0)); }
                }
            }
            prop_assert_eq!(admission.running(), running.len());
            prop_assert_eq!(admission.queued(), waiting.len());
            prop_assert!(running.len() <= 2 && waiting.len() <= 3 && admission.buckets.len() <= 8);
            // A free slot and a waiting session never coexist.
            prop_assert!(running.len() == 2 || waiting.is_empty());
        }
    }
}
