//! Builders shared by the tests: one network, one platform, one worker.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
    sync::OnceLock,
};

use cocoon_attest::{
    Assurance, Beacon, Claims, Evidence, Expect, Live, Measurement, Policy, Quoter, Role, TrustRoot,
    software_tee::Platform,
};

pub(crate) const NOW: u64 = 1_795_000_000;
pub(crate) const IMAGE: Measurement = Measurement([0x11; 48]);
pub(crate) const PEER: [u8; 38] = [0x22; 38];
pub(crate) const CONFIG: [u8; 32] = [0x33; 32];
pub(crate) const MODEL: [u8; 32] = [0x44; 32];
pub(crate) const NETWORK: [u8; 32] = [0x55; 32];

/// One sound platform for all tests that need no other.
pub(crate) fn platform() -> &'static Platform {
    static PLATFORM: OnceLock<Platform> = OnceLock::new();
    PLATFORM.get_or_init(|| Platform::generate(NOW).unwrap())
}

pub(crate) fn claims() -> Claims {
    Claims {
        network_id: NETWORK,
        role: Role::Worker,
        noise_key: [0x66; 32],
        receipt_key: [0x77; 32],
        peer_id: PEER.to_vec(),
        image: IMAGE,
        config_digest: CONFIG,
        model_digest: MODEL,
        gpu_evidence: None,
        not_before: NOW - 60,
        not_after: NOW + 3600,
        beacon: Beacon { seqno: 1234, hash: [0x88; 32] },
    }
}

/// Evidence that the software TEE of `image` makes for `claims`.
pub(crate) fn evidence(platform: &Platform, image: Measurement, claims: &Claims) -> Evidence {
    let tee = platform.quoter(image);
    Evidence {
        claims: claims.encode(),
        quote: tee.quote(&claims.report_data()).unwrap(),
        collateral: tee.collateral().unwrap(),
    }
}

pub(crate) fn policy(root: TrustRoot) -> Policy {
    Policy {
        network_id: NETWORK,
        roots: vec![root],
        minimum: Assurance::Test,
        measurements: BTreeSet::from([IMAGE]),
        config_digests: BTreeSet::from([CONFIG]),
        model_digests: BTreeSet::from([MODEL]),
        min_tcb_evaluation: 0,
        clock_skew_s: 30,
        live: Live::Off,
    }
}

pub(crate) fn expect() -> Expect<'static> {
    Expect { peer_id: &PEER, model_digest: Some(MODEL), evidence_digest: None }
}

/// The folder of the dcap-qvl package, which ships genuine quotes and their collateral.
pub(crate) fn dcap_qvl() -> PathBuf {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    let package = PACKAGE.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--offline", "--locked", "--format-version", "1", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let packages = metadata["packages"].as_array().unwrap();
        let package = packages.iter().find(|package| package["name"] == "dcap-qvl").unwrap();
        PathBuf::from(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_path_buf()
    });
    package.clone()
}

/// Counts refusals per check, for tests that look at many inputs.
#[derive(Debug, Default)]
pub(crate) struct Tally(pub(crate) BTreeMap<&'static str, usize>);

impl Tally {
    pub(crate) fn add(&mut self, check: &'static str) {
        *self.0.entry(check).or_default() += 1;
    }
}
