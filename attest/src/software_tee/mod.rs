//! A TEE made of software, for networks without hardware.
//!
//! It plays both sides of Intel's DCAP under a root of its own: the vendor, who certifies a platform
//! and publishes collateral about it, and the platform, which signs quotes. The quotes are real TDX
//! version 4 quotes (Intel, "TDX DCAP Quoting Library API", appendix 3), the certificates, CRLs, TCB
//! info and QE identity are what a PCCS would serve, and [`crate::verify()`] takes the same path for
//! them as for Intel's. What they cannot give is secrecy from the operator, who holds the keys: the
//! root is worth [`Assurance::Test`], and only a genesis that names it accepts it at all.
//!
//! A test network makes one [`Platform`] and hands its JSON to the enclave processes; genesis names
//! its root. The keys of the certificate authorities exist only while a platform is generated: they
//! sign what is needed, then nobody can make a second platform under that root.
//!
//! MRTD is the SHA-384 of the enclave's own executable ([`measure_executable`]): change one byte of
//! it and the measurement is another.

mod der;
mod pki;
mod quote;

use std::{fmt, fs::File, io, path::Path, sync::Arc};

pub use dcap_qvl::TcbStatus;
use ring::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    hash,
    measurement::Measurement,
    policy::{Assurance, TrustRoot},
    quoter::{QuoteError, Quoter},
};

/// The name of this TEE and its trust root, wherever they show.
pub const NAME: &str = "software-tee";

/// A platform has about 20 KB; what is longer is something else.
const MAX_JSON_BYTES: usize = 128 * 1024;

const VERSION: u32 = 1;

/// Why there is no platform.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// Time stamps in certificates end with the year 9999.
    #[error("{now_unix} is no time at which a platform could be generated")]
    Time {
        /// Unix seconds asked for.
        now_unix: u64,
    },
    /// Keys or certificates could not be made.
    #[error("cannot generate the software TEE's keys and certificates: {detail}")]
    Generate {
        /// What failed.
        detail: String,
    },
    /// Not the JSON of a platform. The text never quotes the file, which holds a private key.
    #[error("not a software TEE platform file: {detail}; generate a new test network")]
    Json {
        /// What is wrong.
        detail: String,
    },
}

/// Ways in which a platform can be unsound, to show that verifiers refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defects {
    /// Trust domains run with the host's debugger attached.
    pub debug: bool,
    /// What the collateral says about the platform's firmware.
    pub tcb_status: TcbStatus,
    /// The number of the TCB evaluation.
    pub tcb_evaluation: u32,
    /// The platform's certificate is on the revocation list.
    pub revoked: bool,
    /// The quoting enclave is not signed by Intel's key.
    pub foreign_quoting_enclave: bool,
    /// The collateral is about another processor family.
    pub foreign_collateral: bool,
}

impl Default for Defects {
    /// None.
    fn default() -> Self {
        Self {
            debug: false,
            tcb_status: TcbStatus::UpToDate,
            tcb_evaluation: 20,
            revoked: false,
            foreign_quoting_enclave: false,
            foreign_collateral: false,
        }
    }
}

/// One certified platform: its attestation key, what certifies it, and the collateral about it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    version: u32,
    /// DER.
    #[serde(with = "hex::serde")]
    root: Vec<u8>,
    /// The key that signs quotes, PKCS #8.
    #[serde(with = "hex::serde")]
    attestation_key: Vec<u8>,
    /// QE report, its signature by the PCK key, and the PCK chain, as each quote carries them.
    #[serde(with = "hex::serde")]
    certification: Vec<u8>,
    /// Canonical collateral.
    collateral: String,
    /// Whether its trust domains are debuggable: a defect for tests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    debug: bool,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform").field("root", &self.trust_root()).finish_non_exhaustive()
    }
}

impl Platform {
    /// A new root, a sound platform under it, and collateral that holds for five years.
    ///
    /// # Errors
    /// If the system gives no randomness or `now_unix` is absurd.
    pub fn generate(now_unix: u64) -> Result<Self, PlatformError> {
        Self::generate_with(now_unix, &Defects::default())
    }

    /// As [`Platform::generate`], with defects.
    ///
    /// # Errors
    /// As [`Platform::generate`].
    pub fn generate_with(now_unix: u64, defects: &Defects) -> Result<Self, PlatformError> {
        let made = pki::generate(now_unix, defects)?;
        Ok(Self {
            version: VERSION,
            root: made.root,
            attestation_key: made.attestation_key.to_vec(),
            certification: made.certification,
            collateral: made.collateral,
            debug: defects.debug,
        })
    }

    /// The platform as JSON, private key included; wiped when dropped. Keep the file private.
    pub fn to_json(&self) -> Zeroizing<String> {
        // Room for everything: growing would leave copies of the key behind.
        let room = 2 * (self.root.len() + self.attestation_key.len() + self.certification.len())
            + 2 * self.collateral.len()
            + 1024;
        let mut json = Zeroizing::new(Vec::with_capacity(room));
        // Strings and numbers into memory cannot fail; an empty result would be refused by `from_json`.
        let written = serde_json::to_writer(&mut *json, self);
        let text = written.ok().and_then(|()| String::from_utf8(std::mem::take(&mut *json)).ok());
        Zeroizing::new(text.unwrap_or_default())
    }

    /// Reads what [`Platform::to_json`] wrote.
    ///
    /// # Errors
    /// If the text is something else or its key is unusable.
    pub fn from_json(json: &str) -> Result<Self, PlatformError> {
        let refuse = |detail: String| PlatformError::Json { detail };
        if json.len() > MAX_JSON_BYTES {
            return Err(refuse(format!("{} bytes, at most {MAX_JSON_BYTES} are allowed", json.len())));
        }
        let platform: Self = serde_json::from_str(json).map_err(|error| {
            refuse(format!("malformed at line {}, column {}", error.line(), error.column()))
        })?;
        if platform.version != VERSION {
            return Err(refuse(format!("version {}, this build reads {VERSION}", platform.version)));
        }
        platform.signing_key().map_err(|_| refuse("field attestation_key is no P-256 key".into()))?;
        crate::collateral::parse(platform.collateral.as_bytes())
            .map_err(|error| refuse(format!("field collateral: {error}")))?;
        Ok(platform)
    }

    /// The root certificate, DER, for genesis.
    pub fn root_der(&self) -> &[u8] {
        &self.root
    }

    /// The root as a network's genesis names it: worth [`Assurance::Test`].
    pub fn trust_root(&self) -> TrustRoot {
        TrustRoot { name: NAME.into(), assurance: Assurance::Test, certificate: self.root.clone() }
    }

    /// The TEE of an enclave with this image on this platform.
    pub fn quoter(&self, image: Measurement) -> SoftwareTee {
        SoftwareTee { platform: Arc::new(self.clone()), image }
    }

    fn signing_key(&self) -> Result<EcdsaKeyPair, ring::error::KeyRejected> {
        EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &self.attestation_key,
            &SystemRandom::new(),
        )
    }
}

/// A software TEE around one enclave image. Cloning shares the platform.
#[derive(Clone, Debug)]
pub struct SoftwareTee {
    platform: Arc<Platform>,
    image: Measurement,
}

impl Quoter for SoftwareTee {
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, QuoteError> {
        let key = self.platform.signing_key().map_err(|_| QuoteError::Crypto)?;
        let body = quote::Body { image: self.image, report_data, debug: self.platform.debug };
        quote::assemble(&body, &key, &self.platform.certification).ok_or(QuoteError::Crypto)
    }

    fn collateral(&self) -> Result<Vec<u8>, QuoteError> {
        Ok(self.platform.collateral.clone().into_bytes())
    }

    fn describe(&self) -> &'static str {
        NAME
    }
}

/// Measures an executable: SHA-384 of the file, read in pieces.
///
/// # Errors
/// If the file cannot be read.
pub fn measure_executable(path: &Path) -> io::Result<Measurement> {
    struct Hasher(digest::Context);

    impl io::Write for Hasher {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut hasher = Hasher(digest::Context::new(&digest::SHA384));
    io::copy(&mut io::BufReader::with_capacity(1 << 20, File::open(path)?), &mut hasher)?;
    Ok(Measurement(hash::into_array(hasher.0)))
}
