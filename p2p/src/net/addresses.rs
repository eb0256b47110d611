//! Which addresses to believe, and which to dial first.
//!
//! Addresses come from strangers: identify, Kademlia records, ads. Two rules keep them harmless. An
//! address is only learned over a connection that is at least as local (a peer met over the internet
//! cannot name 127.0.0.1 or 10.0.0.1), and an address from an ad is only dialled if it is not more local
//! than this peer's own network ([`NetConfig::reach`](super::NetConfig::reach)).
//!
//! What a name stands for shows only when it is dialled, and libp2p's own lookups dial what others answer.
//! On the internet the transport therefore refuses whatever is not a public address, wherever it came
//! from (`transport`).
//!
//! On loopback, TCP carries a token stream with less CPU than QUIC (no packet encryption in user space),
//! so that a QUIC address of a loopback peer is dropped when a TCP one is known. Elsewhere the swarm's
//! own ranking applies: QUIC first, TCP a moment later.

use std::net::IpAddr;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use serde::Serialize;

use crate::core::{MAX_ADDRESSES, Prefix};

/// How far an address reaches, from the most local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// This machine (also the in-memory transport).
    Loopback,
    /// A LAN.
    Private,
    /// The internet; DNS names count as such until they are resolved.
    Public,
}

/// How far an address reaches; `None` if nothing can be dialled there.
pub(crate) fn reach(address: &Multiaddr) -> Option<Reach> {
    match address.iter().next()? {
        Protocol::Memory(_) => Some(Reach::Loopback),
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_) => {
            Some(Reach::Public)
        }
        Protocol::Ip4(ip) => reach_of(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => reach_of(IpAddr::V6(ip)),
        _ => None,
    }
}

fn reach_of(ip: IpAddr) -> Option<Reach> {
    if ip.is_unspecified() || ip.is_multicast() {
        return None;
    }
    let mapped_loopback =
        matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()));
    Some(match Prefix::of(ip) {
        _ if ip.is_loopback() || mapped_loopback => Reach::Loopback,
        Some(_) => Reach::Public,
        None => Reach::Private,
    })
}

/// The addresses worth keeping out of what a stranger named: dialable, not more local than `least`,
/// without repeats, at most [`MAX_ADDRESSES`], loopback QUIC dropped in favour of loopback TCP.
pub(crate) fn believable(addresses: impl IntoIterator<Item = Multiaddr>, least: Reach) -> Vec<Multiaddr> {
    let mut kept: Vec<Multiaddr> = Vec::new();
    for address in addresses.into_iter().take(4 * MAX_ADDRESSES) {
        let (address, _) = split_peer(address);
        if reach(&address).is_some_and(|reach| reach >= least) && !kept.contains(&address) {
            kept.push(address);
        }
    }
    prefer_tcp_on_loopback(&mut kept);
    kept.truncate(MAX_ADDRESSES);
    kept
}

fn prefer_tcp_on_loopback(addresses: &mut Vec<Multiaddr>) {
    let is_loopback = |a: &Multiaddr| reach(a) == Some(Reach::Loopback);
    let has = |a: &Multiaddr, wanted: fn(&Protocol<'_>) -> bool| a.iter().any(|p| wanted(&p));
    let tcp = |p: &Protocol<'_>| matches!(p, Protocol::Tcp(_));
    let quic = |p: &Protocol<'_>| matches!(p, Protocol::QuicV1);
    if addresses.iter().any(|a| is_loopback(a) && has(a, tcp)) {
        addresses.retain(|a| !(is_loopback(a) && has(a, quic)));
    }
}

/// Takes a trailing `/p2p/<peer>` off an address. A relayed address keeps the relay's.
pub(crate) fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (address, Some(peer))
        }
        _ => (address, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn reach_tells_this_machine_the_lan_and_the_internet_apart() {
        for (text, expected) in [
            ("/ip4/127.0.0.1/tcp/1", Some(Reach::Loopback)),
            ("/ip6/::1/udp/1/quic-v1", Some(Reach::Loopback)),
            ("/ip6/::ffff:127.0.0.1/tcp/1", Some(Reach::Loopback)),
            ("/memory/7", Some(Reach::Loopback)),
            ("/ip4/192.168.0.2/tcp/1", Some(Reach::Private)),
            ("/ip6/fd00::2/tcp/1", Some(Reach::Private)),
            ("/ip4/1.1.1.1/tcp/1", Some(Reach::Public)),
            ("/dns4/example.org/tcp/1", Some(Reach::Public)),
            ("/ip4/0.0.0.0/tcp/1", None),
            ("/tcp/1", None),
        ] {
            assert_eq!(reach(&parse(text)), expected, "{text}");
        }
    }

    #[test]
    fn strangers_cannot_point_at_more_local_addresses_than_allowed() {
        let named = ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/1.1.1.1/tcp/1"].map(parse);
        assert_eq!(believable(named.clone(), Reach::Public), vec![parse("/ip4/1.1.1.1/tcp/1")]);
        assert_eq!(believable(named.clone(), Reach::Private).len(), 2);
        assert_eq!(believable(named, Reach::Loopback).len(), 3);
    }

    #[test]
    fn loopback_prefers_tcp_and_everything_else_keeps_quic() {
        let tcp = parse("/ip4/127.0.0.1/tcp/1");
        let quic = parse("/ip4/127.0.0.1/udp/1/quic-v1");
        assert_eq!(believable([quic.clone(), tcp.clone()], Reach::Loopback), vec![tcp]);
        assert_eq!(believable([quic.clone()], Reach::Loopback), vec![quic]);
        let public = [parse("/ip4/1.1.1.1/udp/1/quic-v1"), parse("/ip4/1.1.1.1/tcp/1")];
        assert_eq!(believable(public.clone(), Reach::Public), public.to_vec());
    }

    #[test]
    fn a_flood_of_addresses_is_cut() {
        let many = (1..200u16).map(|port| parse(&format!("/ip4/1.1.1.1/tcp/{port}")));
        assert_eq!(believable(many, Reach::Public).len(), MAX_ADDRESSES);
    }
}
