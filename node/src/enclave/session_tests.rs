//! Properties of the session machine, with an engine that may produce whatever it likes.

use std::collections::BTreeMap;

use cocoon_inference::{AnswerForm, ChatRole, Message, Sampling};
use proptest::prelude::*;

use super::*;

const PRICE_INPUT: u64 = 2_000_000;
const PRICE_OUTPUT: u64 = 10_000_000;
const PROMPT: u32 = 5;

fn tariff() -> Tariff {
    Tariff { price_input: PRICE_INPUT, price_output: PRICE_OUTPUT, quantum: NanoTon(640) }
}

fn terms() -> Terms {
    Terms {
        session: [1; 32],
        worker: vec![2; 38],
        model: [3; 32],
        channel: None,
        tariff: tariff(),
        max_streams: 8,
        max_prompt_bytes: 1000,
    }
}

fn request(text: &str, max_tokens: Option<u32>) -> GenerateRequest {
    let messages = vec![Message::new(ChatRole::User, text)];
    GenerateRequest::new([3; 32], messages, Sampling { max_tokens, ..Sampling::default() })
}

fn token(id: u32) -> Token {
    Token::new(id, format!(" {id}"))
}

/// A session with a clock, an engine's books and an asker's ears.
struct World {
    session: Session,
    now: Now,
    effects: Vec<Effect>,
    allowed: BTreeMap<u32, u32>,
    produced: BTreeMap<u32, u32>,
    heard: BTreeMap<u32, Vec<u32>>,
    receipts: BTreeMap<u32, Receipt>,
    reasons: BTreeMap<u32, FinishReason>,
    failed: BTreeMap<u32, FailCode>,
    quotes: usize,
    closed: bool,
}

impl World {
    fn new() -> Self {
        Self {
            session: Session::new(terms()),
            now: Now { unix_s: 1_790_000_000, uptime: Duration::ZERO },
            effects: Vec::new(),
            allowed: BTreeMap::new(),
            produced: BTreeMap::new(),
            heard: BTreeMap::new(),
            receipts: BTreeMap::new(),
            reasons: BTreeMap::new(),
            failed: BTreeMap::new(),
            quotes: 0,
            closed: false,
        }
    }

    fn put(&mut self, input: Input) {
        self.session.handle(input, self.now, &mut self.effects);
        self.settle();
    }

    fn settle(&mut self) {
        self.session.settle(self.now, &mut self.effects);
        for effect in std::mem::take(&mut self.effects) {
            self.carry_out(effect);
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now.uptime += time;
        self.settle();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Start { stream, .. } => {
                self.allowed.insert(stream, 0);
                self.produced.insert(stream, 0);
            }
            Effect::Allow { stream, tokens } => {
                let before = self.allowed.insert(stream, tokens);
                assert!(before.is_some_and(|before| before < tokens), "allowances only rise");
            }
            Effect::Drop { stream } => {
                self.produced.remove(&stream);
            }
            Effect::Send(ToAsker::Tokens { stream, start, tokens }) => {
                assert!(!self.over(stream), "a token after the end");
                let heard = self.heard.entry(stream).or_default();
                assert_eq!(start as usize, heard.len(), "a gap or a repetition");
                assert!(!tokens.is_empty());
                heard.extend(tokens.iter().map(|token| token.id));
            }
            Effect::Send(ToAsker::Failed { stream, code, .. }) => {
                assert!(!self.over(stream));
                self.failed.insert(stream, code);
            }
            Effect::Finish { stream, reason, usage, receipt, .. } => {
                assert!(!self.over(stream));
                assert_eq!(usage.completion_tokens, receipt.output_tokens);
                self.reasons.insert(stream, reason);
                self.receipts.insert(stream, receipt);
            }
            Effect::Send(ToAsker::Quoted { .. }) => self.quotes += 1,
            Effect::Close { .. } => self.closed = true,
            Effect::Send(_) | Effect::Quote { .. } => {}
        }
    }

    fn over(&self, stream: u32) -> bool {
        self.receipts.contains_key(&stream) || self.failed.contains_key(&stream)
    }

    fn ask(&mut self, stream: u32, max_tokens: Option<u32>, max_cost: u64) {
        let request = request("hello", max_tokens);
        self.put(Input::Message(ToEnclave::Request { stream, request: Box::new(request), max_cost }));
    }

    /// The engine's word on a job, if it has that job.
    fn engine(&mut self, stream: u32, event: Event) {
        if self.produced.contains_key(&stream) {
            self.put(Input::Engine { stream, event });
        }
    }

    fn prepare(&mut self, stream: u32) {
        self.engine(stream, Event::Prepared { prompt_tokens: PROMPT, form: AnswerForm::default() });
    }

    fn credit(&mut self, stream: u32, amount: u64) {
        self.put(Input::Credit { stream, amount: NanoTon(amount) });
    }

    fn produce(&mut self, stream: u32, count: u32) {
        let Some(produced) = self.produced.get_mut(&stream) else { return };
        let first = *produced;
        *produced += count;
        let tokens = (first..first + count).map(token).collect();
        self.put(Input::Engine { stream, event: Event::Tokens(tokens) });
    }

    fn end(&mut self, stream: u32) {
        let usage = Usage { prompt_tokens: PROMPT, ..Usage::default() };
        let event = Event::Finished { reason: FinishReason::Stop, text: String::new(), usage };
        self.engine(stream, event);
    }

    /// Whether a stream is at the engine and its input was not paid.
    fn unpaid(&self, stream: u32) -> bool {
        self.produced.contains_key(&stream) && !self.session.meter().started(stream)
    }

    /// The shell's clock strikes.
    fn tick(&mut self) {
        let mut out = Vec::new();
        self.session.tick(self.now, &mut out);
        self.effects.append(&mut out);
        self.settle();
    }

    fn heard(&self, stream: u32) -> usize {
        self.heard.get(&stream).map_or(0, Vec::len)
    }
}

#[derive(Debug, Clone)]
enum Op {
    Ask(Option<u32>, u64),
    Prepare(u32),
    Credit(u32, u64),
    Produce(u32, u32),
    End(u32),
    Fail(u32),
    Cancel(u32),
    Pause,
    Resume,
    Wait(u64),
    Tick,
}

fn op() -> impl Strategy<Value = Op> {
    let stream = 0..6u32;
    prop_oneof![
        2 => (proptest::option::of(1..40u32), prop_oneof![Just(u64::MAX / 8), 0..900u64]).prop_map(|(t, c)| Op::Ask(t, c)),
        3 => stream.clone().prop_map(Op::Prepare),
        4 => (stream.clone(), 0..700u64).prop_map(|(s, a)| Op::Credit(s, a)),
        6 => (stream.clone(), 1..60u32).prop_map(|(s, n)| Op::Produce(s, n)),
        2 => stream.clone().prop_map(Op::End),
        1 => stream.clone().prop_map(Op::Fail),
        1 => stream.prop_map(Op::Cancel),
        1 => Just(Op::Pause),
        2 => Just(Op::Resume),
        2 => (0..5u64).prop_map(Op::Wait),
        1 => Just(Op::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_leaves_unpaid_and_receipts_say_what_left(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        let mut next = 0;
        for op in ops {
            match op {
                Op::Ask(max_tokens, max_cost) => {
                    next += 1;
                    world.ask(next, max_tokens, max_cost);
                }
                Op::Prepare(stream) => world.prepare(stream),
                Op::Credit(stream, amount) => world.credit(stream, amount),
                Op::Produce(stream, count) => world.produce(stream, count),
                Op::End(stream) => world.end(stream),
                Op::Fail(stream) => {
                    world.engine(stream, Event::Failed("broken".to_owned()));
                }
                Op::Cancel(stream) => world.put(Input::Message(ToEnclave::Cancel { stream })),
                Op::Pause => world.put(Input::Pause),
                Op::Resume => world.put(Input::Resume),
                Op::Wait(ms) => world.wait(Duration::from_millis(ms)),
                Op::Tick => world.tick(),
            }
            prop_assert!(!world.closed);
            let unpaid = world.allowed.keys().filter(|id| world.unpaid(**id)).count();
            prop_assert!(unpaid <= MAX_UNPAID, "{} unpaid streams are at the engine", unpaid);
            prop_assert!(world.session.line.len() <= world.session.streams());
            let meter = world.session.meter();
            prop_assert!(meter.charged() <= meter.credited(), "metered beyond credit");
            let mut billed = 0;
            for (stream, receipt) in &world.receipts {
                prop_assert_eq!(receipt.output_tokens as usize, world.heard(*stream), "receipt of stream {}", stream);
                let output = u64::from(receipt.output_tokens) * PRICE_OUTPUT / 1_000_000;
                let input = u64::from(receipt.input_tokens) * PRICE_INPUT / 1_000_000;
                prop_assert_eq!(receipt.cost.0, input + output);
                billed += receipt.cost.0;
            }
            for (stream, heard) in world.heard.iter().filter(|(stream, _)| !world.receipts.contains_key(*stream)) {
                let cost = heard.len() as u64 * PRICE_OUTPUT / 1_000_000;
                prop_assert!(cost <= meter.charged().0, "stream {} was heard for free", stream);
                billed += cost;
            }
            prop_assert!(billed <= meter.charged().0, "{billed} was delivered, {} charged", meter.charged());
        }
    }
}

#[test]
fn an_answer_runs_from_quote_to_receipt() {
    let mut world = World::new();
    world.ask(1, Some(20), 10_000);
    world.prepare(1);
    assert_eq!(world.quotes, 1);
    assert_eq!(world.allowed[&1], 0, "no credit, no prefill");
    world.credit(1, 320);
    // 310 are left after the input, which is 31 tokens; the request wants 20, and one more lets the engine
    // say so.
    assert_eq!(world.allowed[&1], 21);
    world.produce(1, 1);
    assert_eq!(world.heard(1), 1, "the first token goes at once");
    world.produce(1, 3);
    assert_eq!(world.heard(1), 1, "later ones wait for company");
    assert!(world.session.deadline().is_some());
    world.wait(BATCH_DELAY);
    assert_eq!(world.heard(1), 4);
    world.produce(1, 16);
    world.end(1);
    assert_eq!(world.heard(1), 20);
    let receipt = &world.receipts[&1];
    assert_eq!(
        (receipt.input_tokens, receipt.output_tokens, receipt.cost.0, receipt.paid.0),
        (5, 20, 210, 320)
    );
    assert_eq!(world.session.streams(), 0);
}

#[test]
fn tokens_beyond_the_credit_wait_for_it() {
    let mut world = World::new();
    world.ask(1, None, 10_000);
    world.prepare(1);
    world.credit(1, 110);
    world.produce(1, 25);
    assert_eq!(world.heard(1), 10, "what is paid leaves at once: the asker pays on when it sees it");
    world.credit(1, 50);
    assert_eq!(world.heard(1), 15);
    world.end(1);
    assert!(world.receipts.is_empty(), "ten tokens are still unpaid");
    world.credit(1, 1000);
    assert_eq!(world.heard(1), 25);
    assert_eq!(world.receipts[&1].output_tokens, 25);
}

#[test]
fn batches_of_tokens_with_every_alternative_fit_a_record() {
    use cocoon_client::session::inner;
    use cocoon_inference::limits::{MAX_PIECE_BYTES, MAX_TOP_LOGPROBS};
    use cocoon_inference::{Alternative, Logprobs};
    let mut session = Session::new(terms());
    let now = Now { unix_s: 1_790_000_000, uptime: Duration::ZERO };
    let mut out = Vec::new();
    let request = request("hello", None);
    session.handle(
        Input::Message(ToEnclave::Request { stream: 1, request: Box::new(request), max_cost: u64::MAX / 8 }),
        now,
        &mut out,
    );
    session.settle(now, &mut out);
    let prepared = Event::Prepared { prompt_tokens: PROMPT, form: AnswerForm::default() };
    session.handle(Input::Engine { stream: 1, event: prepared }, now, &mut out);
    session.handle(Input::Credit { stream: 1, amount: NanoTon(1_000_000) }, now, &mut out);
    let bytes = vec![b' '; MAX_PIECE_BYTES];
    let alternative = |id| Alternative { id, logprob: -1.0, bytes: bytes.clone() };
    let top = (0..u32::from(MAX_TOP_LOGPROBS)).map(|id| alternative(u32::MAX - id)).collect();
    let logprobs = Some(Box::new(Logprobs { logprob: -1.0, bytes: bytes.clone(), top }));
    let tokens = (0..40).map(|id| Token { logprobs: logprobs.clone(), ..token(id) }).collect();
    session.handle(Input::Engine { stream: 1, event: Event::Tokens(tokens) }, now, &mut out);
    session.settle(now, &mut out);
    session.settle(Now { uptime: BATCH_DELAY, ..now }, &mut out);
    let mut sent = 0;
    for effect in out {
        if let Effect::Send(message) = effect {
            if let ToAsker::Tokens { tokens, .. } = &message {
                sent += tokens.len();
            }
            inner::encode(&[message]).unwrap();
        }
    }
    assert_eq!(sent, 40);
}

#[test]
fn a_cancel_ends_the_stream_with_a_receipt_over_what_left() {
    let mut world = World::new();
    world.ask(1, None, 10_000);
    world.prepare(1);
    world.credit(1, 60);
    world.produce(1, 9);
    world.put(Input::Message(ToEnclave::Cancel { stream: 1 }));
    assert_eq!(world.reasons[&1], FinishReason::Cancelled);
    assert_eq!(world.heard(1), 5);
    assert_eq!(world.receipts[&1].output_tokens, 5);
    assert!(world.produced.is_empty(), "the job was dropped");
    world.produce(1, 5);
    assert_eq!(world.heard(1), 5);
}

#[test]
fn what_a_stream_leaves_over_feeds_another() {
    let mut world = World::new();
    world.ask(1, Some(1), 10_000);
    world.ask(2, Some(3), 10_000);
    world.prepare(1);
    world.prepare(2);
    world.credit(1, 320);
    world.produce(1, 1);
    world.end(1);
    assert_eq!(world.receipts[&1].cost.0, 20);
    assert_eq!(world.allowed[&2], 4, "the pool pays for the second stream");
    world.produce(2, 3);
    world.end(2);
    assert_eq!(world.receipts[&2].cost.0, 40);
}

#[test]
fn a_cost_ceiling_ends_the_answer_where_it_is_reached() {
    let mut world = World::new();
    world.ask(1, None, 60);
    world.prepare(1);
    world.credit(1, 320);
    assert_eq!(world.allowed[&1], 6);
    world.produce(1, 6);
    assert_eq!(world.reasons[&1], FinishReason::Length);
    assert_eq!(world.receipts[&1].cost.0, 60);

    world.ask(2, None, 9);
    world.prepare(2);
    assert!(matches!(world.failed[&2], FailCode::Ceiling { needed: 10 }));
}

#[test]
fn a_slow_reader_stops_release_and_allowance() {
    let mut world = World::new();
    world.ask(1, None, u64::MAX / 8);
    world.prepare(1);
    world.put(Input::Pause);
    world.credit(1, 1_000_000);
    assert_eq!(world.allowed[&1], 0);
    world.produce(1, 50);
    assert_eq!(world.heard(1), 0);
    world.put(Input::Resume);
    world.wait(BATCH_DELAY);
    assert_eq!(world.heard(1), 50);
    assert!(world.allowed[&1] <= 50 + AHEAD, "the engine never runs far ahead of the reader");
}

#[test]
fn a_resumed_answer_goes_on_behind_its_prefix() {
    let mut world = World::new();
    let mut request = request("hello", Some(12));
    request.prefix = vec![7; 10];
    world.heard.insert(1, vec![7; 10]);
    world.put(Input::Message(ToEnclave::Request { stream: 1, request: Box::new(request), max_cost: 10_000 }));
    world.prepare(1);
    world.credit(1, 320);
    assert_eq!(world.allowed[&1], 3, "two are left of the twelve");
    world.produce(1, 2);
    world.end(1);
    assert_eq!(world.heard(1), 12);
    assert_eq!(world.receipts[&1].output_tokens, 2);
}

#[test]
fn requests_out_of_bounds_are_refused_by_name() {
    let mut world = World::new();
    let long = request(&"x".repeat(1001), None);
    world.put(Input::Message(ToEnclave::Request { stream: 1, request: Box::new(long), max_cost: 10_000 }));
    assert!(
        matches!(&world.failed[&1], FailCode::Request(RequestError::Invalid { field, .. }) if field == "messages")
    );
    for stream in 2..=9 {
        world.ask(stream, None, 10_000);
    }
    world.ask(10, None, 10_000);
    assert_eq!(world.failed[&10], FailCode::Busy);
    assert!(!world.closed);
    world.ask(3, None, 10_000);
    assert!(world.closed, "an id used twice ends the session");
}

#[test]
fn a_stream_that_nobody_pays_for_is_ended_soon() {
    let mut world = World::new();
    world.ask(1, None, 10_000);
    world.prepare(1);
    world.now.uptime += UNPAID - Duration::from_millis(1);
    world.tick();
    assert!(world.failed.is_empty());
    world.now.uptime += Duration::from_millis(1);
    world.tick();
    assert_eq!(world.failed[&1], FailCode::Unpaid);
    assert_eq!(world.session.streams(), 0);
}

#[test]
fn a_stream_that_was_paid_once_may_wait_longer() {
    let mut world = World::new();
    world.ask(1, None, 10_000);
    world.prepare(1);
    world.credit(1, 20);
    world.produce(1, 1);
    world.now.uptime += STALL - Duration::from_millis(1);
    world.tick();
    assert!(world.failed.is_empty());
    world.now.uptime += Duration::from_millis(1);
    world.tick();
    assert_eq!(world.failed[&1], FailCode::Unpaid);
}

#[test]
fn an_asker_that_does_not_read_holds_no_unpaid_place_either() {
    let mut world = World::new();
    world.put(Input::Pause);
    world.ask(1, None, 10_000);
    world.ask(2, None, 10_000);
    world.prepare(1);
    world.prepare(2);
    world.credit(2, 320);
    assert!(!world.unpaid(2), "money counts although nothing is sent");
    assert_eq!(world.allowed[&2], 0);
    world.now.uptime += UNPAID;
    world.tick();
    assert_eq!(world.failed[&1], FailCode::Unpaid);
    assert!(!world.failed.contains_key(&2), "it was paid");
    world.put(Input::Resume);
    assert_eq!(world.allowed[&2], 31);
}

#[test]
fn unpaid_requests_hold_few_places_and_the_others_follow_in_order() {
    let mut world = World::new();
    for stream in 1..=8 {
        world.ask(stream, Some(2), 10_000);
    }
    let at_engine = |world: &World| world.allowed.keys().copied().collect::<Vec<_>>();
    assert_eq!(at_engine(&world), [1, 2, 3, 4]);
    world.prepare(1);
    world.prepare(2);
    assert_eq!(at_engine(&world), [1, 2, 3, 4], "a quote alone makes no room");
    world.credit(2, 320);
    assert_eq!(at_engine(&world), [1, 2, 3, 4, 5], "a payment does");
    // One that waits can be cancelled, and one that fails makes room.
    world.put(Input::Message(ToEnclave::Cancel { stream: 6 }));
    assert_eq!(world.reasons[&6], FinishReason::Cancelled);
    world.put(Input::NotStarted { stream: 3, code: FailCode::Busy, message: String::new() });
    assert_eq!(at_engine(&world), [1, 2, 3, 4, 5, 7]);
    world.now.uptime += UNPAID;
    world.tick();
    assert_eq!(world.failed[&1], FailCode::Unpaid, "it was quoted and not paid");
    assert_eq!(at_engine(&world), [1, 2, 3, 4, 5, 7, 8]);
    assert!(!world.failed.contains_key(&4), "what the engine has not counted cannot be paid yet");
}

#[test]
fn a_job_that_lost_its_place_frees_the_stream() {
    let mut world = World::new();
    world.ask(1, None, 10_000);
    world.prepare(1);
    world.engine(1, Event::Displaced);
    assert_eq!(world.failed[&1], FailCode::Busy, "another worker may have room");
    assert_eq!(world.session.streams(), 0);
    assert_eq!(world.session.meter().charged(), NanoTon::ZERO);
}

#[test]
fn one_challenge_at_a_time() {
    let mut world = World::new();
    world.put(Input::Message(ToEnclave::Challenge { nonce: [1; 32] }));
    world.put(Input::Live(vec![1]));
    world.put(Input::Message(ToEnclave::Challenge { nonce: [2; 32] }));
    assert!(!world.closed);
    world.put(Input::Message(ToEnclave::Challenge { nonce: [3; 32] }));
    assert!(world.closed);
}
