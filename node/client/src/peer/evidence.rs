//! Verified evidence, remembered by digest until it expires.
//!
//! Evidence is fetched once per digest and verified here, under our own policy and clock; nobody
//! else's verdict counts. A verdict lasts until the claims or the collateral expire.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cocoon_attest::{Evidence, EvidenceError, Expect, Policy, Verified, VerifyError, verify};
use cocoon_p2p::{Net, PeerId};

/// Verdicts kept; beyond this the one that expires first goes.
const MAX_VERDICTS: usize = 1024;

/// Evidence that convinced us.
#[derive(Debug)]
pub(crate) struct Attested {
    /// The verdict.
    pub(crate) verified: Arc<Verified>,
    /// For live quotes of the same TEE.
    pub(crate) collateral: Arc<[u8]>,
    /// As fetched, for whoever wants to verify it again.
    pub(crate) bytes: Vec<u8>,
    /// How long fetching and verifying took.
    pub(crate) took: Duration,
}

/// Why a worker's evidence does not convince.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AttestError {
    #[error("its evidence cannot be fetched: {0}")]
    Fetch(String),
    #[error("its evidence fails check {check}: {error}", check = .0.check(), error = .0)]
    Refused(#[from] VerifyError),
    #[error("its evidence cannot be read: {0}")]
    Unreadable(#[from] EvidenceError),
    #[error("verification was interrupted")]
    Interrupted,
}

/// The verdicts.
#[derive(Debug)]
pub(crate) struct Attestations {
    policy: Arc<Policy>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    verdicts: BTreeMap<[u8; 32], Arc<Attested>>,
    /// Evidence whose enclave has answered a live challenge.
    bound: BTreeSet<[u8; 32]>,
}

impl Attestations {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy: Arc::new(policy), table: Mutex::default() }
    }

    pub(crate) fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The verdict, if it is known and still holds.
    pub(crate) fn known(&self, digest: &[u8; 32], now: u64) -> Option<Arc<Attested>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.verdicts.get(digest).filter(|known| known.verified.expires_at > now).cloned()
    }

    /// Fetches and verifies, whatever is known.
    pub(crate) async fn fetch(
        &self,
        net: &Net,
        peer: PeerId,
        digest: [u8; 32],
        model: [u8; 32],
        now: u64,
    ) -> Result<Arc<Attested>, AttestError> {
        #[allow(clippy::disallowed_methods)] // A shell: people ask how long it took.
        let began = Instant::now();
        let bytes =
            net.fetch_evidence(peer, digest).await.map_err(|error| AttestError::Fetch(error.to_string()))?;
        let policy = self.policy.clone();
        // Some milliseconds of signatures: not on a thread that moves tokens.
        let judged = tokio::task::spawn_blocking(move || judge(bytes, peer, digest, model, &policy, now));
        let mut attested = judged.await.map_err(|_| AttestError::Interrupted)??;
        attested.took = began.elapsed();
        let attested = Arc::new(attested);
        self.remember(digest, attested.clone());
        Ok(attested)
    }

    fn remember(&self, digest: [u8; 32], attested: Arc<Attested>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.verdicts.len() >= MAX_VERDICTS {
            let first = table.verdicts.iter().min_by_key(|(_, known)| known.verified.expires_at);
            if let Some(first) = first.map(|(digest, _)| *digest) {
                table.verdicts.remove(&first);
                table.bound.remove(&first);
            }
        }
        table.verdicts.insert(digest, attested);
    }

    /// Whether a session under this evidence was bound to a fresh quote before.
    pub(crate) fn was_bound(&self, digest: &[u8; 32]) -> bool {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).bound.contains(digest)
    }

    /// Notes that one was.
    pub(crate) fn bound(&self, digest: [u8; 32]) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.verdicts.contains_key(&digest) {
            table.bound.insert(digest);
        }
    }
}

fn judge(
    bytes: Vec<u8>,
    peer: PeerId,
    digest: [u8; 32],
    model: [u8; 32],
    policy: &Policy,
    now: u64,
) -> Result<Attested, AttestError> {
    let id = peer.to_bytes();
    let expect = Expect { peer_id: &id, model_digest: Some(model), evidence_digest: Some(digest) };
    let verified = verify(&bytes, &expect, policy, now)?;
    let collateral = Evidence::decode(&bytes)?.collateral.into();
    Ok(Attested { verified: Arc::new(verified), collateral, bytes, took: Duration::ZERO })
}
