//! Peers find each other and each other's ads.

use std::{collections::BTreeSet, time::Duration};

use cocoon_p2p::{
    Discovery, Keypair, Mode, Net, NetEvent, PeerId,
    core::{Ask, PeerKey},
    net::{FetchError, PublishError, ServeError, SessionError},
};
use rand::SeedableRng;
use sha2::{Digest, Sha256};

use crate::kit::{DEADLINE, MODEL, Peer, QUIC, TCP, client, config, eventually, server, spawn, within};

fn ways(net: &Net, peer: &Peer) -> Vec<Discovery> {
    net.peers().into_iter().find(|view| view.peer == peer.id()).map(|view| view.ways).unwrap_or_default()
}

async fn knows(net: &Net, worker: &Peer) {
    let key = PeerKey::from(worker.id());
    let found = net.directory().wait_until(DEADLINE, |directory| directory.get(&key).cloned()).await;
    assert!(found.is_some(), "the ad never arrived");
}

async fn the_whole_overlay(listen: &[&str]) {
    let bootstrap = server(listen, &[]).await;
    let first = server(listen, &bootstrap.addresses).await;
    let second = server(listen, &bootstrap.addresses).await;
    first.publish(1).await;
    for worker in [&first, &second] {
        worker.net.provide(MODEL).await;
    }
    knows(&bootstrap.net, &first).await;

    // A cold client hears of the first worker from the bootstrap peer's snapshot, without joining anything.
    let asker = client(&bootstrap.addresses).await;
    knows(&asker.net, &first).await;
    assert_eq!(ways(&asker.net, &first).first(), Some(&Discovery::Snapshot));
    assert_eq!(ways(&asker.net, &bootstrap).first(), Some(&Discovery::Bootstrap));
    assert!(asker.net.directory().wait_for_model(&MODEL, Duration::ZERO).await);

    // The second one announces itself after the client has joined: gossip, through the bootstrap peer.
    // (Until the bootstrap peer has all three in its mesh, it may forward to some of them only.)
    asker.net.join_model(MODEL).await;
    eventually("a mesh of three", || async {
        bootstrap.net.status().await.filter(|status| status.mesh_peers == 3).map(|_| ())
    })
    .await;
    second.publish(1).await;
    knows(&asker.net, &second).await;
    eventually("gossip of the second worker", || async {
        ways(&asker.net, &second).contains(&Discovery::Gossip).then_some(())
    })
    .await;

    // Both are in the DHT.
    let providers = eventually("two providers", || async {
        let found = asker.net.find_providers(MODEL).await;
        (found.len() == 2).then_some(found)
    })
    .await;
    assert_eq!(
        providers.into_iter().collect::<BTreeSet<PeerId>>(),
        BTreeSet::from([first.id(), second.id()])
    );
    assert!(ways(&asker.net, &first).contains(&Discovery::Kademlia));

    // Choice sees both, and oneself excluded.
    let exclude = BTreeSet::from([PeerKey::from(second.id())]);
    let ask = Ask::new(MODEL, &exclude);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let candidates = asker.net.directory().choose(&ask, &mut rng).unwrap();
    assert_eq!(candidates.iter().map(|c| &c.peer).collect::<Vec<_>>(), [&PeerKey::from(first.id())]);

    // Evidence comes by digest, from a worker the client was never told to dial.
    let evidence = vec![7u8; 20_000];
    let digest: [u8; 32] = Sha256::digest(&evidence).into();
    first.net.serve_evidence(digest, evidence.clone()).unwrap();
    assert_eq!(within(asker.net.fetch_evidence(first.id(), digest)).await.unwrap(), evidence);
    let missing = within(asker.net.fetch_evidence(first.id(), [0; 32])).await;
    assert!(matches!(missing, Err(FetchError::NotFound { .. })), "{missing:?}");

    let status = asker.net.status().await.unwrap();
    assert_eq!((status.workers, status.bootstrap_connected), (2, 1));
    assert!(status.kad_peers >= 1 && status.ads_accepted >= 2 && status.ads_rejected == 0, "{status:?}");
    for peer in [bootstrap, first, second, asker] {
        peer.net.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_ads_arrive_by_snapshot_and_gossip_providers_by_kademlia_evidence_by_digest() {
    the_whole_overlay(&[TCP]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quic_the_same_holds() {
    the_whole_overlay(&[QUIC]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_transports_on_loopback_sessions_go_over_tcp() {
    let worker = server(&[TCP, QUIC], &[]).await;
    let asker = client(&[]).await;
    within(asker.net.connect(worker.id(), worker.plain_addresses())).await.unwrap();
    let view = asker.net.peers().into_iter().find(|view| view.peer == worker.id()).unwrap();
    assert!(view.addresses.iter().all(|address| address.to_string().contains("/tcp/")), "{view:?}");
    assert_eq!(view.how, Discovery::Dialed);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_are_network_enough_and_an_ad_is_renewed() {
    let worker = server(&[TCP], &[]).await;
    // Published before anybody could hear it.
    worker.publish(1).await;
    let asker = client(&worker.addresses).await;
    asker.net.join_model(MODEL).await;
    knows(&asker.net, &worker).await;
    worker.publish(2).await;
    let key = PeerKey::from(worker.id());
    let directory = asker.net.directory();
    let renewed = directory
        .wait_until(DEADLINE, |directory| directory.get(&key).filter(|ad| ad.sequence == 2).map(|_| ()));
    assert!(renewed.await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_whose_ad_nobody_has_is_asked_for_it() {
    let bootstrap = server(&[TCP], &[]).await;
    let worker = server(&[TCP], &bootstrap.addresses).await;
    worker.net.provide(MODEL).await;
    let asker = client(&bootstrap.addresses).await;
    eventually("one provider", || async {
        asker.net.find_providers(MODEL).await.contains(&worker.id()).then_some(())
    })
    .await;
    worker.publish(1).await;
    // The client never joined the model and its first snapshots may have come too early; looking the
    // providers up again makes it ask the worker itself.
    eventually("the provider's ad", || async {
        asker.net.find_providers(MODEL).await;
        asker.net.directory().wait_for_model(&MODEL, Duration::from_millis(200)).await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_bootstrap_peer_is_dialled_again() {
    let bootstrap = server(&[TCP], &[]).await;
    let worker = server(&[TCP], &bootstrap.addresses).await;
    let connected = |worker: &Peer| {
        let net = worker.net.clone();
        async move { net.status().await.filter(|status| status.bootstrap_connected == 1).map(|_| ()) }
    };
    eventually("the first connection", || connected(&worker)).await;
    let mut events = worker.net.events();
    bootstrap.net.shutdown().await;
    within(async { while events.recv().await.unwrap() != NetEvent::Disconnected(bootstrap.id()) {} }).await;

    let port = bootstrap.plain_addresses()[0].to_string();
    let mut again = config(Mode::Server, &[&port], &[]);
    again.keypair = bootstrap.keypair.clone();
    let again = spawn(again).await;
    within(async { while events.recv().await.unwrap() != NetEvent::Connected(again.id()) {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_network_is_disconnected() {
    let ours = server(&[TCP], &[]).await;
    let mut events = ours.net.events();
    let mut foreign = config(Mode::Client, &[], &ours.addresses);
    foreign.network_id = [1; 32];
    let foreign = spawn(foreign).await;
    within(async { while events.recv().await.unwrap() != NetEvent::Disconnected(foreign.id()) {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_requests_fail_at_once_and_say_why() {
    let peer = server(&[TCP], &[]).await;
    let nobody = Keypair::generate_ed25519().public().to_peer_id();
    let unknown = within(peer.net.open_session(nobody, Vec::new())).await.unwrap_err();
    assert!(matches!(unknown, SessionError::NoAddress { .. }), "{unknown}");
    let closed_port = vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()];
    let refused = within(peer.net.open_session(nobody, closed_port)).await.unwrap_err();
    assert!(matches!(refused, SessionError::Dial { .. }), "{refused}");
    let failed = within(peer.net.fetch_evidence(nobody, [0; 32])).await.unwrap_err();
    assert!(matches!(failed, FetchError::Failed { .. }), "{failed}");

    let other = server(&[TCP], &[]).await;
    let theirs = cocoon_p2p::core::SignedAd::sign(&other.ad(1), &other.keypair).unwrap();
    assert!(matches!(peer.net.publish_ad(theirs).await, Err(PublishError::NotOurs { .. })));
    assert_eq!(peer.net.serve_evidence([0; 32], vec![1]), Err(ServeError::WrongDigest));
    let huge = vec![0; 100_000];
    assert!(matches!(peer.net.serve_evidence([0; 32], huge), Err(ServeError::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_shutdown_everything_answers_and_nothing_hangs() {
    let peer = server(&[TCP], &[]).await;
    let Peer { net, incoming, .. } = peer;
    net.shutdown().await;
    assert!(within(incoming.unwrap().next()).await.is_none());
    assert!(within(net.status()).await.is_none());
    assert!(within(net.find_providers(MODEL)).await.is_empty());
    assert!(matches!(within(net.fetch_evidence(net.peer_id(), [0; 32])).await, Err(FetchError::Stopped)));
    let stopped =
        within(net.open_session(Keypair::generate_ed25519().public().to_peer_id(), Vec::new())).await;
    assert!(matches!(stopped, Err(SessionError::Stopped)));
}
