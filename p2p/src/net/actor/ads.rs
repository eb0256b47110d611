//! Ads and evidence: gossip in and out, snapshots, fetches by digest.

use libp2p::{
    PeerId,
    gossipsub::{self, MessageAcceptance, PublishError as GossipError},
    request_response::{self, Message, OutboundFailure, ResponseChannel},
};
use tokio::sync::oneshot;

use super::{Actor, FIRST_SNAPSHOTS, Fetch, OWN_ANNOUNCEMENTS, OwnAd};
use crate::{
    core::{Ad, AdError, Inserted, Offence, PeerKey, Rate, SignedAd, TokenBucket},
    net::{
        Discovery, FetchError, NetEvent, PublishError, SharedDirectory,
        addresses::{Reach, believable},
        clock,
        exchange::{Request, Response, SNAPSHOT_ADS, SNAPSHOT_BYTES},
        gossip, sha256,
        shared::Shared,
        take_snapshot,
    },
};

/// Questions a peer may ask: a burst when it is new, four a second after.
const QUESTIONS: Rate = Rate { burst: 32, every: 250 };
/// Askers remembered; a full bucket is the same as none, so that only busy ones count.
const MAX_ASKERS: usize = 4_096;
/// Exchanges in progress; more are refused at once.
const MAX_FETCHES: usize = 512;

impl Actor {
    pub(super) fn join_bucket(&mut self, bucket: u8) {
        if !self.joined.insert(bucket) {
            return;
        }
        let topic = gossip::topic(&self.names, bucket);
        if let Err(error) = self.swarm.behaviour_mut().gossip.subscribe(&topic) {
            tracing::warn!(%error, bucket, "could not subscribe to ads");
        }
    }

    pub(super) fn publish(&mut self, signed: SignedAd) -> Result<(), PublishError> {
        let ad = signed.claims()?;
        let ours = *self.swarm.local_peer_id();
        if ad.peer != PeerKey::from(ours) {
            return Err(PublishError::NotOurs { named: ad.peer.to_string(), ours });
        }
        let encoded = signed.encode()?;
        // The own directory accepts own ads more readily than others do: what it refuses as too frequent
        // is announced later all the same.
        match self.shared.directory.insert(signed, clock::unix_now(), |_| ()) {
            Ok(Inserted::Known) => return Ok(()),
            Ok(Inserted::New(_) | Inserted::Updated(_)) => {
                self.shared.emit(NetEvent::Advertised { worker: ad.peer.clone(), how: Discovery::Gossip });
            }
            Err(AdError::TooFrequent { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let buckets: std::collections::BTreeSet<u8> =
            ad.models.iter().map(|offer| gossip::bucket(&offer.digest)).collect();
        for bucket in &buckets {
            self.join_bucket(*bucket);
        }
        self.own_ad = Some(OwnAd { encoded, unheard: buckets.clone(), buckets });
        self.announce();
        Ok(())
    }

    /// Announces the own ad wherever nobody has heard it yet, as fast as others accept it.
    pub(super) fn announce(&mut self) {
        let unix = clock::unix_now();
        let Some(own) = &mut self.own_ad else { return };
        let before = self.announcements;
        if own.unheard.is_empty() || !self.announcements.take(OWN_ANNOUNCEMENTS, unix) {
            return;
        }
        let mut heard = false;
        for bucket in own.unheard.clone() {
            let topic = gossip::topic(&self.names, bucket);
            match self.swarm.behaviour_mut().gossip.publish(topic, own.encoded.clone()) {
                Ok(_) | Err(GossipError::Duplicate) => {
                    heard = true;
                    own.unheard.remove(&bucket);
                }
                // Tried again when somebody subscribes, and at every tick.
                Err(GossipError::NoPeersSubscribedToTopic | GossipError::AllQueuesFull(_)) => {}
                Err(error) => tracing::warn!(%error, bucket, "ad not announced"),
            }
        }
        if !heard {
            // Nobody was bothered, so that nothing is charged.
            self.announcements = before;
        }
    }

    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let acceptance = self.judge(propagation_source, &message);
                self.swarm.behaviour_mut().gossip.report_message_validation_result(
                    &message_id,
                    &propagation_source,
                    acceptance,
                );
            }
            gossipsub::Event::Subscribed { topic, .. } => {
                let bucket = gossip::bucket_of(&self.names, &topic);
                let waiting = self.own_ad.as_ref().is_some_and(|own| {
                    bucket.is_some_and(|b| own.buckets.contains(&b) && own.unheard.contains(&b))
                });
                if waiting {
                    self.announce();
                }
            }
            gossipsub::Event::SlowPeer { peer_id, .. } => {
                tracing::debug!(peer = %peer_id, "peer is too slow for gossip");
            }
            _ => {}
        }
    }

    /// Whether an ad is taken and forwarded, dropped, or held against whoever sent it.
    fn judge(&mut self, from: PeerId, message: &gossipsub::Message) -> MessageAcceptance {
        // Strict mode guarantees an author, and the subscription filter a topic of this network.
        let author = message.source.map(PeerKey::from).unwrap_or(PeerKey(Vec::new()));
        let bucket = gossip::bucket_of(&self.names, &message.topic).unwrap_or(gossip::BUCKETS);
        let taken = SignedAd::decode(&message.data).and_then(|signed| {
            let ad = signed.claims()?;
            // An ad is only announced by the worker itself, on the topics of its models; a stranger cannot
            // announce an old ad again under its own name.
            if author != ad.peer {
                return Err(AdError::Field {
                    field: "peer".into(),
                    why: "is not the author of the gossip message".into(),
                });
            }
            if !ad.models.iter().any(|offer| gossip::bucket(&offer.digest) == bucket) {
                return Err(AdError::Field {
                    field: "models".into(),
                    why: "none belongs to the topic it was announced on".into(),
                });
            }
            let (shared, reach) = (&self.shared, self.reach);
            shared
                .directory
                .insert(signed, clock::unix_now(), |ad| meet(shared, ad, Discovery::Gossip, reach))
        });
        let counters = &self.shared.counters;
        match taken {
            Ok(Inserted::New(ad) | Inserted::Updated(ad)) => {
                counters.ads_accepted.add(1);
                self.shared.directory.first_on(&ad.peer, bucket);
                let worker = ad.peer.clone();
                self.shared.emit(NetEvent::Advertised { worker, how: Discovery::Gossip });
                MessageAcceptance::Accept
            }
            // Known from a snapshot, or from the topic of another of its models: others may not know it
            // yet. A second time on one topic it is only a repetition.
            Ok(Inserted::Known) if self.shared.directory.first_on(&author, bucket) => {
                if let Some(worker) = message.source {
                    self.shared.met(worker, Discovery::Gossip, &[]);
                }
                MessageAcceptance::Accept
            }
            Ok(Inserted::Known) => {
                counters.ads_ignored.add(1);
                MessageAcceptance::Ignore
            }
            Err(error) if error.is_fault() => {
                counters.ads_rejected.add(1);
                tracing::debug!(%from, error = &error as &dyn std::error::Error, "ad rejected");
                self.penalise(from, Offence::MalformedAd);
                MessageAcceptance::Reject
            }
            Err(error) => {
                counters.ads_ignored.add(1);
                tracing::trace!(%from, %error, "ad ignored");
                MessageAcceptance::Ignore
            }
        }
    }

    // ---- the exchange protocol, asking ----

    pub(super) fn fetch_evidence(
        &mut self,
        peer: PeerId,
        digest: [u8; 32],
        reply: oneshot::Sender<Result<Vec<u8>, FetchError>>,
    ) {
        if self.fetches.len() >= MAX_FETCHES {
            let _ = reply.send(Err(FetchError::Failed { peer, why: "too many questions are open".into() }));
            return;
        }
        let id = self.send(peer, Request::Evidence { digest });
        self.fetches.insert(id, Fetch::Evidence { digest, reply });
    }

    pub(super) fn fetch_ads(
        &mut self,
        peer: PeerId,
        model: Option<[u8; 32]>,
        reply: Option<oneshot::Sender<Result<usize, FetchError>>>,
    ) {
        if self.fetches.len() >= MAX_FETCHES {
            if let Some(reply) = reply {
                let why = "too many questions are open".into();
                let _ = reply.send(Err(FetchError::Failed { peer, why }));
            }
            return;
        }
        let id = self.send(peer, Request::Ads { model, limit: SNAPSHOT_ADS as u16 });
        self.fetches.insert(id, Fetch::Ads { reply });
    }

    fn send(&mut self, peer: PeerId, request: Request) -> request_response::OutboundRequestId {
        let addresses = match self.connections.contains_key(&peer) {
            true => Vec::new(),
            false => self.known_addresses(&peer),
        };
        self.swarm.behaviour_mut().exchange.send_request_with_addresses(&peer, Some(request), addresses)
    }

    /// A client that has just joined a model asks a few servers what they know of it.
    pub(super) fn ask_servers_for(&mut self, model: [u8; 32]) {
        for server in self.servers.iter().rev().take(FIRST_SNAPSHOTS as usize).copied().collect::<Vec<_>>() {
            self.fetch_ads(server, Some(model), None);
        }
    }

    /// Asks one connected server, another one each time.
    pub(super) fn refresh_snapshot(&mut self) {
        if self.servers.is_empty() {
            return;
        }
        self.servers.rotate_left(1);
        self.fetch_ads(self.servers[0], None, None);
    }

    pub(super) fn on_exchange(&mut self, event: request_response::Event<Option<Request>, Response>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                Message::Request { request, channel, .. } => self.answer(peer, request, channel),
                Message::Response { request_id, response } => {
                    if let Some(fetch) = self.fetches.remove(&request_id) {
                        self.conclude(peer, fetch, response);
                    }
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                if let OutboundFailure::Io(error) = &error
                    && error.kind() == std::io::ErrorKind::InvalidData
                {
                    self.penalise(peer, Offence::BadFrame);
                }
                let failed = FetchError::Failed { peer, why: error.to_string() };
                match self.fetches.remove(&request_id) {
                    Some(Fetch::Evidence { reply, .. }) => {
                        let _ = reply.send(Err(failed));
                    }
                    Some(Fetch::Ads { reply: Some(reply) }) => {
                        let _ = reply.send(Err(failed));
                    }
                    Some(Fetch::Ads { reply: None }) | None => {}
                }
            }
            request_response::Event::InboundFailure { .. } | request_response::Event::ResponseSent { .. } => {
            }
        }
    }

    fn conclude(&mut self, peer: PeerId, fetch: Fetch, response: Response) {
        match (fetch, response) {
            (Fetch::Evidence { digest, reply }, Response::Evidence(bytes)) => {
                let found = sha256(&bytes);
                let answer = match found == digest {
                    true => Ok(bytes),
                    false => {
                        self.penalise(peer, Offence::WrongEvidence);
                        let short = |digest: [u8; 32]| hex::encode(&digest[..6]);
                        Err(FetchError::WrongDigest { peer, asked: short(digest), found: short(found) })
                    }
                };
                let _ = reply.send(answer);
            }
            (Fetch::Ads { reply }, Response::Ads(ads)) => {
                let (shared, reach) = (&self.shared, self.reach);
                let (taken, fault) = take_snapshot(&shared.directory, &ads, clock::unix_now(), |ad| {
                    meet(shared, ad, Discovery::Snapshot, reach);
                });
                shared.counters.ads_accepted.add(taken.len() as u64);
                let fetched = taken.len();
                for worker in taken {
                    shared.emit(NetEvent::Advertised { worker, how: Discovery::Snapshot });
                }
                if let Some(error) = fault {
                    self.shared.counters.ads_rejected.add(1);
                    tracing::debug!(%peer, %error, "snapshot with a faulty ad");
                    self.penalise(peer, Offence::MalformedAd);
                }
                if let Some(reply) = reply {
                    let _ = reply.send(Ok(fetched));
                }
            }
            (fetch, response) => {
                let error = match response {
                    Response::NotFound => FetchError::NotFound { peer },
                    Response::Busy => FetchError::Busy { peer },
                    Response::Evidence(_) | Response::Ads(_) => {
                        self.penalise(peer, Offence::BadFrame);
                        FetchError::Unexpected { peer }
                    }
                };
                match fetch {
                    Fetch::Evidence { reply, .. } => {
                        let _ = reply.send(Err(error));
                    }
                    Fetch::Ads { reply: Some(reply) } => {
                        let _ = reply.send(Err(error));
                    }
                    Fetch::Ads { reply: None } => {}
                }
            }
        }
    }

    // ---- the exchange protocol, answering ----

    fn answer(&mut self, peer: PeerId, request: Option<Request>, channel: ResponseChannel<Response>) {
        // Dropping the channel closes the stream without an answer.
        let Some(request) = request else { return self.penalise(peer, Offence::BadFrame) };
        let response = match self.may_ask(peer) {
            false => Response::Busy,
            true => match request {
                Request::Evidence { digest } => match self.shared.evidence.get(&digest) {
                    Some(bytes) => Response::Evidence(bytes.to_vec()),
                    None => Response::NotFound,
                },
                Request::Ads { model, limit } => {
                    Response::Ads(snapshot(&self.shared.directory, model, usize::from(limit)))
                }
            },
        };
        // Fails only if the asker is gone.
        let _ = self.swarm.behaviour_mut().exchange.send_response(channel, response);
    }

    fn may_ask(&mut self, peer: PeerId) -> bool {
        let millis = self.started.elapsed().as_millis().min(u128::from(u64::MAX)) as u64;
        if self.askers.len() >= MAX_ASKERS && !self.askers.contains_key(&peer) {
            self.askers.retain(|_, bucket| !bucket.is_full(QUESTIONS, millis));
            if self.askers.len() >= MAX_ASKERS {
                return false;
            }
        }
        let bucket = self.askers.entry(peer).or_insert_with(|| TokenBucket::full(QUESTIONS, millis));
        let allowed = bucket.take(QUESTIONS, millis);
        if !allowed {
            self.penalise(peer, Offence::Flood);
        }
        allowed
    }
}

/// Notes in the table of peers who is behind an ad, and where.
fn meet(shared: &Shared, ad: &Ad, how: Discovery, reach: Reach) {
    if let Some(peer) = ad.peer.peer_id() {
        let named = ad.addresses.iter().filter_map(|text| text.parse().ok());
        shared.met(peer, how, &believable(named, reach));
    }
}

/// Current ads, as many as fit one answer.
fn snapshot(directory: &SharedDirectory, model: Option<[u8; 32]>, limit: usize) -> Vec<Vec<u8>> {
    let limit = limit.min(SNAPSHOT_ADS);
    let ads = directory.read(|directory| match model {
        Some(model) => directory.snapshot_for(&model, limit),
        None => directory.snapshot(limit),
    });
    let mut room = SNAPSHOT_BYTES;
    ads.iter()
        .filter_map(|signed| signed.encode().ok())
        .take_while(|bytes| {
            let fits = bytes.len() <= room;
            room = room.saturating_sub(bytes.len());
            fits
        })
        .collect()
}
