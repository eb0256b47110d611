use std::collections::{BTreeMap, VecDeque};

use cocoon_attest::live::LiveProof;
use cocoon_inference::{Alternative, Logprobs};
use proptest::prelude::*;

use super::*;
use crate::session::testkit::{self, PAIR, Pair, TARIFF, Worker, ask, payer, settle};

fn ready(spendable: u64) -> (Asker, Worker) {
    let (mut asker, mut worker) = PAIR.connect(payer(spendable), None);
    settle(&mut asker, &mut worker, 0).unwrap();
    assert!(matches!(asker.event(), Some(Event::Ready(_))));
    (asker, worker)
}

fn events(asker: &mut Asker) -> Vec<Event> {
    std::iter::from_fn(|| asker.event()).collect()
}

/// Generates until the request's own limits end the stream.
fn complete(asker: &mut Asker, worker: &mut Worker, stream: u32) -> Result<(), SessionError> {
    for _ in 0..10_000 {
        settle(asker, worker, 0)?;
        if worker.is_complete(stream) {
            worker.finish(stream, FinishReason::Length);
            return settle(asker, worker, 0);
        }
        assert!(worker.generate(stream, 3) > 0, "an honest stream never waits for money");
    }
    panic!("the stream does not end");
}

#[test]
fn an_answer_is_paid_as_it_streams_and_ends_with_a_verified_receipt() {
    let (mut asker, mut worker) = ready(1_000_000);
    let stream = asker.ask(ask(10, Some(50), 10_000), 0);
    complete(&mut asker, &mut worker, stream).unwrap();
    let events = events(&mut asker);
    assert_eq!(
        events[0],
        Event::Quoted { stream, input_tokens: 10, cost: NanoTon(10), form: AnswerForm::default() }
    );
    let tokens: Vec<u32> = events
        .iter()
        .filter_map(|event| match event {
            Event::Tokens { tokens, .. } => Some(tokens),
            _ => None,
        })
        .flatten()
        .map(|token| token.id)
        .collect();
    assert_eq!(tokens, (0..50).collect::<Vec<_>>());
    let Some(Event::Finished { receipt, usage, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(receipt.receipt.cost, NanoTon(10 + 2 * 50));
    assert_eq!(*usage, Usage { prompt_tokens: 10, cached_tokens: 0, completion_tokens: 50 });
    let paid = worker.newest.unwrap().voucher.cumulative;
    assert!(paid.0 - 110 <= TARIFF.quantum.0, "at most one quantum ahead: {paid}");
    assert_eq!(paid.0 % TARIFF.step().0, 0, "vouchers advance in whole steps");
}

#[test]
fn many_streams_share_one_voucher() {
    let (mut asker, mut worker) = ready(1_000_000);
    for _ in 0..20 {
        asker.ask(ask(1, Some(4), 1_000), 0);
    }
    settle(&mut asker, &mut worker, 0).unwrap();
    assert_eq!(worker.requests, 20);
    assert!(worker.vouchers <= 2, "{} vouchers", worker.vouchers);
}

#[test]
fn nothing_is_asked_before_the_session_is_bound_to_a_fresh_quote() {
    let mut pair = Pair::new();
    pair.terms.challenge = Some([4; 32]);
    let (mut asker, mut worker) = pair.connect(payer(1_000), None);
    asker.ask(ask(5, None, 100), 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    assert_eq!((worker.requests, worker.vouchers), (0, 0));
    assert!(!asker.is_ready());
    worker.prove_live();
    settle(&mut asker, &mut worker, 0).unwrap();
    assert_eq!(worker.requests, 1);
    assert!(asker.is_ready());
}

#[test]
fn a_live_proof_of_another_session_is_refused() {
    let mut pair = Pair::new();
    pair.terms.challenge = Some([4; 32]);
    let (mut asker, mut worker) = pair.connect(payer(1_000), None);
    settle(&mut asker, &mut worker, 0).unwrap();
    let proof = LiveProof { quote: vec![0; 32], index: 0, leaves: 1, path: vec![] };
    worker.say(ToAsker::Live(proof.encode()));
    let error = settle(&mut asker, &mut worker, 0).unwrap_err();
    assert!(matches!(error, SessionError::Live(_)), "{error}");
}

#[test]
fn an_enclave_dearer_than_its_ad_hears_nothing() {
    let mut pair = Pair::new();
    pair.terms.price_output -= 1;
    let (mut asker, mut worker) = pair.connect(payer(1_000), None);
    asker.ask(ask(5, None, 100), 0);
    let error = settle(&mut asker, &mut worker, 0).unwrap_err();
    assert!(matches!(error, SessionError::Terms { field: "price_output", .. }), "{error}");
    assert_eq!(worker.requests, 0);
}

#[test]
fn tokens_that_were_not_paid_end_the_session() {
    let (mut asker, mut worker) = ready(1_000_000);
    let stream = asker.ask(ask(0, None, 1_000), 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    let tokens = (0..100).map(|id| Token::new(id, "")).collect();
    worker.say(ToAsker::Tokens { stream, start: 0, tokens });
    let error = settle(&mut asker, &mut worker, 0).unwrap_err();
    assert!(matches!(error, SessionError::Meter(MeterError::Unpaid { .. })), "{error}");
}

#[test]
fn log_probabilities_come_exactly_as_they_were_asked_for() {
    let logprobs = |top: usize| {
        let alternative = |id| Alternative { id, logprob: -1.0, bytes: vec![b'x'] };
        let top = (0..top as u32).map(alternative).collect();
        Some(Box::new(Logprobs { logprob: -1.0, bytes: vec![b'x'], top }))
    };
    for (asked, sent, sound) in [
        (None, None, true),
        (Some(2), logprobs(2), true),
        // A vocabulary may have fewer tokens than alternatives were asked for.
        (Some(2), logprobs(1), true),
        (Some(2), None, false),
        (Some(2), logprobs(3), false),
        (None, logprobs(0), false),
    ] {
        let (mut asker, mut worker) = ready(1_000_000);
        let mut ask = ask(0, None, 1_000);
        ask.request.sampling.logprobs = asked;
        let stream = asker.ask(ask, 0);
        settle(&mut asker, &mut worker, 0).unwrap();
        let tokens = vec![Token { logprobs: sent.clone(), ..Token::new(0, "x") }];
        worker.say(ToAsker::Tokens { stream, start: 0, tokens });
        let settled = settle(&mut asker, &mut worker, 0);
        match sound {
            true => assert_eq!(settled, Ok(()), "{asked:?}, {sent:?}"),
            false => assert!(matches!(settled, Err(SessionError::Protocol(_))), "{asked:?}, {sent:?}"),
        }
    }
}

#[test]
fn tokens_that_skip_or_repeat_end_the_session() {
    for start in [1, 7] {
        let (mut asker, mut worker) = ready(1_000_000);
        let stream = asker.ask(ask(0, None, 1_000), 0);
        settle(&mut asker, &mut worker, 0).unwrap();
        let tokens = vec![Token::new(0, "")];
        worker.say(ToAsker::Tokens { stream, start, tokens });
        let error = settle(&mut asker, &mut worker, 0).unwrap_err();
        assert!(matches!(error, SessionError::Protocol(_)), "{error}");
    }
}

#[test]
fn a_receipt_that_disagrees_with_our_own_count_ends_the_session() {
    type Lie = fn(&mut cocoon_payments::Receipt);
    let lies: [(Lie, &str); 5] = [
        (|receipt| receipt.cost.0 += 1, "cost"),
        (|receipt| receipt.output_tokens += 1, "output_tokens"),
        (|receipt| receipt.session[0] ^= 1, "session"),
        (|receipt| receipt.stream += 1, "stream"),
        (|receipt| receipt.channel = None, "channel"),
    ];
    for (lie, name) in lies {
        let (mut asker, mut worker) = ready(1_000_000);
        worker.tamper = lie;
        let stream = asker.ask(ask(3, Some(5), 1_000), 0);
        let error = complete(&mut asker, &mut worker, stream).unwrap_err();
        assert!(matches!(error, SessionError::Receipt { field, .. } if field == name), "{error}");
    }
}

#[test]
fn a_cancelled_stream_is_billed_for_what_it_had_and_its_rest_pays_the_next() {
    let (mut asker, mut worker) = ready(1_000_000);
    let first = asker.ask(ask(2, None, 1_000), 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    worker.generate(first, 3);
    settle(&mut asker, &mut worker, 0).unwrap();
    events(&mut asker);
    asker.cancel(first, 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    assert_eq!(events(&mut asker), [], "nobody listens any more");
    assert_eq!(asker.streams(), 0);
    assert_eq!(asker.meter().charged(), NanoTon(2 + 6));
    assert_eq!(asker.meter().pool(), worker.meter.pool());
    let paid = worker.newest.unwrap().voucher.cumulative;
    assert!(asker.meter().pool() >= TARIFF.step(), "enough is left to begin with");
    asker.ask(ask(0, Some(2), 1_000), 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    assert_eq!(worker.newest.unwrap().voucher.cumulative, paid, "no further voucher was needed");
}

#[test]
fn vouchers_lost_with_a_connection_are_spent_in_the_next_session() {
    let pair = &*PAIR;
    let mut earlier = payer(1_000_000);
    let held = earlier.pay(NanoTon(8)).unwrap();
    earlier.pay(NanoTon(40)).unwrap();
    let (mut asker, mut worker) = pair.connect(earlier, Some(held));
    let stream = asker.ask(ask(4, Some(10), 1_000), 0);
    complete(&mut asker, &mut worker, stream).unwrap();
    // 24 are due; the 40 that never arrived cover them, so nothing new is promised.
    assert_eq!(worker.newest.unwrap().voucher.cumulative, NanoTon(48));
    assert_eq!(asker.meter().credited(), NanoTon(40));
}

#[test]
fn an_asker_that_forgot_adopts_the_newest_voucher_it_is_shown() {
    let newest = payer(1_000_000).pay(NanoTon(500)).unwrap();
    let (mut asker, mut worker) = PAIR.connect(payer(1_000_000), Some(newest));
    let stream = asker.ask(ask(1, Some(1), 1_000), 0);
    complete(&mut asker, &mut worker, stream).unwrap();
    assert!(worker.newest.unwrap().voucher.cumulative > NanoTon(500));
    // Somebody else's signature is not ours.
    let forged = newest.voucher.sign(&ed25519_dalek::SigningKey::from_bytes(&[66; 32]));
    let refused = PAIR.try_connect(payer(1_000_000), Some(forged));
    assert!(matches!(refused, Err(SessionError::Voucher(_))));
}

#[test]
fn a_used_up_deposit_fails_the_stream_and_says_so() {
    let (mut asker, mut worker) = ready(10);
    let stream = asker.ask(ask(50, None, 1_000), 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    let failed = events(&mut asker).into_iter().any(|event| {
        matches!(event, Event::Failed { stream: id, why: StreamFailure::Unfunded(_), .. } if id == stream)
    });
    assert!(failed);
    assert_eq!(asker.streams(), 0, "the enclave gave it up too");
}

#[test]
fn a_silent_worker_is_given_up_in_time() {
    let (mut asker, mut worker) = ready(1_000_000);
    let stream = asker.ask(ask(1, None, 1_000), 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    worker.generate(stream, 1);
    settle(&mut asker, &mut worker, 1_000).unwrap();
    let patience = Patience::default().next_token_ms;
    asker.on_tick(1_000 + patience).unwrap();
    assert!(!events(&mut asker).iter().any(|event| matches!(event, Event::Failed { .. })));
    asker.on_tick(1_001 + patience).unwrap();
    let events = events(&mut asker);
    let Some(Event::Failed { why: StreamFailure::Silent(_), bill, .. }) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!((bill.output_tokens, bill.cost), (1, NanoTon(3)), "our own count");
    // An enclave that does not even answer the cancel is of no use.
    assert!(matches!(asker.on_tick(60_000), Err(SessionError::Silent(_))));
}

#[test]
fn a_worker_is_not_blamed_for_the_silence_of_a_paused_stream() {
    let (mut asker, mut worker) = ready(1_000_000);
    let stream = asker.ask(ask(1, None, 1_000), 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    worker.generate(stream, 1);
    settle(&mut asker, &mut worker, 1_000).unwrap();
    let patience = Patience::default().next_token_ms;
    let failed = |asker: &mut Asker| events(asker).iter().any(|event| matches!(event, Event::Failed { .. }));

    asker.pause(stream, true, 1_100);
    asker.on_tick(1_000_000).unwrap();
    assert!(!failed(&mut asker), "it was not paid");
    asker.pause(stream, false, 1_000_000);
    asker.on_tick(1_000_000 + patience).unwrap();
    assert!(!failed(&mut asker), "it has as long as after any token");
    // Paid again and still silent: now it is its own fault.
    asker.on_tick(1_000_001 + patience).unwrap();
    assert!(failed(&mut asker));
}

#[test]
fn a_paused_stream_that_is_cancelled_must_still_be_counted() {
    let (mut asker, mut worker) = ready(1_000_000);
    let stream = asker.ask(ask(1, None, 1_000), 0);
    settle(&mut asker, &mut worker, 0).unwrap();
    asker.pause(stream, true, 0);
    asker.cancel(stream, 1_000);
    asker.on_tick(1_000).unwrap();
    assert!(matches!(asker.on_tick(60_000), Err(SessionError::Silent(_))));
}

#[test]
fn a_request_too_long_for_a_record_fails_alone() {
    let (mut asker, mut worker) = ready(1_000_000);
    let long = asker.ask(ask(inner::MAX_RECORD, None, 1_000), 0);
    let short = asker.ask(ask(1, Some(1), 1_000), 0);
    complete(&mut asker, &mut worker, short).unwrap();
    let events = events(&mut asker);
    assert!(matches!(
        events[0],
        Event::Failed { stream, why: StreamFailure::TooLarge(_), .. } if stream == long
    ));
    assert!(matches!(events.last(), Some(Event::Finished { stream, .. }) if *stream == short));
}

#[test]
fn a_resumed_request_goes_on_behind_its_prefix() {
    let (mut asker, mut worker) = ready(1_000_000);
    let mut resumed = ask(3, Some(20), 1_000);
    resumed.request.prefix = (0..15).collect();
    let stream = asker.ask(resumed, 0);
    complete(&mut asker, &mut worker, stream).unwrap();
    let events = events(&mut asker);
    let Some(Event::Finished { receipt, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!((receipt.receipt.input_tokens, receipt.receipt.output_tokens), (18, 5));
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Ask { input: usize, max_tokens: u32, max_cost: u64 },
    Cancel(u8),
    Transmit,
    Up,
    Vouchers,
    Down,
    Generate(u8, u32),
    Finish(u8),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        2 => (0usize..30, 1u32..40, 1u64..200)
            .prop_map(|(input, max_tokens, max_cost)| Move::Ask { input, max_tokens, max_cost }),
        1 => any::<u8>().prop_map(Move::Cancel),
        4 => Just(Move::Transmit),
        4 => Just(Move::Up),
        4 => Just(Move::Vouchers),
        4 => Just(Move::Down),
        6 => (any::<u8>(), 1u32..9).prop_map(|(i, n)| Move::Generate(i, n)),
        1 => any::<u8>().prop_map(Move::Finish),
    ];
    prop::collection::vec(one, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Records and vouchers overtake each other (the host handles them apart); whatever the order,
    /// an honest pair never fails, and afterwards both have the same books.
    #[test]
    fn an_honest_session_never_fails_whatever_overtakes_what(moves in moves()) {
        let (mut asker, mut worker) = ready(100_000_000);
        let (mut records, mut vouchers, mut down) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let mut asked = 0u32;
        let mut received: BTreeMap<u32, u32> = BTreeMap::new();
        let mut drain = |asker: &mut Asker| {
            while let Some(event) = asker.event() {
                if let Event::Tokens { stream, tokens } = event {
                    for token in tokens {
                        let next = received.entry(stream).or_default();
                        assert_eq!(token.id, *next);
                        *next += 1;
                    }
                }
            }
        };
        for action in moves {
            match action {
                Move::Ask { input, max_tokens, max_cost } => {
                    asked = asker.ask(ask(input, Some(max_tokens), max_cost), 0);
                }
                Move::Cancel(i) => asker.cancel(u32::from(i) % (asked + 1), 0),
                Move::Transmit => {
                    let mut out = Vec::new();
                    asker.transmit(&mut out, 0).unwrap();
                    for transmit in out {
                        match transmit {
                            Transmit::Record(_) => records.push_back(transmit),
                            Transmit::Voucher(_) => vouchers.push_back(transmit),
                        }
                    }
                }
                Move::Up => records.pop_front().into_iter().for_each(|t| worker.take(t)),
                Move::Vouchers => vouchers.pop_front().into_iter().for_each(|t| worker.take(t)),
                Move::Down => {
                    down.extend(worker.flush());
                    if let Some(frame) = down.pop_front() {
                        asker.on_frame(frame, 0, testkit::NOW).unwrap();
                    }
                }
                Move::Generate(i, n) => {
                    let streams = worker.streams();
                    if !streams.is_empty() {
                        worker.generate(streams[usize::from(i) % streams.len()], n);
                    }
                }
                Move::Finish(i) => {
                    let streams = worker.streams();
                    if !streams.is_empty() {
                        worker.finish(streams[usize::from(i) % streams.len()], FinishReason::Stop);
                    }
                }
            }
            drain(&mut asker);
        }
        records.into_iter().chain(vouchers).for_each(|t| worker.take(t));
        for frame in down {
            asker.on_frame(frame, 0, testkit::NOW).unwrap();
        }
        settle(&mut asker, &mut worker, 0).unwrap();
        for stream in worker.streams() {
            complete(&mut asker, &mut worker, stream).unwrap();
        }
        drain(&mut asker);
        prop_assert_eq!(asker.streams(), 0);
        prop_assert_eq!(asker.meter().charged(), worker.meter.charged());
        prop_assert_eq!(asker.meter().pool(), worker.meter.pool());
        let paid = worker.newest.map_or(NanoTon::ZERO, |newest| newest.voucher.cumulative);
        prop_assert_eq!(paid, asker.payer().cumulative());
        prop_assert_eq!(paid, asker.meter().credited());
    }
}
