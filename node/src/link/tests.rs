//! The frames survive their encoding, nothing else decodes, and the wire does not change by accident.

use bytes::Bytes;
use proptest::prelude::*;

use super::frame::Frame;
use super::*;

fn array32() -> impl Strategy<Value = [u8; 32]> {
    any::<[u8; 32]>()
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn to_enclave() -> impl Strategy<Value = ToEnclave> {
    prop_oneof![
        (array32(), prop::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(network_id, peer_id)| ToEnclave::Hello(HostHello { network_id, peer_id })),
        (any::<u32>(), array32(), any::<u64>(), any::<u64>()).prop_map(
            |(seqno, hash, not_before, not_after)| {
                ToEnclave::Attest(Attest { beacon: Beacon { seqno, hash }, not_before, not_after })
            }
        ),
        (any::<u64>(), bytes(), any::<u16>(), array32(), any::<u8>(), any::<[u64; 3]>(), any::<bool>())
            .prop_map(
                |(session, noise, wire_version, evidence_digest, policy, [input, output, quantum], paid)| {
                    ToEnclave::Open(Open {
                        session,
                        noise: noise.to_vec(),
                        wire_version,
                        evidence_digest,
                        policy,
                        prices: Prices { input, output, quantum },
                        channel: paid.then_some([7; 33]),
                    })
                }
            ),
        (any::<u64>(), bytes()).prop_map(|(session, record)| ToEnclave::Data { session, record }),
        (any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(session, stream, amount)| ToEnclave::Credit {
            session,
            stream,
            amount
        }),
        any::<u64>().prop_map(|session| ToEnclave::Pause { session }),
        any::<u64>().prop_map(|session| ToEnclave::Resume { session }),
        any::<u64>().prop_map(|session| ToEnclave::Close { session }),
        Just(ToEnclave::Shutdown),
    ]
}

fn to_host() -> impl Strategy<Value = ToHost> {
    prop_oneof![
        (".{0,20}", array32(), any::<u32>(), any::<u16>()).prop_map(
            |(model, model_digest, context, slots)| {
                ToHost::Hello(EnclaveHello {
                    model,
                    model_digest,
                    context,
                    quantisation: "f16".to_owned(),
                    engine: "burn".to_owned(),
                    tee: "software-tee".to_owned(),
                    config_digest: [9; 32],
                    slots,
                })
            }
        ),
        bytes().prop_map(ToHost::Evidence),
        ".{0,40}".prop_map(ToHost::AttestFailed),
        (any::<u64>(), bytes()).prop_map(|(session, noise)| ToHost::Opened { session, noise }),
        (any::<u64>(), 0..3u8).prop_map(|(session, why)| ToHost::Refused {
            session,
            why: [RefusedWhy::Busy, RefusedWhy::StaleEvidence, RefusedWhy::Handshake][usize::from(why)],
        }),
        (any::<u64>(), bytes()).prop_map(|(session, record)| ToHost::Data { session, record }),
        (any::<u64>(), ".{0,40}").prop_map(|(session, reason)| ToHost::Closed { session, reason }),
        any::<[u16; 3]>().prop_map(|[active, queued, free_slots]| {
            ToHost::Load(Load { active, queued, free_slots, queue_ms: 5, tokens_per_second: 70 })
        }),
    ]
}

fn body<F: Frame>(frame: &F) -> Bytes {
    let mut body = Vec::new();
    frame.encode(&mut body).unwrap();
    Bytes::from(body)
}

proptest! {
    #[test]
    fn frames_to_the_enclave_survive(frame in to_enclave()) {
        prop_assert_eq!(ToEnclave::decode(body(&frame)), Ok(frame));
    }

    #[test]
    fn frames_to_the_host_survive(frame in to_host()) {
        prop_assert_eq!(ToHost::decode(body(&frame)), Ok(frame));
    }

    #[test]
    fn whatever_comes_is_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        crate::fuzz::link_frame(&bytes);
    }

    /// However the kernel cuts the stream up, the same frames come out.
    #[test]
    fn frames_cross_a_socket_in_any_pieces(frames in prop::collection::vec(to_host(), 1..20), piece in 1..64usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let arrived: Vec<ToHost> = runtime.block_on(async {
            let (near, far) = tokio::io::duplex(piece);
            let mut writer = LinkWriter::new(near, None);
            for frame in &frames {
                writer.queue(frame).unwrap();
            }
            let write = async move {
                writer.flush().await.unwrap();
            };
            let read = async move {
                let mut reader = LinkReader::new(far, None);
                let mut arrived = Vec::new();
                while let Some(frame) = reader.next().await.unwrap() {
                    arrived.push(frame);
                }
                arrived
            };
            tokio::join!(write, read).1
        });
        prop_assert_eq!(arrived, frames);
    }
}

#[test]
fn each_defect_has_its_error() {
    assert_eq!(ToEnclave::decode(Bytes::new()), Err(LinkError::Length { found: 0 }));
    assert_eq!(ToEnclave::decode(Bytes::from_static(&[0x7f])), Err(LinkError::Type(0x7f)));
    // Frames of the other direction are not understood.
    assert_eq!(ToEnclave::decode(Bytes::from_static(&[0x16, 0])), Err(LinkError::Type(0x16)));
    assert_eq!(ToHost::decode(Bytes::from_static(&[0x05, 0])), Err(LinkError::Type(0x05)));
    assert_eq!(ToEnclave::decode(Bytes::from_static(&[0x05, 1, 2])), Err(LinkError::Payload("Credit")));
    let mut hello = body(&ToEnclave::Hello(HostHello { network_id: [0; 32], peer_id: vec![] })).to_vec();
    hello[2] = 9;
    assert_eq!(ToEnclave::decode(Bytes::from(hello)), Err(LinkError::Version { found: 9 }));
    let mut close = body(&ToEnclave::Close { session: 1 }).to_vec();
    close.push(0);
    assert_eq!(ToEnclave::decode(Bytes::from(close)), Err(LinkError::Payload("Close")));
}

#[tokio::test]
async fn a_length_out_of_range_and_a_cut_frame_are_told_apart() {
    let mut reader = LinkReader::new(&[0, 0, 0, 0, 1][..], None);
    assert_eq!(reader.next::<ToHost>().await, Err(LinkError::Length { found: 0 }));
    let mut reader = LinkReader::new(&[0xff, 0, 0, 0, 1][..], None);
    assert_eq!(reader.next::<ToHost>().await, Err(LinkError::Length { found: 0xff00_0000 }));
    let mut reader = LinkReader::new(&[0, 0, 0, 9, 1, 2][..], None);
    assert_eq!(reader.next::<ToHost>().await, Err(LinkError::Truncated { missing: 7 }));
    let mut reader = LinkReader::new(&[][..], None);
    assert_eq!(reader.next::<ToHost>().await, Ok(None));
}

#[test]
fn a_frame_beyond_the_limit_is_not_queued() {
    let mut writer = LinkWriter::new(tokio::io::sink(), None);
    let record = Bytes::from(vec![0; MAX_FRAME]);
    assert!(matches!(writer.queue(&ToHost::Data { session: 1, record }), Err(LinkError::Length { .. })));
    assert!(!writer.is_pending());
}

/// Changing any of these is a new protocol version.
#[test]
fn the_wire_is_the_one_written_down() {
    let golden = include_str!("../../tests/golden/link.txt");
    let to_enclave = [
        ToEnclave::Hello(HostHello { network_id: [1; 32], peer_id: vec![2; 3] }),
        ToEnclave::Attest(Attest {
            beacon: Beacon { seqno: 300, hash: [4; 32] },
            not_before: 1_790_000_000,
            not_after: 1_790_003_600,
        }),
        ToEnclave::Open(Open {
            session: 5,
            noise: vec![6; 4],
            wire_version: 1,
            evidence_digest: [7; 32],
            policy: 1,
            prices: Prices { input: 20_000_000, output: 100_000_000, quantum: 6400 },
            channel: Some([8; 33]),
        }),
        ToEnclave::Data { session: 5, record: Bytes::from_static(b"record") },
        ToEnclave::Credit { session: 5, stream: 1, amount: 3200 },
        ToEnclave::Pause { session: 5 },
        ToEnclave::Resume { session: 5 },
        ToEnclave::Close { session: 5 },
        ToEnclave::Shutdown,
    ];
    let to_host = [
        ToHost::Hello(EnclaveHello {
            model: "cocoon-tiny".to_owned(),
            model_digest: [1; 32],
            context: 256,
            quantisation: "f32".to_owned(),
            engine: "burn".to_owned(),
            tee: "software-tee".to_owned(),
            config_digest: [2; 32],
            slots: 4,
        }),
        ToHost::Evidence(Bytes::from_static(b"evidence")),
        ToHost::AttestFailed("why".to_owned()),
        ToHost::Opened { session: 5, noise: Bytes::from_static(b"noise") },
        ToHost::Refused { session: 5, why: RefusedWhy::StaleEvidence },
        ToHost::Data { session: 5, record: Bytes::from_static(b"record") },
        ToHost::Closed { session: 5, reason: "why".to_owned() },
        ToHost::Load(Load { active: 1, queued: 2, free_slots: 3, queue_ms: 400, tokens_per_second: 70 }),
    ];
    let line = |name: &str, way: &str, body: Bytes| format!("{way} {name} {}\n", hex::encode(body));
    let mut found = String::new();
    for frame in &to_enclave {
        found += &line(frame.name(), ">", body(frame));
    }
    for frame in &to_host {
        found += &line(frame.name(), "<", body(frame));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/link.txt"), &found).unwrap();
        return;
    }
    assert_eq!(found, golden, "run with UPDATE_GOLDEN=1 and raise `link::VERSION` if this is meant");
}
