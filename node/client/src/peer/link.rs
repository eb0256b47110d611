//! One attested session with one worker, run by one task.
//!
//! The task owns the [`Asker`] machine and moves bytes. Each turn it takes *everything* that is
//! ready (frames read, requests waiting), lets the machine act once, and writes the result in one
//! flush: under load, many streams share a voucher, a write and a wake-up.
//!
//! ```text
//!   Answer ──Ask──► commands ─┐                  ┌─ FrameWriter ──► host
//!   Answer ◄─ LegEvent ◄──────┤  task + Asker    ├─ FrameReader ◄── host
//!   Answer ──drop──► wake ────┘                  └─ tick: patience, slow readers
//! ```
//!
//! A slow reader never holds the others up: its events queue here and nothing more is paid for it
//! until it has caught up, so the queue is bounded by what was paid before.

// A shell: patience is measured with the machine's clock.
#![allow(clippy::disallowed_methods)]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cocoon_attest::noise;
use cocoon_inference::{AnswerForm, FinishReason, Token, Usage};
use cocoon_p2p::{
    Multiaddr, Net, PeerId, SessionStream,
    wire::{self, FrameReader, FrameWriter},
};
use cocoon_payments::{SignedReceipt, channel::OnChain, lane::Payer};
use futures::io::{ReadHalf, WriteHalf};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{MissedTickBehavior, interval, timeout},
};

use super::evidence::Attested;
use crate::session::{
    asker::{Ask, Asker, Event, Opening, Patience, SessionError, StreamFailure, Terms, Transmit},
    inner::Welcome,
    meter::{Bill, MAX_STREAMS},
    outer::{self, ToClient, ToHost},
};

/// How often patience and slow readers are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Events a reader may be behind before it counts as slow. Events hold batches of tokens.
const EVENTS: usize = 32;
/// Tokens that may queue up for a slow reader before nothing more is paid for it.
const MAX_BACKLOG: usize = 256;
/// Frames taken in one turn before what they caused is sent.
const FRAMES_PER_TURN: usize = 64;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a request hears.
#[derive(Debug)]
pub(crate) enum LegEvent {
    Quoted { input_tokens: u32, form: AnswerForm },
    Tokens(Vec<Token>),
    Finished { reason: FinishReason, text: String, usage: Usage, receipt: Box<SignedReceipt> },
    Failed { why: StreamFailure, bill: Bill },
}

/// How a session ended under a request.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    pub(crate) why: SessionError,
    pub(crate) bill: Bill,
}

/// A request in a session. Dropping it cancels the stream.
#[derive(Debug)]
pub(crate) struct LegHandle {
    pub(crate) events: mpsc::Receiver<LegEvent>,
    lost: Arc<OnceLock<Lost>>,
    spent: Arc<AtomicU64>,
    wake: Arc<Notify>,
    done: bool,
}

impl LegHandle {
    /// The stream has ended by itself.
    pub(crate) fn done(&mut self) {
        self.done = true;
    }

    /// What the stream has taken so far, kept current by the session's task.
    pub(crate) fn spent(&self) -> Arc<AtomicU64> {
        self.spent.clone()
    }

    /// Why the events stopped.
    pub(crate) fn lost(&self) -> Lost {
        self.lost.get().cloned().unwrap_or_else(|| Lost {
            why: SessionError::Lost("its task ended".into()),
            bill: Bill::default(),
        })
    }
}

impl Drop for LegHandle {
    fn drop(&mut self) {
        if !self.done {
            self.events.close();
            self.wake.notify_one();
        }
    }
}

enum Command {
    Ask { ask: Box<Ask>, sink: Sink },
    Observe(OnChain),
    Close,
}

#[derive(Debug)]
struct Sink {
    events: mpsc::Sender<LegEvent>,
    lost: Arc<OnceLock<Lost>>,
    /// [`Bill::taken`], as of now.
    spent: Arc<AtomicU64>,
    backlog: VecDeque<LegEvent>,
    paused: bool,
}

/// Handle to a session.
#[derive(Debug)]
pub(crate) struct Link {
    commands: mpsc::Sender<Command>,
    wake: Arc<Notify>,
    streams: Arc<AtomicUsize>,
    pub(crate) attested: Arc<Attested>,
    pub(crate) welcome: Welcome,
    /// How long opening it took.
    pub(crate) took: Duration,
}

/// What it takes to open one.
pub(crate) struct Dial {
    pub(crate) net: Net,
    pub(crate) peer: PeerId,
    pub(crate) addresses: Vec<Multiaddr>,
    pub(crate) crypto: noise::Crypto,
    pub(crate) terms: Terms,
    pub(crate) payer: Payer,
    pub(crate) patience: Patience,
    pub(crate) attested: Arc<Attested>,
    /// Raised to the cumulative amount after every payment.
    pub(crate) paid: Arc<AtomicU64>,
}

impl Dial {
    /// Connects, shakes hands, and waits until requests may be sent.
    pub(crate) async fn open(self) -> Result<Link, SessionError> {
        let limit = Duration::from_millis(self.patience.ready_ms);
        let waited = SessionError::Silent(self.patience.ready_ms);
        timeout(limit, self.shake()).await.unwrap_or(Err(waited))
    }

    async fn shake(self) -> Result<Link, SessionError> {
        let epoch = Instant::now();
        let stream = self
            .net
            .open_session(self.peer, self.addresses)
            .await
            .map_err(|error| SessionError::Lost(error.to_string()))?;
        let (mut reader, mut writer) = wire::framed(stream, outer::MAX_FRAME);
        let (opening, open) = Opening::start(self.crypto, self.terms, self.payer, self.patience)?;
        writer.send(&[&ToHost::Open(open).encode()?]).await.map_err(|error| lost(&error))?;
        let machine = match read(&mut reader).await? {
            ToClient::Accepted(accepted) => opening.accepted(&accepted, 0)?,
            ToClient::Refused(refused) => return Err(SessionError::Refused(refused)),
            ToClient::Bye { reason } => return Err(SessionError::Bye(reason)),
            ToClient::Noise(_) => return Err(SessionError::Protocol("a record before `accepted`")),
        };
        let (commands, inbox) = mpsc::channel(MAX_STREAMS);
        let (ready, opened) = oneshot::channel();
        let (wake, streams) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let task = Task {
            machine,
            reader,
            writer,
            dirty: false,
            inbox,
            wake: wake.clone(),
            streams: streams.clone(),
            legs: BTreeMap::new(),
            ready: Some(ready),
            paid: self.paid,
            epoch,
            out: Vec::new(),
        };
        tokio::spawn(task.run());
        match opened.await {
            Ok(Ok(welcome)) => {
                Ok(Link { commands, wake, streams, attested: self.attested, welcome, took: epoch.elapsed() })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SessionError::Lost("the session's task ended".into())),
        }
    }
}

impl Link {
    /// Whether requests can still be sent.
    pub(crate) fn is_open(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Requests in it now.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Sends a request; `None` if the session is over or full.
    pub(crate) fn ask(&self, ask: Ask) -> Option<LegHandle> {
        if self.streams() >= MAX_STREAMS {
            return None;
        }
        let (sender, events) = mpsc::channel(EVENTS);
        let lost = Arc::new(OnceLock::new());
        let spent = Arc::new(AtomicU64::new(0));
        let sink = Sink {
            events: sender,
            lost: lost.clone(),
            spent: spent.clone(),
            backlog: VecDeque::new(),
            paused: false,
        };
        self.commands.try_send(Command::Ask { ask: Box::new(ask), sink }).ok()?;
        self.streams.fetch_add(1, Ordering::Relaxed);
        Some(LegHandle { events, lost, spent, wake: self.wake.clone(), done: false })
    }

    /// The channel's account was read again.
    pub(crate) fn observe(&self, chain: OnChain) {
        // A full inbox drops it; the next read comes soon.
        let _ = self.commands.try_send(Command::Observe(chain));
    }

    /// Says goodbye; resolves when the session's task has ended.
    pub(crate) async fn close(&self) {
        if self.commands.send(Command::Close).await.is_ok() {
            let _ = timeout(2 * FAREWELL, self.commands.closed()).await;
        }
    }
}

struct Task {
    machine: Asker,
    reader: FrameReader<ReadHalf<SessionStream>>,
    writer: FrameWriter<WriteHalf<SessionStream>>,
    /// Something was queued since the last complete flush.
    dirty: bool,
    inbox: mpsc::Receiver<Command>,
    wake: Arc<Notify>,
    streams: Arc<AtomicUsize>,
    legs: BTreeMap<u32, Sink>,
    ready: Option<oneshot::Sender<Result<Welcome, SessionError>>>,
    paid: Arc<AtomicU64>,
    epoch: Instant,
    out: Vec<Transmit>,
}

enum Turn {
    Go,
    Leave,
}

impl Task {
    async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            match self.turn(&mut tick).await {
                Ok(Turn::Go) => {}
                Ok(Turn::Leave) => break SessionError::Bye("this light peer left".into()),
                Err(error) => break error,
            }
        };
        self.end(end).await;
    }

    async fn turn(&mut self, tick: &mut tokio::time::Interval) -> Result<Turn, SessionError> {
        self.act()?;
        tokio::select! {
            flushed = self.writer.flush(), if self.dirty => {
                flushed.map_err(|error| lost(&error))?;
                self.dirty = false;
            }
            frame = self.reader.next() => {
                let frame = frame.map_err(|error| lost(&error))?;
                let mut frame = Some(frame.ok_or_else(|| SessionError::Lost("the worker closed it".into()))?);
                let (now, unix) = (self.now(), super::unix_now());
                for _ in 0..FRAMES_PER_TURN {
                    let Some(bytes) = frame.take() else { break };
                    self.machine.on_frame(ToClient::decode(bytes)?, now, unix)?;
                    frame = self.reader.buffered().map_err(|error| lost(&error))?;
                }
                if let Some(bytes) = frame {
                    self.machine.on_frame(ToClient::decode(bytes)?, now, unix)?;
                }
            }
            // While the worker does not take what we have, it gets no further requests.
            command = self.inbox.recv(), if !self.writer.is_full() => {
                let mut next = command;
                if next.is_none() {
                    return Ok(Turn::Leave);
                }
                while let Some(command) = next {
                    match command {
                        Command::Ask { ask, sink } => self.ask(*ask, sink),
                        Command::Observe(chain) => self.machine.payer_mut().observe(&chain),
                        Command::Close => return Ok(Turn::Leave),
                    }
                    next = self.inbox.try_recv().ok();
                }
            }
            () = self.wake.notified() => self.cancel_dropped(),
            _ = tick.tick() => {
                self.machine.on_tick(self.now())?;
                self.retry_slow();
                self.cancel_dropped();
            }
        }
        Ok(Turn::Go)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn ask(&mut self, ask: Ask, sink: Sink) {
        if sink.events.is_closed() {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let stream = self.machine.ask(ask, self.now());
        self.legs.insert(stream, sink);
    }

    /// Lets the machine pay and send, and hands out what it has.
    fn act(&mut self) -> Result<(), SessionError> {
        let now = self.now();
        let made = self.machine.transmit(&mut self.out, now);
        // Before anything that may fail: what was signed counts, sent or not.
        self.paid.fetch_max(self.machine.payer().cumulative().0, Ordering::Relaxed);
        made?;
        for transmit in self.out.drain(..) {
            let queued = match transmit {
                Transmit::Record(record) => self.writer.queue(&[&[outer::NOISE], &record]),
                Transmit::Voucher(voucher) => {
                    for (stream, _) in &voucher.allocations {
                        if let Some(sink) = self.legs.get(stream) {
                            sink.count(&self.machine.bill(*stream));
                        }
                    }
                    self.writer.queue(&[&ToHost::Voucher(voucher).encode()?])
                }
            };
            queued.map_err(|error| lost(&error))?;
            self.dirty = true;
        }
        while let Some(event) = self.machine.event() {
            self.dispatch(event);
        }
        Ok(())
    }

    fn dispatch(&mut self, event: Event) {
        let (stream, event) = match event {
            Event::Ready(welcome) => {
                if let Some(ready) = self.ready.take() {
                    let _ = ready.send(Ok(welcome));
                }
                return;
            }
            Event::Quoted { stream, input_tokens, form, .. } => {
                (stream, LegEvent::Quoted { input_tokens, form })
            }
            Event::Tokens { stream, tokens } => (stream, LegEvent::Tokens(tokens)),
            Event::Finished { stream, reason, text, usage, receipt } => {
                (stream, LegEvent::Finished { reason, text, usage, receipt })
            }
            Event::Failed { stream, why, bill } => (stream, LegEvent::Failed { why, bill }),
        };
        let last = matches!(event, LegEvent::Finished { .. } | LegEvent::Failed { .. });
        let now = self.now();
        let Some(sink) = self.legs.get_mut(&stream) else { return };
        match &event {
            // What it draws from the session's pool was signed for earlier streams.
            LegEvent::Tokens(_) => sink.count(&self.machine.bill(stream)),
            LegEvent::Failed { bill, .. } => sink.count(bill),
            LegEvent::Quoted { .. } | LegEvent::Finished { .. } => {}
        }
        let kept = sink.deliver(event);
        if !kept {
            self.forget(stream);
            self.machine.cancel(stream, now);
        } else if last && sink.backlog.is_empty() {
            self.forget(stream);
        } else if !sink.paused && sink.waiting() > MAX_BACKLOG {
            sink.paused = true;
            self.machine.pause(stream, true, now);
        }
    }

    fn retry_slow(&mut self) {
        let slow: Vec<u32> =
            self.legs.iter().filter(|(_, sink)| !sink.backlog.is_empty()).map(|(&id, _)| id).collect();
        let now = self.now();
        for stream in slow {
            let Some(sink) = self.legs.get_mut(&stream) else { continue };
            let ended = sink.flush();
            if sink.paused && sink.backlog.is_empty() {
                sink.paused = false;
                self.machine.pause(stream, false, now);
            }
            if ended {
                self.forget(stream);
            }
        }
    }

    fn cancel_dropped(&mut self) {
        let dropped: Vec<u32> =
            self.legs.iter().filter(|(_, sink)| sink.events.is_closed()).map(|(&id, _)| id).collect();
        for stream in dropped {
            self.forget(stream);
            self.machine.cancel(stream, self.now());
        }
    }

    fn forget(&mut self, stream: u32) {
        if self.legs.remove(&stream).is_some() {
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }

    async fn end(mut self, why: SessionError) {
        // First: whoever looks for a session must not find this one.
        self.inbox.close();
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(Err(why.clone()));
        }
        // What came before the fault was charged: tokens that were lost here would be generated
        // and paid again, and an answer that is complete would be asked for once more.
        while let Some(event) = self.machine.event() {
            self.dispatch(event);
        }
        let bills: BTreeMap<u32, Bill> = self.machine.close().into_iter().collect();
        for (stream, sink) in std::mem::take(&mut self.legs) {
            let bill = bills.get(&stream).copied().unwrap_or_default();
            sink.count(&bill);
            let _ = sink.lost.set(Lost { why: why.clone(), bill });
            // Whatever did not fit is delivered by a task of its own: the reader may be slow.
            if !sink.backlog.is_empty() {
                tokio::spawn(sink.drain());
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Ask { sink, .. } = command {
                let _ = sink.lost.set(Lost { why: why.clone(), bill: Bill::default() });
            }
        }
        self.streams.store(0, Ordering::Relaxed);
        if let Ok(bye) = ToHost::Bye.encode()
            && self.writer.queue(&[&bye]).is_ok()
        {
            let _ = timeout(FAREWELL, self.writer.close()).await;
        }
    }
}

impl Sink {
    fn count(&self, bill: &Bill) {
        self.spent.fetch_max(bill.taken().0, Ordering::Relaxed);
    }

    /// Tokens queued. The backlog merges them, so it has two entries at most.
    fn waiting(&self) -> usize {
        let tokens = |event: &LegEvent| match event {
            LegEvent::Tokens(tokens) => tokens.len(),
            _ => 0,
        };
        self.backlog.iter().map(tokens).sum()
    }

    /// Passes an event on or queues it; `false` if nobody listens.
    fn deliver(&mut self, event: LegEvent) -> bool {
        if self.backlog.is_empty() {
            match self.events.try_send(event) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(event)) => self.backlog.push_back(event),
            }
            return true;
        }
        match (self.backlog.back_mut(), event) {
            (Some(LegEvent::Tokens(last)), LegEvent::Tokens(more)) => last.extend(more),
            (_, event) => self.backlog.push_back(event),
        }
        !self.events.is_closed()
    }

    /// Passes on what it can; whether the stream's last event is out.
    fn flush(&mut self) -> bool {
        while let Some(event) = self.backlog.pop_front() {
            let last = matches!(event, LegEvent::Finished { .. } | LegEvent::Failed { .. });
            match self.events.try_send(event) {
                Ok(()) if last => return true,
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return true,
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.backlog.push_front(event);
                    return false;
                }
            }
        }
        false
    }

    async fn drain(mut self) {
        while let Some(event) = self.backlog.pop_front() {
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }
}

async fn read(reader: &mut FrameReader<ReadHalf<SessionStream>>) -> Result<ToClient, SessionError> {
    let frame = reader.next().await.map_err(|error| lost(&error))?;
    let frame = frame.ok_or_else(|| SessionError::Lost("the worker closed it".into()))?;
    Ok(ToClient::decode(frame)?)
}

fn lost(error: &wire::FrameError) -> SessionError {
    SessionError::Lost(error.to_string())
}
