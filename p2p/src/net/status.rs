//! A summary for people and dashboards: reachable? visible? busy?

use libp2p::{Multiaddr, PeerId};
use serde::{Serialize, Serializer};

use super::{Mode, shared::texts};

/// How the overlay is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetStatus {
    /// This peer.
    #[serde(serialize_with = "text")]
    pub peer_id: PeerId,
    /// Server or client.
    pub mode: Mode,
    /// Addresses listened on.
    #[serde(serialize_with = "texts")]
    pub listening: Vec<Multiaddr>,
    /// Addresses announced to others.
    #[serde(serialize_with = "texts")]
    pub external: Vec<Multiaddr>,
    /// What is known about whether others can reach this peer, in words.
    pub reachability: String,
    /// Peers connected.
    pub connected_peers: usize,
    /// Bootstrap peers connected, of those configured.
    pub bootstrap_connected: usize,
    /// Bootstrap peers configured.
    pub bootstrap_configured: usize,
    /// Distinct peers in this peer's gossip meshes.
    pub mesh_peers: usize,
    /// Ad topics subscribed to.
    pub topics: usize,
    /// Peers in the DHT's routing table.
    pub kad_peers: usize,
    /// Models this peer announces in the DHT.
    pub provided_models: usize,
    /// Provider records stored for others.
    pub provider_records: usize,
    /// Workers in the directory.
    pub workers: usize,
    /// Peers banned now.
    pub banned: usize,
    /// Ads taken into the directory.
    pub ads_accepted: u64,
    /// Ads that came late or twice.
    pub ads_ignored: u64,
    /// Ads refused as malformed or forged.
    pub ads_rejected: u64,
    /// Sessions that others opened.
    pub sessions_in: u64,
    /// Sessions opened to others.
    pub sessions_out: u64,
    /// Sessions of others dropped because too many waited.
    pub sessions_refused: u64,
    /// Connections refused by a limit or a ban.
    pub connections_refused: u64,
}

fn text<S: Serializer>(peer: &PeerId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(peer)
}
