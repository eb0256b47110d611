//! The host's end of the enclave's socket: connects, reconnects, and routes frames to sessions.
//!
//! Two tasks per connection. The reader never waits for a session: what a session does not take in time costs
//! that session its life, not the others theirs. The writer takes whatever has queued up and writes it at
//! once. When the socket ends, every session on it ends; the next connection starts with an empty table.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::instruments::Tap;
use crate::link::{
    EnclaveHello, HostHello, LinkError, LinkReader, LinkWriter, Load, RefusedWhy, ToEnclave, ToHost,
};

/// Frames to the enclave that may wait for its socket; beyond this, sessions wait.
const OUTBOX: usize = 1024;
/// Frames from the enclave that may wait for one session. It is paused long before this.
const INBOX: usize = 1024;
/// An enclave that does not say hello in this time is something else.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest pause between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What the enclave says to one session.
#[derive(Debug)]
pub(super) enum FromEnclave {
    Opened(Bytes),
    Refused(RefusedWhy),
    Record(Bytes),
    Closed(String),
}

/// What the enclave says to the host itself.
#[derive(Debug)]
pub(super) enum News {
    /// Evidence that was asked for.
    Evidence(Bytes),
    /// Why there is none.
    AttestFailed(String),
}

/// What is known of the enclave. Sent on every change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EnclaveState {
    /// Present while connected.
    pub(super) hello: Option<EnclaveHello>,
    pub(super) load: Load,
    /// Counts connections; evidence is asked for anew on each.
    pub(super) connection: u64,
}

#[derive(Default)]
struct Routes {
    outbox: Option<mpsc::Sender<ToEnclave>>,
    sessions: HashMap<u64, mpsc::Sender<FromEnclave>>,
}

/// Handle on the enclave; cheap to clone.
#[derive(Clone)]
pub(super) struct EnclaveLink {
    routes: Arc<Mutex<Routes>>,
    state: watch::Receiver<EnclaveState>,
    _keeper: Arc<Keeping>,
}

/// Ends the connection when the last handle goes: the enclave serves one host at a time.
struct Keeping(AbortHandle);

impl Drop for Keeping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One session's way to and from the enclave. Dropping it closes the session there.
pub(super) struct Route {
    pub(super) session: u64,
    pub(super) inbox: mpsc::Receiver<FromEnclave>,
    outbox: mpsc::Sender<ToEnclave>,
    routes: Arc<Mutex<Routes>>,
}

impl Route {
    /// Sends a frame; waits while the enclave's socket is full. False if the enclave is gone.
    pub(super) async fn send(&self, frame: ToEnclave) -> bool {
        match self.outbox.try_send(frame) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(frame)) => self.outbox.send(frame).await.is_ok(),
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        lock(&self.routes).sessions.remove(&self.session);
        let close = ToEnclave::Close { session: self.session };
        if let Err(mpsc::error::TrySendError::Full(close)) = self.outbox.try_send(close) {
            // The socket is full, so somebody has to wait, and a destructor cannot.
            let outbox = self.outbox.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { outbox.send(close).await });
            }
        }
    }
}

/// A panicking holder leaves a table that is still whole: every change is one insert or remove.
fn lock(routes: &Mutex<Routes>) -> MutexGuard<'_, Routes> {
    routes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EnclaveLink {
    /// Starts keeping a connection to the enclave at `socket`. What concerns the host itself goes to `news`.
    pub(super) fn spawn(
        socket: PathBuf,
        hello: HostHello,
        tap: Option<Arc<dyn Tap>>,
        news: mpsc::Sender<News>,
    ) -> Self {
        let routes = Arc::new(Mutex::new(Routes::default()));
        let (sender, state) = watch::channel(EnclaveState::default());
        let keeper = Keeper { socket, hello, tap, news, routes: routes.clone(), state: sender };
        let task = tokio::spawn(keeper.run());
        Self { routes, state, _keeper: Arc::new(Keeping(task.abort_handle())) }
    }

    /// The current state.
    pub(super) fn state(&self) -> EnclaveState {
        self.state.borrow().clone()
    }

    /// A receiver that wakes on every change.
    pub(super) fn watch(&self) -> watch::Receiver<EnclaveState> {
        self.state.clone()
    }

    /// Makes a way for a session; `None` while the enclave is away.
    pub(super) fn route(&self, session: u64) -> Option<Route> {
        let mut routes = lock(&self.routes);
        let outbox = routes.outbox.clone()?;
        let (sender, inbox) = mpsc::channel(INBOX);
        routes.sessions.insert(session, sender);
        Some(Route { session, inbox, outbox, routes: self.routes.clone() })
    }

    /// Sends a frame that belongs to no session; dropped while the enclave is away.
    pub(super) async fn send(&self, frame: ToEnclave) {
        let outbox = lock(&self.routes).outbox.clone();
        if let Some(outbox) = outbox {
            let _ = outbox.send(frame).await;
        }
    }
}

struct Keeper {
    socket: PathBuf,
    hello: HostHello,
    tap: Option<Arc<dyn Tap>>,
    news: mpsc::Sender<News>,
    routes: Arc<Mutex<Routes>>,
    state: watch::Sender<EnclaveState>,
}

impl Keeper {
    async fn run(self) {
        let mut pause = BACKOFF.0;
        let mut said = false;
        loop {
            match self.connect(&self.socket).await {
                Ok((reader, hello)) => {
                    (pause, said) = (BACKOFF.0, false);
                    tracing::info!(model = hello.model, tee = hello.tee, "the enclave is connected");
                    self.state.send_modify(|state| {
                        // Before its first report of load, an idle engine is assumed.
                        state.load = Load { free_slots: hello.slots, ..Load::default() };
                        state.hello = Some(hello);
                        state.connection += 1;
                    });
                    let ended = self.read(reader).await;
                    *lock(&self.routes) = Routes::default();
                    self.state.send_modify(|state| state.hello = None);
                    match ended {
                        Ok(()) => tracing::warn!("the enclave left; connecting again"),
                        Err(error) => {
                            tracing::warn!(%error, "the enclave's connection ended; connecting again")
                        }
                    }
                }
                Err(error) => {
                    if !said {
                        tracing::warn!(socket = %self.socket.display(), %error, "the enclave does not answer; `cocoon enclave` serves that socket; trying again");
                        said = true;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn connect(&self, socket: &Path) -> Result<(LinkReader<OwnedReadHalf>, EnclaveHello), LinkError> {
        let stream = UnixStream::connect(socket).await?;
        let (read, write) = stream.into_split();
        let mut reader = LinkReader::new(read, self.tap.clone());
        let mut writer = LinkWriter::new(write, self.tap.clone());
        writer.queue(&ToEnclave::Hello(self.hello.clone()))?;
        writer.flush().await?;
        let hello = match tokio::time::timeout(HELLO_TIMEOUT, reader.next::<ToHost>()).await {
            Ok(Ok(Some(ToHost::Hello(hello)))) => hello,
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) | Err(_) => return Err(LinkError::NoHello("something else")),
        };
        let (sender, mut outbox) = mpsc::channel::<ToEnclave>(OUTBOX);
        lock(&self.routes).outbox = Some(sender);
        tokio::spawn(async move {
            let mut frames = Vec::with_capacity(64);
            while outbox.recv_many(&mut frames, OUTBOX).await > 0 {
                for frame in frames.drain(..) {
                    if let Err(error) = writer.queue(&frame) {
                        tracing::warn!(%error, "a frame for the enclave does not fit");
                    }
                }
                if writer.flush().await.is_err() {
                    // The reader sees the end too and cleans up.
                    return;
                }
            }
        });
        Ok((reader, hello))
    }

    async fn read(&self, mut reader: LinkReader<OwnedReadHalf>) -> Result<(), LinkError> {
        while reader.fill().await? {
            while let Some(frame) = reader.take::<ToHost>()? {
                match frame {
                    ToHost::Data { session, record } => self.route(session, FromEnclave::Record(record)),
                    ToHost::Opened { session, noise } => self.route(session, FromEnclave::Opened(noise)),
                    ToHost::Refused { session, why } => self.route(session, FromEnclave::Refused(why)),
                    ToHost::Closed { session, reason } => self.route(session, FromEnclave::Closed(reason)),
                    ToHost::Load(load) => self.state.send_modify(|state| state.load = load),
                    ToHost::Evidence(evidence) => self.tell(News::Evidence(evidence)),
                    ToHost::AttestFailed(why) => self.tell(News::AttestFailed(why)),
                    ToHost::Hello(_) => return Err(LinkError::NoHello("a second `Hello`")),
                }
            }
        }
        Ok(())
    }

    fn tell(&self, news: News) {
        if self.news.try_send(news).is_err() {
            tracing::warn!("the host does not keep up with its enclave's evidence");
        }
    }

    /// A session that is gone, or that lets its inbox fill up, loses its route; it notices by the closed
    /// channel.
    fn route(&self, session: u64, message: FromEnclave) {
        let mut routes = lock(&self.routes);
        if let Some(inbox) = routes.sessions.get(&session)
            && inbox.try_send(message).is_err()
        {
            routes.sessions.remove(&session);
        }
    }
}
