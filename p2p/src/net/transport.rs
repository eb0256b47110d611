//! The transports of a real peer, and the relay wrapped around whatever transport a swarm has.
//!
//! QUIC and TCP (Noise, Yamux) under DNS. Defaults that would break token streams are raised: QUIC
//! closes a connection after 10 s of silence by itself, and a question may well sit in a queue longer.
//!
//! A peer of the internet dials public addresses only. That is decided below DNS, where every address is
//! what will really be dialled, and at the one place that all dials pass: those of ads and sessions, of
//! the DHT's own lookups, of hole punching.

use std::{io, net::UdpSocket, time::Duration};

use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, global_only},
        upgrade::Version,
    },
    dns,
    identity::Keypair,
    multiaddr::Protocol,
    noise, quic, relay, tcp, yamux,
};

use super::{NetError, Reach};

/// A transport that has authenticated its peer and multiplexes streams.
pub type Substrate = Boxed<(PeerId, StreamMuxerBox)>;

const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection that closes is remembered for three probe timeouts (RFC 9000, section 10.2).
const DRAINING: Duration = Duration::from_secs(5);

/// Waits until the QUIC ports of a dropped swarm can be bound again. Its sockets outlive it while
/// closing connections drain, and a successor in the same process would find its port taken.
pub(crate) async fn released(listening: &[Multiaddr]) {
    let sockets: Vec<_> = listening.iter().filter_map(udp_socket).collect();
    let taken = |at: &(std::net::IpAddr, u16)| {
        UdpSocket::bind(at).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    let all_free = async {
        while sockets.iter().any(taken) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(DRAINING, all_free).await.is_err() {
        tracing::warn!(?listening, "a port is still in use after the overlay was shut down");
    }
}

fn udp_socket(address: &Multiaddr) -> Option<(std::net::IpAddr, u16)> {
    // The socket of a circuit is the relay's.
    if address.iter().any(|part| part == Protocol::P2pCircuit) {
        return None;
    }
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Udp(port) => Some((ip, port)),
        _ => None,
    }
}

fn noise_config(keypair: &Keypair) -> Result<noise::Config, NetError> {
    noise::Config::new(keypair).map_err(|error| NetError::Transport { what: "Noise", why: error.to_string() })
}

/// QUIC and TCP under DNS, for a peer whose network is `reach`.
pub(crate) fn sockets(keypair: &Keypair, reach: Reach) -> Result<Substrate, NetError> {
    Ok(match dns::tokio::Transport::system(guarded(keypair, reach)?) {
        Ok(transport) => transport.boxed(),
        Err(error) => {
            // Addresses still work; names fail when they are dialled.
            tracing::warn!(%error, "no usable resolver configuration, so that DNS names cannot be dialled");
            guarded(keypair, reach)?
        }
    })
}

fn guarded(keypair: &Keypair, reach: Reach) -> Result<Substrate, NetError> {
    let base = quic_and_tcp(keypair)?;
    Ok(match reach {
        Reach::Public => global_only::Transport::new(base).boxed(),
        // Whoever is on the same LAN or machine may name it.
        Reach::Private | Reach::Loopback => base,
    })
}

fn quic_and_tcp(keypair: &Keypair) -> Result<Substrate, NetError> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise_config(keypair)?)
        .multiplex(yamux::Config::default())
        .timeout(HANDSHAKE)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let mut config = quic::Config::new(keypair);
    config.max_idle_timeout = 60_000;
    config.keep_alive_interval = Duration::from_secs(15);
    config.handshake_timeout = HANDSHAKE;
    config.max_concurrent_stream_limit = 1_024;
    let quic = quic::tokio::Transport::new(config)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    Ok(quic.or_transport(tcp).map(|either, _| either.into_inner()).boxed())
}

/// `base`, and circuits through relays on top of it.
pub(crate) fn with_relay(
    base: Substrate,
    keypair: &Keypair,
    relay: relay::client::Transport,
) -> Result<Substrate, NetError> {
    let circuits = relay
        .upgrade(Version::V1Lazy)
        .authenticate(noise_config(keypair)?)
        .multiplex(yamux::Config::default())
        .timeout(HANDSHAKE)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(circuits.or_transport(base).map(|either, _| either.into_inner()).boxed())
}

#[cfg(test)]
mod tests {
    use libp2p::core::{
        Endpoint,
        transport::{DialOpts, ListenerId, PortUse},
    };

    use super::*;

    const LOCAL: [&str; 5] = [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/10.0.0.1/udp/1/quic-v1",
        "/ip4/192.168.0.1/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip6/::ffff:127.0.0.1/tcp/1",
    ];

    const OPTIONS: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };

    fn dials(transport: &mut Substrate, address: &str) -> bool {
        transport.dial(address.parse().unwrap(), OPTIONS).is_ok()
    }

    #[tokio::test]
    async fn a_peer_of_the_internet_dials_public_addresses_only() {
        let mut transport = guarded(&Keypair::generate_ed25519(), Reach::Public).unwrap();
        for address in LOCAL {
            assert!(!dials(&mut transport, address), "{address}");
        }
        assert!(dials(&mut transport, "/ip4/1.1.1.1/tcp/1"));
        for reach in [Reach::Private, Reach::Loopback] {
            let mut transport = guarded(&Keypair::generate_ed25519(), reach).unwrap();
            // Not every machine has IPv6.
            for address in LOCAL.into_iter().filter(|address| address.starts_with("/ip4")) {
                assert!(dials(&mut transport, address), "{address}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_stands_for_this_machine_is_not_dialled_from_the_internet() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let name = format!("/dns4/localhost/tcp/{}", listener.local_addr().unwrap().port());
        let mut transport = sockets(&Keypair::generate_ed25519(), Reach::Public).unwrap();
        // Without a resolver names are not supported at all, which is as good.
        if let Ok(dial) = transport.dial(name.parse().unwrap(), OPTIONS) {
            assert!(dial.await.is_err());
        }
        let connected = listener.accept().map_err(|error| error.kind());
        assert_eq!(connected.unwrap_err(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn a_peer_of_the_internet_may_listen_on_a_local_address() {
        let mut transport = sockets(&Keypair::generate_ed25519(), Reach::Public).unwrap();
        for address in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
            transport.listen_on(ListenerId::next(), address.parse().unwrap()).unwrap();
        }
    }
}
