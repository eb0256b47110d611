//! One attested session, as a machine without I/O: opened messages, credit and engine events in; messages to
//! seal, jobs to start and allowances out.
//!
//! A stream (request) lives through
//!
//! ```text
//! Request ─► engine prepares ─► Quoted ─► credit covers the input ─► tokens, as credit covers them ─► Finished
//! ```
//!
//! From the engine's first look to the first credit a stream holds one of the engine's places for nothing. So no
//! more than `MAX_UNPAID` of a session do that at once, each for no longer than `UNPAID`, however slowly the
//! asker reads; further requests wait here, where they take nobody else's place, and beyond the session's
//! streams they are refused.
//!
//! Three rules hold whatever the engine, the host and the asker do:
//!
//! 1. **Nothing leaves unpaid.** The engine may run ahead by a little, since streams of one session draw on a
//!    common pool and each is told what it could have; what it produced beyond the credit waits in `ready`
//!    and is neither metered nor sent. Only [`Meter::release`] moves it on.
//! 2. **The receipt says what was released**, never what was produced.
//! 3. **Memory is bounded**: by the number of streams, by the allowance of each, and, when the asker reads
//!    slowly, by [`Input::Pause`], after which no further token is released or allowed.
//!
//! Tokens leave in batches. The first of a stream goes at once, since somebody waits for it; later ones wait
//! up to [`BATCH_DELAY`] for company, which hides the timing of single tokens and saves records. A stream
//! that has used up its credit is flushed at once, because the asker pays for more only when it sees what it
//! got.
//!
//! [`Session::handle`] takes inputs; [`Session::settle`] is called once after a batch of them and does the
//! work that batching saves from being done for each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use cocoon_client::session::inner::{FailCode, ToAsker, ToEnclave};
use cocoon_client::session::meter::{Bill, Limits as StreamLimits, Meter, MeterError, Tariff};
use cocoon_inference::runner::Event;
use cocoon_inference::{FinishReason, GenerateRequest, RequestError, Token, Usage};
use cocoon_payments::{Address, NanoTon, Receipt};

/// How long a token may wait for others before it is sent. Short beside what a person notices or a model
/// takes.
pub const BATCH_DELAY: Duration = Duration::from_millis(3);
/// A batch is sent when it holds this many tokens, whatever the timer says.
const BATCH_TOKENS: usize = 32;
/// A batch is sent when its tokens reach this size, so that any batch fits a record.
const BATCH_BYTES: usize = 16 * 1024;
/// How far the engine may run ahead of what was released, credit permitting: what a paused stream can still
/// grow by.
const AHEAD: u32 = 256;
/// How long a stream may wait for money before it is ended and its place freed.
const STALL: Duration = Duration::from_secs(60);
/// The same for a stream that was never paid: an asker that means it pays within a round trip of its quote.
const UNPAID: Duration = Duration::from_secs(5);
/// Streams of one session that may be at the engine without having been paid. More than one, so that a burst of
/// requests is quoted and paid a few at a time, not one by one.
const MAX_UNPAID: usize = 4;

/// The time, as the shell knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, for receipts.
    pub unix_s: u64,
    /// Since any fixed moment; for timers.
    pub uptime: Duration,
}

/// What is fixed when a session opens.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The handshake hash: names the session in receipts.
    pub session: [u8; 32],
    /// The host's peer id.
    pub worker: Vec<u8>,
    /// The model served.
    pub model: [u8; 32],
    /// The payment channel.
    pub channel: Option<Address>,
    /// Prices and quantum.
    pub tariff: Tariff,
    /// Most requests in flight.
    pub max_streams: usize,
    /// Most bytes of prompt per request.
    pub max_prompt_bytes: usize,
}

/// What came in.
#[derive(Debug)]
pub enum Input {
    /// The asker's message, decrypted.
    Message(ToEnclave),
    /// The host verified and stored money for a stream.
    Credit {
        /// Which stream; 0 for the pool.
        stream: u32,
        /// How much more.
        amount: NanoTon,
    },
    /// The engine's word on a stream's job.
    Engine {
        /// Which stream.
        stream: u32,
        /// What happened.
        event: Event,
    },
    /// The engine did not take a stream's job.
    NotStarted {
        /// Which stream.
        stream: u32,
        /// Why.
        code: FailCode,
        /// The same in words.
        message: String,
    },
    /// The live quote asked for is there, encoded.
    Live(Vec<u8>),
    /// The live quote asked for will not come.
    NoLive,
    /// The asker reads slowly.
    Pause,
    /// It caught up.
    Resume,
}

/// What the shell must do, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Seal and send.
    Send(ToAsker),
    /// Sign the receipt, then seal and send it as the stream's end.
    Finish {
        /// Which stream.
        stream: u32,
        /// Why it ended.
        reason: FinishReason,
        /// Text the tokens held back.
        text: String,
        /// Exact counts.
        usage: Usage,
        /// To sign.
        receipt: Receipt,
    },
    /// Hand a request to the engine, with an allowance of nothing.
    Start {
        /// Which stream.
        stream: u32,
        /// What to generate.
        request: Box<GenerateRequest>,
    },
    /// Raise a job's allowance.
    Allow {
        /// Which stream.
        stream: u32,
        /// Output tokens in total.
        tokens: u32,
    },
    /// Cancel a job, if it still runs, and forget it.
    Drop {
        /// Which stream.
        stream: u32,
    },
    /// Quote over this nonce and the handshake.
    Quote {
        /// The asker's nonce.
        nonce: [u8; 32],
    },
    /// End the session; the asker broke the protocol.
    Close {
        /// What it did.
        reason: &'static str,
    },
}

#[derive(Debug, Default)]
struct Stream {
    /// Not handed to the engine yet: too many others of the session are there unpaid.
    request: Option<Box<GenerateRequest>>,
    /// Set once the engine has counted the prompt.
    quoted: bool,
    /// Produced, not yet covered by credit.
    ready: VecDeque<Token>,
    /// The engine is done; what it said at the end.
    ended: Option<(FinishReason, String)>,
    /// Tokens of the input that the engine still knew.
    cached_tokens: u32,
    /// Released, not yet sent.
    batch: Vec<Token>,
    batch_bytes: usize,
    /// Position in the whole answer of the next token to send.
    sent: u32,
    /// Whether any token was sent.
    spoke: bool,
    /// The engine's allowance.
    allowed: u32,
    /// Since when it waits for money.
    stalled: Option<Duration>,
}

/// The machine. See the module page.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    meter: Meter,
    streams: BTreeMap<u32, Stream>,
    /// Streams to look at in [`Session::settle`].
    dirty: BTreeSet<u32>,
    /// Streams that wait for credit, wherever it comes from.
    starved: BTreeSet<u32>,
    /// Streams at the engine whose input is not paid.
    unpaid: BTreeSet<u32>,
    /// Streams whose request waits here, oldest first.
    line: VecDeque<u32>,
    paused: bool,
    quoting: bool,
    closed: bool,
    flush_at: Option<Duration>,
}

impl Session {
    /// A session without streams.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        let meter = Meter::new(terms.tariff);
        Self {
            terms,
            meter,
            streams: BTreeMap::new(),
            dirty: BTreeSet::new(),
            starved: BTreeSet::new(),
            unpaid: BTreeSet::new(),
            line: VecDeque::new(),
            paused: false,
            quoting: false,
            closed: false,
            flush_at: None,
        }
    }

    /// The account.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Requests in flight.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// When [`Session::settle`] wants to be called even if nothing comes in.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.flush_at
    }

    /// Takes one input. Some effects come at once, the rest from [`Session::settle`].
    pub fn handle(&mut self, input: Input, now: Now, out: &mut Vec<Effect>) {
        if self.closed {
            return;
        }
        match input {
            Input::Message(ToEnclave::Request { stream, request, max_cost }) => {
                self.request(stream, request, NanoTon(max_cost), out);
            }
            Input::Message(ToEnclave::Cancel { stream }) => self.cancel(stream, now, out),
            Input::Message(ToEnclave::Challenge { nonce }) => {
                if self.quoting {
                    self.close("a second challenge before the first was answered", out);
                } else {
                    self.quoting = true;
                    out.push(Effect::Quote { nonce });
                }
            }
            Input::Credit { stream, amount } => {
                if self.meter.credit(stream, amount).is_err() {
                    self.close("credits beyond 64 bits", out);
                    return;
                }
                // Whatever the credit names, it may free pool that others wait for.
                self.dirty.append(&mut self.starved);
                if self.streams.contains_key(&stream) {
                    self.dirty.insert(stream);
                }
            }
            Input::Engine { stream, event } => self.engine(stream, event, out),
            Input::NotStarted { stream, code, message } => self.fail(stream, code, message, out),
            Input::Live(proof) => {
                self.quoting = false;
                out.push(Effect::Send(ToAsker::Live(proof)));
            }
            Input::NoLive => self.close("the live quote failed", out),
            Input::Pause => self.paused = true,
            Input::Resume => {
                self.paused = false;
                self.dirty.extend(self.streams.keys());
            }
        }
    }

    /// Releases, allows, flushes and finishes what the inputs since the last call made possible.
    pub fn settle(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.closed {
            return;
        }
        while let Some(stream) = self.dirty.pop_first() {
            self.advance(stream, now, out);
        }
        self.admit(out);
        if self.flush_at.is_some_and(|at| at <= now.uptime) {
            self.flush_at = None;
            for (&id, stream) in &mut self.streams {
                flush(id, stream, out);
            }
        }
    }

    /// Ends streams that have waited too long for money. Called every few seconds.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        let late: Vec<u32> = self
            .streams
            .iter()
            .filter(|(id, stream)| {
                let limit = if self.unpaid.contains(id) { UNPAID } else { STALL };
                stream.stalled.is_some_and(|since| now.uptime.saturating_sub(since) >= limit)
            })
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            let why = match self.unpaid.contains(&id) {
                true => "the input was not paid within 5 s of its quote; ask again",
                false => "no payment came for a minute; ask again",
            };
            self.fail(id, FailCode::Unpaid, why.to_owned(), out);
        }
    }

    /// Hands waiting requests to the engine, as far as the unpaid ones leave room.
    fn admit(&mut self, out: &mut Vec<Effect>) {
        while self.unpaid.len() < MAX_UNPAID
            && let Some(id) = self.line.pop_front()
        {
            if let Some(request) = self.streams.get_mut(&id).and_then(|stream| stream.request.take()) {
                self.unpaid.insert(id);
                out.push(Effect::Start { stream: id, request });
            }
        }
    }

    fn close(&mut self, reason: &'static str, out: &mut Vec<Effect>) {
        self.closed = true;
        self.streams.clear();
        self.line.clear();
        out.push(Effect::Close { reason });
    }

    fn request(
        &mut self,
        stream: u32,
        request: Box<GenerateRequest>,
        max_cost: NanoTon,
        out: &mut Vec<Effect>,
    ) {
        // The engine counts the prefix of a resumed answer as input, the request as part of the answer.
        let prefix = u32::try_from(request.prefix.len()).unwrap_or(u32::MAX);
        let max_tokens = request.sampling.max_tokens.map(|tokens| tokens.saturating_sub(prefix));
        match self.meter.open(stream, StreamLimits { max_cost, max_tokens }) {
            Ok(()) => {}
            Err(MeterError::TooManyStreams) => {
                out.push(failed(stream, FailCode::Busy, BUSY));
                return;
            }
            Err(_) => {
                self.close("a stream id that was used before", out);
                return;
            }
        }
        let refused = if self.streams.len() >= self.terms.max_streams {
            Some((FailCode::Busy, BUSY.to_owned()))
        } else {
            self.check(&request).err().map(|error| {
                let message = error.to_string();
                (FailCode::Request(error), message)
            })
        };
        if let Some((code, message)) = refused {
            // What was paid ahead goes to the pool.
            let _ = self.meter.fail(stream);
            out.push(Effect::Send(ToAsker::Failed { stream, code, message }));
            return;
        }
        self.streams.insert(stream, Stream { request: Some(request), sent: prefix, ..Stream::default() });
        self.line.push_back(stream);
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), RequestError> {
        let limit = self.terms.max_prompt_bytes;
        let bytes = request.text_bytes();
        if bytes > limit {
            let why = format!("{bytes} bytes of text, this worker takes at most {limit}; shorten them");
            return Err(RequestError::Invalid { field: "messages".to_owned(), why });
        }
        request.validate()
    }

    fn engine(&mut self, id: u32, event: Event, out: &mut Vec<Effect>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match event {
            Event::Prepared { prompt_tokens, form } => match self.meter.quote(id, prompt_tokens) {
                Ok(cost) => {
                    stream.quoted = true;
                    out.push(Effect::Send(ToAsker::Quoted {
                        stream: id,
                        input_tokens: prompt_tokens,
                        input_cost: cost.0,
                        form,
                    }));
                    self.dirty.insert(id);
                }
                Err(error) => {
                    let needed = match &error {
                        MeterError::Ceiling { cost, .. } => cost.0,
                        _ => u64::MAX,
                    };
                    self.fail(id, FailCode::Ceiling { needed }, error.to_string(), out);
                }
            },
            Event::Tokens(tokens) => {
                stream.ready.extend(tokens);
                self.dirty.insert(id);
            }
            Event::Finished { reason, text, usage } => {
                stream.ended = Some((reason, text));
                stream.cached_tokens = usage.cached_tokens;
                self.dirty.insert(id);
            }
            Event::Rejected(error) => {
                let message = error.to_string();
                self.fail(id, FailCode::Request(error), message, out);
            }
            Event::Failed(message) => self.fail(id, FailCode::Engine, message, out),
            Event::Displaced => {
                let why =
                    "the engine is full and this request was not paid; pay sooner or try another worker";
                self.fail(id, FailCode::Busy, why.to_owned(), out);
            }
        }
    }

    /// Moves one stream on as far as engine and credit allow.
    fn advance(&mut self, id: u32, now: Now, out: &mut Vec<Effect>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.quoted {
            return;
        }
        // Whether it is paid has nothing to do with whether its asker reads: one that does not must not hold its
        // place for longer.
        if self.meter.start(id).is_err() {
            stream.stalled.get_or_insert(now.uptime);
            self.starved.insert(id);
            return;
        }
        if self.unpaid.remove(&id) {
            stream.stalled = None;
        }
        if self.paused {
            return;
        }
        // Both cannot fail for a stream that is open and started.
        let covered = self.meter.affordable(id).unwrap_or(0);
        let ceiling = self.meter.ceiling_tokens(id).unwrap_or(0);
        let released = self.meter.released(id);

        let count = stream.ready.len().min(covered.saturating_sub(released) as usize);
        if count > 0 && self.meter.release(id, count as u32).is_ok() {
            for _ in 0..count {
                let Some(token) = stream.ready.pop_front() else { break };
                stream.batch_bytes += token.size();
                stream.batch.push(token);
                if stream.batch.len() >= BATCH_TOKENS || stream.batch_bytes >= BATCH_BYTES {
                    flush(id, stream, out);
                }
            }
        }
        let released = self.meter.released(id);

        if released >= ceiling && !stream.ready.is_empty() {
            // The engine would go on; the request's own limits say no.
            self.finish(id, FinishReason::Length, String::new(), now, out);
            return;
        }
        if stream.ready.is_empty()
            && let Some((reason, text)) = stream.ended.take()
        {
            self.finish(id, reason, text, now, out);
            return;
        }

        let starved = released >= covered && covered < ceiling;
        if starved {
            stream.stalled.get_or_insert(now.uptime);
            self.starved.insert(id);
        } else {
            stream.stalled = None;
        }
        // One more than the ceiling, so that the engine can say that the answer ends there by itself.
        let limit = if covered >= ceiling { ceiling.saturating_add(1) } else { covered };
        let window = released.saturating_add(AHEAD);
        if limit.min(window) > stream.allowed && (limit <= window || window - stream.allowed >= AHEAD / 2) {
            stream.allowed = limit.min(window);
            out.push(Effect::Allow { stream: id, tokens: stream.allowed });
        }
        if !stream.batch.is_empty() {
            if !stream.spoke || starved {
                flush(id, stream, out);
            } else {
                self.flush_at.get_or_insert(now.uptime + BATCH_DELAY);
            }
        }
    }

    /// Ends a stream with a receipt over what was released.
    fn finish(&mut self, id: u32, reason: FinishReason, text: String, now: Now, out: &mut Vec<Effect>) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        flush(id, &mut stream, out);
        let bill = self.meter.finish(id).unwrap_or_default();
        let usage = Usage {
            prompt_tokens: bill.input_tokens,
            cached_tokens: stream.cached_tokens.min(bill.input_tokens),
            completion_tokens: bill.output_tokens,
        };
        let receipt = self.receipt(id, &bill, now);
        out.push(Effect::Drop { stream: id });
        out.push(Effect::Finish { stream: id, reason, text, usage, receipt });
        self.freed(id);
    }

    /// Ends a stream without an answer; the input is given back if nothing was released.
    fn fail(&mut self, id: u32, code: FailCode, message: String, out: &mut Vec<Effect>) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        flush(id, &mut stream, out);
        let _ = self.meter.fail(id);
        out.push(Effect::Drop { stream: id });
        out.push(Effect::Send(ToAsker::Failed { stream: id, code, message }));
        self.freed(id);
    }

    fn cancel(&mut self, id: u32, now: Now, out: &mut Vec<Effect>) {
        // A cancel may cross the end of its stream; then there is nothing to do.
        self.finish(id, FinishReason::Cancelled, String::new(), now, out);
    }

    /// What a stream leaves over is in the pool now, where others may have waited for it.
    fn freed(&mut self, id: u32) {
        self.starved.remove(&id);
        self.unpaid.remove(&id);
        // Else asking and cancelling would make it grow without end.
        self.line.retain(|&waiting| waiting != id);
        self.dirty.append(&mut self.starved);
    }

    fn receipt(&self, stream: u32, bill: &Bill, now: Now) -> Receipt {
        let terms = &self.terms;
        Receipt {
            session: terms.session,
            stream,
            worker: terms.worker.clone(),
            model: terms.model,
            channel: terms.channel,
            input_tokens: bill.input_tokens,
            output_tokens: bill.output_tokens,
            price_input: terms.tariff.price_input,
            price_output: terms.tariff.price_output,
            cost: bill.cost,
            paid: self.meter.credited(),
            finished_at: now.unix_s,
        }
    }
}

const BUSY: &str = "too many requests in flight; wait for one to finish";

fn failed(stream: u32, code: FailCode, message: &str) -> Effect {
    Effect::Send(ToAsker::Failed { stream, code, message: message.to_owned() })
}

/// Sends what a stream has collected.
fn flush(id: u32, stream: &mut Stream, out: &mut Vec<Effect>) {
    if stream.batch.is_empty() {
        return;
    }
    let tokens = std::mem::take(&mut stream.batch);
    let start = stream.sent;
    stream.sent = start.saturating_add(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
    stream.batch_bytes = 0;
    stream.spoke = true;
    out.push(Effect::Send(ToAsker::Tokens { stream: id, start, tokens }));
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
