//! Session streams inside the swarm: a behaviour that opens and accepts raw streams of one protocol.
//!
//! On the wire this is what `libp2p-stream` does (a negotiated stream and nothing else, which a test
//! checks), but that crate hands inbound streams over through a single slot and silently drops the second
//! of two that arrive before somebody polls; under load that loses sessions. Here each connection's task
//! puts inbound streams straight into one bounded queue, and only a full queue refuses one, counted.
//!
//! Opening prefers a direct connection over one through a relay.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{mpsc, oneshot};

use super::{SessionError, SessionStream, shared::Shared};

/// Who waits for a stream.
pub(crate) type Opener = oneshot::Sender<Result<SessionStream, SessionError>>;
/// Where inbound streams go.
pub(crate) type Inbound = mpsc::Sender<(PeerId, SessionStream)>;

/// What every connection's handler needs.
#[derive(Clone)]
struct Parts {
    protocol: StreamProtocol,
    inbound: Inbound,
    shared: Arc<Shared>,
}

/// See the module page.
pub(crate) struct Behaviour {
    parts: Parts,
    /// Open connections; `true` for those through a relay.
    connections: BTreeMap<PeerId, Vec<(ConnectionId, bool)>>,
    /// At most as many as commands fit the actor's inbox, since each comes from one.
    requests: VecDeque<(PeerId, ConnectionId, Opener)>,
}

impl Behaviour {
    pub(crate) fn new(protocol: StreamProtocol, inbound: Inbound, shared: Arc<Shared>) -> Self {
        let parts = Parts { protocol, inbound, shared };
        Self { parts, connections: BTreeMap::new(), requests: VecDeque::new() }
    }

    /// Opens a stream on a connection that exists.
    pub(crate) fn open(&mut self, peer: PeerId, opener: Opener) {
        let open = self.connections.get(&peer);
        match open.and_then(|open| open.iter().min_by_key(|(_, relayed)| *relayed)) {
            Some((connection, _)) => self.requests.push_back((peer, *connection, opener)),
            None => {
                let why = "the connection closed just now".into();
                let _ = opener.send(Err(SessionError::Refused { peer, why }));
            }
        }
    }

    fn handler(&self, peer: PeerId) -> Handler {
        Handler { peer, parts: self.parts.clone(), wanted: VecDeque::new(), requested: VecDeque::new() }
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("streams::Behaviour")
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = ();

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                let relayed = |address: &Multiaddr| address.iter().any(|part| part == Protocol::P2pCircuit);
                let entry = (established.connection_id, relayed(established.endpoint.get_remote_address()));
                self.connections.entry(established.peer_id).or_default().push(entry);
            }
            FromSwarm::ConnectionClosed(closed) => {
                if let Some(open) = self.connections.get_mut(&closed.peer_id) {
                    open.retain(|(id, _)| *id != closed.connection_id);
                    if open.is_empty() {
                        self.connections.remove(&closed.peer_id);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    // Woken without a waker of its own: `open` is only called by the task that polls the swarm next.
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<(), THandlerInEvent<Self>>> {
        match self.requests.pop_front() {
            Some((peer_id, connection, opener)) => Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(connection),
                event: Wanted(opener),
            }),
            None => Poll::Pending,
        }
    }
}

/// Asks a connection for a stream.
pub(crate) struct Wanted(Opener);

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wanted")
    }
}

/// One connection's part.
pub(crate) struct Handler {
    peer: PeerId,
    parts: Parts,
    wanted: VecDeque<Opener>,
    /// Streams under negotiation. They may finish in any order; all are alike, so that the first finished
    /// goes to the first who asked.
    requested: VecDeque<Opener>,
}

impl Handler {
    fn answer(&mut self, result: Result<SessionStream, SessionError>) {
        if let Some(opener) = self.requested.pop_front() {
            // An opener that gave up drops the stream, which resets it.
            let _ = opener.send(result);
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Wanted;
    type ToBehaviour = std::convert::Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.parts.protocol.clone()), ())
    }

    fn on_behaviour_event(&mut self, Wanted(opener): Wanted) {
        self.wanted.push_back(opener);
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        match self.wanted.pop_front() {
            Some(opener) => {
                self.requested.push_back(opener);
                let protocol = SubstreamProtocol::new(ReadyUpgrade::new(self.parts.protocol.clone()), ());
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
            None => Poll::Pending,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        let peer = self.peer;
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                self.accept(stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream, ..
            }) => {
                self.parts.shared.counters.sessions_out.add(1);
                self.answer(Ok(SessionStream::new(stream)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                let why = match error {
                    StreamUpgradeError::NegotiationFailed => "it does not speak the session protocol".into(),
                    StreamUpgradeError::Timeout => "it did not answer in time".into(),
                    StreamUpgradeError::Io(error) => error.to_string(),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.answer(Err(SessionError::Refused { peer, why }));
            }
            _ => {}
        }
    }
}

impl Handler {
    fn accept(&self, stream: Stream) {
        let counters = &self.parts.shared.counters;
        match self.parts.inbound.try_send((self.peer, SessionStream::new(stream))) {
            Ok(()) => counters.sessions_in.add(1),
            // Dropping the stream resets it: the opener learns at once that this worker is overloaded.
            Err(_) => {
                counters.sessions_refused.add(1);
                tracing::debug!(peer = %self.peer, "session refused: too many wait to be accepted");
            }
        }
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("streams::Handler").field("peer", &self.peer).finish_non_exhaustive()
    }
}
