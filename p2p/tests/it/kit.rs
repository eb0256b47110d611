//! Peers for tests, and waiting for conditions with a deadline.

use std::{
    future::Future,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cocoon_p2p::{
    Incoming, Keypair, Mode, Multiaddr, Net, NetConfig, PeerId,
    core::{Ad, ModelOffer, PeerKey, SignedAd},
};
use libp2p::multiaddr::Protocol;

pub(crate) const NETWORK: [u8; 32] = [42; 32];
pub(crate) const MODEL: [u8; 32] = [17; 32];
/// Far longer than anything takes: a test that needs it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A running peer.
pub(crate) struct Peer {
    pub(crate) net: Net,
    pub(crate) incoming: Option<Incoming>,
    pub(crate) keypair: Keypair,
    /// Where it can be dialled, with its peer id.
    pub(crate) addresses: Vec<Multiaddr>,
}

impl Peer {
    pub(crate) fn id(&self) -> PeerId {
        self.net.peer_id()
    }

    pub(crate) fn plain_addresses(&self) -> Vec<Multiaddr> {
        self.addresses
            .iter()
            .cloned()
            .map(|mut address| {
                address.pop();
                address
            })
            .collect()
    }

    /// A valid ad of this peer for [`MODEL`].
    pub(crate) fn ad(&self, sequence: u64) -> Ad {
        let mut payout = [0; 33];
        payout[1..].copy_from_slice(&self.id().to_bytes()[6..38]);
        Ad {
            network_id: NETWORK,
            peer: PeerKey::from(self.id()),
            sequence,
            issued_at: unix_now(),
            expires_at: unix_now() + 90,
            addresses: self.plain_addresses().iter().map(ToString::to_string).collect(),
            models: vec![ModelOffer {
                digest: MODEL,
                name: "tiny".into(),
                context: 256,
                quantisation: "f32".into(),
                price_input: 1,
                price_cached_input: 1,
                price_output: 2,
            }],
            free_slots: 1,
            queue_delay_ms: 0,
            tokens_per_second: 100,
            evidence_digest: [3; 32],
            assurance: 1,
            payout,
            payee_key: [4; 32],
            close_delay_s: 3600,
            platform: None,
        }
    }

    pub(crate) async fn publish(&self, sequence: u64) {
        let signed = SignedAd::sign(&self.ad(sequence), &self.keypair).unwrap();
        self.net.publish_ad(signed).await.unwrap();
    }
}

pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";
pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

pub(crate) fn config(mode: Mode, listen: &[&str], bootstrap: &[Multiaddr]) -> NetConfig {
    let listen = listen.iter().map(|text| text.parse().unwrap()).collect();
    NetConfig::new(Keypair::generate_ed25519(), NETWORK, mode, listen).with_bootstrap(bootstrap.to_vec())
}

pub(crate) async fn spawn(config: NetConfig) -> Peer {
    let keypair = config.keypair.clone();
    let (net, incoming) = Net::spawn(config).unwrap();
    let id = net.peer_id();
    let listening = within(net.listen_addresses()).await;
    let addresses = listening.into_iter().map(|address| address.with(Protocol::P2p(id))).collect();
    Peer { net, incoming: Some(incoming), keypair, addresses }
}

pub(crate) async fn server(listen: &[&str], bootstrap: &[Multiaddr]) -> Peer {
    spawn(config(Mode::Server, listen, bootstrap)).await
}

pub(crate) async fn client(bootstrap: &[Multiaddr]) -> Peer {
    spawn(config(Mode::Client, &[], bootstrap)).await
}

/// The output of a future that must finish before the deadline.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("not done before the deadline")
}

/// Looks again and again until `ready` finds something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ready: impl FnMut() -> F,
) -> T {
    let looking = async {
        loop {
            if let Some(found) = ready().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("never: {what}"))
}
