//! Where session streams come in: admission decides, this shell opens the door, makes people wait, or sends
//! them away with the reason.
#![allow(clippy::disallowed_methods, reason = "a shell: it gives admission its clock")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cocoon_client::session::outer::{RefusalCode, Refused, ToClient};
use cocoon_p2p::core::{Admission, AdmissionLimits, AskerId, Effect, Input, Rate, Refusal, SessionId};
use cocoon_p2p::{Incoming, PeerId, SessionStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Worker, session, wire};
use crate::config::HostLimits;

/// Time for a refusal to leave, and for sessions to say goodbye when the host stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// Refusals being said at once; beyond this a stream is just dropped.
const MAX_REFUSALS: usize = 64;
/// Sessions that may wait for a slot, for each slot there is.
const QUEUE_SHARE: usize = 2;

struct Door {
    worker: Arc<Worker>,
    limits: HostLimits,
    admission: Admission,
    next: u64,
    /// Streams that wait for a slot.
    waiting: HashMap<u64, (PeerId, SessionStream)>,
    /// Sessions of each asker, waiting or running.
    held: HashMap<PeerId, usize>,
    running: TaskTracker,
    refusing: TaskTracker,
    stop: CancellationToken,
    ended: mpsc::Sender<(u64, PeerId)>,
}

/// Accepts sessions until the overlay ends or `stop` is cancelled, then waits for them to end.
pub(super) async fn run(
    worker: Arc<Worker>,
    limits: HostLimits,
    mut incoming: Incoming,
    stop: CancellationToken,
) {
    let admission = AdmissionLimits {
        slots: limits.sessions,
        queued: limits.sessions * QUEUE_SHARE,
        queued_per_asker: limits.sessions_per_peer,
        per_asker: Rate {
            burst: limits.opens_per_minute,
            every: (60_000 / u64::from(limits.opens_per_minute)).max(1),
        },
        ..AdmissionLimits::default()
    };
    let (sender, mut ended) = mpsc::channel(limits.sessions.max(16));
    let mut door = Door {
        worker,
        limits,
        admission: Admission::new(admission, Instant::now()),
        next: 0,
        waiting: HashMap::new(),
        held: HashMap::new(),
        running: TaskTracker::new(),
        refusing: TaskTracker::new(),
        stop: stop.clone(),
        ended: sender,
    };
    loop {
        let timeout = door.admission.poll_timeout();
        tokio::select! {
            arrived = incoming.next() => match arrived {
                Some((peer, stream)) => door.arrive(peer, stream),
                None => break,
            },
            // The sender is ours, so this never ends.
            Some((session, peer)) = ended.recv() => door.left(session, peer),
            () = tokio::time::sleep_until(timeout.unwrap_or_else(Instant::now).into()), if timeout.is_some() => {
                door.decide(Input::Timeout);
            }
            () = stop.cancelled() => break,
        }
    }
    stop.cancel();
    door.running.close();
    let _ = tokio::time::timeout(FAREWELL, async {
        // Keep the channel moving while sessions report their end.
        tokio::select! {
            () = door.running.wait() => {}
            () = async { while ended.recv().await.is_some() {} } => {}
        }
    })
    .await;
}

impl Door {
    fn arrive(&mut self, peer: PeerId, stream: SessionStream) {
        let held = self.held.get(&peer).copied().unwrap_or(0);
        let limit = self.limits.sessions_per_peer;
        if held >= limit {
            let why = format!("this peer has {held} sessions here, at most {limit} are allowed; close one");
            self.refuse(stream, RefusalCode::RateLimited, why);
            return;
        }
        self.next += 1;
        let session = self.next;
        self.waiting.insert(session, (peer, stream));
        *self.held.entry(peer).or_default() += 1;
        self.decide(Input::Opened { asker: AskerId::from(peer), session: SessionId(session) });
    }

    fn left(&mut self, session: u64, peer: PeerId) {
        self.let_go(peer);
        self.worker.money.detach(session);
        self.decide(Input::Closed { session: SessionId(session) });
    }

    fn let_go(&mut self, peer: PeerId) {
        if let Some(held) = self.held.get_mut(&peer) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&peer);
            }
        }
    }

    fn decide(&mut self, input: Input) {
        for effect in self.admission.handle(input, Instant::now()) {
            match effect {
                Effect::Admit(SessionId(session)) => self.admit(session),
                Effect::Queue { session, expected_wait } => {
                    tracing::debug!(session = session.0, ?expected_wait, "a session waits for a slot");
                }
                Effect::Refuse { session, reason } => {
                    if let Some((peer, stream)) = self.waiting.remove(&session.0) {
                        self.let_go(peer);
                        let code = match reason {
                            Refusal::TooFast { .. } => RefusalCode::RateLimited,
                            Refusal::Busy | Refusal::QueueShare { .. } | Refusal::Waited { .. } => {
                                RefusalCode::Busy
                            }
                        };
                        self.refuse(stream, code, reason.to_string());
                    }
                }
            }
        }
    }

    fn admit(&mut self, session: u64) {
        let Some((peer, stream)) = self.waiting.remove(&session) else { return };
        let (worker, stop, ended) = (self.worker.clone(), self.stop.clone(), self.ended.clone());
        self.running.spawn(async move {
            session::serve(worker, peer, session, stream, stop).await;
            let _ = ended.send((session, peer)).await;
        });
    }

    fn refuse(&self, stream: SessionStream, code: RefusalCode, message: String) {
        if self.refusing.len() >= MAX_REFUSALS {
            return;
        }
        let tap = self.worker.tap.clone();
        self.refusing.spawn(async move {
            let (_reader, mut writer) = wire::session(stream, tap);
            if writer.queue(&ToClient::Refused(Refused { code, message })).is_ok() {
                let _ = tokio::time::timeout(FAREWELL, writer.close()).await;
            }
        });
    }
}
