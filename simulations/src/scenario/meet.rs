//! `meet`: two peers meet, one announces itself, the other hears of it.
//!
//! The smallest world that exercises everything below the light peer: dial, Noise, Yamux, identify,
//! Kademlia, gossip, a signed ad through its verification, a session stream.

use std::time::Duration;

use cocoon_p2p::{
    Mode, Multiaddr, NetConfig,
    core::{Ad, ModelOffer, PeerKey, SignedAd},
    wire::{MAX_SESSION_FRAME, framed},
};
use serde_json::json;

use crate::{
    os,
    world::{Outcome, Report, SimError, World, run},
};

const NETWORK: [u8; 32] = [0x5e; 32];
const MODEL: [u8; 32] = [0x11; 32];
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the scenario.
pub(crate) fn simulate(seed: u64) -> Result<Report, SimError> {
    run("meet", seed, 5..75, meet)
}

fn address() -> Result<Multiaddr, SimError> {
    "/memory/1".parse().map_err(|error| SimError::Broken { what: "an address", why: format!("{error}") })
}

fn broken(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> SimError {
    move |why| SimError::Broken { what, why: why.to_string() }
}

async fn meet(world: World) -> Outcome {
    let worker_key = world.keypair(1)?;
    let worker_config = NetConfig::new(worker_key.clone(), NETWORK, Mode::Server, vec![address()?]);
    let (worker, mut sessions) = world.spawn(worker_config)?;
    worker.listen_addresses().await;

    let asker_config =
        NetConfig::new(world.keypair(2)?, NETWORK, Mode::Client, Vec::new()).with_bootstrap(vec![address()?]);
    let (asker, _unused) = world.spawn(asker_config)?;
    asker.join_model(MODEL).await;
    asker.connect(worker.peer_id(), vec![address()?]).await.map_err(|error| broken("connecting")(&error))?;
    let met = os::elapsed();

    let ad = ad(PeerKey::from(worker.peer_id()));
    let signed = SignedAd::sign(&ad, &worker_key).map_err(|error| broken("signing an ad")(&error))?;
    worker.publish_ad(signed).await.map_err(|error| broken("publishing an ad")(&error))?;
    let published = os::elapsed();
    if !asker.directory().wait_for_model(&MODEL, PATIENCE).await {
        return Err(SimError::NeverHappened { what: "the ad's arrival", within_s: PATIENCE.as_secs() });
    }
    let heard = os::elapsed();

    tokio::spawn(async move {
        while let Some((_, stream)) = sessions.next().await {
            let (mut reader, mut writer) = framed(stream, MAX_SESSION_FRAME);
            while let Ok(Some(frame)) = reader.next().await {
                if writer.send(&[&frame]).await.is_err() {
                    break;
                }
            }
        }
    });
    let stream = asker
        .open_session(worker.peer_id(), Vec::new())
        .await
        .map_err(|error| broken("opening a session")(&error))?;
    let (mut reader, mut writer) = framed(stream, MAX_SESSION_FRAME);
    let opened = os::elapsed();
    writer.send(&[b"hello"]).await.map_err(|error| broken("a session")(&error))?;
    let echoed = reader.next().await.map_err(|error| broken("a session")(&error))?;
    if echoed.as_deref() != Some(b"hello") {
        return Err(broken("a session")(&"the echo differs"));
    }
    let answered = os::elapsed();

    let how = asker.peers().into_iter().find(|view| view.peer == worker.peer_id()).map(|view| view.ways);
    let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
    Ok((
        2,
        json!({
            "met_ms": millis(met),
            "ad_heard_after_ms": millis(heard - published),
            "session_round_trip_ms": millis(answered - opened),
            "found_by": how,
        }),
    ))
}

fn ad(peer: PeerKey) -> Ad {
    let now = (os::EPOCH + os::elapsed()).as_secs();
    Ad {
        network_id: NETWORK,
        peer,
        sequence: 1,
        issued_at: now,
        expires_at: now + 90,
        addresses: vec!["/memory/1".into()],
        models: vec![ModelOffer {
            digest: MODEL,
            name: "simulated".into(),
            context: 4_096,
            quantisation: "f16".into(),
            price_input: 1_000,
            price_cached_input: 100,
            price_output: 3_000,
        }],
        free_slots: 4,
        queue_delay_ms: 0,
        tokens_per_second: 50,
        evidence_digest: [0; 32],
        assurance: 1,
        payout: [0; 33],
        payee_key: [0; 32],
        close_delay_s: 3_600,
        platform: None,
    }
}
