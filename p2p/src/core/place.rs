//! Network prefixes: the coarse place of a public address.
//!
//! One operator can rent many addresses in one block cheaply, so that "at most one per prefix" (IPv4
//! /24, IPv6 /48) is a cheap brake on Sybils. Loopback, private and link-local addresses say nothing
//! about who owns a machine and have no prefix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// A public IPv4 /24 or IPv6 /48.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// The first three octets.
    V4([u8; 3]),
    /// The first six octets.
    V6([u8; 6]),
}

impl Prefix {
    /// The prefix of a public address; `None` for every other.
    pub fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(v4) if is_public_v4(v4) => {
                let [a, b, c, _] = v4.octets();
                Some(Self::V4([a, b, c]))
            }
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => Self::of(IpAddr::V4(v4)),
                None if is_public_v6(v6) => {
                    let o = v6.octets();
                    Some(Self::V6([o[0], o[1], o[2], o[3], o[4], o[5]]))
                }
                None => None,
            },
            IpAddr::V4(_) => None,
        }
    }

    /// The prefix of a multiaddr's first IP component. For a relayed address that is the relay's.
    pub(crate) fn of_address(address: &Multiaddr) -> Option<Self> {
        Self::of(first_ip(address)?)
    }
}

/// The first IP address in a multiaddr.
pub(crate) fn first_ip(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    })
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    !(ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_broadcast()
        || ip.is_multicast()
        || ip.is_documentation()
        || shared)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let first = ip.segments()[0];
    let unique_local = first & 0xfe00 == 0xfc00;
    let link_local = first & 0xffc0 == 0xfe80;
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || unique_local || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_have_a_prefix() {
        for none in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.7.7",
            "100.64.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(Prefix::of(none.parse().unwrap()), None, "{none}");
        }
        assert_eq!(Prefix::of("8.8.4.4".parse().unwrap()), Some(Prefix::V4([8, 8, 4])));
        assert_eq!(Prefix::of("::ffff:8.8.4.4".parse().unwrap()), Some(Prefix::V4([8, 8, 4])));
        assert_eq!(
            Prefix::of("2a01:4f8:1:2::1".parse().unwrap()),
            Some(Prefix::V6([0x2a, 0x01, 0x04, 0xf8, 0, 1]))
        );
    }
}
