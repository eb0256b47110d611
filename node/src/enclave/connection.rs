//! The host's connection: one task that owns every session on it.
//!
//! Each turn takes all frames and engine events that are there, hands them to the sessions' machines, lets
//! each touched machine settle once, seals what came of it into as few records as hold it, and flushes once.
//! Tokens of an answer therefore cost no wake-up, record or system call each.
#![allow(clippy::disallowed_methods, reason = "a shell: it gives the machines their clock")]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cocoon_attest::noise::{self, Channel, Prologue};
use cocoon_client::session::inner::{self, FailCode, ToAsker, Welcome};
use cocoon_client::session::meter::Tariff;
use cocoon_inference::GenerateRequest;
use cocoon_inference::runner::{self as engine, Event, JobHandle, Sink};
use cocoon_payments::{Address, NanoTon};
use tokio::io::AsyncWrite;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use zeroize::Zeroizing;

use super::Shared;
use super::epoch::{self, Epoch, Epochs, Keys, Subject};
use super::session::{Effect, Input, Now, Session, Terms};
use crate::link::{
    Attest, EnclaveHello, HostHello, LinkError, LinkReader, LinkWriter, Load, Open, RefusedWhy, ToEnclave,
    ToHost,
};

/// A host says hello at once or is none.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often load is reported and expiry looked at.
const TICK: Duration = Duration::from_secs(1);
/// Engine events taken per turn.
const MAX_EVENTS: usize = 1024;

/// How a connection ended without a fault.
pub(super) enum Ended {
    /// The host closed it.
    HostLeft,
    /// The host asked the enclave to exit.
    Shutdown,
}

/// What other threads report.
enum Happened {
    Engine { session: u64, stream: u32, event: Event },
    Attested(Result<Epoch, String>),
    Quoted { epoch: [u8; 32], quote: Result<Vec<u8>, String> },
}

/// Carries one job's events to the connection's task. What can be in flight is bounded by the jobs'
/// allowances.
struct EventSink {
    session: u64,
    stream: u32,
    events: mpsc::UnboundedSender<Happened>,
}

impl Sink for EventSink {
    fn event(&mut self, event: Event) {
        let _ = self.events.send(Happened::Engine { session: self.session, stream: self.stream, event });
    }
}

struct Slot {
    channel: Channel,
    machine: Session,
    keys: Arc<Keys>,
    epoch: [u8; 32],
    handshake: [u8; 32],
    jobs: HashMap<u32, JobHandle>,
    /// Keeps what the engine remembers of this session's prompts from being found, or timed, by any other.
    salt: [u8; 32],
    effects: Vec<Effect>,
    batch: inner::Batch,
}

struct Connection<'a, W> {
    shared: &'a Arc<Shared>,
    epochs: &'a mut Epochs,
    writer: LinkWriter<W>,
    subject: Subject,
    events: mpsc::UnboundedSender<Happened>,
    sessions: HashMap<u64, Slot>,
    touched: BTreeSet<u64>,
    attesting: bool,
    reported: Option<Load>,
    started: Instant,
}

/// Serves one host until it leaves.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    epochs: &mut Epochs,
    stream: UnixStream,
) -> Result<Ended, LinkError> {
    let (read, write) = stream.into_split();
    let tap = &shared.instruments.tap;
    let mut reader = LinkReader::new(read, tap.clone());
    let mut writer = LinkWriter::new(write, tap.clone());
    writer.queue(&ToHost::Hello(hello(shared)))?;
    writer.flush().await?;
    let host = match tokio::time::timeout(HELLO_TIMEOUT, reader.next::<ToEnclave>()).await {
        Ok(Ok(Some(ToEnclave::Hello(host)))) => host,
        Ok(Ok(Some(other))) => return Err(LinkError::NoHello(frame_name(&other))),
        Ok(Ok(None)) => return Ok(Ended::HostLeft),
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(LinkError::NoHello("nothing")),
    };
    epochs.host(host.network_id, &host.peer_id);

    // What can wait here is bounded by the jobs' allowances, and a sink must not block.
    let (sender, mut events) = mpsc::unbounded_channel();
    let mut connection = Connection {
        shared,
        epochs,
        writer,
        subject: subject(shared, host),
        events: sender,
        sessions: HashMap::new(),
        touched: BTreeSet::new(),
        attesting: false,
        reported: None,
        started: Instant::now(),
    };
    let mut batch = Vec::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let deadline = connection.deadline();
        tokio::select! {
            more = reader.fill() => {
                if !more? {
                    return Ok(Ended::HostLeft);
                }
            }
            _ = events.recv_many(&mut batch, MAX_EVENTS) => {}
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {}
            _ = ticks.tick() => connection.tick()?,
        }
        // Whatever woke us, take what else is there before anything is sealed.
        while batch.len() < MAX_EVENTS
            && let Ok(event) = events.try_recv()
        {
            batch.push(event);
        }
        while let Some(frame) = reader.take::<ToEnclave>()? {
            if matches!(frame, ToEnclave::Shutdown) {
                return Ok(Ended::Shutdown);
            }
            connection.frame(frame)?;
        }
        for event in batch.drain(..) {
            connection.happened(event)?;
        }
        connection.settle()?;
        if connection.writer.is_pending() {
            connection.writer.flush().await?;
        }
    }
}

fn frame_name(frame: &ToEnclave) -> &'static str {
    use crate::link::frame::Frame as _;
    frame.name()
}

fn hello(shared: &Shared) -> EnclaveHello {
    let info = &shared.loaded.info;
    EnclaveHello {
        model: info.name.clone(),
        model_digest: info.digest,
        context: info.context,
        quantisation: info.quantisation.clone(),
        engine: shared.config.engine.kind.name().to_owned(),
        tee: shared.quoter.describe().to_owned(),
        config_digest: shared.config_digest,
        slots: shared.config.engine.slots,
    }
}

fn subject(shared: &Shared, host: HostHello) -> Subject {
    Subject {
        network_id: host.network_id,
        peer_id: host.peer_id,
        image: shared.image,
        config_digest: shared.config_digest,
        model_digest: shared.loaded.info.digest,
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl<W: AsyncWrite + Unpin> Connection<'_, W> {
    fn now(&self) -> Now {
        Now { unix_s: unix_now(), uptime: self.started.elapsed() }
    }

    /// When the earliest batch of tokens is due.
    fn deadline(&self) -> Option<Instant> {
        let earliest = self.sessions.values().filter_map(|slot| slot.machine.deadline()).min()?;
        Some(self.started + earliest)
    }

    fn frame(&mut self, frame: ToEnclave) -> Result<(), LinkError> {
        match frame {
            ToEnclave::Open(open) => self.open(open)?,
            ToEnclave::Data { session, record } => self.data(session, &record)?,
            ToEnclave::Credit { session, stream, amount } => {
                self.input(session, Input::Credit { stream, amount: NanoTon(amount) });
            }
            ToEnclave::Pause { session } => self.input(session, Input::Pause),
            ToEnclave::Resume { session } => self.input(session, Input::Resume),
            ToEnclave::Close { session } => self.forget(session),
            ToEnclave::Attest(attest) => self.attest(attest),
            ToEnclave::Hello(_) => return Err(LinkError::NoHello("a second `Hello`")),
            // Taken out before.
            ToEnclave::Shutdown => {}
        }
        Ok(())
    }

    /// Frames may cross the end of their session, so an unknown one is no fault.
    fn input(&mut self, session: u64, input: Input) {
        let now = self.now();
        if let Some(slot) = self.sessions.get_mut(&session) {
            slot.machine.handle(input, now, &mut slot.effects);
            self.touched.insert(session);
        }
    }

    fn open(&mut self, open: Open) -> Result<(), LinkError> {
        let session = open.session;
        let refuse = |why| ToHost::Refused { session, why };
        if self.sessions.contains_key(&session) {
            return Err(LinkError::Payload("Open: `session` is in use"));
        }
        if self.sessions.len() >= self.shared.config.limits.sessions {
            return self.writer.queue(&refuse(RefusedWhy::Busy));
        }
        let Some(epoch) = self.epochs.find(&open.evidence_digest, unix_now()) else {
            return self.writer.queue(&refuse(RefusedWhy::StaleEvidence));
        };
        let prologue = Prologue {
            wire_version: open.wire_version,
            network_id: self.subject.network_id,
            evidence_digest: open.evidence_digest,
            policy: open.policy,
        };
        let crypto = self.shared.instruments.crypto;
        let (channel, answer) = match noise::respond(crypto, &epoch.keys.noise, &prologue, &open.noise) {
            Ok(done) => done,
            Err(error) => {
                tracing::debug!(%error, "refused a handshake");
                return self.writer.queue(&refuse(RefusedWhy::Handshake));
            }
        };
        let keys = epoch.keys.clone();
        self.writer.queue(&ToHost::Opened { session, noise: Bytes::from(answer) })?;

        let info = &self.shared.loaded.info;
        let limits = self.shared.config.limits;
        let tariff = Tariff {
            price_input: open.prices.input,
            price_output: open.prices.output,
            quantum: NanoTon(open.prices.quantum),
        };
        let handshake = channel.handshake_hash();
        let machine = Session::new(Terms {
            session: handshake,
            worker: self.subject.peer_id.clone(),
            model: info.digest,
            channel: open.channel.map(|bytes| Address::from_bytes(&bytes)),
            tariff,
            max_streams: limits.streams_per_session,
            max_prompt_bytes: limits.prompt_bytes,
        });
        let welcome = Welcome {
            price_input: tariff.price_input,
            price_output: tariff.price_output,
            quantum: tariff.quantum.0,
            model: info.digest,
            context: info.context,
            receipt_key: keys.receipt.verifying_key().to_bytes(),
        };
        self.sessions.insert(
            session,
            Slot {
                channel,
                machine,
                keys,
                epoch: open.evidence_digest,
                handshake,
                jobs: HashMap::new(),
                salt: rand::random(),
                effects: vec![Effect::Send(ToAsker::Welcome(welcome))],
                batch: inner::Batch::default(),
            },
        );
        self.touched.insert(session);
        Ok(())
    }

    fn data(&mut self, session: u64, record: &[u8]) -> Result<(), LinkError> {
        let now = self.now();
        let Some(slot) = self.sessions.get_mut(&session) else { return Ok(()) };
        let messages = match slot.channel.open(record).map(Zeroizing::new) {
            Ok(plain) => inner::decode::<inner::ToEnclave>(&plain).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match messages {
            Ok(messages) => {
                for message in messages {
                    slot.machine.handle(Input::Message(message), now, &mut slot.effects);
                }
                self.touched.insert(session);
                Ok(())
            }
            // The error names a field or a length, never content.
            Err(error) => self.close(session, &error),
        }
    }

    fn happened(&mut self, happened: Happened) -> Result<(), LinkError> {
        match happened {
            Happened::Engine { session, stream, event } => {
                self.input(session, Input::Engine { stream, event })
            }
            Happened::Attested(Ok(epoch)) => {
                self.attesting = false;
                self.writer.queue(&ToHost::Evidence(epoch.evidence.clone()))?;
                for session in self.epochs.push(epoch) {
                    self.input(session, Input::NoLive);
                }
            }
            Happened::Attested(Err(why)) => {
                self.attesting = false;
                self.writer.queue(&ToHost::AttestFailed(why))?;
            }
            Happened::Quoted { epoch, quote } => self.quoted(epoch, quote),
        }
        Ok(())
    }

    fn attest(&mut self, attest: Attest) {
        if self.attesting {
            return;
        }
        self.attesting = true;
        let (subject, quoter, events) =
            (self.subject.clone(), self.shared.quoter.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let made = Epoch::generate(&subject, &attest, quoter.as_ref(), unix_now());
            let _ = events.send(Happened::Attested(made.map_err(|error| epoch::chain(&error))));
        });
    }

    /// A session wants its handshake quoted. Quotes are slow, so those that ask meanwhile share the next one.
    fn challenge(&mut self, session: u64, nonce: &[u8; 32]) {
        let Some(slot) = self.sessions.get(&session) else { return };
        let (digest, handshake) = (slot.epoch, slot.handshake);
        let asked = self
            .epochs
            .held(&digest)
            .is_some_and(|epoch| epoch.live.push(session, &handshake, nonce).is_ok());
        if asked {
            self.start_quote(digest);
        } else {
            self.input(session, Input::NoLive);
        }
    }

    fn start_quote(&mut self, digest: [u8; 32]) {
        let Some(report_data) = self.epochs.held(&digest).and_then(|epoch| epoch.live.start()) else {
            return;
        };
        let (quoter, events) = (self.shared.quoter.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let quote = quoter.quote(&report_data).map_err(|error| error.to_string());
            let _ = events.send(Happened::Quoted { epoch: digest, quote });
        });
    }

    fn quoted(&mut self, digest: [u8; 32], quote: Result<Vec<u8>, String>) {
        let Some(epoch) = self.epochs.held(&digest) else { return };
        match quote {
            Ok(quote) => {
                for (session, proof) in epoch.live.finish(&quote) {
                    self.input(session, Input::Live(proof.encode()));
                }
            }
            Err(error) => {
                tracing::warn!(error, "the quoter failed on a live challenge");
                for session in epoch.live.fail() {
                    self.input(session, Input::NoLive);
                }
            }
        }
        self.start_quote(digest);
    }

    /// Settles every machine that saw an input or whose batch is due, and carries out what it wants.
    fn settle(&mut self) -> Result<(), LinkError> {
        let now = self.now();
        for (&id, slot) in &self.sessions {
            if slot.machine.deadline().is_some_and(|at| at <= now.uptime) {
                self.touched.insert(id);
            }
        }
        while let Some(id) = self.touched.pop_first() {
            let Some(slot) = self.sessions.get_mut(&id) else { continue };
            slot.machine.settle(now, &mut slot.effects);
            self.carry_out(id, now)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, id: u64, now: Now) -> Result<(), LinkError> {
        let mut closing = None;
        let mut challenge = None;
        while let Some(slot) = self.sessions.get_mut(&id)
            && !slot.effects.is_empty()
            && closing.is_none()
        {
            for effect in std::mem::take(&mut slot.effects) {
                match slot.carry_out(self.shared, &self.events, id, effect, now) {
                    Some(After::Close(reason)) => closing = Some(reason),
                    Some(After::Quote(nonce)) => challenge = Some(nonce),
                    None => {}
                }
            }
            slot.machine.settle(now, &mut slot.effects);
        }
        if let Some(slot) = self.sessions.get_mut(&id) {
            for plain in slot.batch.take().into_iter().map(Zeroizing::new) {
                match slot.channel.seal(&plain) {
                    Ok(record) => {
                        self.writer.queue(&ToHost::Data { session: id, record: Bytes::from(record) })?
                    }
                    Err(error) => closing = Some(error.to_string()),
                }
            }
        }
        if let Some(nonce) = challenge {
            self.challenge(id, &nonce);
        }
        match closing {
            Some(reason) => self.close(id, &reason),
            None => Ok(()),
        }
    }

    fn close(&mut self, session: u64, reason: &str) -> Result<(), LinkError> {
        self.forget(session);
        self.writer.queue(&ToHost::Closed { session, reason: reason.to_owned() })
    }

    /// Dropping the slot cancels its jobs and wipes keys and prompts.
    fn forget(&mut self, session: u64) {
        self.touched.remove(&session);
        if let Some(slot) = self.sessions.remove(&session)
            && let Some(epoch) = self.epochs.held(&slot.epoch)
        {
            epoch.live.forget(session);
        }
    }

    fn tick(&mut self) -> Result<(), LinkError> {
        let now = self.now();
        for session in self.epochs.expire(now.unix_s) {
            self.input(session, Input::NoLive);
        }
        for (&id, slot) in &mut self.sessions {
            slot.machine.tick(now, &mut slot.effects);
            if !slot.effects.is_empty() {
                self.touched.insert(id);
            }
        }
        let load = load(self.shared);
        if self.reported != Some(load) {
            self.reported = Some(load);
            self.writer.queue(&ToHost::Load(load))?;
        }
        Ok(())
    }
}

fn load(shared: &Shared) -> Load {
    let load = shared.loaded.runner.load();
    let slots = shared.config.engine.slots;
    let narrow = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let (active, queued) = (narrow(load.active), narrow(load.queued));
    // With nothing measured, an answer is assumed to hold a slot for a second.
    let queue_ms = if queued == 0 { 0 } else { u32::from(queued) * 1000 / u32::from(slots.max(1)) };
    Load {
        active,
        queued,
        // Who cannot answer shall not be asked.
        free_slots: if shared.loaded.runner.engine().ready() { slots.saturating_sub(active) } else { 0 },
        queue_ms,
        tokens_per_second: load.tokens_per_second,
    }
}

/// What an effect leaves to the connection.
enum After {
    Close(String),
    Quote([u8; 32]),
}

impl Slot {
    fn carry_out(
        &mut self,
        shared: &Shared,
        events: &mpsc::UnboundedSender<Happened>,
        session: u64,
        effect: Effect,
        now: Now,
    ) -> Option<After> {
        match effect {
            Effect::Send(message) => return self.send(&message),
            Effect::Finish { stream, reason, text, usage, receipt } => {
                let receipt = Box::new(receipt.sign(&self.keys.receipt));
                return self.send(&ToAsker::Finished { stream, reason, text, usage, receipt });
            }
            Effect::Start { stream, request } => self.start(shared, events, session, stream, request, now),
            Effect::Allow { stream, tokens } => {
                if let Some(job) = self.jobs.get(&stream) {
                    job.allow(tokens);
                }
            }
            Effect::Drop { stream } => drop(self.jobs.remove(&stream)),
            Effect::Quote { nonce } => return Some(After::Quote(nonce)),
            Effect::Close { reason } => return Some(After::Close(reason.to_owned())),
        }
        None
    }

    fn send(&mut self, message: &ToAsker) -> Option<After> {
        self.batch.push(message).err().map(|error| After::Close(error.to_string()))
    }

    fn start(
        &mut self,
        shared: &Shared,
        events: &mpsc::UnboundedSender<Happened>,
        session: u64,
        stream: u32,
        request: Box<GenerateRequest>,
        now: Now,
    ) {
        let sink = EventSink { session, stream, events: events.clone() };
        let mut terms = engine::Terms::of(session, self.salt);
        if let Some(key) = &request.cache_key {
            terms.salt = engine::Salt::of_key(key);
        }
        match shared.loaded.runner.submit(*request, terms, Box::new(sink)) {
            Ok(job) => {
                self.jobs.insert(stream, job);
            }
            Err(busy) => {
                let input = Input::NotStarted { stream, code: FailCode::Busy, message: busy.to_string() };
                self.machine.handle(input, now, &mut self.effects);
            }
        }
    }
}
