//! One asker's session at the host: checks its channel, opens it at the enclave, and from then on moves
//! records, vouchers and credit.
//!
//! ```text
//! Open ─► the channel key's proof ─► terms and chain ─► enclave handshake ─► the channel is this session's
//!      ─► Accepted(newest voucher)
//!      ─► { record ⇄ enclave | vouchers ─► verified, stored ─► credit } ─► Bye
//! ```
//!
//! The host never looks into a record. All vouchers that arrived together are paid in together, which costs
//! one signature check. A peer that does not read is not read either, and its enclave session is paused, so what
//! waits for it here stays small ([`super::outflow`]).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use cocoon_client::session::WIRE_VERSION;
use cocoon_client::session::outer::{self, Accepted, RefusalCode, Refused, ToClient, ToHost, Voucher};
use cocoon_p2p::PeerId;
use cocoon_p2p::wire::FrameError;
use cocoon_payments::Address;
use futures::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::claim::Claim;
use super::link::{FromEnclave, Route};
use super::money::{Attached, Stop};
use super::outflow::{Outflow, Overrun, PAUSE_AT, RESUME_AT};
use super::wire::{self, SessionReader, SessionWriter, WireError};
use crate::link::{Open, Prices, RefusedWhy, ToEnclave};

/// An asker that opened a stream speaks at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The enclave answers a handshake in under a millisecond, unless it is overwhelmed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// An asker that says nothing for this long makes room for others; it may open again at once.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How often that is looked at, and whether the asker takes what it is sent.
const WATCH: Duration = Duration::from_secs(10);
/// Time for a refusal or a goodbye to leave.
const FAREWELL: Duration = Duration::from_secs(2);
/// Messages of the enclave taken per turn.
const MAX_BATCH: usize = 256;

/// Serves one stream to its end.
pub(super) async fn serve<S>(
    worker: Arc<Worker>,
    peer: PeerId,
    session: u64,
    stream: S,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = wire::session(stream, worker.tap.clone());
    let end = match open(&worker, session, &mut reader).await {
        Ok(opened) => opened.run(&worker, &mut reader, &mut writer, &stop).await,
        Err(stop) => End::Refused(stop),
    };
    match end {
        End::Over(reason) => {
            tracing::debug!(%peer, session, reason, "session ended");
            let _ = writer.queue(&ToClient::Bye { reason: reason.to_owned() });
        }
        End::Refused(Stop { code, message }) => {
            worker.counters.refused.fetch_add(1, Relaxed);
            tracing::debug!(%peer, session, %code, message, "session refused");
            let _ = writer.queue(&ToClient::Refused(Refused { code, message }));
        }
    }
    let _ = timeout(FAREWELL, writer.close()).await;
}

/// A session that stands at the enclave.
struct Opened {
    route: Route,
    attached: Attached,
    answer: Bytes,
}

async fn open<S>(worker: &Arc<Worker>, session: u64, reader: &mut SessionReader<S>) -> Result<Opened, Stop>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let frame = match timeout(OPEN_TIMEOUT, reader.next()).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(error)) => return Err(Stop::new(RefusalCode::Malformed, error)),
        Err(_) => return Err(Stop::new(RefusalCode::Malformed, "no `open` frame came within 10 s")),
    };
    let open = match frame {
        Some(ToHost::Open(open)) => open,
        _ => return Err(Stop::new(RefusalCode::Malformed, "the first frame must be `open`")),
    };
    if open.wire_version != WIRE_VERSION {
        let why = format!(
            "field `wire_version` of `open` is {}, this worker speaks {WIRE_VERSION}; update the older side",
            open.wire_version
        );
        return Err(Stop::new(RefusalCode::WireVersion, why));
    }
    if open.network_id != worker.network_id {
        let why = format!(
            "field `network_id` of `open` is {}, this worker is on {}; use the same genesis file",
            hex::encode(open.network_id),
            hex::encode(worker.network_id)
        );
        return Err(Stop::new(RefusalCode::UnknownNetwork, why));
    }
    let claim = Claim::verify(&open, &worker.net.peer_id().to_bytes())?;
    worker.money.admit(&claim).await?;
    let down =
        || Stop::new(RefusalCode::EnclaveDown, "the worker's enclave is not running; try another worker");
    let mut route = worker.enclave.route(session).ok_or_else(down)?;
    let asked = route.send(ToEnclave::Open(enclave_open(worker, session, open, &claim.address))).await;
    if !asked {
        return Err(down());
    }
    let answer = match timeout(HANDSHAKE_TIMEOUT, route.inbox.recv()).await {
        Ok(Some(FromEnclave::Opened(answer))) => answer,
        Ok(Some(FromEnclave::Refused(why))) => return Err(refused(why)),
        Ok(Some(_) | None) => return Err(down()),
        Err(_) => {
            return Err(Stop::new(RefusalCode::Busy, "the enclave does not answer; try another worker"));
        }
    };
    // Only now: an `open` that the enclave refuses must not cost the asker the session it has.
    let attached = worker.money.take_over(&claim, session)?;
    Ok(Opened { route, attached, answer })
}

fn enclave_open(worker: &Worker, session: u64, open: outer::Open, channel: &Address) -> Open {
    let prices = worker.prices;
    Open {
        session,
        noise: open.noise,
        wire_version: open.wire_version,
        evidence_digest: open.evidence_digest,
        policy: open.policy,
        prices: Prices { input: prices.input, output: prices.output, quantum: worker.quantum.0 },
        channel: Some(channel.to_bytes()),
    }
}

fn refused(why: RefusedWhy) -> Stop {
    match why {
        RefusedWhy::Busy => Stop::new(RefusalCode::Busy, "the enclave holds as many sessions as it may"),
        RefusedWhy::StaleEvidence => Stop::new(
            RefusalCode::StaleEvidence,
            "that evidence is of no current epoch; fetch the one in the newest ad",
        ),
        RefusedWhy::Handshake => {
            Stop::new(RefusalCode::Handshake, "the Noise message is not for this enclave's key and prologue")
        }
    }
}

/// How a session comes to its end.
enum End {
    /// In peace.
    Over(&'static str),
    /// With a reason for the asker.
    Refused(Stop),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        Self::Refused(stop)
    }
}

impl From<Overrun> for End {
    fn from(overrun: Overrun) -> Self {
        Self::Over(overrun.reason())
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Malformed(error) => Stop::new(RefusalCode::Malformed, error).into(),
            WireError::Frame(error @ FrameError::TooLarge { .. }) => {
                Stop::new(RefusalCode::Malformed, error).into()
            }
            WireError::Frame(error) => {
                tracing::trace!(%error, "session stream");
                Self::Over("the stream failed")
            }
        }
    }
}

impl Opened {
    /// Moves bytes until somebody leaves.
    async fn run<S>(
        mut self,
        worker: &Worker,
        reader: &mut SessionReader<S>,
        writer: &mut SessionWriter<S>,
        stop: &CancellationToken,
    ) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        worker.counters.sessions.fetch_add(1, Relaxed);
        let noise = std::mem::take(&mut self.answer).to_vec();
        let newest = self.attached.newest.take();
        if let Err(error) = writer.queue(&ToClient::Accepted(Accepted { noise, newest })) {
            return error.into();
        }
        let mut inbox = Vec::with_capacity(MAX_BATCH);
        let mut vouchers = Vec::new();
        let mut paused = false;
        let mut watch = interval(WATCH);
        let mut heard = Instant::now();
        // When the asker last took everything it was sent.
        let mut drained = heard;
        let mut outflow = Outflow::new(heard);
        loop {
            let turn = tokio::select! {
                frame = reader.next(), if Outflow::may_read(writer.queued()) => {
                    heard = Instant::now();
                    let took = self.take_frames(frame, reader, &mut vouchers).await;
                    // Whatever else is wrong, money that came before it counts.
                    let paid = self.pay(worker, &mut vouchers).await;
                    took.and(paid)
                }
                count = self.route.inbox.recv_many(&mut inbox, MAX_BATCH) => match count {
                    0 => Err(enclave_left()),
                    // Looked at after each: a batch of large records is many times what may wait.
                    _ => inbox.drain(..).try_for_each(|message| {
                        forward(message, writer)?;
                        Ok(Outflow::fits(writer.queued())?)
                    }),
                },
                flushed = writer.flush(), if writer.needs_flush() => {
                    drained = Instant::now();
                    flushed.map_err(End::from)
                }
                _ = watch.tick() => {
                    if drained.elapsed().min(heard.elapsed()) > IDLE {
                        Err(End::Over("idle"))
                    } else {
                        Ok(())
                    }
                }
                () = self.attached.superseded.cancelled() => {
                    Err(End::Over("another session took over its channel"))
                }
                () = stop.cancelled() => Err(End::Over("the worker shuts down")),
            };
            let (queued, accepted) = (writer.queued(), writer.accepted());
            let flowing = outflow.turn(queued, accepted, writer.needs_flush(), Instant::now());
            if let Err(end) = turn.and(flowing.map_err(End::from)) {
                return end;
            }
            let session = self.route.session;
            if !paused && writer.queued() > PAUSE_AT {
                paused = self.route.send(ToEnclave::Pause { session }).await;
            } else if paused && writer.queued() < RESUME_AT {
                paused = !self.route.send(ToEnclave::Resume { session }).await;
            }
        }
    }

    /// Passes on a frame and all that was read along with it; vouchers are collected.
    async fn take_frames<S: AsyncRead + Unpin>(
        &self,
        first: Result<Option<ToHost>, WireError>,
        reader: &mut SessionReader<S>,
        vouchers: &mut Vec<Voucher>,
    ) -> Result<(), End> {
        let mut next = first?.ok_or(End::Over("the asker left"))?;
        let session = self.route.session;
        loop {
            match next {
                ToHost::Noise(record) => {
                    if !self.route.send(ToEnclave::Data { session, record }).await {
                        return Err(enclave_left());
                    }
                }
                ToHost::Voucher(voucher) => vouchers.push(voucher),
                ToHost::Bye => return Err(End::Over("the asker left")),
                ToHost::Open(_) => {
                    let why = "a second `open` on one stream; open another stream";
                    return Err(Stop::new(RefusalCode::Malformed, why).into());
                }
            }
            match reader.buffered()? {
                Some(frame) => next = frame,
                None => return Ok(()),
            }
        }
    }

    /// Turns vouchers into credit at the enclave: verified, stored, credited, in this order.
    async fn pay(&self, worker: &Worker, vouchers: &mut Vec<Voucher>) -> Result<(), End> {
        if vouchers.is_empty() {
            return Ok(());
        }
        let session = self.route.session;
        let paid = worker.money.pay(&self.attached.channel, session, vouchers);
        vouchers.clear();
        for (stream, amount) in paid.credits {
            if !self.route.send(ToEnclave::Credit { session, stream, amount: amount.0 }).await {
                return Err(enclave_left());
            }
        }
        match paid.refused {
            Some(stop) => Err(stop.into()),
            None => Ok(()),
        }
    }
}

/// Passes on what the enclave said.
fn forward<S: AsyncWrite + Unpin>(message: FromEnclave, writer: &mut SessionWriter<S>) -> Result<(), End> {
    match message {
        FromEnclave::Record(record) => Ok(writer.queue_record(&record)?),
        FromEnclave::Closed(reason) => {
            tracing::debug!(reason, "the enclave closed a session");
            Err(End::Over("the enclave closed the session"))
        }
        FromEnclave::Opened(_) | FromEnclave::Refused(_) => {
            Err(Stop::new(RefusalCode::Internal, "the enclave spoke out of turn").into())
        }
    }
}

fn enclave_left() -> End {
    Stop::new(RefusalCode::EnclaveDown, "the worker's enclave went away; try another worker").into()
}
