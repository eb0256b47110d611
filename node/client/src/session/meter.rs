//! What a session owes and what it has been paid, counted the same way on both sides.
//!
//! One attested session carries many *streams* (requests). Every voucher the asker sends is split
//! into *allocations*, each of which credits one stream. A stream draws on its allocation first
//! and then on the session's *pool*: the credit that finished streams did not use.
//!
//! The enclave runs this meter to decide what it may release; the asker runs its mirror to decide
//! what to pay. The two see the same events in different orders (a credit travels through the
//! host while a request travels through the channel), so every quantity here is a function of the
//! *set* of credits and charges, not of their order: the pool is
//!
//! ```text
//! pool = Σ finished (allocated − metered)  −  Σ live max(0, metered − allocated)
//! ```
//!
//! so a late credit gives back what its stream borrowed. Adding credits and removing charges can
//! only raise the pool, and the asker always knows at least the enclave's credits and at most its
//! charges; hence an honest enclave never drives the asker's mirror below zero, and a charge that
//! would is a protocol violation.
//!
//! The asker pays in *steps* of half a quantum: whenever what a stream can still draw is less than
//! one step, it gets whole steps until it is not. So a stream never holds more than one quantum
//! that it has not used, and the host, which sees only steps, learns no exact token counts.
//!
//! Input is charged when the enclave starts to prefill, output when a token is released. A stream
//! that fails before its first token is charged nothing.

use std::collections::BTreeMap;

use cocoon_payments::{NanoTon, token_cost};

/// Streams open at once in one session. Bounds the memory a peer can make us hold.
pub const MAX_STREAMS: usize = 1024;
/// Streams credited before their request arrived. The request is right behind its voucher, so
/// only a few can be between the two.
pub const MAX_EARLY: usize = 256;

/// The payment quantum: the price of `quantum_tokens` output tokens, at least one nanoTON.
#[must_use]
pub fn quantum(price_output: u64, quantum_tokens: u32) -> NanoTon {
    NanoTon(token_cost(quantum_tokens, price_output).0.max(1))
}

/// Prices of one session, fixed for its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tariff {
    /// NanoTON per million input tokens.
    pub price_input: u64,
    /// NanoTON per million output tokens.
    pub price_output: u64,
    /// The most that payment may lead service, per stream.
    pub quantum: NanoTon,
}

impl Tariff {
    /// Vouchers advance in multiples of this: half a quantum, rounded up.
    #[must_use]
    pub fn step(&self) -> NanoTon {
        NanoTon(self.quantum.0.max(1).div_ceil(2))
    }
}

/// What a request allows itself to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Ceiling for input and output together.
    pub max_cost: NanoTon,
    /// Most output tokens, if the request says.
    pub max_tokens: Option<u32>,
}

/// What one stream came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bill {
    /// Input tokens charged; 0 if prefill never began.
    pub input_tokens: u32,
    /// Output tokens released.
    pub output_tokens: u32,
    /// What both cost.
    pub cost: NanoTon,
    /// What had been allocated to the stream itself, pool excluded.
    pub paid: NanoTon,
}

impl Bill {
    /// What is gone if nothing comes back: what was served, or what was signed for it if that is
    /// more. A worker that takes a voucher and leaves has served nothing.
    #[must_use]
    pub fn taken(&self) -> NanoTon {
        self.cost.max(self.paid)
    }
}

/// Why the meter refuses an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// Stream ids count up from 1.
    #[error("stream {stream} is not newer than stream {highest}; ids count up from 1")]
    NotNew {
        /// The id used.
        stream: u32,
        /// The newest id seen.
        highest: u32,
    },
    /// The session is full.
    #[error("more than {MAX_STREAMS} streams are open; wait for one to finish")]
    TooManyStreams,
    /// No such open stream.
    #[error("stream {0} is not open")]
    Unknown(u32),
    /// A second quote, or a token before any quote.
    #[error("stream {stream}: {what}")]
    Order {
        /// The stream.
        stream: u32,
        /// What came out of order.
        what: &'static str,
    },
    /// The credit does not cover it.
    #[error("stream {stream} needs {needed} and can draw on {available}")]
    Unpaid {
        /// The stream.
        stream: u32,
        /// What the event costs.
        needed: NanoTon,
        /// What there is.
        available: NanoTon,
    },
    /// The request's own ceiling does not allow it.
    #[error("stream {stream} would cost {cost}, its ceiling is {ceiling}; raise max_cost")]
    Ceiling {
        /// The stream.
        stream: u32,
        /// The cost reached.
        cost: NanoTon,
        /// The ceiling.
        ceiling: NanoTon,
    },
    /// More output than the request asked for.
    #[error("stream {stream} reached {tokens} output tokens, it may have {limit}")]
    TooLong {
        /// The stream.
        stream: u32,
        /// The count reached.
        tokens: u64,
        /// The limit.
        limit: u32,
    },
    /// Sums beyond 64 bits.
    #[error("credits of this session exceed 64 bits")]
    Overflow,
}

#[derive(Debug, Clone, Default)]
struct Stream {
    limits: Option<Limits>,
    allocated: u64,
    input: Option<Input>,
    output_tokens: u32,
    /// Set while the asker does not want to pay for it.
    paused: bool,
}

#[derive(Debug, Clone, Copy)]
struct Input {
    tokens: u32,
    cost: u64,
    charged: bool,
}

impl Stream {
    fn charged_input(&self) -> u64 {
        self.input.filter(|input| input.charged).map_or(0, |input| input.cost)
    }

    /// What has been charged.
    fn metered(&self, tariff: &Tariff) -> u64 {
        self.charged_input() + output_cost(tariff, self.output_tokens)
    }

    /// What has been charged or agreed to be charged.
    fn committed(&self, tariff: &Tariff) -> u64 {
        self.input.map_or(0, |input| input.cost) + output_cost(tariff, self.output_tokens)
    }

    fn max_tokens(&self) -> u32 {
        self.limits.and_then(|limits| limits.max_tokens).unwrap_or(u32::MAX)
    }

    fn max_cost(&self) -> u64 {
        self.limits.map_or(0, |limits| limits.max_cost.0)
    }
}

/// At most 2³² tokens at a price below 2⁶³ per million fits easily; `token_cost` saturates.
fn output_cost(tariff: &Tariff, tokens: u32) -> u64 {
    token_cost(tokens, tariff.price_output).0.min(u64::MAX / 4)
}

/// The account of one session. Reads no clock, does no input or output.
#[derive(Debug, Clone)]
pub struct Meter {
    tariff: Tariff,
    /// Σ over finished streams of (allocated − metered). Never negative: see the module page.
    settled: i128,
    credited: u64,
    charged: u64,
    highest: u32,
    early: usize,
    streams: BTreeMap<u32, Stream>,
}

impl Meter {
    /// An empty account at these prices.
    #[must_use]
    pub fn new(tariff: Tariff) -> Self {
        Self { tariff, settled: 0, credited: 0, charged: 0, highest: 0, early: 0, streams: BTreeMap::new() }
    }

    /// The prices.
    #[must_use]
    pub fn tariff(&self) -> Tariff {
        self.tariff
    }

    /// All credits of the session.
    #[must_use]
    pub fn credited(&self) -> NanoTon {
        NanoTon(self.credited)
    }

    /// All charges of the session.
    #[must_use]
    pub fn charged(&self) -> NanoTon {
        NanoTon(self.charged)
    }

    /// Credit that any stream may draw on.
    #[must_use]
    pub fn pool(&self) -> NanoTon {
        NanoTon(to_u64(self.settled - self.deficits(|stream| stream.metered(&self.tariff))))
    }

    /// Open streams.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len() - self.early
    }

    /// Begins a stream. Ids count up, so that a late frame can never meet a reused id.
    pub fn open(&mut self, stream: u32, limits: Limits) -> Result<(), MeterError> {
        if stream <= self.highest {
            return Err(MeterError::NotNew { stream, highest: self.highest });
        }
        if self.open_streams() >= MAX_STREAMS {
            return Err(MeterError::TooManyStreams);
        }
        if self.streams.contains_key(&stream) {
            self.early -= 1;
        }
        self.highest = stream;
        self.streams.entry(stream).or_default().limits = Some(limits);
        // Ids in between were credited but never asked for: their credit is the session's.
        let skipped: Vec<u32> = self
            .streams
            .range(..stream)
            .filter(|(_, stream)| stream.limits.is_none())
            .map(|(&id, _)| id)
            .collect();
        for id in skipped {
            if let Some(skipped) = self.streams.remove(&id) {
                self.early -= 1;
                self.settled += i128::from(skipped.allocated);
            }
        }
        Ok(())
    }

    /// Credits one allocation. It may come before its request and after its stream's end.
    pub fn credit(&mut self, stream: u32, amount: NanoTon) -> Result<(), MeterError> {
        self.credited = self.credited.checked_add(amount.0).ok_or(MeterError::Overflow)?;
        if let Some(open) = self.streams.get_mut(&stream) {
            // Cannot overflow: no allocation exceeds the checked total.
            open.allocated += amount.0;
        } else if stream > self.highest && self.early < MAX_EARLY {
            self.early += 1;
            self.streams.insert(stream, Stream { allocated: amount.0, ..Stream::default() });
        } else {
            self.settled += i128::from(amount.0);
        }
        Ok(())
    }

    /// Fixes the input cost of a stream; nothing is charged yet.
    pub fn quote(&mut self, stream: u32, input_tokens: u32) -> Result<NanoTon, MeterError> {
        let cost = token_cost(input_tokens, self.tariff.price_input).0;
        let open = self.get_mut(stream)?;
        if open.input.is_some() {
            return Err(MeterError::Order { stream, what: "a second quote" });
        }
        if cost > open.max_cost() || cost > u64::MAX / 4 {
            return Err(MeterError::Ceiling {
                stream,
                cost: NanoTon(cost),
                ceiling: NanoTon(open.max_cost()),
            });
        }
        open.input = Some(Input { tokens: input_tokens, cost, charged: false });
        Ok(NanoTon(cost))
    }

    /// Charges the quoted input if the credit covers it: only then may prefill begin.
    /// Idempotent once charged.
    pub fn start(&mut self, stream: u32) -> Result<(), MeterError> {
        let available = self.available(stream)?;
        let open = self.get_mut(stream)?;
        let Some(input) = open.input.as_mut() else {
            return Err(MeterError::Order { stream, what: "started before its quote" });
        };
        if input.charged {
            return Ok(());
        }
        if input.cost > available.0 {
            return Err(MeterError::Unpaid { stream, needed: NanoTon(input.cost), available });
        }
        input.charged = true;
        self.charged += input.cost;
        Ok(())
    }

    /// Whether the input was charged.
    #[must_use]
    pub fn started(&self, stream: u32) -> bool {
        self.streams.get(&stream).and_then(|open| open.input).is_some_and(|input| input.charged)
    }

    /// What a stream can draw on: the rest of its allocation, then the pool.
    pub fn available(&self, stream: u32) -> Result<NanoTon, MeterError> {
        let open = self.get(stream)?;
        let own = open.allocated.saturating_sub(open.metered(&self.tariff));
        Ok(NanoTon(own.saturating_add(self.pool().0)))
    }

    /// How many output tokens, counted from the first, the credit and the request's own limits
    /// cover now.
    pub fn affordable(&self, stream: u32) -> Result<u32, MeterError> {
        let open = self.get(stream)?;
        if !self.started(stream) {
            return Ok(0);
        }
        let credit = output_cost(&self.tariff, open.output_tokens) + self.available(stream)?.0;
        let ceiling = open.max_cost().saturating_sub(open.charged_input());
        let tokens = tokens_for(credit.min(ceiling), self.tariff.price_output);
        Ok(tokens.min(open.max_tokens()).max(open.output_tokens))
    }

    /// The most output tokens the request's own limits allow, whatever is paid.
    pub fn ceiling_tokens(&self, stream: u32) -> Result<u32, MeterError> {
        let open = self.get(stream)?;
        let rest = open.max_cost().saturating_sub(open.input.map_or(0, |input| input.cost));
        Ok(tokens_for(rest, self.tariff.price_output).min(open.max_tokens()))
    }

    /// Charges `count` further output tokens.
    pub fn release(&mut self, stream: u32, count: u32) -> Result<(), MeterError> {
        if !self.started(stream) {
            self.get(stream)?;
            return Err(MeterError::Order { stream, what: "a token before its input was paid" });
        }
        let tariff = self.tariff;
        let available = self.available(stream)?;
        let open = self.get_mut(stream)?;
        let total = u64::from(open.output_tokens) + u64::from(count);
        let limit = open.max_tokens();
        let Some(total) = u32::try_from(total).ok().filter(|total| *total <= limit) else {
            return Err(MeterError::TooLong { stream, tokens: total, limit });
        };
        let needed = output_cost(&tariff, total) - output_cost(&tariff, open.output_tokens);
        let cost = open.metered(&tariff) + needed;
        if cost > open.max_cost() {
            let ceiling = NanoTon(open.max_cost());
            return Err(MeterError::Ceiling { stream, cost: NanoTon(cost), ceiling });
        }
        if needed > available.0 {
            return Err(MeterError::Unpaid { stream, needed: NanoTon(needed), available });
        }
        open.output_tokens = total;
        self.charged += needed;
        Ok(())
    }

    /// Output tokens released so far.
    #[must_use]
    pub fn released(&self, stream: u32) -> u32 {
        self.streams.get(&stream).map_or(0, |open| open.output_tokens)
    }

    /// What the stream has come to so far.
    #[must_use]
    pub fn bill(&self, stream: u32) -> Bill {
        self.streams.get(&stream).map_or_else(Bill::default, |open| Bill {
            input_tokens: open.input.filter(|i| i.charged).map_or(0, |input| input.tokens),
            output_tokens: open.output_tokens,
            cost: NanoTon(open.metered(&self.tariff)),
            paid: NanoTon(open.allocated),
        })
    }

    /// Ends a stream; what it did not use goes to the pool.
    pub fn finish(&mut self, stream: u32) -> Result<Bill, MeterError> {
        self.get(stream)?;
        let bill = self.bill(stream);
        if let Some(open) = self.streams.remove(&stream) {
            self.settled += i128::from(open.allocated) - i128::from(bill.cost.0);
        }
        Ok(bill)
    }

    /// Ends a stream that failed: without a released token its input is given back.
    pub fn fail(&mut self, stream: u32) -> Result<Bill, MeterError> {
        let open = self.get_mut(stream)?;
        if open.output_tokens == 0
            && let Some(input) = open.input.take().filter(|input| input.charged)
        {
            self.charged -= input.cost;
        }
        self.finish(stream)
    }

    /// The asker stops (or resumes) paying for a stream: it was cancelled, or its reader is behind.
    /// Charges still count.
    pub fn pause(&mut self, stream: u32, paused: bool) {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.paused = paused;
        }
    }

    /// What the asker must pay now, in whole steps, so that no stream waits for money. The
    /// amounts are *not* credited yet: call [`Meter::credit`] for each when its voucher is made.
    #[must_use]
    pub fn due(&self) -> Vec<(u32, NanoTon)> {
        let step = i128::from(self.tariff.step().0);
        let committed = |stream: &Stream| stream.committed(&self.tariff);
        let mut pool = self.settled - self.deficits(committed);
        let mut due = Vec::new();
        for (&id, open) in &self.streams {
            let (Some(_), false) = (open.limits, open.paused) else { continue };
            let own = i128::from(open.allocated) - i128::from(committed(open));
            // The pool as this stream would find it if it owed nothing itself.
            let rest = (pool + (-own).max(0)).max(0);
            let gap = self.lead(open) - own - rest;
            if gap > 0 {
                let amount = (gap + step - 1) / step * step;
                // What it stops borrowing is there for the streams behind it.
                pool += amount.min((-own).max(0));
                due.push((id, NanoTon(to_u64(amount))));
            }
        }
        due
    }

    /// What the asker has paid and not yet agreed to owe: lost if the worker vanishes now.
    #[must_use]
    pub fn exposure(&self) -> NanoTon {
        let open: i128 = self
            .streams
            .values()
            .map(|s| i128::from(s.allocated) - i128::from(s.committed(&self.tariff)))
            .sum();
        NanoTon(to_u64(self.settled + open))
    }

    /// How far payment should lead a stream: a step, or all that it can still cost.
    fn lead(&self, open: &Stream) -> i128 {
        let spent = output_cost(&self.tariff, open.output_tokens);
        let by_tokens = output_cost(&self.tariff, open.max_tokens()) - spent;
        let by_cost = open.max_cost().saturating_sub(open.committed(&self.tariff));
        i128::from(self.tariff.step().0.min(by_tokens).min(by_cost))
    }

    fn deficits(&self, owed: impl Fn(&Stream) -> u64) -> i128 {
        let deficit = |open: &Stream| i128::from(owed(open).saturating_sub(open.allocated));
        self.streams.values().map(deficit).sum()
    }

    fn get(&self, stream: u32) -> Result<&Stream, MeterError> {
        let open = self.streams.get(&stream).filter(|open| open.limits.is_some());
        open.ok_or(MeterError::Unknown(stream))
    }

    fn get_mut(&mut self, stream: u32) -> Result<&mut Stream, MeterError> {
        let open = self.streams.get_mut(&stream).filter(|open| open.limits.is_some());
        open.ok_or(MeterError::Unknown(stream))
    }
}

/// The most tokens that cost at most `amount`, rounding as `token_cost` does.
fn tokens_for(amount: u64, price_per_million: u64) -> u32 {
    if price_per_million == 0 {
        return u32::MAX;
    }
    let tokens = u128::from(amount) * 1_000_000 / u128::from(price_per_million);
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

fn to_u64(value: i128) -> u64 {
    u64::try_from(value.max(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
