//! Connections, identification and the DHT.

use std::time::Duration;

use libp2p::{
    Multiaddr, PeerId,
    core::ConnectedPoint,
    identify, kad,
    kad::store::RecordStore,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{sync::oneshot, time::Instant};

use super::{Actor, Dial, Lookup, Waiter, providers::Refused};
use crate::{
    core::{Offence, PeerKey, Verdict},
    net::{
        Discovery, Mode, NetEvent, SessionError,
        addresses::{Reach, believable, reach},
        clock,
    },
};

/// First pause before a lost bootstrap peer is dialled again; doubles up to [`LAST_BACKOFF`].
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LAST_BACKOFF: Duration = Duration::from_secs(30);
/// After the routing table grew, provider records are published again this much later, once for many.
const PROVIDE_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// With this many peers in the table the periodic republication is enough.
const SMALL_TABLE: usize = 20;
/// Providers without a known ad that one lookup asks.
const ASK_PROVIDERS: usize = 8;
/// Lookups at once; more are answered with what is known.
const MAX_LOOKUPS: usize = 64;

impl Actor {
    pub(super) fn dial_lost_bootstraps(&mut self, now: Instant) {
        for i in 0..self.bootstraps.len() {
            let bootstrap = &self.bootstraps[i];
            let connected = bootstrap.peer.is_some_and(|peer| self.connections.contains_key(&peer));
            let is_self = bootstrap.peer == Some(*self.swarm.local_peer_id());
            if connected || is_self || bootstrap.dialling.is_some() || bootstrap.retry_at > now {
                continue;
            }
            let options = match bootstrap.peer {
                Some(peer) => DialOpts::peer_id(peer)
                    .addresses(vec![bootstrap.address.clone()])
                    .condition(PeerCondition::Disconnected)
                    .build(),
                None => DialOpts::unknown_peer_id().address(bootstrap.address.clone()).build(),
            };
            let id = options.connection_id();
            let dialled = self.swarm.dial(options);
            let bootstrap = &mut self.bootstraps[i];
            bootstrap.retry_at = now + bootstrap.backoff;
            bootstrap.backoff = (bootstrap.backoff * 2).min(LAST_BACKOFF);
            match dialled {
                Ok(()) => bootstrap.dialling = Some(id),
                Err(error) => {
                    tracing::debug!(address = %bootstrap.address, %error, "bootstrap peer not dialled");
                }
            }
        }
    }

    /// Connects if there is no connection. `addresses` come from an ad, or from the user.
    pub(super) fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, waiter: Waiter) {
        if self.connections.contains_key(&peer) {
            return self.settle(peer, waiter, Ok(()));
        }
        if let Some(dial) = self.dials.values_mut().find(|dial| dial.peer == peer) {
            dial.waiting.push(waiter);
            return;
        }
        let how = if addresses.is_empty() { None } else { Some(Discovery::Dialed) };
        let named = if addresses.is_empty() { self.known_addresses(&peer) } else { addresses };
        let addresses = believable(named, self.reach);
        if addresses.is_empty() {
            return self.settle(peer, waiter, Err(SessionError::NoAddress { peer }));
        }
        if let Some(how) = how
            && !self.shared.peers.contains_key(&peer)
        {
            self.shared.met(peer, how, &addresses);
        }
        let options =
            DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::Disconnected).build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(id, Dial { peer, waiting: vec![waiter] });
            }
            Err(error) => {
                self.settle(peer, waiter, Err(SessionError::Dial { peer, why: error.to_string() }));
            }
        }
    }

    fn settle(&mut self, peer: PeerId, waiter: Waiter, dialled: Result<(), SessionError>) {
        // A dropped receiver is an asker that lost interest.
        match (waiter, dialled) {
            (Waiter::Connection(reply), dialled) => drop(reply.send(dialled)),
            (Waiter::Session(opener), Ok(())) => self.swarm.behaviour_mut().sessions.open(peer, opener),
            (Waiter::Session(opener), Err(error)) => drop(opener.send(Err(error))),
        }
    }

    /// Where a peer can be dialled, from its ad or from what it said itself.
    pub(super) fn known_addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let key = PeerKey::from(peer);
        let ad = self.shared.directory.read(|directory| directory.get(&key).cloned());
        let advertised = ad.iter().flat_map(|ad| &ad.addresses).filter_map(|text| text.parse().ok());
        let said = self.shared.peers.get(peer).map(|view| view.addresses.clone()).unwrap_or_default();
        believable(advertised.chain(said), self.reach)
    }

    pub(super) fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let remote = endpoint.get_remote_address();
        let how = self.how_connected(peer, id, endpoint);
        let named = if endpoint.is_dialer() { vec![remote.clone()] } else { Vec::new() };
        // A peer met otherwise before keeps its first way; being connected is no discovery then.
        if !self.shared.peers.contains_key(&peer) || how == Discovery::Bootstrap {
            self.shared.met(peer, how, &believable(named, Reach::Loopback));
        }
        let first = !self.connections.contains_key(&peer);
        let scope = reach(remote).unwrap_or(Reach::Public);
        self.connections.entry(peer).or_default().push((id, scope));
        self.shared.update(&peer, |view| view.connected = true);
        if first {
            self.shared.emit(NetEvent::Connected(peer));
        }
        // Whoever waits for this peer has it now, whichever dial succeeded.
        let answered: Vec<ConnectionId> =
            self.dials.iter().filter(|(_, dial)| dial.peer == peer).map(|(id, _)| *id).collect();
        for id in answered {
            for waiter in self.dials.remove(&id).into_iter().flat_map(|dial| dial.waiting) {
                self.settle(peer, waiter, Ok(()));
            }
        }
    }

    fn how_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) -> Discovery {
        let mut bootstrap = false;
        for known in &mut self.bootstraps {
            if known.dialling == Some(id) || known.peer == Some(peer) {
                known.dialling = None;
                known.peer = Some(peer);
                known.backoff = FIRST_BACKOFF;
                bootstrap = true;
            }
        }
        match () {
            () if bootstrap => Discovery::Bootstrap,
            () if endpoint.is_listener() => Discovery::Inbound,
            () if self.dials.contains_key(&id) => Discovery::Dialed,
            // Nobody asked for it by address: one of the DHT's own dials.
            () => Discovery::Kademlia,
        }
    }

    pub(super) fn on_closed(&mut self, peer: PeerId, id: ConnectionId, left: u32) {
        if let Some(open) = self.connections.get_mut(&peer) {
            open.retain(|(open, _)| *open != id);
        }
        if left > 0 {
            return;
        }
        self.connections.remove(&peer);
        self.servers.retain(|server| *server != peer);
        self.shared.update(&peer, |view| view.connected = false);
        self.shared.emit(NetEvent::Disconnected(peer));
    }

    pub(super) fn on_dial_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        tracing::debug!(?peer, %error, "dial failed");
        if matches!(error, DialError::Denied { .. }) {
            self.shared.counters.connections_refused.add(1);
        }
        for bootstrap in &mut self.bootstraps {
            if bootstrap.dialling == Some(id) {
                bootstrap.dialling = None;
            }
        }
        let Some(Dial { peer, waiting }) = self.dials.remove(&id) else { return };
        for waiter in waiting {
            let dialled = match self.connections.contains_key(&peer) {
                true => Ok(()),
                false => Err(SessionError::Dial { peer, why: error.to_string() }),
            };
            self.settle(peer, waiter, dialled);
        }
    }

    pub(super) fn on_identify(&mut self, event: identify::Event) {
        let identify::Event::Received { connection_id, peer_id: peer, info } = event else { return };
        if info.protocol_version != self.names.root {
            tracing::debug!(%peer, theirs = info.protocol_version, "peer of another network");
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        }
        let scope = self
            .connections
            .get(&peer)
            .and_then(|open| open.iter().find(|(id, _)| *id == connection_id))
            .map_or(Reach::Public, |(_, scope)| *scope);
        let addresses = believable(info.listen_addrs, scope);
        let agent: String = info.agent_version.chars().filter(|c| !c.is_control()).take(64).collect();
        self.shared.update(&peer, |view| {
            view.agent = Some(agent);
            if !addresses.is_empty() {
                view.addresses.clone_from(&addresses);
            }
        });
        if info.protocols.contains(&self.names.kad) {
            for address in &addresses {
                self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
            }
        }
        if info.protocols.contains(&self.names.exchange) && !self.servers.contains(&peer) {
            self.servers.push(peer);
            if self.snapshots_wanted > 0 {
                self.snapshots_wanted -= 1;
                self.fetch_ads(peer, None, None);
            }
        }
    }

    pub(super) fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::RoutingUpdated { peer, is_new_peer: true, addresses, .. } => {
                let addresses: Vec<Multiaddr> = addresses.into_vec();
                if !self.shared.peers.contains_key(&peer) {
                    self.shared.met(peer, Discovery::Kademlia, &believable(addresses, self.reach));
                }
                self.provide_again_soon();
            }
            kad::Event::InboundRequest {
                request: kad::InboundRequest::AddProvider { record: Some(record) },
            } => self.on_provider(record),
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                self.on_lookup(id, result, step.last);
            }
            // Value records are not used: a stranger's `PutRecord` is not stored.
            _ => {}
        }
    }

    /// Somebody announces a model. libp2p has checked that the provider is the sender.
    fn on_provider(&mut self, mut record: kad::ProviderRecord) {
        let provider = record.provider;
        let Ok(key) = <[u8; 32]>::try_from(record.key.as_ref()) else {
            // No digest of a model; a key may be as long as a message.
            return self.penalise(provider, Offence::BadFrame);
        };
        match self.providers.admit(key, provider, Self::now()) {
            Ok(()) => {
                record.addresses = believable(record.addresses, self.scope_of(&provider));
                // Cannot fail: the store has room for all that the index admits.
                let _ = self.swarm.behaviour_mut().kad.store_mut().add_provider(record);
            }
            Err(Refused::TooMany) => self.penalise(provider, Offence::Flood),
            Err(Refused::Full) => tracing::debug!(%provider, "no room for a provider record"),
        }
    }

    pub(super) fn drop_provider(&mut self, key: &[u8; 32], provider: &PeerId) {
        let store = self.swarm.behaviour_mut().kad.store_mut();
        store.remove_provider(&kad::RecordKey::new(key), provider);
    }

    /// The most local connection open to a peer: what it may name.
    fn scope_of(&self, peer: &PeerId) -> Reach {
        let open = self.connections.get(peer);
        open.into_iter().flatten().map(|(_, scope)| *scope).min().unwrap_or(Reach::Public)
    }

    /// Publishing finds only the peers that are in the table at that moment. In a small, young network
    /// that may be nobody, so that the first few newcomers trigger it again.
    fn provide_again_soon(&mut self) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let known: usize = kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        if known <= SMALL_TABLE && !self.provided.is_empty() && self.provide_again_at.is_none() {
            self.provide_again_at = Some(Self::now() + PROVIDE_AGAIN_AFTER);
        }
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the shell's clock; tokio's, so that simulations can drive it"
    )]
    pub(super) fn now() -> Instant {
        Instant::now()
    }

    pub(super) fn provide(&mut self, model: &[u8; 32]) {
        let key = kad::RecordKey::new(model);
        if let Err(error) = self.swarm.behaviour_mut().kad.start_providing(key) {
            tracing::warn!(%error, "provider record not kept");
        }
    }

    pub(super) fn find_providers(&mut self, model: [u8; 32], reply: oneshot::Sender<Vec<PeerId>>) {
        for lookup in self.lookups.values_mut() {
            if let Lookup::Providers { model: same, replies, .. } = lookup
                && *same == model
            {
                replies.push(reply);
                return;
            }
        }
        if self.lookups.len() >= MAX_LOOKUPS {
            let _ = reply.send(Vec::new());
            return;
        }
        let id = self.swarm.behaviour_mut().kad.get_providers(kad::RecordKey::new(&model));
        let found = std::collections::BTreeSet::new();
        self.lookups.insert(id, Lookup::Providers { model, found, replies: vec![reply] });
    }

    fn on_lookup(&mut self, id: kad::QueryId, result: kad::QueryResult, last: bool) {
        let local = *self.swarm.local_peer_id();
        match (self.lookups.get_mut(&id), result) {
            (
                Some(Lookup::Providers { found, .. }),
                kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })),
            ) => found.extend(providers.into_iter().filter(|peer| *peer != local).take(256)),
            (Some(Lookup::Whereabouts { peer, model }), kad::QueryResult::GetClosestPeers(Ok(closest))) => {
                let (peer, model) = (*peer, *model);
                let named = closest.peers.into_iter().find(|info| info.peer_id == peer);
                let addresses = believable(named.into_iter().flat_map(|info| info.addrs), self.reach);
                if !addresses.is_empty() {
                    self.shared.met(peer, Discovery::Kademlia, &addresses);
                    self.fetch_ads(peer, Some(model), None);
                }
            }
            _ => {}
        }
        if last && let Some(Lookup::Providers { model, found, replies }) = self.lookups.remove(&id) {
            self.ask_providers(model, &found);
            for reply in replies {
                let _ = reply.send(found.iter().copied().collect());
            }
        }
    }

    /// Providers whose ad is not known are asked for it, after another lookup if nobody said where they
    /// live.
    fn ask_providers(&mut self, model: [u8; 32], found: &std::collections::BTreeSet<PeerId>) {
        for peer in found {
            self.shared.met(*peer, Discovery::Kademlia, &[]);
        }
        let strangers: Vec<PeerId> = found
            .iter()
            .filter(|peer| self.shared.directory.read(|d| d.get(&PeerKey::from(*peer)).is_none()))
            .take(ASK_PROVIDERS)
            .copied()
            .collect();
        for peer in strangers {
            if self.connections.contains_key(&peer) || !self.known_addresses(&peer).is_empty() {
                self.fetch_ads(peer, Some(model), None);
            } else if self.lookups.len() < MAX_LOOKUPS {
                let id = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
                self.lookups.insert(id, Lookup::Whereabouts { peer, model });
            }
        }
    }

    pub(super) fn provider_records(&mut self) -> usize {
        let local = *self.swarm.local_peer_id();
        let models: Vec<[u8; 32]> = self.shared.directory.models().into_iter().map(|m| m.digest).collect();
        let store = self.swarm.behaviour_mut().kad.store_mut();
        let stored = models.iter().flat_map(|model| store.providers(&kad::RecordKey::new(model)));
        stored.filter(|record| record.provider != local).count()
    }

    /// Notes an offence, and bans a peer that has committed enough of them.
    pub(super) fn penalise(&mut self, peer: PeerId, offence: Offence) {
        let key = PeerKey::from(peer);
        match self.standing.record(&key, offence, clock::unix_now()) {
            Verdict::Tolerate(points) => {
                tracing::debug!(%peer, ?offence, points, "offence");
                // A quarter, so that gossip goes on judging a peer until the ban is earned.
                let score = -f64::from(points) / 4.0;
                self.swarm.behaviour_mut().gossip.set_application_score(&peer, score);
            }
            Verdict::Ban { .. } => {
                tracing::warn!(%peer, ?offence, "banned");
                // Blocking also closes the open connections.
                self.swarm.behaviour_mut().blocked.block_peer(peer);
                for key in self.providers.forget(&peer) {
                    self.drop_provider(&key, &peer);
                }
                if self.shared.directory.remove(&key) {
                    self.shared.emit(NetEvent::Gone(key));
                }
                self.shared.emit(NetEvent::Banned(peer));
            }
        }
    }
}

/// What can be said about reachability without asking anybody.
pub(super) fn reachability(mode: Mode, external: &[Multiaddr], listening: &[Multiaddr]) -> String {
    let widest = external.iter().filter_map(reach).max();
    match (mode, widest) {
        (Mode::Client, _) => "client: dials others, does not expect to be dialled".into(),
        (Mode::Server, Some(Reach::Public)) => "announces a public address".into(),
        (Mode::Server, Some(Reach::Private)) => {
            "reachable on the local network only; set `external` if a port is forwarded".into()
        }
        (Mode::Server, Some(Reach::Loopback)) => "reachable on this machine only".into(),
        (Mode::Server, None) if listening.is_empty() => "not listening; set a listen address".into(),
        (Mode::Server, None) => "listening, but no address to announce; set `external`".into(),
    }
}
