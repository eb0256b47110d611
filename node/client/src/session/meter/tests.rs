use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const TARIFF: Tariff = Tariff { price_input: 1_000_000, price_output: 2_000_000, quantum: NanoTon(16) };

fn limits(max_cost: u64) -> Limits {
    Limits { max_cost: NanoTon(max_cost), max_tokens: None }
}

/// Asker's rule: pay what is due, at once.
fn pay(meter: &mut Meter) -> Vec<(u32, NanoTon)> {
    let due = meter.due();
    for &(stream, amount) in &due {
        meter.credit(stream, amount).unwrap();
    }
    due
}

#[test]
fn a_stream_is_paid_one_step_ahead_and_never_more_than_a_quantum() {
    let mut meter = Meter::new(TARIFF);
    meter.open(1, limits(1_000)).unwrap();
    assert_eq!(pay(&mut meter), [(1, NanoTon(8))]);
    assert_eq!(meter.quote(1, 20).unwrap(), NanoTon(20));
    // 20 owed, 8 held: three steps leave a lead of 12, which is at least one step.
    assert_eq!(pay(&mut meter), [(1, NanoTon(24))]);
    assert_eq!(meter.exposure(), NanoTon(12));
    meter.start(1).unwrap();
    assert_eq!(meter.affordable(1).unwrap(), 6);
    meter.release(1, 6).unwrap();
    assert!(matches!(meter.release(1, 1), Err(MeterError::Unpaid { .. })));
    assert_eq!(pay(&mut meter), [(1, NanoTon(8))]);
    let bill = meter.finish(1).unwrap();
    assert_eq!(bill, Bill { input_tokens: 20, output_tokens: 6, cost: NanoTon(32), paid: NanoTon(40) });
    assert_eq!(meter.pool(), NanoTon(8));
}

#[test]
fn what_is_left_over_pays_for_the_next_stream() {
    let mut meter = Meter::new(TARIFF);
    meter.open(1, limits(1_000)).unwrap();
    pay(&mut meter);
    meter.finish(1).unwrap();
    assert_eq!(meter.pool(), NanoTon(8));
    meter.open(2, limits(1_000)).unwrap();
    assert_eq!(pay(&mut meter), []);
    meter.quote(2, 0).unwrap();
    meter.start(2).unwrap();
    meter.release(2, 4).unwrap();
    assert_eq!(meter.pool(), NanoTon(0));
}

#[test]
fn a_late_credit_gives_back_what_its_stream_borrowed() {
    let mut meter = Meter::new(TARIFF);
    meter.open(1, limits(100)).unwrap();
    meter.credit(1, NanoTon(8)).unwrap();
    meter.finish(1).unwrap();
    meter.open(2, limits(100)).unwrap();
    meter.quote(2, 6).unwrap();
    meter.start(2).unwrap();
    assert_eq!(meter.pool(), NanoTon(2));
    meter.credit(2, NanoTon(8)).unwrap();
    assert_eq!(meter.pool(), NanoTon(8));
    assert_eq!(meter.available(2).unwrap(), NanoTon(10));
}

#[test]
fn a_failure_before_the_first_token_is_free() {
    let mut meter = Meter::new(TARIFF);
    meter.open(1, limits(100)).unwrap();
    meter.quote(1, 5).unwrap();
    meter.credit(1, NanoTon(8)).unwrap();
    meter.start(1).unwrap();
    assert_eq!(meter.fail(1).unwrap(), Bill { paid: NanoTon(8), ..Bill::default() });
    assert_eq!((meter.pool(), meter.charged()), (NanoTon(8), NanoTon(0)));
}

#[test]
fn a_request_never_costs_more_than_its_ceiling() {
    let mut meter = Meter::new(TARIFF);
    meter.open(1, limits(9)).unwrap();
    assert!(matches!(meter.quote(1, 10), Err(MeterError::Ceiling { .. })));
    meter.quote(1, 4).unwrap();
    pay(&mut meter);
    meter.start(1).unwrap();
    assert_eq!(meter.ceiling_tokens(1).unwrap(), 2);
    assert_eq!(meter.affordable(1).unwrap(), 2);
    meter.release(1, 2).unwrap();
    assert!(matches!(meter.release(1, 1), Err(MeterError::Ceiling { .. })));
    assert_eq!(pay(&mut meter), []);
}

#[test]
fn the_last_tokens_of_a_bounded_answer_are_not_overpaid() {
    let mut meter = Meter::new(TARIFF);
    meter.open(1, Limits { max_cost: NanoTon(1_000), max_tokens: Some(5) }).unwrap();
    meter.quote(1, 0).unwrap();
    pay(&mut meter);
    meter.start(1).unwrap();
    meter.release(1, 4).unwrap();
    // One token is left and costs 2; 8 were paid, so exactly one more step is needed.
    assert_eq!(pay(&mut meter), [(1, NanoTon(8))]);
    meter.release(1, 1).unwrap();
    assert_eq!(pay(&mut meter), []);
    assert!(matches!(meter.release(1, 1), Err(MeterError::TooLong { .. })));
}

#[test]
fn ids_are_never_reused_and_early_credit_is_bounded() {
    let mut meter = Meter::new(TARIFF);
    for id in 1..=u32::try_from(MAX_EARLY).unwrap() + 5 {
        meter.credit(id, NanoTon(1)).unwrap();
    }
    assert_eq!(meter.streams.len(), MAX_EARLY);
    assert_eq!(meter.pool(), NanoTon(5));
    meter.open(3, limits(1)).unwrap();
    // Streams 1 and 2 can no longer be opened: what they were credited is the session's.
    assert_eq!(meter.pool(), NanoTon(7));
    assert!(matches!(meter.open(2, limits(1)), Err(MeterError::NotNew { .. })));
    assert!(matches!(meter.open(3, limits(1)), Err(MeterError::NotNew { .. })));
    assert!(matches!(meter.quote(9, 1), Err(MeterError::Unknown(9))));
}

/// What may be on its way between the two mirrors.
#[derive(Debug, Clone, Copy)]
enum Up {
    Open(u32, Limits),
    Cancel(u32),
}

#[derive(Debug, Clone, Copy)]
enum Down {
    Quoted(u32, u32),
    Tokens(u32, u32),
    Finished(u32, Bill),
    Failed(u32),
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Ask { max_cost: u64, max_tokens: u32 },
    Cancel(u8),
    DeliverUp,
    DeliverCredit,
    DeliverDown,
    Quote(u8, u32),
    Generate(u8, u32),
    Finish(u8),
    Fail(u8),
}

/// An asker's mirror, an enclave's meter, and three queues between them, each in order but
/// arbitrarily late against the others.
struct World {
    asker: Meter,
    enclave: Meter,
    up: VecDeque<Up>,
    credits: VecDeque<(u32, NanoTon)>,
    down: VecDeque<Down>,
    next: u32,
    live_at_enclave: Vec<u32>,
    peak: usize,
    /// Inputs that were quoted, so paid, and then never charged.
    refunded: u64,
}

impl World {
    fn new(tariff: Tariff) -> Self {
        Self {
            asker: Meter::new(tariff),
            enclave: Meter::new(tariff),
            up: VecDeque::new(),
            credits: VecDeque::new(),
            down: VecDeque::new(),
            next: 1,
            live_at_enclave: Vec::new(),
            peak: 1,
            refunded: 0,
        }
    }

    fn pick(&self, index: u8) -> Option<u32> {
        let n = self.live_at_enclave.len();
        (n > 0).then(|| self.live_at_enclave[usize::from(index) % n])
    }

    fn step(&mut self, action: Move) {
        match action {
            Move::Ask { max_cost, max_tokens } => {
                let limits = Limits { max_cost: NanoTon(max_cost), max_tokens: Some(max_tokens) };
                self.asker.open(self.next, limits).unwrap();
                self.up.push_back(Up::Open(self.next, limits));
                self.next += 1;
            }
            Move::Cancel(index) => {
                let id = 1 + u32::from(index) % self.next.max(1);
                self.asker.pause(id, true);
                self.up.push_back(Up::Cancel(id));
            }
            Move::DeliverUp => match self.up.pop_front() {
                Some(Up::Open(id, limits)) => {
                    self.enclave.open(id, limits).unwrap();
                    self.live_at_enclave.push(id);
                }
                Some(Up::Cancel(id)) => self.finish(id),
                None => {}
            },
            Move::DeliverCredit => {
                if let Some((id, amount)) = self.credits.pop_front() {
                    self.enclave.credit(id, amount).unwrap();
                }
            }
            Move::DeliverDown => {
                if let Some(message) = self.down.pop_front() {
                    self.on_down(message);
                }
            }
            Move::Quote(index, tokens) => {
                if let Some(id) = self.pick(index)
                    && self.enclave.quote(id, tokens).is_ok()
                {
                    self.down.push_back(Down::Quoted(id, tokens));
                }
            }
            Move::Generate(index, want) => {
                if let Some(id) = self.pick(index)
                    && self.enclave.start(id).is_ok()
                {
                    let may = self.enclave.affordable(id).unwrap() - self.enclave.released(id);
                    let n = want.min(may);
                    if n > 0 {
                        self.enclave.release(id, n).unwrap();
                        self.down.push_back(Down::Tokens(id, n));
                    }
                }
            }
            Move::Finish(index) => {
                if let Some(id) = self.pick(index) {
                    self.finish(id);
                }
            }
            Move::Fail(index) => {
                if let Some(id) = self.pick(index) {
                    self.enclave.fail(id).unwrap();
                    self.live_at_enclave.retain(|live| *live != id);
                    self.down.push_back(Down::Failed(id));
                }
            }
        }
        self.credits.extend(pay(&mut self.asker));
        self.peak = self.peak.max(self.asker.open_streams());
    }

    fn finish(&mut self, id: u32) {
        if let Ok(bill) = self.enclave.finish(id) {
            self.live_at_enclave.retain(|live| *live != id);
            self.down.push_back(Down::Finished(id, bill));
        }
    }

    fn on_down(&mut self, message: Down) {
        match message {
            Down::Quoted(id, tokens) => {
                self.asker.quote(id, tokens).unwrap();
                // The asker pays on learning the quote, before anything depends on it.
                self.credits.extend(pay(&mut self.asker));
            }
            Down::Tokens(id, n) => {
                self.asker.start(id).unwrap();
                self.asker.release(id, n).unwrap();
            }
            Down::Finished(id, bill) => {
                if bill.input_tokens > 0 {
                    self.asker.start(id).unwrap();
                } else {
                    self.refunded += self.asker.get(id).unwrap().input.map_or(0, |i| i.cost);
                }
                assert_eq!(self.asker.finish(id).unwrap().cost, bill.cost);
            }
            Down::Failed(id) => {
                if self.asker.released(id) == 0 {
                    self.refunded += self.asker.get(id).unwrap().input.map_or(0, |i| i.cost);
                }
                self.asker.fail(id).unwrap();
            }
        }
    }

    fn check(&self, tariff: Tariff) {
        // Prepayment that could be lost, beyond quoted inputs a cancel may have handed back.
        let bound = tariff.quantum.0 * self.peak as u64 + self.refunded;
        assert!(self.asker.exposure().0 <= bound, "{:?} > {bound}", self.asker.exposure());
        assert!(self.enclave.charged() <= self.enclave.credited());
        assert!(self.enclave.credited() <= self.asker.credited());
        assert!(self.asker.charged() <= self.asker.credited());
    }

    fn drain(&mut self) {
        while !(self.up.is_empty() && self.credits.is_empty() && self.down.is_empty()) {
            self.step(Move::DeliverUp);
            self.step(Move::DeliverCredit);
            self.step(Move::DeliverDown);
        }
    }
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        2 => (1u64..400, 1u32..60).prop_map(|(max_cost, max_tokens)| Move::Ask { max_cost, max_tokens }),
        1 => any::<u8>().prop_map(Move::Cancel),
        4 => Just(Move::DeliverUp),
        4 => Just(Move::DeliverCredit),
        4 => Just(Move::DeliverDown),
        3 => (any::<u8>(), 0u32..40).prop_map(|(i, n)| Move::Quote(i, n)),
        8 => (any::<u8>(), 1u32..12).prop_map(|(i, n)| Move::Generate(i, n)),
        1 => any::<u8>().prop_map(Move::Finish),
        1 => any::<u8>().prop_map(Move::Fail),
    ];
    prop::collection::vec(one, 1..250)
}

proptest! {
    #[test]
    fn whatever_the_order_of_events_nobody_is_overdrawn_and_the_mirrors_agree(
        moves in moves(),
        quantum in 1u64..40,
        price_input in 0u64..3_000_000,
        price_output in 0u64..3_000_000,
    ) {
        let tariff = Tariff { price_input, price_output, quantum: NanoTon(quantum) };
        let mut world = World::new(tariff);
        for action in moves {
            world.step(action);
            world.check(tariff);
        }
        world.drain();
        world.check(tariff);
        let (asker, enclave) = (&world.asker, &world.enclave);
        prop_assert_eq!(asker.credited(), enclave.credited());
        // What the enclave has charged and not yet announced is only input being prefilled.
        for &id in enclave.streams.keys() {
            prop_assert_eq!(asker.released(id), enclave.released(id));
        }
        // No stream that was quoted waits for money: its lead is there on both sides.
        for id in world.live_at_enclave.clone() {
            if world.enclave.get(id).unwrap().input.is_some() && !world.asker.get(id).unwrap().paused {
                let started = world.enclave.start(id);
                prop_assert!(started.is_ok(), "{started:?}");
                let ceiling = world.enclave.ceiling_tokens(id).unwrap();
                if world.enclave.released(id) < ceiling && tariff.price_output <= quantum * 500_000 {
                    prop_assert!(world.enclave.affordable(id).unwrap() > world.enclave.released(id));
                }
            }
        }
        // After every stream has ended, both hold the same account.
        for id in world.live_at_enclave.clone() {
            world.finish(id);
        }
        world.drain();
        prop_assert_eq!(world.asker.pool(), world.enclave.pool());
        prop_assert_eq!(world.asker.charged(), world.enclave.charged());
        prop_assert_eq!(
            world.asker.credited().0,
            world.asker.charged().0 + world.asker.pool().0
        );
    }

    #[test]
    fn affordable_is_exactly_what_release_accepts(
        credit in 0u64..500, input in 0u32..50, price_output in 1u64..5_000_000, first in 0u32..40,
    ) {
        let tariff = Tariff { price_input: 1_000_000, price_output, quantum: NanoTon(20) };
        let mut meter = Meter::new(tariff);
        meter.open(1, limits(400)).unwrap();
        meter.credit(1, NanoTon(credit)).unwrap();
        meter.quote(1, input).unwrap();
        if meter.start(1).is_ok() {
            let first = first.min(meter.affordable(1).unwrap());
            meter.release(1, first).unwrap();
            let all = meter.affordable(1).unwrap();
            prop_assert!(meter.clone().release(1, all - first).is_ok());
            prop_assert!(meter.release(1, all - first + 1).is_err());
        }
    }
}
