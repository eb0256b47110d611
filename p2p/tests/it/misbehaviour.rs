//! What peers that do not keep to the protocol can and cannot do. The rogue is a bare libp2p swarm that
//! speaks the right protocol names and says the wrong things.

use std::time::Duration;

use cocoon_p2p::{
    Keypair, Mode, Multiaddr, NetEvent, PeerId,
    core::SignedAd,
    net::FetchError,
    wire::{read_frame, write_frame},
};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, gossipsub, identify, kad, noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use libp2p_stream as raw;
use tokio::sync::mpsc;

use crate::kit::{MODEL, NETWORK, TCP, client, config, eventually, server, spawn, within};

fn root() -> String {
    format!("/cocoon/{}/1", hex::encode(&NETWORK[..8]))
}

#[derive(NetworkBehaviour)]
struct Rogue {
    gossip: gossipsub::Behaviour,
    identify: identify::Behaviour,
    raw: raw::Behaviour,
}

struct RogueHandle {
    id: PeerId,
    keypair: Keypair,
    address: Multiaddr,
    control: raw::Control,
    say: mpsc::Sender<Vec<u8>>,
}

fn rogue_swarm() -> (Swarm<Rogue>, Keypair) {
    let keypair = Keypair::generate_ed25519();
    let swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| Rogue {
            gossip: gossipsub::Behaviour::new(
                gossipsub::MessageAuthenticity::Signed(key.clone()),
                gossipsub::Config::default(),
            )
            .unwrap(),
            identify: identify::Behaviour::new(identify::Config::new(root(), key.public())),
            raw: raw::Behaviour::new(),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    (swarm, keypair)
}

/// Starts a rogue that is connected to `victim` and gossips whatever it is given.
async fn rogue(victim: Option<Multiaddr>) -> RogueHandle {
    let (mut swarm, keypair) = rogue_swarm();
    swarm.listen_on(TCP.parse().unwrap()).unwrap();
    let address = within(async {
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return address;
            }
        }
    })
    .await;
    let topic = gossipsub::IdentTopic::new(format!("{}/ads/{}", root(), MODEL[0] % 16));
    swarm.behaviour_mut().gossip.subscribe(&topic).unwrap();
    if let Some(victim) = victim {
        swarm.dial(victim).unwrap();
        within(async {
            loop {
                let event = swarm.select_next_some().await;
                if matches!(&event, SwarmEvent::Behaviour(RogueEvent::Gossip(gossipsub::Event::Subscribed { topic: t, .. })) if *t == topic.hash())
                {
                    return;
                }
            }
        })
        .await;
    }
    let (id, control) = (*swarm.local_peer_id(), swarm.behaviour().raw.new_control());
    let (say, mut lines) = mpsc::channel::<Vec<u8>>(16);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    Some(line) => { let _ = swarm.behaviour_mut().gossip.publish(topic.clone(), line); }
                    None => return,
                },
                _ = swarm.select_next_some() => {}
            }
        }
    });
    RogueHandle { id, keypair, address, control, say }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_ads_are_rejected_not_forwarded_and_the_third_gets_the_sender_banned() {
    let victim = server(&[TCP], &[]).await;
    let bystander = server(&[TCP], &victim.addresses).await;
    let mut events = victim.net.events();
    let rogue = rogue(Some(victim.addresses[0].clone())).await;

    // Somebody else's genuine ad, some noise, and an ad with a broken signature.
    let honest = server(&[TCP], &[]).await;
    let genuine = SignedAd::sign(&honest.ad(1), &honest.keypair).unwrap().encode().unwrap();
    let mut broken = genuine.clone();
    *broken.last_mut().unwrap() ^= 1;
    for line in [genuine, b"not an ad at all".to_vec(), broken] {
        rogue.say.send(line).await.unwrap();
    }
    within(async { while events.recv().await.unwrap() != NetEvent::Banned(rogue.id) {} }).await;
    within(async { while events.recv().await.unwrap() != NetEvent::Disconnected(rogue.id) {} }).await;
    let status = victim.net.status().await.unwrap();
    assert_eq!((status.ads_rejected, status.workers, status.banned), (3, 0, 1), "{status:?}");
    let other = bystander.net.status().await.unwrap();
    assert_eq!((other.ads_rejected, other.workers), (0, 0), "{other:?}");

    // The ban holds for new connections.
    let mut comeback = config(Mode::Client, &[], &[]);
    comeback.keypair = rogue.keypair.clone();
    let comeback = spawn(comeback).await;
    let _ = within(comeback.net.connect(victim.id(), victim.plain_addresses())).await;
    eventually("a refused connection", || async {
        (victim.net.status().await.unwrap().connections_refused > 0).then_some(())
    })
    .await;
}

/// A rogue that answers one exchange with `answer`, whatever was asked.
async fn answering(answer: Vec<u8>, framed: bool) -> RogueHandle {
    let mut rogue = rogue(None).await;
    let protocol = StreamProtocol::try_from_owned(format!("{}/exchange", root())).unwrap();
    let mut questions = rogue.control.accept(protocol).unwrap();
    tokio::spawn(async move {
        while let Some((_, mut stream)) = questions.next().await {
            let _ = read_frame(&mut stream, 1024).await;
            if framed {
                let _ = write_frame(&mut stream, &[&answer], usize::MAX).await;
            } else {
                let _ = stream.write_all(&answer).await;
            }
            let _ = stream.close().await;
        }
    });
    rogue
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_with_another_digest_is_refused() {
    // version 1, variant 0 (evidence), 3 bytes
    let rogue = answering(vec![1, 0, 3, 9, 9, 9], true).await;
    let asker = client(&[]).await;
    within(asker.net.connect(rogue.id, vec![rogue.address.clone()])).await.unwrap();
    let error = within(asker.net.fetch_evidence(rogue.id, [5; 32])).await.unwrap_err();
    assert!(matches!(error, FetchError::WrongDigest { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversize_and_malformed_answers_are_refused_unread() {
    for (answer, framed) in
        [(u32::MAX.to_be_bytes().to_vec(), false), (vec![0; 9], true), (vec![1, 7, 7], true)]
    {
        let rogue = answering(answer, framed).await;
        let asker = client(&[]).await;
        within(asker.net.connect(rogue.id, vec![rogue.address.clone()])).await.unwrap();
        let error = within(asker.net.fetch_evidence(rogue.id, [5; 32])).await.unwrap_err();
        assert!(matches!(error, FetchError::Failed { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_question_ends_the_stream_and_costs_standing() {
    let victim = server(&[TCP], &[]).await;
    let mut events = victim.net.events();
    let mut rogue = rogue(Some(victim.addresses[0].clone())).await;
    let protocol = StreamProtocol::try_from_owned(format!("{}/exchange", root())).unwrap();
    // Five offences of 20 points.
    for _ in 0..5 {
        let Ok(mut stream) = within(rogue.control.open_stream(victim.id(), protocol.clone())).await else {
            break;
        };
        let _ = stream.write_all(&u32::MAX.to_be_bytes()).await;
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty());
    }
    within(async { while events.recv().await.unwrap() != NetEvent::Banned(rogue.id) {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_announces_more_models_than_anybody_serves_is_banned() {
    let victim = server(&[TCP], &[]).await;
    let mut events = victim.net.events();
    let mut rogue = SwarmBuilder::with_existing_identity(Keypair::generate_ed25519())
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| {
            let id = key.public().to_peer_id();
            let protocol = StreamProtocol::try_from_owned(format!("{}/kad", root())).unwrap();
            kad::Behaviour::with_config(id, kad::store::MemoryStore::new(id), kad::Config::new(protocol))
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    let id = *rogue.local_peer_id();
    let kad = rogue.behaviour_mut();
    kad.set_mode(Some(kad::Mode::Client));
    kad.add_address(&victim.id(), victim.plain_addresses().remove(0));
    for number in 0..128 {
        kad.start_providing(kad::RecordKey::new(&[number; 32])).unwrap();
    }
    let announcing = tokio::spawn(async move {
        loop {
            rogue.select_next_some().await;
        }
    });
    within(async { while events.recv().await.unwrap() != NetEvent::Banned(id) {} }).await;
    announcing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_uses_libp2p_stream_opens_and_accepts_sessions() {
    let mut worker = server(&[TCP], &[]).await;
    let mut rogue = rogue(Some(worker.addresses[0].clone())).await;
    let protocol = StreamProtocol::try_from_owned(format!("{}/session", root())).unwrap();
    let mut stream = within(rogue.control.open_stream(worker.id(), protocol.clone())).await.unwrap();
    write_frame(&mut stream, &[b"in"], 64).await.unwrap();
    let (from, mut accepted) = within(worker.incoming.as_mut().unwrap().next()).await.unwrap();
    assert_eq!(from, rogue.id);
    assert_eq!(&within(read_frame(&mut accepted, 64)).await.unwrap().unwrap()[..], b"in");

    let mut accepting = rogue.control.accept(protocol).unwrap();
    let mut opened = within(worker.net.open_session(rogue.id, Vec::new())).await.unwrap();
    write_frame(&mut opened, &[b"out"], 64).await.unwrap();
    let (_, mut stream) = within(accepting.next()).await.unwrap();
    assert_eq!(&within(read_frame(&mut stream, 64)).await.unwrap().unwrap()[..], b"out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_the_session_protocol_refuses_by_name() {
    let rogue = rogue(None).await;
    let asker = client(&[]).await;
    let error = within(asker.net.open_session(rogue.id, vec![rogue.address.clone()])).await.unwrap_err();
    assert!(error.to_string().contains("does not speak the session protocol"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_limits_hold() {
    let mut limited = config(Mode::Server, &[TCP], &[]);
    limited.limits.established_in = 2;
    let victim = spawn(limited).await;
    let mut guests = Vec::new();
    for _ in 0..5 {
        let guest = client(&[]).await;
        let _ = within(guest.net.connect(victim.id(), victim.plain_addresses())).await;
        guests.push(guest);
    }
    let status = eventually("three refusals", || async {
        victim.net.status().await.filter(|status| status.connections_refused >= 3)
    })
    .await;
    assert_eq!(status.connected_peers, 2);
}
