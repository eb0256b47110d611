//! The vendor's side: certificates, revocation lists, TCB info and QE identity.
//!
//! ```text
//! root ─┬─ PCK platform CA ── PCK certificate (SGX extension) ── QE report ── attestation key
//!       │        └── PCK CRL
//!       ├─ TCB signer ── TCB info, QE identity
//!       └─ root CRL
//! ```
//!
//! Names and values follow Intel's "SGX PCK Certificate and CRL Profile" and the PCS API, version 4.

use dcap_qvl::{QuoteCollateralV3, TcbStatus};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams,
    SerialNumber,
};
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use zeroize::Zeroizing;

use super::{Defects, PlatformError, der, quote};
use crate::{collateral, pem};

/// TDX module SVN and version in quotes and TCB info.
pub(super) const MODULE_SVN: u8 = 5;
pub(super) const MODULE_VERSION: u8 = 1;
/// Product and SVN of Intel's quoting enclave for TDX.
pub(super) const QE_PRODUCT: u16 = 2;
pub(super) const QE_SVN: u16 = 4;

const CPU_SVN: u8 = 5;
const PCE_SVN: u8 = 13;
/// "COCOON": no processor family of Intel's.
const FMSPC: [u8; 6] = *b"COCOON";
/// The signer of Intel's quoting enclave for TDX, which dcap-qvl compares with the QE identity.
const QE_SIGNER: [u8; 32] = [
    0xdc, 0x9e, 0x2a, 0x7c, 0x6f, 0x94, 0x8f, 0x17, 0x47, 0x4e, 0x34, 0xa7, 0xfc, 0x43, 0xed, 0x03, 0x0f,
    0x7c, 0x15, 0x63, 0xf1, 0xba, 0xbd, 0xdf, 0x63, 0x40, 0xc8, 0x2e, 0x0e, 0x54, 0xa8, 0xc5,
];
/// The arcs after 1.2 of Intel's SGX extension.
const SGX_EXTENSION: [u64; 5] = [840, 113_741, 1, 13, 1];

/// Everything starts a day early, for machines whose clock is behind.
const BACKDATED: Duration = Duration::DAY;
const COLLATERAL_LIFE: Duration = Duration::days(5 * 366);
const CERTIFICATE_LIFE: Duration = Duration::days(10 * 366);

/// What remains once the authorities' keys are gone.
pub(super) struct Generated {
    pub(super) root: Vec<u8>,
    pub(super) attestation_key: Zeroizing<Vec<u8>>,
    pub(super) certification: Vec<u8>,
    pub(super) collateral: String,
}

/// A key in the two forms needed: rcgen signs certificates, ring signs raw `r ‖ s`.
struct Key {
    certify: KeyPair,
    sign: EcdsaKeyPair,
}

impl Key {
    fn generate() -> Result<Self, PlatformError> {
        let certify = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let sign = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            certify.serialized_der(),
            &SystemRandom::new(),
        )
        .map_err(failed)?;
        Ok(Self { certify, sign })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PlatformError> {
        let signature = self.sign.sign(&SystemRandom::new(), message).map_err(failed)?;
        Ok(signature.as_ref().to_vec())
    }
}

pub(super) fn generate(now_unix: u64, defects: &Defects) -> Result<Generated, PlatformError> {
    let dates = Dates::at(now_unix)?;

    let root_key = Key::generate()?;
    let root_params = dates.certificate("Cocoon software TEE root CA", true)?;
    let root = root_params.self_signed(&root_key.certify).map_err(failed)?;
    let root_ca = Issuer::from_params(&root_params, &root_key.certify);

    let platform_ca_key = Key::generate()?;
    let platform_ca_params = dates.certificate("Cocoon software TEE PCK Platform CA", true)?;
    let platform_ca = platform_ca_params.signed_by(&platform_ca_key.certify, &root_ca).map_err(failed)?;
    let platform_issuer = Issuer::from_params(&platform_ca_params, &platform_ca_key.certify);

    let pck_key = Key::generate()?;
    let pck_serial = SerialNumber::from(random::<8>()?.to_vec());
    let mut pck_params = dates.certificate("Cocoon software TEE PCK certificate", false)?;
    pck_params.serial_number = Some(pck_serial.clone());
    pck_params.custom_extensions.push(sgx_extension(&random()?, &random()?));
    let pck = pck_params.signed_by(&pck_key.certify, &platform_issuer).map_err(failed)?;

    let tcb_key = Key::generate()?;
    let tcb_signer = dates
        .certificate("Cocoon software TEE TCB signing", false)?
        .signed_by(&tcb_key.certify, &root_ca)
        .map_err(failed)?;

    let attestation_key = Key::generate()?;
    let qe_signer = if defects.foreign_quoting_enclave { [0; 32] } else { QE_SIGNER };
    let qe_report = quote::qe_report(&attestation_key.sign, &qe_signer);
    let chain = [pck.der(), platform_ca.der(), root.der()].map(|der| pem::certificate(der)).concat();
    let certification = quote::certification(&qe_report, &pck_key.sign(&qe_report)?, &chain)
        .ok_or_else(|| failed("the PCK chain is too long"))?;

    let signer_chain = pem::certificate(tcb_signer.der()) + &pem::certificate(root.der());
    let tcb_info = tcb_info(&dates, defects).to_string();
    let qe_identity = qe_identity(&dates, defects).to_string();
    let revoked = defects.revoked.then(|| pck_serial.clone());
    let collateral = QuoteCollateralV3 {
        pck_crl_issuer_chain: pem::certificate(platform_ca.der()) + &pem::certificate(root.der()),
        root_ca_crl: dates.crl(&root_ca, None)?,
        pck_crl: dates.crl(&platform_issuer, revoked)?,
        tcb_info_issuer_chain: signer_chain.clone(),
        tcb_info_signature: tcb_key.sign(tcb_info.as_bytes())?,
        tcb_info,
        qe_identity_issuer_chain: signer_chain,
        qe_identity_signature: tcb_key.sign(qe_identity.as_bytes())?,
        qe_identity,
        pck_certificate_chain: None,
    };
    let collateral = collateral::write(&collateral).map_err(failed)?;

    Ok(Generated {
        root: root.der().to_vec(),
        attestation_key: Zeroizing::new(attestation_key.certify.serialize_der()),
        certification,
        collateral: String::from_utf8(collateral).map_err(failed)?,
    })
}

/// When things start and end, in the forms that certificates and JSON need.
struct Dates {
    from: OffsetDateTime,
    certificates_until: OffsetDateTime,
    collateral_until: OffsetDateTime,
    issue_date: String,
    next_update: String,
}

impl Dates {
    fn at(now_unix: u64) -> Result<Self, PlatformError> {
        let absurd = || PlatformError::Time { now_unix };
        let now = i64::try_from(now_unix)
            .ok()
            .and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok())
            .ok_or_else(absurd)?;
        let from = now.checked_sub(BACKDATED).filter(|from| from.year() >= 1971).ok_or_else(absurd)?;
        let after = |life| now.checked_add(life).ok_or_else(absurd);
        let collateral_until = after(COLLATERAL_LIFE)?;
        Ok(Self {
            from,
            certificates_until: after(CERTIFICATE_LIFE)?,
            collateral_until,
            issue_date: from.format(&Rfc3339).map_err(failed)?,
            next_update: collateral_until.format(&Rfc3339).map_err(failed)?,
        })
    }

    fn certificate(&self, name: &str, authority: bool) -> Result<CertificateParams, PlatformError> {
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = self.from;
        params.not_after = self.certificates_until;
        if authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        } else {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
        Ok(params)
    }

    fn crl(
        &self,
        issuer: &Issuer<'_, &KeyPair>,
        revoked: Option<SerialNumber>,
    ) -> Result<Vec<u8>, PlatformError> {
        let revoked = revoked.map(|serial_number| RevokedCertParams {
            serial_number,
            revocation_time: self.from,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: self.from,
            next_update: self.collateral_until,
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.into_iter().collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(issuer).map_err(failed)?.der().to_vec())
    }
}

/// What a PCK certificate says about its platform (profile §1.3.5).
fn sgx_extension(ppid: &[u8; 16], instance: &[u8; 16]) -> CustomExtension {
    let entry =
        |arcs: &[u64], value: Vec<u8>| der::sequence(&[der::oid(&[&SGX_EXTENSION, arcs].concat()), value]);
    let mut tcb: Vec<_> =
        (1..=16).map(|component| entry(&[2, component], der::small_integer(CPU_SVN))).collect();
    tcb.push(entry(&[2, 17], der::small_integer(PCE_SVN)));
    tcb.push(entry(&[2, 18], der::octets(&[CPU_SVN; 16])));
    // Dynamic platform, cached keys, SMT.
    let configuration: Vec<_> = (1..=3).map(|flag| entry(&[7, flag], der::boolean(false))).collect();
    let content = der::sequence(&[
        entry(&[1], der::octets(ppid)),
        entry(&[2], der::sequence(&tcb)),
        entry(&[3], der::octets(&[0, 0])), // PCE id
        entry(&[4], der::octets(&FMSPC)),
        entry(&[5], der::enumerated(1)), // scalable
        entry(&[6], der::octets(instance)),
        entry(&[7], der::sequence(&configuration)),
    ]);
    let oid = [&[1, 2], SGX_EXTENSION.as_slice()].concat();
    CustomExtension::from_oid_content(&oid, content)
}

fn tcb_info(dates: &Dates, defects: &Defects) -> Value {
    let components = |svn: u8| Value::from(vec![json!({ "svn": svn }); 16]);
    let fmspc = if defects.foreign_collateral { [0; 6] } else { FMSPC };
    let module = json!({
        "mrsigner": "00".repeat(48),
        "attributes": "0000000000000000",
        "attributesMask": "FFFFFFFFFFFFFFFF",
    });
    json!({
        "id": "TDX",
        "version": 3,
        "issueDate": dates.issue_date,
        "nextUpdate": dates.next_update,
        "fmspc": hex::encode_upper(fmspc),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": defects.tcb_evaluation,
        "tdxModule": module,
        "tdxModuleIdentities": [{
            "id": format!("TDX_{MODULE_VERSION:02X}"),
            "mrsigner": module["mrsigner"],
            "attributes": module["attributes"],
            "attributesMask": module["attributesMask"],
            "tcbLevels": [{
                "tcb": { "isvsvn": MODULE_SVN },
                "tcbDate": dates.issue_date,
                "tcbStatus": TcbStatus::UpToDate.to_string(),
            }],
        }],
        "tcbLevels": [{
            "tcb": {
                "sgxtcbcomponents": components(CPU_SVN),
                "pcesvn": PCE_SVN,
                "tdxtcbcomponents": components(0),
            },
            "tcbDate": dates.issue_date,
            "tcbStatus": defects.tcb_status.to_string(),
        }],
    })
}

fn qe_identity(dates: &Dates, defects: &Defects) -> Value {
    json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": dates.issue_date,
        "nextUpdate": dates.next_update,
        "tcbEvaluationDataNumber": defects.tcb_evaluation,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(QE_SIGNER),
        "isvprodid": QE_PRODUCT,
        "tcbLevels": [{
            "tcb": { "isvsvn": QE_SVN },
            "tcbDate": dates.issue_date,
            "tcbStatus": TcbStatus::UpToDate.to_string(),
        }],
    })
}

fn random<const N: usize>() -> Result<[u8; N], PlatformError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn failed(error: impl ToString) -> PlatformError {
    PlatformError::Generate { detail: error.to_string() }
}
