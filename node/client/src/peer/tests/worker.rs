//! A worker over real sockets: p2p's swarm in front of the session testkit's enclave.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use cocoon_attest::{Measurement, software_tee::Platform};
use cocoon_inference::FinishReason;
use cocoon_p2p::{
    Incoming, Keypair, Mode, Multiaddr, Net, NetConfig, SessionStream,
    core::{Ad, ModelOffer, PeerKey, SignedAd},
    wire::{self, FrameReader, FrameWriter},
};
use futures::io::{ReadHalf, WriteHalf};
use sha2::{Digest, Sha256};

use crate::{
    peer::unix_now,
    session::{
        asker::Transmit,
        outer::{self, ToClient, ToHost},
        testkit::{MODEL, Pair, TARIFF, Worker},
    },
};

/// How a worker behaves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    Honest,
    /// Disappears once an answer has this many tokens.
    DiesAt(u32),
    /// Says goodbye in the same breath as an answer's token of this number, and its receipt if
    /// that was the last one.
    LeavesAt(u32),
    /// Takes the first voucher and closes the session without passing it on.
    Thief,
    /// Takes requests and says nothing more.
    Silent,
}

pub(super) struct TestWorker {
    /// Held, never used: the overlay lives as long as its handle.
    _net: Net,
    pub(super) peer: String,
    pub(super) address: Multiaddr,
    pub(super) counters: Arc<Counters>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sessions: AtomicU32,
    pub(super) requests: AtomicU32,
    pub(super) cancelled: AtomicU32,
}

struct Site {
    net: Net,
    pair: Pair,
    platform: Arc<Platform>,
    image: Measurement,
    manner: Manner,
    counters: Arc<Counters>,
}

impl TestWorker {
    pub(super) async fn start(
        platform: Arc<Platform>,
        network_id: [u8; 32],
        image: Measurement,
        bootstrap: Vec<Multiaddr>,
        manner: Manner,
    ) -> Self {
        let keypair = Keypair::generate_ed25519();
        let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
        let config =
            NetConfig::new(keypair.clone(), network_id, Mode::Server, listen).with_bootstrap(bootstrap);
        let (net, incoming) = Net::spawn(config).unwrap();
        let id = net.peer_id();
        let plain = net.listen_addresses().await;
        let pair = Pair::of(&platform, network_id, id.to_bytes(), image, unix_now());
        let digest: [u8; 32] = Sha256::digest(&pair.evidence).into();
        net.serve_evidence(digest, pair.evidence.clone()).unwrap();
        let mut payout = [0; 33];
        payout[1..].copy_from_slice(&id.to_bytes()[6..38]);
        let ad = Ad {
            network_id,
            peer: PeerKey::from(id),
            sequence: 1,
            issued_at: unix_now(),
            expires_at: unix_now() + 90,
            addresses: plain.iter().map(ToString::to_string).collect(),
            models: vec![ModelOffer {
                digest: MODEL,
                name: "tiny".into(),
                context: 4096,
                quantisation: "f32".into(),
                price_input: TARIFF.price_input,
                price_cached_input: TARIFF.price_input,
                price_output: TARIFF.price_output,
            }],
            free_slots: 4,
            queue_delay_ms: 0,
            tokens_per_second: 100,
            evidence_digest: digest,
            assurance: 1,
            payout,
            payee_key: ed25519_dalek::SigningKey::from_bytes(&[2; 32]).verifying_key().to_bytes(),
            close_delay_s: 3600,
            platform: None,
        };
        net.publish_ad(SignedAd::sign(&ad, &keypair).unwrap()).await.unwrap();
        let counters = Arc::<Counters>::default();
        let site = Site { net: net.clone(), pair, platform, image, manner, counters: counters.clone() };
        tokio::spawn(accept(incoming, Arc::new(site)));
        let address = format!("{}/p2p/{id}", plain[0]).parse().unwrap();
        Self { _net: net, peer: id.to_string(), address, counters }
    }
}

async fn accept(mut incoming: Incoming, site: Arc<Site>) {
    while let Some((_, stream)) = incoming.next().await {
        site.counters.sessions.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(serve(stream, site.clone()));
    }
}

async fn serve(stream: SessionStream, site: Arc<Site>) -> Option<()> {
    let (mut reader, mut writer) = wire::framed(stream, outer::MAX_FRAME);
    let ToHost::Open(open) = next(&mut reader).await? else { return None };
    let (mut worker, accepted) = Worker::accept(&open, &site.pair, None);
    writer.send(&[&ToClient::Accepted(accepted).encode().unwrap()]).await.ok()?;
    let mut made = std::collections::BTreeMap::<u32, u32>::new();
    loop {
        flush(&mut worker, &mut writer).await?;
        let before = worker.streams().len();
        match next(&mut reader).await? {
            ToHost::Noise(record) => worker.take(Transmit::Record(record.to_vec())),
            ToHost::Voucher(_) if matches!(site.manner, Manner::Thief) => return None,
            ToHost::Voucher(voucher) => worker.take(Transmit::Voucher(voucher)),
            ToHost::Bye | ToHost::Open(_) => return None,
        }
        worker.prove_live_on(&site.platform, site.image);
        let after = worker.streams().len();
        if after < before {
            site.counters.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        site.counters.requests.store(u32::try_from(worker.requests).unwrap(), Ordering::Relaxed);
        if matches!(site.manner, Manner::Silent) {
            continue;
        }
        for stream in worker.streams() {
            // One token a message, so that a reader sees an answer grow.
            while worker.generate(stream, 1) == 1 {
                let made = made.entry(stream).or_default();
                *made += 1;
                if let Manner::LeavesAt(limit) = site.manner
                    && *made == limit
                {
                    if worker.is_complete(stream) {
                        worker.finish(stream, FinishReason::Length);
                    }
                    let bye = ToClient::Bye { reason: "maintenance".into() };
                    for frame in worker.flush().into_iter().chain([bye]) {
                        writer.queue(&[&frame.encode().unwrap()]).unwrap();
                    }
                    writer.close().await.ok();
                    // Still reads, so that nothing it said is lost with a reset.
                    while next(&mut reader).await.is_some() {}
                    return None;
                }
                flush(&mut worker, &mut writer).await?;
                if let Manner::DiesAt(limit) = site.manner
                    && *made == limit
                {
                    site.net.shutdown().await;
                    return None;
                }
            }
            if worker.is_complete(stream) {
                worker.finish(stream, FinishReason::Length);
            }
        }
    }
}

async fn flush(worker: &mut Worker, writer: &mut FrameWriter<WriteHalf<SessionStream>>) -> Option<()> {
    for frame in worker.flush() {
        writer.queue(&[&frame.encode().unwrap()]).unwrap();
    }
    writer.flush().await.ok()
}

async fn next(reader: &mut FrameReader<ReadHalf<SessionStream>>) -> Option<ToHost> {
    ToHost::decode(reader.next().await.ok()??).ok()
}
