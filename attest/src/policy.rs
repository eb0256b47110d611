//! What an asker demands of a worker before it says anything confidential.
//!
//! A [`Policy`] is made from the network's genesis and the asker's own wishes; [`Expect`] holds what
//! is known about the one worker at hand. Both are plain data: [`crate::verify()`] does the judging.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::measurement::Measurement;

/// How well a worker's operator is kept out of the conversation, worst first.
///
/// It is always what the asker's own verification found, never what somebody advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// No TEE: the operator can read everything.
    Open,
    /// The software TEE of a test network: every check runs, but the operator holds the keys.
    Test,
    /// A genuine TEE, up to date, not in debug mode, running measured code.
    Confidential,
}

/// When a session must be bound to a fresh quote (see [`crate::live`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Live {
    /// Never.
    Off,
    /// For the first session with each worker and evidence.
    FirstUse,
    /// For every session, before any prompt leaves.
    Required,
}

impl Live {
    /// The byte that stands for the choice in the handshake's prologue.
    pub fn id(self) -> u8 {
        match self {
            Live::Off => 0,
            Live::FirstUse => 1,
            Live::Required => 2,
        }
    }
}

/// The text names none of the known values.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown {what} {found:?}; use one of {allowed}")]
pub struct UnknownName {
    what: &'static str,
    found: String,
    allowed: &'static str,
}

impl fmt::Display for Assurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Assurance::Open => "open",
            Assurance::Test => "test",
            Assurance::Confidential => "confidential",
        })
    }
}

impl FromStr for Assurance {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "open" => Ok(Assurance::Open),
            "test" => Ok(Assurance::Test),
            "confidential" => Ok(Assurance::Confidential),
            _ => Err(UnknownName {
                what: "assurance",
                found: text.into(),
                allowed: "open, test, confidential",
            }),
        }
    }
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Live::Off => "off",
            Live::FirstUse => "first-use",
            Live::Required => "required",
        })
    }
}

impl FromStr for Live {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Live::Off),
            "first-use" => Ok(Live::FirstUse),
            "required" => Ok(Live::Required),
            _ => Err(UnknownName {
                what: "live binding",
                found: text.into(),
                allowed: "off, first-use, required",
            }),
        }
    }
}

/// A certificate authority whose TEEs a network accepts, and what they are worth.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustRoot {
    /// Shown to people wherever a verification result shows.
    pub name: String,
    /// What evidence under this root amounts to.
    pub assurance: Assurance,
    /// The root certificate, DER.
    pub certificate: Vec<u8>,
}

impl TrustRoot {
    /// Intel's SGX and TDX provisioning root: genuine hardware.
    pub fn intel() -> Self {
        Self {
            name: "intel".into(),
            assurance: Assurance::Confidential,
            certificate: include_bytes!("../roots/intel-sgx-root-ca.der").to_vec(),
        }
    }
}

impl fmt::Debug for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustRoot")
            .field("name", &self.name)
            .field("assurance", &self.assurance)
            .field("sha256", &hex::encode(crate::hash::sha256(&[&self.certificate])))
            .finish()
    }
}

/// What a network and an asker accept. An empty set accepts nothing: there is no "any".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Claims for another network are refused.
    pub network_id: [u8; 32],
    /// Whose TEEs count.
    pub roots: Vec<TrustRoot>,
    /// Evidence that amounts to less is refused.
    pub minimum: Assurance,
    /// Enclave images that may run.
    pub measurements: BTreeSet<Measurement>,
    /// Enclave configurations that may run.
    pub config_digests: BTreeSet<[u8; 32]>,
    /// Models that may be served.
    pub model_digests: BTreeSet<[u8; 32]>,
    /// Collateral with a lower TCB-evaluation number is refused: an old list of flaws hides new ones.
    pub min_tcb_evaluation: u32,
    /// How far an enclave's clock may differ from ours.
    pub clock_skew_s: u64,
    /// When sessions need a fresh quote. The session layer acts on it, verification does not.
    pub live: Live,
}

/// What is already known about the worker whose evidence is judged.
#[derive(Clone, Copy, Debug)]
pub struct Expect<'a> {
    /// The peer that advertised the evidence: evidence copied from another peer is refused.
    pub peer_id: &'a [u8],
    /// The model asked for.
    pub model_digest: Option<[u8; 32]>,
    /// The digest under which the evidence was advertised.
    pub evidence_digest: Option<[u8; 32]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_are_ordered() {
        for level in [Assurance::Open, Assurance::Test, Assurance::Confidential] {
            assert_eq!(level.to_string().parse(), Ok(level));
            assert_eq!(serde_json::to_string(&level).unwrap(), format!("\"{level}\""));
        }
        for live in [Live::Off, Live::FirstUse, Live::Required] {
            assert_eq!(live.to_string().parse(), Ok(live));
            assert_eq!(serde_json::to_string(&live).unwrap(), format!("\"{live}\""));
        }
        assert!(Assurance::Open < Assurance::Test && Assurance::Test < Assurance::Confidential);
        let error = "secret".parse::<Assurance>().unwrap_err();
        assert_eq!(error.to_string(), "unknown assurance \"secret\"; use one of open, test, confidential");
    }

    #[test]
    fn the_built_in_root_is_intels() {
        // The fingerprint that Intel publishes for its SGX root CA.
        assert_eq!(
            hex::encode(crate::hash::sha256(&[&TrustRoot::intel().certificate])),
            "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
        );
    }
}
