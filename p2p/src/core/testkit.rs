//! Builders for the tests of this folder.

use libp2p::identity::Keypair;

use super::{Ad, ModelOffer, PeerKey, SignedAd};

pub(super) const NET: [u8; 32] = [9; 32];
pub(super) const NOW: u64 = 1_800_000_000;

/// The key pair of peer number `n`, the same on every run.
pub(super) fn keypair(n: u16) -> Keypair {
    let mut seed = [3; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    Keypair::ed25519_from_bytes(seed).unwrap()
}

pub(super) fn model(n: u8) -> [u8; 32] {
    [n; 32]
}

pub(super) fn offer(n: u8) -> ModelOffer {
    ModelOffer {
        digest: model(n),
        name: format!("model-{n}"),
        context: 4096,
        quantisation: "f16".into(),
        price_input: 100,
        price_cached_input: 10,
        price_output: 300,
    }
}

/// A valid ad of peer number `n`, made now, for model 1.
pub(super) fn ad(n: u16) -> Ad {
    let mut payout = [0; 33];
    payout[1..3].copy_from_slice(&n.to_be_bytes());
    Ad {
        network_id: NET,
        peer: PeerKey::from(keypair(n).public().to_peer_id()),
        sequence: 1,
        issued_at: NOW,
        expires_at: NOW + 90,
        addresses: vec![format!("/ip4/127.0.0.1/tcp/{}", 1000 + n)],
        models: vec![offer(1)],
        free_slots: 2,
        queue_delay_ms: 0,
        tokens_per_second: 50,
        evidence_digest: [4; 32],
        assurance: 1,
        payout,
        payee_key: [5; 32],
        close_delay_s: 3600,
        platform: None,
    }
}

pub(super) fn sign(n: u16, ad: &Ad) -> SignedAd {
    SignedAd::sign(ad, &keypair(n)).unwrap()
}
