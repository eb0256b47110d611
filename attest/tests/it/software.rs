//! The software TEE through the same verification as hardware, policy check by policy check.

use std::{collections::BTreeSet, io::Write as _};

use cocoon_attest::{
    Assurance, Claims, Evidence, Expect, Measurement, Policy, Quoter, TrustRoot, VerifyError,
    software_tee::{Defects, Platform, PlatformError, measure_executable},
    verify, verify_quote,
};
use dcap_qvl::{QuoteCollateralV3, TcbStatus};

use crate::testkit::{IMAGE, MODEL, NOW, PEER, claims, evidence, expect, platform, policy};

fn sound() -> Vec<u8> {
    evidence(platform(), IMAGE, &claims()).encode()
}

fn soft_policy() -> Policy {
    policy(platform().trust_root())
}

#[test]
fn sound_evidence_verifies_as_test_and_never_as_more() {
    let bytes = sound();
    let verified = verify(&bytes, &expect(), &soft_policy(), NOW).unwrap();
    assert_eq!(verified.assurance, Assurance::Test);
    assert_eq!(verified.root, "software-tee");
    assert_eq!(verified.measurement, IMAGE);
    assert_eq!(verified.claims, claims());
    assert_eq!(verified.tcb_status, "UpToDate");
    assert_eq!(verified.expires_at, claims().not_after);
    assert_eq!(verified.evidence_digest, Evidence::decode(&bytes).unwrap().digest());
    assert!(verified.platform.is_some());
    assert!(bytes.len() < 16 * 1024, "{} bytes", bytes.len());

    let confidential = Policy { minimum: Assurance::Confidential, ..soft_policy() };
    let error = verify(&bytes, &expect(), &confidential, NOW).unwrap_err();
    assert_eq!(error, VerifyError::Assurance { found: Assurance::Test, minimum: Assurance::Confidential });
}

#[test]
fn collateral_holds_for_years_and_not_for_ever() {
    let quote = platform().quoter(IMAGE).quote(&[0; 64]).unwrap();
    let collateral = platform().quoter(IMAGE).collateral().unwrap();
    let check = |now| verify_quote(&quote, &collateral, &soft_policy(), now).map_err(|error| error.check());
    let years = |n: u64| n * 365 * 86_400;
    check(NOW - 3600).unwrap();
    check(NOW + years(4)).unwrap();
    assert_eq!(check(NOW + years(6)).unwrap_err(), "collateral");
    assert_eq!(check(NOW - years(1)).unwrap_err(), "collateral");
}

/// Each row breaks one thing; the refusal must name exactly it.
#[test]
fn every_policy_check_refuses_alone() {
    type Break = fn(&mut Claims, &mut Policy, &mut Expect<'static>);
    let rows: &[(&str, Break)] = &[
        ("validity", |claims, _, _| claims.not_after = claims.not_before + 24 * 3600 + 1),
        ("validity", |claims, _, _| claims.not_after = claims.not_before - 1),
        ("validity", |claims, _, _| claims.not_before = NOW + 31),
        ("validity", |claims, _, _| claims.not_after = NOW - 31),
        ("claims", |claims, _, _| claims.peer_id.clear()),
        ("claims", |claims, _, _| claims.peer_id = vec![0; 65]),
        ("trust-root", |_, policy, _| policy.roots.clear()),
        ("trust-root", |_, policy, _| policy.roots = vec![TrustRoot::intel()]),
        ("tcb-evaluation", |_, policy, _| policy.min_tcb_evaluation = 21),
        ("measurement", |claims, _, _| claims.image = Measurement([9; 48])),
        ("measurement", |_, policy, _| policy.measurements = BTreeSet::from([Measurement([9; 48])])),
        ("enclave-config", |claims, _, _| claims.config_digest = [9; 32]),
        ("enclave-config", |_, policy, _| policy.config_digests.clear()),
        ("model-digest", |claims, _, _| claims.model_digest = [9; 32]),
        ("model-digest", |_, policy, _| policy.model_digests.clear()),
        ("model-digest", |_, _, expect| expect.model_digest = Some([9; 32])),
        ("network-id", |claims, _, _| claims.network_id = [9; 32]),
        ("network-id", |_, policy, _| policy.network_id = [9; 32]),
        ("peer-id", |claims, _, _| claims.peer_id = vec![9; 38]),
        ("peer-id", |_, _, expect| expect.peer_id = &[9]),
        ("assurance", |_, policy, _| policy.minimum = Assurance::Confidential),
        ("evidence-digest", |_, _, expect| expect.evidence_digest = Some([9; 32])),
    ];
    for (row, (check, broken)) in rows.iter().enumerate() {
        let (mut claims, mut policy, mut expect) = (claims(), soft_policy(), expect());
        broken(&mut claims, &mut policy, &mut expect);
        let evidence = evidence(platform(), IMAGE, &claims).encode();
        let error = verify(&evidence, &expect, &policy, NOW).expect_err(check);
        assert_eq!(error.check(), *check, "row {row}: {error}");
    }
}

#[test]
fn what_is_not_asked_is_not_expected() {
    let bytes = sound();
    let expect = Expect { peer_id: &PEER, model_digest: None, evidence_digest: None };
    let verified = verify(&bytes, &expect, &soft_policy(), NOW).unwrap();
    let expect =
        Expect { peer_id: &PEER, model_digest: Some(MODEL), evidence_digest: Some(verified.evidence_digest) };
    verify(&bytes, &expect, &soft_policy(), NOW).unwrap();
}

#[test]
fn parts_of_two_sound_evidences_do_not_mix() {
    let one = evidence(platform(), IMAGE, &claims());
    let two = evidence(platform(), IMAGE, &Claims { noise_key: [9; 32], ..claims() });
    let mixed = Evidence { claims: two.claims, ..one };
    let error = verify(&mixed.encode(), &expect(), &soft_policy(), NOW).unwrap_err();
    assert_eq!(error, VerifyError::ReportData);
}

#[test]
fn an_unsound_platform_is_refused_by_the_check_that_concerns_it() {
    let rows = [
        ("debug", Defects { debug: true, ..Defects::default() }),
        ("tcb-status", Defects { tcb_status: TcbStatus::OutOfDate, ..Defects::default() }),
        ("tcb-status", Defects { tcb_status: TcbStatus::SWHardeningNeeded, ..Defects::default() }),
        ("tcb-status", Defects { tcb_status: TcbStatus::Revoked, ..Defects::default() }),
        ("tcb-evaluation", Defects { tcb_evaluation: 3, ..Defects::default() }),
        ("certificates", Defects { revoked: true, ..Defects::default() }),
        ("quoting-enclave", Defects { foreign_quoting_enclave: true, ..Defects::default() }),
        ("collateral", Defects { foreign_collateral: true, ..Defects::default() }),
    ];
    for (check, defects) in rows {
        let platform = Platform::generate_with(NOW, &defects).unwrap();
        let policy = Policy { min_tcb_evaluation: 4, ..policy(platform.trust_root()) };
        let evidence = evidence(&platform, IMAGE, &claims()).encode();
        let error = verify(&evidence, &expect(), &policy, NOW).expect_err(check);
        assert_eq!(error.check(), check, "{defects:?}: {error}");
    }
}

#[test]
fn a_platform_of_another_network_is_refused() {
    let stranger = Platform::generate(NOW).unwrap();
    let evidence = evidence(&stranger, IMAGE, &claims());
    let error = verify(&evidence.encode(), &expect(), &soft_policy(), NOW).unwrap_err();
    assert_eq!(error.check(), "trust-root");

    // Its quote beside the right platform's collateral does not help.
    let mixed = Evidence { collateral: platform().quoter(IMAGE).collateral().unwrap(), ..evidence };
    let both = Policy { roots: vec![platform().trust_root(), stranger.trust_root()], ..soft_policy() };
    let error = verify(&mixed.encode(), &expect(), &both, NOW).unwrap_err();
    assert_eq!(error.check(), "collateral");
}

/// Software certificates with Intel's root pasted behind them: looking genuine is not enough.
#[test]
fn claiming_intels_root_does_not_make_it_so() {
    let sound = evidence(platform(), IMAGE, &claims());
    let (own, intel) = (pem(platform().root_der()), pem(&TrustRoot::intel().certificate));

    let mut collateral: QuoteCollateralV3 = serde_json::from_slice(&sound.collateral).unwrap();
    for chain in [
        &mut collateral.pck_crl_issuer_chain,
        &mut collateral.tcb_info_issuer_chain,
        &mut collateral.qe_identity_issuer_chain,
    ] {
        *chain = chain.replace(&own, &intel);
    }
    let collateral = serde_json::to_vec(&collateral).unwrap();
    let quote = replace_in_chain(&sound.quote, own.as_bytes(), intel.as_bytes());

    let evidence = Evidence { quote, collateral, ..sound };
    let error = verify(&evidence.encode(), &expect(), &policy(TrustRoot::intel()), NOW).unwrap_err();
    assert_eq!(error.check(), "collateral", "{error}");
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let digits = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = digits.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Replaces text at the end of a version 4 quote's PCK chain and corrects the three lengths.
fn replace_in_chain(quote: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    const LENGTHS: [usize; 3] = [632, 632 + 4 + 128 + 2, 632 + 4 + 128 + 6 + 384 + 64 + 2 + 32 + 2];
    let mut out = quote.strip_suffix(from).unwrap().to_vec();
    out.extend_from_slice(to);
    for at in LENGTHS {
        let field: &mut [u8; 4] = out[at..].first_chunk_mut().unwrap();
        *field = (u32::from_le_bytes(*field) + to.len() as u32 - from.len() as u32).to_le_bytes();
    }
    out
}

#[test]
fn one_byte_of_the_executable_decides() {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    image.write_all(&vec![0x7f; 3_000_000]).unwrap();
    let registered = measure_executable(image.path()).unwrap();
    let policy = Policy { measurements: BTreeSet::from([registered]), ..soft_policy() };
    let claims = |image| Claims { image, ..claims() };
    let good = evidence(platform(), registered, &claims(registered)).encode();
    verify(&good, &expect(), &policy, NOW).unwrap();

    image.write_all(b"!").unwrap();
    let altered = measure_executable(image.path()).unwrap();
    assert_ne!(altered, registered);
    let honest = evidence(platform(), altered, &claims(altered)).encode();
    assert_eq!(verify(&honest, &expect(), &policy, NOW).unwrap_err().check(), "measurement");
    let lying = evidence(platform(), altered, &claims(registered)).encode();
    assert_eq!(verify(&lying, &expect(), &policy, NOW).unwrap_err().check(), "measurement");
}

#[test]
fn a_platform_survives_as_json() {
    let json = platform().to_json();
    let copy = Platform::from_json(&json).unwrap();
    assert_eq!(copy, *platform());
    let evidence = evidence(&copy, IMAGE, &claims()).encode();
    verify(&evidence, &expect(), &soft_policy(), NOW).unwrap();
}

#[test]
fn a_broken_platform_file_is_refused_without_quoting_the_key() {
    let json = platform().to_json();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let key = value["attestation_key"].as_str().unwrap();
    let broken = [
        String::new(),
        "{}".into(),
        json.replace("\"version\":1", "\"version\":2"),
        json.replace(&key[20..], "zz"),
        json.replace(key, &key[..key.len() - 2]),
        json.replace("pck_crl_issuer_chain", "x"),
        json[..json.len() - 1].into(),
        " ".repeat(200_000),
    ];
    for (row, text) in broken.iter().enumerate() {
        let error = Platform::from_json(text).unwrap_err();
        assert!(matches!(error, PlatformError::Json { .. }), "row {row}: {error}");
        assert!(
            !error.to_string().contains(&key[20..40]) && error.to_string().len() < 300,
            "row {row}: {error}"
        );
    }
    let shown = format!("{:?} {:?}", platform(), platform().quoter(IMAGE));
    assert!(!shown.contains(&key[20..40]), "{shown}");
}

#[test]
fn a_platform_needs_a_possible_time() {
    for now in [0, u64::MAX, 300_000_000_000] {
        assert!(matches!(Platform::generate(now), Err(PlatformError::Time { .. })), "{now}");
    }
}
