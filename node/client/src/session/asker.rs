//! The asker's side of a session, as one machine without input or output.
//!
//! ```text
//! Opening::start ──Open──► host          Opening::accepted ──► Asker
//!
//!   inputs                                 outputs
//!   on_frame(frame, now)    ┌───────┐      transmit(now) → frames: records and vouchers
//!   ask(request, now)  ───► │ Asker │ ───► event()    → Ready, Tokens, Finished, Failed
//!   cancel(stream, now)     └───────┘
//!   on_tick(now)
//! ```
//!
//! The machine says nothing confidential before it is *ready*: the enclave's [`inner::Welcome`]
//! keeps the ad's prices and the evidence's receipt key, and, where the policy asks for it, a
//! fresh quote binds this very handshake. Requests made earlier wait inside.
//!
//! It owns the paying end of the channel. Every [`Asker::transmit`] first lets the [`Meter`] say
//! what is due, so all streams that need money at that moment share one voucher and one signature.
//! Whatever the enclave claims (positions, counts, receipt) is compared with the asker's own
//! count; the first disagreement ends the session.

use std::collections::{BTreeMap, VecDeque};

use cocoon_attest::{
    VerifyError,
    live::{self, LiveProof},
    noise::Channel,
};
use cocoon_inference::{AnswerForm, FinishReason, Token, Usage};
use cocoon_payments::{
    NanoTon, SignedReceipt, SignedVoucher,
    lane::{PayError, Payer},
};

use super::{
    inner::{self, ToAsker, ToEnclave, Welcome},
    meter::{Bill, Limits, Meter, MeterError, Tariff},
    outer::{self, ToClient},
};

mod opening;
mod types;

pub use opening::Opening;
pub use types::{Ask, Event, Patience, SessionError, StreamFailure, Terms, Transmit};

#[derive(Debug)]
struct Stream {
    /// Position of the next token in the whole answer.
    next: u32,
    input_tokens: Option<u32>,
    heard_at: u64,
    /// Nobody listens any more; the final count is awaited for the books.
    cancelled: bool,
    /// Its reader is behind, so nothing more is paid: the worker's silence is our own doing.
    paused: bool,
    /// The alternatives to come with each token; `None` if no log-probabilities were asked for.
    logprobs: Option<u8>,
}

/// An open session. See the module page.
#[derive(Debug)]
pub struct Asker {
    channel: Channel,
    handshake_hash: [u8; 32],
    terms: Terms,
    patience: Patience,
    payer: Payer,
    /// Signed earlier, never received by the worker: the next voucher's allocations include it.
    gap: NanoTon,
    welcome: Option<Welcome>,
    live: bool,
    opened_at: u64,
    meter: Meter,
    next_stream: u32,
    streams: BTreeMap<u32, Stream>,
    /// Asked before the session was ready.
    waiting: VecDeque<(u32, Ask)>,
    outbox: inner::Batch,
    events: VecDeque<Event>,
}

impl Asker {
    /// Whether requests go out at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.welcome.is_some() && self.live
    }

    /// Open streams.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The handshake's hash: the session's name in receipts.
    #[must_use]
    pub fn handshake_hash(&self) -> [u8; 32] {
        self.handshake_hash
    }

    /// The account.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The paying end.
    #[must_use]
    pub fn payer(&self) -> &Payer {
        &self.payer
    }

    /// The paying end, to raise its deposit after a top-up.
    pub fn payer_mut(&mut self) -> &mut Payer {
        &mut self.payer
    }

    /// Ends the machine: what every open stream has come to by our own count. These have no
    /// receipts; streams that were cancelled are left out.
    #[must_use]
    pub fn close(self) -> Vec<(u32, Bill)> {
        let live = self.streams.iter().filter(|(_, state)| !state.cancelled);
        live.map(|(&id, _)| (id, self.meter.bill(id))).collect()
    }

    /// Stops paying for a stream whose reader is behind, and resumes. A worker that is not paid
    /// says nothing, so its silence counts again from when payment resumes.
    pub fn pause(&mut self, stream: u32, paused: bool, now_ms: u64) {
        let Some(state) = self.streams.get_mut(&stream).filter(|state| !state.cancelled) else { return };
        if state.paused && !paused {
            state.heard_at = now_ms;
        }
        state.paused = paused;
        self.meter.pause(stream, paused);
    }

    /// What an open stream has come to by our own count.
    #[must_use]
    pub fn bill(&self, stream: u32) -> Bill {
        self.meter.bill(stream)
    }

    /// Begins a stream and returns its id. The request leaves with the next [`Asker::transmit`]
    /// once the session is ready; failures come as events.
    pub fn ask(&mut self, ask: Ask, now_ms: u64) -> u32 {
        let stream = self.next_stream;
        self.next_stream = self.next_stream.saturating_add(1);
        let next = u32::try_from(ask.request.prefix.len()).unwrap_or(u32::MAX);
        let state = Stream {
            next,
            input_tokens: None,
            heard_at: now_ms,
            cancelled: false,
            paused: false,
            logprobs: ask.request.sampling.logprobs,
        };
        self.streams.insert(stream, state);
        if self.is_ready() {
            self.send(stream, ask);
        } else {
            self.waiting.push_back((stream, ask));
        }
        stream
    }

    /// Nobody wants the stream any more: nothing further is paid for it.
    pub fn cancel(&mut self, stream: u32, now_ms: u64) {
        if let Some(at) = self.waiting.iter().position(|(id, _)| *id == stream) {
            self.waiting.remove(at);
            self.streams.remove(&stream);
            return;
        }
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if !state.cancelled {
            state.cancelled = true;
            state.heard_at = now_ms;
            self.meter.pause(stream, true);
            // A message this small always fits.
            let _ = self.outbox.push(&ToEnclave::Cancel { stream });
        }
    }

    /// A frame from the host. An error ends the session.
    pub fn on_frame(&mut self, frame: ToClient, now_ms: u64, now_unix: u64) -> Result<(), SessionError> {
        match frame {
            ToClient::Noise(record) => {
                let plain = self.channel.open(&record)?;
                for message in inner::decode::<ToAsker>(&plain)? {
                    self.on_message(message, now_ms, now_unix)?;
                }
                Ok(())
            }
            ToClient::Refused(refused) => Err(SessionError::Refused(refused)),
            ToClient::Bye { reason } => Err(SessionError::Bye(reason)),
            ToClient::Accepted(_) => Err(SessionError::Protocol("a second `accepted`")),
        }
    }

    /// Gives up on what has been silent for too long.
    pub fn on_tick(&mut self, now_ms: u64) -> Result<(), SessionError> {
        if !self.is_ready() {
            let waited = now_ms.saturating_sub(self.opened_at);
            let silent = waited > self.patience.ready_ms;
            return if silent { Err(SessionError::Silent(waited)) } else { Ok(()) };
        }
        let patience = self.patience;
        let silent: Vec<(u32, u64)> = self
            .streams
            .iter()
            .filter(|(_, state)| state.cancelled || !state.paused)
            .filter_map(|(&id, state)| {
                let limit = match self.meter.released(id) {
                    0 => patience.first_token_ms,
                    _ => patience.next_token_ms,
                };
                let waited = now_ms.saturating_sub(state.heard_at);
                (waited > limit).then_some((id, waited))
            })
            .collect();
        for (stream, waited) in silent {
            if self.streams.get(&stream).is_some_and(|state| state.cancelled) {
                // It does not even count its last tokens any more; the session is of no use.
                return Err(SessionError::Silent(waited));
            }
            self.give_up(stream, StreamFailure::Silent(waited), now_ms);
        }
        Ok(())
    }

    /// What to send now, in this order: queued messages, then a voucher for all that is due.
    pub fn transmit(&mut self, out: &mut Vec<Transmit>, now_ms: u64) -> Result<(), SessionError> {
        // Paying may cancel streams, whose message then goes along.
        let vouchers = if self.is_ready() { self.pay(now_ms) } else { Vec::new() };
        for record in self.outbox.take() {
            out.push(Transmit::Record(self.channel.seal(&record)?));
        }
        out.extend(vouchers.into_iter().map(Transmit::Voucher));
        Ok(())
    }

    /// The next thing that happened, in order.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn send(&mut self, stream: u32, ask: Ask) {
        let prefix = u32::try_from(ask.request.prefix.len()).unwrap_or(u32::MAX);
        let max_tokens = ask.request.sampling.max_tokens.map(|max| max.saturating_sub(prefix));
        let limits = Limits { max_cost: ask.max_cost, max_tokens };
        if let Err(error) = self.meter.open(stream, limits) {
            self.drop_stream(stream, StreamFailure::Ceiling(error), Bill::default());
            return;
        }
        let request = ToEnclave::Request { stream, request: Box::new(ask.request), max_cost: ask.max_cost.0 };
        if let Err(error) = self.outbox.push(&request) {
            let _ = self.meter.fail(stream);
            self.drop_stream(stream, StreamFailure::TooLarge(error), Bill::default());
        }
    }

    fn on_message(&mut self, message: ToAsker, now_ms: u64, now_unix: u64) -> Result<(), SessionError> {
        if self.welcome.is_none() && !matches!(message, ToAsker::Welcome(_)) {
            return Err(SessionError::Protocol("a message before its welcome"));
        }
        match message {
            ToAsker::Welcome(welcome) => self.on_welcome(welcome, now_ms),
            ToAsker::Live(proof) => self.on_live(&proof, now_ms, now_unix),
            ToAsker::Quoted { stream, input_tokens, input_cost, form } => {
                self.on_quoted(stream, input_tokens, input_cost, form, now_ms)
            }
            ToAsker::Tokens { stream, start, tokens } => self.on_tokens(stream, start, tokens, now_ms),
            ToAsker::Finished { stream, reason, text, usage, receipt } => {
                self.on_finished(stream, reason, text, usage, receipt)
            }
            ToAsker::Failed { stream, code, message } => {
                if self.streams.contains_key(&stream) {
                    let bill = self.meter.fail(stream)?;
                    self.drop_stream(stream, StreamFailure::Enclave { code, message }, bill);
                }
                Ok(())
            }
        }
    }

    fn on_welcome(&mut self, welcome: Welcome, now_ms: u64) -> Result<(), SessionError> {
        if self.welcome.is_some() {
            return Err(SessionError::Protocol("a second welcome"));
        }
        let terms = &self.terms;
        let broken =
            |field, found: String, expected: String| Err(SessionError::Terms { field, found, expected });
        if welcome.price_input > terms.price_input {
            let promised = format!("at most {}", terms.price_input);
            return broken("price_input", welcome.price_input.to_string(), promised);
        }
        if welcome.price_output > terms.price_output {
            let promised = format!("at most {}", terms.price_output);
            return broken("price_output", welcome.price_output.to_string(), promised);
        }
        if welcome.quantum == 0 || welcome.quantum > terms.quantum.0 {
            let promised = format!("1 to {}", terms.quantum.0);
            return broken("quantum", welcome.quantum.to_string(), promised);
        }
        if welcome.model != terms.model {
            return broken("model", hex::encode(welcome.model), hex::encode(terms.model));
        }
        let key = terms.verified.claims.receipt_key;
        if welcome.receipt_key != key {
            return broken("receipt_key", hex::encode(welcome.receipt_key), hex::encode(key));
        }
        self.meter = Meter::new(Tariff {
            price_input: welcome.price_input,
            price_output: welcome.price_output,
            quantum: NanoTon(welcome.quantum),
        });
        self.welcome = Some(welcome);
        self.begin_if_ready(now_ms);
        Ok(())
    }

    fn on_live(&mut self, proof: &[u8], now_ms: u64, now_unix: u64) -> Result<(), SessionError> {
        let (Some(nonce), false) = (self.terms.challenge, self.live) else {
            return Err(SessionError::Protocol("a live proof nobody asked for"));
        };
        let refused = |error: VerifyError| SessionError::Live(Box::new(error));
        let proof = LiveProof::decode(proof).map_err(|error| refused(error.into()))?;
        let (terms, hash) = (&self.terms, &self.handshake_hash);
        let (verified, collateral) = (&terms.verified, &terms.collateral);
        live::verify_live(&proof, hash, &nonce, verified, collateral, &terms.policy, now_unix)
            .map_err(refused)?;
        self.live = true;
        self.begin_if_ready(now_ms);
        Ok(())
    }

    fn begin_if_ready(&mut self, now_ms: u64) {
        let (true, Some(welcome)) = (self.live, self.welcome.clone()) else { return };
        self.events.push_back(Event::Ready(welcome));
        while let Some((stream, ask)) = self.waiting.pop_front() {
            if let Some(state) = self.streams.get_mut(&stream) {
                state.heard_at = now_ms;
            }
            self.send(stream, ask);
        }
    }

    fn on_quoted(
        &mut self,
        stream: u32,
        input_tokens: u32,
        input_cost: u64,
        form: AnswerForm,
        now_ms: u64,
    ) -> Result<(), SessionError> {
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(()) };
        state.heard_at = now_ms;
        state.input_tokens = Some(input_tokens);
        let cancelled = state.cancelled;
        match self.meter.quote(stream, input_tokens) {
            Ok(cost) if cost.0 != input_cost => {
                Err(SessionError::Protocol("a quote that is not tokens times price"))
            }
            Ok(cost) => {
                if !cancelled {
                    self.events.push_back(Event::Quoted { stream, input_tokens, cost, form });
                }
                Ok(())
            }
            Err(error @ MeterError::Ceiling { .. }) => {
                self.give_up(stream, StreamFailure::Ceiling(error), now_ms);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn on_tokens(
        &mut self,
        stream: u32,
        start: u32,
        tokens: Vec<Token>,
        now_ms: u64,
    ) -> Result<(), SessionError> {
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(()) };
        if start != state.next {
            return Err(SessionError::Protocol("tokens that do not continue the answer"));
        }
        let as_asked = |token: &Token| match (state.logprobs, &token.logprobs) {
            (Some(top), Some(logprobs)) => logprobs.is_sound(top),
            (asked, sent) => asked.is_none() && sent.is_none(),
        };
        if !tokens.iter().all(as_asked) {
            return Err(SessionError::Protocol("log-probabilities other than those asked for"));
        }
        let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        state.next = state.next.saturating_add(count);
        state.heard_at = now_ms;
        let cancelled = state.cancelled;
        self.meter.start(stream)?;
        self.meter.release(stream, count)?;
        if !cancelled && count > 0 {
            self.events.push_back(Event::Tokens { stream, tokens });
        }
        Ok(())
    }

    fn on_finished(
        &mut self,
        stream: u32,
        reason: FinishReason,
        text: String,
        usage: Usage,
        receipt: Box<SignedReceipt>,
    ) -> Result<(), SessionError> {
        let Some(state) = self.streams.get(&stream) else { return Ok(()) };
        if receipt.receipt.input_tokens > 0 {
            self.meter.start(stream)?;
        }
        let bill = self.meter.bill(stream);
        self.check_receipt(stream, &receipt, bill)?;
        let prompt_tokens = state.input_tokens.unwrap_or(0);
        // What was cached is the worker's word. It changes no price, but it must make sense.
        let cached_tokens = usage.cached_tokens.min(prompt_tokens);
        let counted = Usage { prompt_tokens, cached_tokens, completion_tokens: bill.output_tokens };
        let cancelled = state.cancelled;
        if reason != FinishReason::Cancelled && usage != counted {
            return Err(SessionError::Protocol("usage differs from what was quoted and delivered"));
        }
        self.meter.finish(stream)?;
        self.streams.remove(&stream);
        if !cancelled {
            self.events.push_back(Event::Finished { stream, reason, text, usage, receipt });
        }
        Ok(())
    }

    fn check_receipt(&self, stream: u32, signed: &SignedReceipt, bill: Bill) -> Result<(), SessionError> {
        let receipt = &signed.receipt;
        let (claims, tariff) = (&self.terms.verified.claims, self.meter.tariff());
        let bytes = |field, found: &[u8], expected: &[u8]| {
            agree(stream, field, found, expected, |bytes| hex::encode(bytes))
        };
        let number =
            |field, found: u64, expected: u64| agree(stream, field, &found, &expected, u64::to_string);
        bytes("key", &signed.key, &claims.receipt_key)?;
        bytes("session", &receipt.session, &self.handshake_hash)?;
        bytes("worker", &receipt.worker, &self.terms.worker)?;
        bytes("model", &receipt.model, &self.terms.model)?;
        agree(stream, "channel", &receipt.channel, &Some(self.payer.address()), |a| format!("{a:?}"))?;
        number("stream", receipt.stream.into(), stream.into())?;
        number("input_tokens", receipt.input_tokens.into(), bill.input_tokens.into())?;
        number("output_tokens", receipt.output_tokens.into(), bill.output_tokens.into())?;
        number("price_input", receipt.price_input, tariff.price_input)?;
        number("price_output", receipt.price_output, tariff.price_output)?;
        number("cost", receipt.cost.0, bill.cost.0)?;
        signed.verify().map_err(|error| SessionError::ReceiptSignature { stream, error })
    }

    /// Fails a stream towards the application; the enclave is told, and its last count awaited.
    fn give_up(&mut self, stream: u32, why: StreamFailure, now_ms: u64) {
        let bill = self.meter.bill(stream);
        self.events.push_back(Event::Failed { stream, why, bill });
        self.cancel(stream, now_ms);
    }

    /// Forgets a stream that the enclave has forgotten too, or never knew.
    fn drop_stream(&mut self, stream: u32, why: StreamFailure, bill: Bill) {
        if self.streams.remove(&stream).is_some_and(|state| !state.cancelled) {
            self.events.push_back(Event::Failed { stream, why, bill });
        }
    }

    /// One voucher for everything due, or several if more streams need money than one may credit.
    fn pay(&mut self, now_ms: u64) -> Vec<outer::Voucher> {
        let due = self.meter.due();
        let mut vouchers = Vec::new();
        for chunk in due.chunks(outer::MAX_ALLOCATIONS) {
            let mut allocations: Vec<(u32, u64)> = chunk.iter().map(|(id, due)| (*id, due.0)).collect();
            loop {
                match self.sign(&mut allocations) {
                    Ok(Some(signed)) => {
                        for &(stream, amount) in &allocations {
                            // The sum was signed, so it fits 64 bits.
                            let _ = self.meter.credit(stream, NanoTon(amount));
                        }
                        vouchers.push(outer::Voucher { signed, allocations });
                        break;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        // Not all of them can be paid: the newest request gives way first.
                        let Some((stream, _)) = allocations.pop() else { break };
                        self.give_up(stream, StreamFailure::Unfunded(error), now_ms);
                    }
                }
            }
        }
        vouchers
    }

    /// Signs for the sum of the allocations; what an earlier connection lost counts towards it.
    fn sign(&mut self, allocations: &mut [(u32, u64)]) -> Result<Option<SignedVoucher>, PayError> {
        let sum = NanoTon(allocations.iter().map(|(_, amount)| *amount).fold(0, u64::saturating_add));
        let Some(first) = allocations.first_mut() else { return Ok(None) };
        let fresh = sum.saturating_sub(self.gap);
        let signed = if fresh.is_zero() {
            // All of it was signed before and never arrived: send that voucher again.
            first.1 += self.gap.saturating_sub(sum).0;
            self.payer.newest()
        } else {
            self.payer.pay(fresh)?
        };
        self.gap = NanoTon::ZERO;
        Ok(Some(signed))
    }
}

/// A receipt's field equals our own count, or both are shown.
fn agree<T: PartialEq + ?Sized>(
    stream: u32,
    field: &'static str,
    found: &T,
    expected: &T,
    show: impl Fn(&T) -> String,
) -> Result<(), SessionError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (show(found), show(expected));
    Err(SessionError::Receipt { stream, field, found, expected })
}

#[cfg(test)]
mod tests;
