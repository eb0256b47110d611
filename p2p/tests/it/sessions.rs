//! Session streams.

use cocoon_p2p::{
    Mode, SessionStream,
    wire::{FrameReader, MAX_SESSION_FRAME, framed, pump},
};
use libp2p::{Multiaddr, multiaddr::Protocol};
use tokio::sync::mpsc;

use crate::kit::{Peer, QUIC, TCP, client, config, eventually, server, spawn, within};

/// Sends every frame back.
async fn echo(stream: SessionStream) {
    let (mut reader, writer) = framed(stream, MAX_SESSION_FRAME);
    let (frames, queue) = mpsc::channel(256);
    let writing = tokio::spawn(pump(queue, writer));
    while let Ok(Some(frame)) = reader.next().await {
        if frames.send(frame).await.is_err() {
            break;
        }
    }
    drop(frames);
    let _ = writing.await;
}

fn serve_echo(worker: &mut Peer) {
    let mut incoming = worker.incoming.take().unwrap();
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            tokio::spawn(echo(stream));
        }
    });
}

async fn ten_thousand_frames(listen: &str) {
    let mut worker = server(&[listen], &[]).await;
    serve_echo(&mut worker);
    let asker = client(&[]).await;
    let stream = within(asker.net.open_session(worker.id(), worker.plain_addresses())).await.unwrap();
    let (mut reader, writer) = framed(stream, MAX_SESSION_FRAME);
    let (frames, queue) = mpsc::channel(256);
    let writing = tokio::spawn(pump(queue, writer));
    let sending = tokio::spawn(async move {
        for n in 0..10_000u32 {
            let mut frame = vec![n as u8; 145];
            frame[..4].copy_from_slice(&n.to_be_bytes());
            frames.send(frame.into()).await.unwrap();
        }
    });
    within(async {
        for n in 0..10_000u32 {
            let frame = reader.next().await.unwrap().unwrap();
            assert_eq!((frame.len(), &frame[..4]), (145, &n.to_be_bytes()[..]));
        }
        assert!(reader.next().await.unwrap().is_none(), "the other end closes after us");
    })
    .await;
    within(sending).await.unwrap();
    within(writing).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_frames_echo_in_order_over_tcp() {
    ten_thousand_frames(TCP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_frames_echo_in_order_over_quic() {
    ten_thousand_frames(QUIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_stream_ends_it_at_the_other_side() {
    let mut worker = server(&[TCP], &[]).await;
    let asker = client(&[]).await;
    let stream = within(asker.net.open_session(worker.id(), worker.plain_addresses())).await.unwrap();
    let (_, mut writer) = framed(stream, MAX_SESSION_FRAME);
    within(writer.send(&[b"hello"])).await.unwrap();
    let (from, stream) = within(worker.incoming.as_mut().unwrap().next()).await.unwrap();
    assert_eq!(from, asker.id());
    let mut reader = FrameReader::new(stream, MAX_SESSION_FRAME);
    assert_eq!(&within(reader.next()).await.unwrap().unwrap()[..], b"hello");
    drop(writer);
    assert!(!matches!(within(reader.next()).await, Ok(Some(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_beyond_the_queue_are_reset_not_hoarded() {
    let mut limited = config(Mode::Server, &[TCP], &[]);
    limited.limits.pending_sessions = 2;
    let worker = spawn(limited).await;
    let asker = client(&[]).await;
    let mut streams = Vec::new();
    for _ in 0..6 {
        let stream = within(asker.net.open_session(worker.id(), worker.plain_addresses())).await.unwrap();
        let (reader, mut writer) = framed(stream, MAX_SESSION_FRAME);
        // The first bytes make lazily negotiated streams real.
        let _ = within(writer.send(&[b"x"])).await;
        streams.push((reader, writer));
    }
    let refused = eventually("refusals", || async {
        let status = worker.net.status().await.unwrap();
        (status.sessions_in + status.sessions_refused == 6).then_some(status.sessions_refused)
    })
    .await;
    assert_eq!(refused, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_nobody_can_dial_serves_through_a_relay() {
    let relay = server(&[TCP], &[]).await;
    let circuit: Multiaddr = relay.addresses[0].clone().with(Protocol::P2pCircuit);
    let mut hidden = spawn(config(Mode::Client, &[&circuit.to_string()], &relay.addresses)).await;
    serve_echo(&mut hidden);
    let asker = client(&relay.addresses).await;
    within(asker.net.connect(relay.id(), relay.plain_addresses())).await.unwrap();
    let relayed = circuit.with(Protocol::P2p(hidden.id()));
    let stream = within(asker.net.open_session(hidden.id(), vec![relayed])).await.unwrap();
    let (mut reader, mut writer) = framed(stream, MAX_SESSION_FRAME);
    // More than the 128 KiB that libp2p's default relay would carry.
    for n in 0..40u8 {
        within(writer.send(&[&[n; 8_000]])).await.unwrap();
        assert_eq!(within(reader.next()).await.unwrap().unwrap()[0], n);
    }
}
