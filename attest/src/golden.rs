//! Formats that must not change unnoticed, pinned by files in `tests/golden`.
//!
//! Run with `BLESS=1` to write the files after a deliberate change, and bump the version concerned.

use std::{fs, path::Path};

use crate::{
    Claims, Evidence, Measurement,
    claims::tests::sample,
    live::{Batcher, LiveProof, MAX_LEAVES},
    noise::{BUCKETS, Prologue, pad},
};

fn check(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert_eq!(found, expected, "{name}: the format changed");
}

fn hex_lines(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| hex::encode(line) + "\n").collect()
}

fn full() -> Claims {
    Claims { gpu_evidence: Some([0xab; 32]), ..sample() }
}

#[test]
fn claims_and_their_report_data() {
    check("claims.hex", &hex_lines(&sample().encode()));
    check("claims_with_gpu.hex", &hex_lines(&full().encode()));
    check(
        "report_data.hex",
        &(hex_lines(&sample().report_data()) + "\n" + &hex_lines(&full().report_data())),
    );
}

#[test]
fn evidence() {
    let evidence =
        Evidence { claims: sample().encode(), quote: vec![0xcc; 300], collateral: b"{\"a\":1}".to_vec() };
    check("evidence.hex", &hex_lines(&evidence.encode()));
    check("evidence_digest.hex", &hex_lines(&evidence.digest()));
}

#[test]
fn noise_prologue_and_padding() {
    let prologue =
        Prologue { wire_version: 0x0102, network_id: [3; 32], evidence_digest: [4; 32], policy: 2 };
    check("prologue.hex", &hex_lines(&prologue.encode()));

    let mut text = format!("buckets {BUCKETS:?}\n");
    for len in [0usize, 1, 126, 127, 254, 255] {
        let mut padded = Vec::new();
        pad(&vec![0xee; len], &mut padded).unwrap();
        text += &format!("\nmessage of {len}\n{}", hex_lines(&padded));
    }
    check("padding.txt", &text);
}

#[test]
fn live_tree() {
    let mut text = String::new();
    for count in [1u64, 2, 3, 5, MAX_LEAVES as u64] {
        let mut batcher = Batcher::new(crate::Role::Worker, [7; 32]);
        for session in 0..count {
            batcher.push(session, &[session as u8; 32], &[(session >> 8) as u8; 32]).unwrap();
        }
        text += &format!("{count} leaves: {}\n", hex::encode(batcher.start().unwrap()));
        if count == 5 {
            for (session, proof) in batcher.finish(&[]) {
                let path: Vec<_> = proof.path.iter().map(hex::encode).collect();
                text += &format!("  path of {session}: {}\n", path.join(" "));
            }
        }
    }
    check("live_tree.txt", &text);
    let proof = LiveProof { quote: vec![0xcc; 40], index: 2, leaves: 300, path: vec![[9; 32]; 2] };
    check("live_proof.hex", &hex_lines(&proof.encode()));
}

#[test]
fn measurement_text() {
    assert_eq!(Measurement([0x0f; 48]).to_string(), "0f".repeat(48));
}
