//! Quotes of version 4, byte by byte.
//!
//! ```text
//! header 48 ‖ TD report 584 ‖ length u32 ‖ signature data
//! signature data = signature 64 ‖ attestation key 64 ‖ 6u16 ‖ length u32 ‖ certification
//! certification  = QE report 384 ‖ its signature 64 ‖ auth data (u16 length) ‖ 5u16 ‖ PCK chain (u32 length)
//! ```
//!
//! The attestation key signs header and report. The QE report vouches for that key (its report data
//! starts with SHA-256(attestation key ‖ auth data)), and the PCK key of the platform vouches for
//! the QE report. All integers are little endian.

use dcap_qvl::INTEL_QE_VENDOR_ID;
use ring::{
    rand::SystemRandom,
    signature::{EcdsaKeyPair, KeyPair},
};

use crate::{hash::sha256, measurement::Measurement};

const TD_REPORT_BYTES: usize = 584;
const QE_REPORT_BYTES: usize = 384;
const QE_AUTH_DATA: [u8; 32] = [0x42; 32];

/// What the TD report of one quote says.
pub(super) struct Body<'a> {
    pub(super) image: Measurement,
    pub(super) report_data: &'a [u8; 64],
    pub(super) debug: bool,
}

/// Signs a quote; `None` if the system's randomness fails.
pub(super) fn assemble(body: &Body<'_>, key: &EcdsaKeyPair, certification: &[u8]) -> Option<Vec<u8>> {
    let mut quote = header();
    quote.extend(td_report(body));
    let signature = key.sign(&SystemRandom::new(), &quote).ok()?;

    let mut data = Vec::with_capacity(certification.len() + 160);
    data.extend_from_slice(signature.as_ref());
    data.extend_from_slice(public_key(key));
    data.extend(6u16.to_le_bytes());
    data.extend(u32::try_from(certification.len()).ok()?.to_le_bytes());
    data.extend_from_slice(certification);

    quote.extend(u32::try_from(data.len()).ok()?.to_le_bytes());
    quote.extend(data);
    Some(quote)
}

fn header() -> Vec<u8> {
    let mut header = Vec::with_capacity(2048);
    header.extend(4u16.to_le_bytes()); // version
    header.extend(2u16.to_le_bytes()); // ECDSA-256 with P-256
    header.extend(0x81u32.to_le_bytes()); // TDX
    header.extend([0; 4]); // QE and PCE SVN, reserved in version 4
    header.extend(INTEL_QE_VENDOR_ID);
    header.extend([0; 20]); // user data
    header
}

fn td_report(body: &Body<'_>) -> [u8; TD_REPORT_BYTES] {
    let mut report = [0; TD_REPORT_BYTES];
    // TEE_TCB_SVN: the TDX module's SVN and version, met by the TCB info of `pki`.
    put(&mut report, 0, &[super::pki::MODULE_SVN, super::pki::MODULE_VERSION]);
    // TD attributes: SEPT_VE_DISABLE is bit 28, DEBUG is bit 0.
    let attributes = 1u64 << 28 | u64::from(body.debug);
    put(&mut report, 120, &attributes.to_le_bytes());
    put(&mut report, 136, &body.image.0);
    put(&mut report, 520, body.report_data);
    report
}

/// The report of a quoting enclave, vouching for `attestation_key`.
pub(super) fn qe_report(attestation_key: &EcdsaKeyPair, signer: &[u8; 32]) -> [u8; QE_REPORT_BYTES] {
    let mut report = [0; QE_REPORT_BYTES];
    put(&mut report, 48, &[0x11]); // attributes: initialised, provisioning key
    put(&mut report, 128, signer);
    put(&mut report, 256, &super::pki::QE_PRODUCT.to_le_bytes());
    put(&mut report, 258, &super::pki::QE_SVN.to_le_bytes());
    put(&mut report, 320, &sha256(&[public_key(attestation_key), &QE_AUTH_DATA]));
    report
}

/// What certifies the attestation key in each of its quotes; `None` if a part is too long.
pub(super) fn certification(qe_report: &[u8], signature: &[u8], pck_chain: &str) -> Option<Vec<u8>> {
    let mut out = qe_report.to_vec();
    out.extend_from_slice(signature);
    out.extend(u16::try_from(QE_AUTH_DATA.len()).ok()?.to_le_bytes());
    out.extend(QE_AUTH_DATA);
    out.extend(5u16.to_le_bytes());
    out.extend(u32::try_from(pck_chain.len()).ok()?.to_le_bytes());
    out.extend_from_slice(pck_chain.as_bytes());
    Some(out)
}

/// The curve point without SEC 1's leading tag.
fn public_key(key: &EcdsaKeyPair) -> &[u8] {
    key.public_key().as_ref().get(1..).unwrap_or_default()
}

/// Writes a field; the offsets are constants inside the report.
fn put(report: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = report.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}
