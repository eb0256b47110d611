//! One answer: a stream of tokens over as many workers as it takes.
//!
//! The answer drives itself while it is polled; no task of its own stands between the session and
//! the application. A *leg* is one worker's part. When a leg fails, the next worker gets the same
//! request, deadline, policy and what is left of the price ceiling, and the token ids received so
//! far as its prefix, so it continues the text exactly. Every worker bills the input it read; no
//! output token is billed twice, because a leg's worker bills only what it wrote itself.
//!
//! Dropping an answer cancels it: the worker stops, and nothing more is paid.

// A shell: deadlines and outcomes are measured with the machine's clock.
#![allow(clippy::disallowed_methods)]

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use cocoon_attest::Assurance;
use cocoon_inference::{
    AnswerForm, FinishReason, GenerateRequest, Message, RequestError, Sampling, Structure, Token, Usage,
};
use cocoon_p2p::core::{Outcome, PeerKey};
use cocoon_payments::{NanoTon, SignedReceipt};
use futures::{FutureExt, Stream};
use serde::Serialize;

use super::{
    Inner,
    error::{ChatError, FailedLeg},
    legs::StartedLeg,
    link::{LegEvent, Lost},
    receipt::{Leg, Receipt},
};
use crate::session::{asker::StreamFailure, inner::FailCode, meter::Bill};

/// Deadline of a request that names none.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_secs(300);

/// A question.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// `name`, `name@digest` or the digest.
    pub model: String,
    /// The conversation.
    pub messages: Vec<Message>,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// Functions on offer, and what the answer must look like. [`AnswerReader`](cocoon_inference::AnswerReader) reads
    /// what comes of it.
    pub structure: Structure,
    /// Shares cached prompts with whoever asks under the same key; see
    /// [`GenerateRequest::cache_key`](cocoon_inference::GenerateRequest::cache_key). None shares with nobody.
    pub cache_key: Option<String>,
    /// Ceiling for the whole answer, all workers together. Without one, what the model's whole
    /// context would cost at the first worker's price.
    pub max_cost: Option<NanoTon>,
    /// Time for the whole answer; 5 minutes if not given.
    pub deadline: Option<Duration>,
}

impl ChatRequest {
    /// A request with the model's own defaults.
    pub fn new(model: impl Into<String>, messages: Vec<Message>) -> Self {
        Self {
            model: model.into(),
            messages,
            sampling: Sampling::default(),
            structure: Structure::default(),
            cache_key: None,
            max_cost: None,
            deadline: None,
        }
    }
}

/// How long each step before the first token took, in milliseconds. A step whose result was at hand
/// (the flags say so) has the time that it took when it was done.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StepTimings {
    /// Waiting for somebody to offer the model.
    pub discover_ms: f64,
    /// Choosing among them, and waiting for a funded channel.
    pub choose_ms: f64,
    /// Fetching and verifying evidence.
    pub attest_ms: f64,
    /// Connecting and the Noise handshake, with live binding if the policy asks.
    pub connect_ms: f64,
    /// The evidence was verified earlier and still holds.
    pub attested_cached: bool,
    /// The session was open already.
    pub session_reused: bool,
}

/// A worker begins (or goes on) answering.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LegStart {
    /// Its peer id.
    pub worker: String,
    /// What our own verification of its evidence found.
    pub assurance: Assurance,
    /// The root of trust its evidence rests on.
    pub root: String,
    /// The image that serves, hexadecimal.
    pub measurement: String,
    /// Digest of the evidence, hexadecimal.
    pub evidence_digest: String,
    /// The channel that pays.
    pub channel: String,
    /// How long the steps before took.
    pub timings: StepTimings,
}

/// What an answer yields.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerEvent {
    /// A worker was verified and has the request.
    Started {
        /// Who, and how it was found sound.
        leg: LegStart,
    },
    /// A worker has counted the prompt. Comes again after a failover, when what came of the answer so far is part of
    /// the prompt; the form is the same.
    Prepared {
        /// Tokens that it reads.
        prompt_tokens: u32,
        /// How the answer is to be read.
        form: AnswerForm,
    },
    /// More of the answer.
    Tokens(Vec<Token>),
    /// A worker failed; another one goes on.
    Failover {
        /// The failed worker's peer id.
        from: String,
        /// What happened.
        why: String,
    },
    /// The end.
    Finished {
        /// Why generation ended.
        reason: FinishReason,
        /// Text that was held back until now; append it.
        text: String,
        /// Tokens of the prompt and of the whole answer.
        usage: Usage,
        /// What it cost, with the enclaves' signatures.
        receipt: Receipt,
    },
}

/// A stream of [`AnswerEvent`]s that ends after `Finished` or an error.
pub struct Answer {
    driver: Option<Box<Driver>>,
    state: State,
    /// What the legs before the running one took.
    closed: NanoTon,
    /// What the running leg, or the one that ended in an error, has taken so far.
    running: Option<Arc<AtomicU64>>,
    deadline: Pin<Box<tokio::time::Sleep>>,
    deadline_s: u64,
}

type Starting = Pin<Box<dyn Future<Output = (Box<Driver>, Result<StartedLeg, ChatError>)> + Send>>;

enum State {
    Starting(Starting),
    Streaming(Box<Streaming>),
    Done,
}

struct Streaming {
    leg: StartedLeg,
    announced: bool,
    sent_at: Instant,
    first_token: Option<Instant>,
    /// Tokens this leg delivered.
    delivered: u32,
}

/// What carries over from leg to leg.
pub(super) struct Driver {
    pub(super) peer: Arc<Inner>,
    pub(super) model_name: String,
    pub(super) request: GenerateRequest,
    pub(super) max_cost: Option<NanoTon>,
    pub(super) tried: BTreeSet<PeerKey>,
    pub(super) failed: Vec<FailedLeg>,
    legs: Vec<Leg>,
    prompt_tokens: Option<u32>,
}

impl Driver {
    /// Money signed away, not only for what was delivered: a worker that takes a voucher and goes
    /// must not leave the whole ceiling to the next one.
    pub(super) fn spent(&self) -> NanoTon {
        self.legs.iter().fold(NanoTon::ZERO, |sum, leg| sum.saturating_add(leg.taken()))
    }
}

impl Answer {
    /// Begins: resolves once a verified worker has the request.
    pub(super) async fn begin(
        peer: Arc<Inner>,
        request: ChatRequest,
        model: [u8; 32],
    ) -> Result<Self, ChatError> {
        let allowed = request.deadline.unwrap_or(DEFAULT_DEADLINE);
        let deadline = Instant::now() + allowed;
        let driver = Box::new(Driver {
            peer,
            model_name: request.model,
            request: GenerateRequest {
                structure: request.structure,
                cache_key: request.cache_key,
                ..GenerateRequest::new(model, request.messages, request.sampling)
            },
            max_cost: request.max_cost,
            tried: BTreeSet::new(),
            failed: Vec::new(),
            legs: Vec::new(),
            prompt_tokens: None,
        });
        let deadline_s = allowed.as_secs();
        let started = tokio::time::timeout(allowed, start(driver)).await;
        let (driver, leg) = started.map_err(|_| ChatError::Deadline { seconds: deadline_s })?;
        let leg = leg?;
        Ok(Self {
            driver: Some(driver),
            closed: NanoTon::ZERO,
            running: Some(leg.handle.spent()),
            state: State::Streaming(Box::new(Streaming::new(leg))),
            deadline: Box::pin(tokio::time::sleep_until(deadline.into())),
            deadline_s,
        })
    }

    /// Everything signed away for this answer so far: what its finished legs took and what the
    /// running one has been paid. It stays valid after an error and after the end; then it is the
    /// receipt's total and every leg's [`Leg::unused`]. Cheap; for accounts that must also see
    /// answers that were dropped.
    #[must_use]
    pub fn spent(&self) -> NanoTon {
        let running = self.running.as_ref().map_or(0, |leg| leg.load(Ordering::Relaxed));
        self.closed.saturating_add(NanoTon(running))
    }

    fn fail(&mut self, error: ChatError) -> Poll<Option<Result<AnswerEvent, ChatError>>> {
        self.state = State::Done;
        Poll::Ready(Some(Err(error)))
    }

    /// One event of the running leg.
    fn poll_leg(
        &mut self,
        mut streaming: Box<Streaming>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<AnswerEvent, ChatError>>> {
        if !streaming.announced {
            streaming.announced = true;
            let leg = streaming.leg.start.clone();
            self.state = State::Streaming(streaming);
            return Poll::Ready(Some(Ok(AnswerEvent::Started { leg })));
        }
        let polled = streaming.leg.handle.events.poll_recv(cx);
        let Poll::Ready(event) = polled else {
            self.state = State::Streaming(streaming);
            return Poll::Pending;
        };
        let Some(driver) = self.driver.as_mut() else {
            return self.fail(ChatError::Internal { what: "the answer lost its driver".into() });
        };
        match event {
            Some(LegEvent::Quoted { input_tokens, form }) => {
                self.state = State::Streaming(streaming);
                Poll::Ready(Some(Ok(AnswerEvent::Prepared { prompt_tokens: input_tokens, form })))
            }
            Some(LegEvent::Tokens(tokens)) => {
                streaming.first_token.get_or_insert_with(Instant::now);
                streaming.delivered += u32::try_from(tokens.len()).unwrap_or(u32::MAX);
                driver.request.prefix.extend(tokens.iter().map(|token| token.id));
                self.state = State::Streaming(streaming);
                Poll::Ready(Some(Ok(AnswerEvent::Tokens(tokens))))
            }
            Some(LegEvent::Finished { reason, text, usage, receipt }) => {
                streaming.leg.handle.done();
                streaming.record(driver, true);
                let prompt_tokens = *driver.prompt_tokens.get_or_insert(usage.prompt_tokens);
                driver.legs.push(streaming.signed(*receipt));
                // What it was paid beyond its cost stays in the session's pool, for the next request.
                (self.closed, self.running) = (driver.spent(), None);
                let usage = Usage {
                    prompt_tokens,
                    cached_tokens: usage.cached_tokens.min(prompt_tokens),
                    completion_tokens: u32::try_from(driver.request.prefix.len()).unwrap_or(u32::MAX),
                };
                let receipt = Receipt::new(&driver.request.model, std::mem::take(&mut driver.legs));
                self.state = State::Done;
                Poll::Ready(Some(Ok(AnswerEvent::Finished { reason, text, usage, receipt })))
            }
            Some(LegEvent::Failed { why, bill }) => {
                streaming.leg.handle.done();
                match verdict(&why, driver) {
                    Verdict::Final(error) => self.fail(error),
                    Verdict::Another { worker_at_fault } => {
                        if worker_at_fault {
                            streaming.record(driver, false);
                        }
                        self.fail_over(streaming, why.to_string(), bill)
                    }
                }
            }
            None => {
                streaming.leg.handle.done();
                streaming.record(driver, false);
                let Lost { why, bill } = streaming.leg.handle.lost();
                self.fail_over(streaming, why.to_string(), bill)
            }
        }
    }

    fn fail_over(
        &mut self,
        streaming: Box<Streaming>,
        why: String,
        bill: Bill,
    ) -> Poll<Option<Result<AnswerEvent, ChatError>>> {
        let Some(mut driver) = self.driver.take() else { return self.fail(ChatError::Closed) };
        let from = streaming.leg.start.worker.clone();
        // The session's task may have ended without a bill, but it counted what it signed.
        let counted = self.running.as_ref().map_or(0, |leg| leg.load(Ordering::Relaxed));
        let bill = Bill { paid: bill.paid.max(NanoTon(counted)), ..bill };
        tracing::info!(worker = %from, %why, delivered = streaming.delivered, "failing over");
        driver.prompt_tokens = driver.prompt_tokens.or(Some(bill.input_tokens).filter(|n| *n > 0));
        driver.tried.insert(streaming.leg.worker.clone());
        driver.failed.push(FailedLeg { worker: from.clone(), why: why.clone() });
        if bill.taken() > NanoTon::ZERO || streaming.delivered > 0 {
            driver.legs.push(streaming.unsigned(bill, why.clone()));
        }
        (self.closed, self.running) = (driver.spent(), None);
        // The failed leg is dropped here, which cancels whatever is left of it.
        drop(streaming);
        self.state = State::Starting(Box::pin(start(driver)));
        Poll::Ready(Some(Ok(AnswerEvent::Failover { from, why })))
    }
}

async fn start(mut driver: Box<Driver>) -> (Box<Driver>, Result<StartedLeg, ChatError>) {
    let started = super::legs::start_leg(&mut driver).await;
    (driver, started)
}

impl Stream for Answer {
    type Item = Result<AnswerEvent, ChatError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if matches!(this.state, State::Done) {
            return Poll::Ready(None);
        }
        if this.deadline.poll_unpin(cx).is_ready() {
            let seconds = this.deadline_s;
            return this.fail(ChatError::Deadline { seconds });
        }
        loop {
            match std::mem::replace(&mut this.state, State::Done) {
                State::Starting(mut starting) => {
                    let Poll::Ready((driver, started)) = starting.poll_unpin(cx) else {
                        this.state = State::Starting(starting);
                        return Poll::Pending;
                    };
                    this.driver = Some(driver);
                    match started {
                        Ok(leg) => {
                            this.running = Some(leg.handle.spent());
                            this.state = State::Streaming(Box::new(Streaming::new(leg)));
                        }
                        Err(error) => return this.fail(error),
                    }
                }
                State::Streaming(streaming) => {
                    return Poll::Ready(ready!(this.poll_leg(streaming, cx)));
                }
                State::Done => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Starting(_) => "starting",
            State::Streaming(_) => "streaming",
            State::Done => "done",
        };
        f.debug_struct("Answer").field("state", &state).finish_non_exhaustive()
    }
}

impl Streaming {
    fn new(leg: StartedLeg) -> Self {
        Self { leg, announced: false, sent_at: Instant::now(), first_token: None, delivered: 0 }
    }

    fn signed(&self, receipt: SignedReceipt) -> Leg {
        let bill = Bill {
            input_tokens: receipt.receipt.input_tokens,
            output_tokens: receipt.receipt.output_tokens,
            cost: receipt.receipt.cost,
            paid: receipt.receipt.paid,
        };
        Leg {
            signed: Some(receipt),
            is_signed: true,
            unused: NanoTon::ZERO,
            failed: None,
            ..self.unsigned(bill, String::new())
        }
    }

    fn unsigned(&self, bill: Bill, why: String) -> Leg {
        let start = &self.leg.start;
        Leg {
            worker: start.worker.clone(),
            assurance: start.assurance,
            measurement: start.measurement.clone(),
            evidence_digest: start.evidence_digest.clone(),
            input_tokens: bill.input_tokens,
            output_tokens: bill.output_tokens,
            cost: bill.cost,
            unused: bill.taken().saturating_sub(bill.cost),
            channel: start.channel.clone(),
            signed: None,
            is_signed: false,
            failed: Some(why),
        }
    }

    /// Tells the directory how it went with this worker.
    fn record(&self, driver: &Driver, success: bool) {
        let millis = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        let first = self.first_token;
        let ttft_ms = first.map_or_else(|| millis(self.sent_at.elapsed()), |t| millis(t - self.sent_at));
        let writing = first.map_or(0, |first| first.elapsed().as_micros().max(1));
        let per_second = u128::from(self.delivered) * 1_000_000 / writing.max(1);
        let tokens_per_second = u32::try_from(per_second).unwrap_or(u32::MAX);
        let outcome = Outcome { success, ttft_ms, tokens_per_second };
        driver.peer.net.directory().record_outcome(&self.leg.worker, outcome);
    }
}

enum Verdict {
    /// Every worker would say the same, or the asker's own means are at an end.
    Final(ChatError),
    Another {
        worker_at_fault: bool,
    },
}

fn verdict(why: &StreamFailure, driver: &Driver) -> Verdict {
    let ceiling = |why: String| {
        Verdict::Final(ChatError::CostCeiling { max_cost: driver.max_cost.unwrap_or(NanoTon::MAX), why })
    };
    match why {
        StreamFailure::Enclave { code: FailCode::Request(error), .. } => match error {
            RequestError::UnknownModel => Verdict::Another { worker_at_fault: true },
            RequestError::ContextExceeded { prompt, limit } => {
                Verdict::Final(ChatError::ContextExceeded { prompt: *prompt, limit: *limit })
            }
            RequestError::Invalid { field, why } => {
                Verdict::Final(ChatError::Invalid { field: field.clone(), why: why.clone() })
            }
            RequestError::Template { why } => {
                Verdict::Final(ChatError::Invalid { field: "messages".into(), why: why.clone() })
            }
        },
        StreamFailure::Enclave { code: FailCode::Ceiling { needed }, .. } => {
            ceiling(format!("its input alone costs {}", NanoTon(*needed)))
        }
        StreamFailure::Ceiling(error) => ceiling(error.to_string()),
        StreamFailure::TooLarge(error) => {
            Verdict::Final(ChatError::Invalid { field: "messages".into(), why: error.to_string() })
        }
        StreamFailure::Enclave { code, .. } => {
            Verdict::Another { worker_at_fault: code.worth_another_worker() }
        }
        StreamFailure::Silent(_) => Verdict::Another { worker_at_fault: true },
        // Our deposit with this worker is used up; another channel may have some left.
        StreamFailure::Unfunded(_) => Verdict::Another { worker_at_fault: false },
    }
}
