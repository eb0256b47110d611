//! Quotes that real Intel hardware signed, from the dcap-qvl package, at a time when their
//! collateral held.

use cocoon_attest::{
    Assurance, Evidence, TrustRoot, VerifiedQuote, VerifyError, canonical_collateral, verify, verify_quote,
};
use ring::digest::{SHA256, digest};

use crate::testkit::{claims, dcap_qvl, expect, platform, policy};

struct Vector {
    quote: Vec<u8>,
    collateral: Vec<u8>,
    now: u64,
}

fn vector(quote: &str, collateral: &str, sha256: &str, now: u64) -> Vector {
    let sample = dcap_qvl().join("sample");
    let quote = std::fs::read(sample.join(quote)).unwrap();
    assert!(hex::encode(digest(&SHA256, &quote)).starts_with(sha256), "the package's sample changed");
    let collateral = canonical_collateral(&std::fs::read(sample.join(collateral)).unwrap()).unwrap();
    Vector { quote, collateral, now }
}

/// Version 4, TDX 1.0.
fn v4() -> Vector {
    vector("tdx_quote", "tdx_quote_collateral.json", "c42f9164", 1_750_586_400)
}

/// Version 5, TDX 1.5 with extended report.
fn v5() -> Vector {
    vector("tdx_quote_td15ex", "tdx_quote_td15ex_collateral.json", "fd88575b", 1_791_600_000)
}

fn under_intel(vector: &Vector) -> Result<VerifiedQuote, VerifyError> {
    verify_quote(&vector.quote, &vector.collateral, &policy(TrustRoot::intel()), vector.now)
}

#[test]
fn genuine_quotes_verify_under_intels_root() {
    for vector in [v4(), v5()] {
        let quote = under_intel(&vector).unwrap();
        assert_eq!(quote.tcb_status, "UpToDate");
        assert_eq!(quote.assurance, Assurance::Confidential);
        assert_eq!(quote.root, "intel");
        assert!(quote.expires_at > vector.now);
        assert!(quote.advisories.is_empty());
        assert!(quote.platform.is_some());
    }
}

#[test]
fn the_compiled_in_root_is_the_packages() {
    let root = std::fs::read(dcap_qvl().join("src/TrustedRootCA.der")).unwrap();
    assert_eq!(TrustRoot::intel().certificate, root);
}

#[test]
fn a_genuine_quote_is_no_evidence_for_claims_it_is_not_over() {
    let Vector { quote, collateral, now } = v4();
    let claims = cocoon_attest::Claims { not_before: now, not_after: now + 60, ..claims() };
    let evidence = Evidence { claims: claims.encode(), quote, collateral };
    let error = verify(&evidence.encode(), &expect(), &policy(TrustRoot::intel()), now).unwrap_err();
    assert_eq!(error, VerifyError::ReportData);
}

#[test]
fn a_genuine_quote_is_refused_under_the_software_root() {
    let Vector { quote, collateral, now } = v4();
    let error = verify_quote(&quote, &collateral, &policy(platform().trust_root()), now).unwrap_err();
    assert_eq!(error.check(), "trust-root");
}

/// Version 5, of another processor family, whose firmware no TCB level accepts.
fn outdated() -> Vector {
    vector("tdx_quote_outdated", "tdx_quote_outdated_collateral.json", "", 1_771_700_000)
}

#[test]
fn an_outdated_platform_is_refused() {
    assert_eq!(under_intel(&outdated()).unwrap_err().check(), "tcb-status");
}

#[test]
fn expired_or_future_collateral_is_refused() {
    let genuine = v4();
    for now in [genuine.now - 400 * 86_400, genuine.now + 400 * 86_400] {
        let error = under_intel(&Vector { now, ..v4() }).unwrap_err();
        assert_eq!(error.check(), "collateral", "at {now}: {error}");
    }
}

#[test]
fn an_old_tcb_evaluation_is_refused() {
    let Vector { quote, collateral, now } = v4();
    let found = under_intel(&v4()).unwrap().tcb_evaluation;
    let mut policy = policy(TrustRoot::intel());
    policy.min_tcb_evaluation = found;
    verify_quote(&quote, &collateral, &policy, now).unwrap();
    policy.min_tcb_evaluation = found + 1;
    let error = verify_quote(&quote, &collateral, &policy, now).unwrap_err();
    assert_eq!(error.check(), "tcb-evaluation");
}

#[test]
fn collateral_of_another_platform_is_refused() {
    let Vector { collateral, now, .. } = outdated();
    let error = under_intel(&Vector { collateral, now, ..v4() }).unwrap_err();
    assert_eq!(error.check(), "collateral", "{error}");
}

#[test]
fn a_quote_of_an_sgx_enclave_is_no_trust_domain() {
    let sgx = vector("sgx_quote", "sgx_quote_collateral.json", "", v4().now);
    assert_eq!(under_intel(&sgx).unwrap_err().check(), "quote-format");
}

/// Every eleventh byte, each with one bit flipped.
#[test]
fn no_sampled_byte_of_a_genuine_quote_can_change() {
    for vector in [v4(), v5()] {
        for at in (0..vector.quote.len()).step_by(11) {
            let mut quote = vector.quote.clone();
            quote[at] ^= 1 << (at % 8);
            let altered = Vector { quote, collateral: vector.collateral.clone(), now: vector.now };
            under_intel(&altered).expect_err(&format!("byte {at} changed unnoticed"));
        }
    }
}
