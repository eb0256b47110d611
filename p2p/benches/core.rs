//! How fast the cores are: choosing among a thousand workers, checking an ad, and framing tokens, with
//! `memcpy` of the same bytes as the yardstick for the frame codec.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeSet,
    hint::black_box,
    task::{Context, Poll, Waker},
};

use cocoon_p2p::{
    Keypair,
    core::{Ad, Ask, Directory, DirectoryLimits, ModelOffer, PeerKey, SignedAd, choose},
    wire::{FrameReader, FrameWriter, MAX_SESSION_FRAME},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::io::Cursor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const NOW: u64 = 1_800_000_000;
const WORKERS: u16 = 1_000;
const FRAMES: usize = 10_000;
const FRAME_BYTES: usize = 145;

fn signed(n: u16) -> SignedAd {
    let mut seed = [1; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    let keypair = Keypair::ed25519_from_bytes(seed).unwrap();
    let [a, b] = n.to_be_bytes();
    let mut payout = [0; 33];
    payout[1..3].copy_from_slice(&[a, b]);
    let ad = Ad {
        network_id: [7; 32],
        peer: PeerKey::from(keypair.public().to_peer_id()),
        sequence: 1,
        issued_at: NOW,
        expires_at: NOW + 90,
        addresses: vec![format!("/ip4/9.{a}.{b}.1/udp/4001/quic-v1")],
        models: vec![ModelOffer {
            digest: [1; 32],
            name: "model".into(),
            context: 4096,
            quantisation: "f16".into(),
            price_input: u64::from(b),
            price_cached_input: 0,
            price_output: u64::from(b) * 3,
        }],
        free_slots: u16::from(b) % 3,
        queue_delay_ms: u32::from(a) * 50,
        tokens_per_second: u32::from(b),
        evidence_digest: [2; 32],
        assurance: 1,
        payout,
        payee_key: [3; 32],
        close_delay_s: 3_600,
        platform: None,
    };
    SignedAd::sign(&ad, &keypair).unwrap()
}

fn choice(c: &mut Criterion) {
    let limits = DirectoryLimits::default();
    let mut directory = Directory::new([7; 32], limits);
    let ads: Vec<SignedAd> = (0..WORKERS).map(signed).collect();
    for ad in &ads {
        directory.insert(ad.clone(), NOW).unwrap();
    }
    let none = BTreeSet::new();
    let ask = Ask::new([1; 32], &none);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    c.bench_function("choose among 1000 ads", |b| {
        b.iter(|| choose(black_box(&directory), &ask, NOW, &mut rng).unwrap());
    });
    c.bench_function("verify and insert an ad", |b| {
        let mut turn = 0;
        b.iter_batched(
            || {
                turn = (turn + 1) % ads.len();
                (Directory::new([7; 32], limits), ads[turn].clone())
            },
            |(mut directory, ad)| directory.insert(ad, NOW).unwrap(),
            BatchSize::SmallInput,
        );
    });
    c.bench_function("repeated ad", |b| {
        b.iter(|| directory.insert(black_box(ads[7].clone()), NOW).unwrap());
    });
}

fn framing(c: &mut Criterion) {
    let mut cx = Context::from_waker(Waker::noop());
    let frame = [7u8; FRAME_BYTES];
    let mut stream = Vec::new();
    let mut writer = FrameWriter::new(Cursor::new(&mut stream), MAX_SESSION_FRAME);
    for _ in 0..FRAMES {
        writer.queue(&[&frame]).unwrap();
    }
    assert!(matches!(writer.poll_flush(&mut cx), Poll::Ready(Ok(()))));
    drop(writer);

    let mut group = c.benchmark_group("10000 frames of 145 bytes");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("memcpy", |b| b.iter(|| black_box(&stream).clone()));
    group.bench_function("write", |b| {
        let mut out = Vec::with_capacity(stream.len());
        b.iter(|| {
            out.clear();
            let mut writer = FrameWriter::new(Cursor::new(&mut out), MAX_SESSION_FRAME);
            for _ in 0..FRAMES {
                writer.queue(&[&frame]).unwrap();
                if writer.is_full() {
                    assert!(writer.poll_flush(&mut cx).is_ready());
                }
            }
            assert!(writer.poll_flush(&mut cx).is_ready());
        });
    });
    group.bench_function("read", |b| {
        b.iter(|| {
            let mut reader = FrameReader::new(Cursor::new(&stream[..]), MAX_SESSION_FRAME);
            let mut frames = 0;
            while let Poll::Ready(Ok(Some(frame))) = reader.poll_frame(&mut cx) {
                frames += usize::from(black_box(frame).len() == FRAME_BYTES);
            }
            assert_eq!(frames, FRAMES);
        });
    });
    group.finish();
}

criterion_group!(benches, choice, framing);
criterion_main!(benches);
