//! Keys with an end, and the evidence over them.
//!
//! An epoch is one Noise key and one receipt key, made in this process's memory and never written anywhere,
//! together with a quote that binds them. The host asks for a new epoch well before the old one's evidence
//! ends; askers that fetched the old evidence may still open sessions under it until then, so a few epochs
//! live side by side. A session keeps its epoch's receipt key for as long as it lasts.

use std::sync::Arc;

use bytes::Bytes;
use cocoon_attest::live::Batcher;
use cocoon_attest::noise::StaticKey;
use cocoon_attest::{Beacon, Claims, Evidence, MAX_VALIDITY_S, Measurement, Quoter, Role};
use ed25519_dalek::SigningKey;

use crate::link::Attest;

/// The current epoch, the one before, and one that a restarted host asked for in between.
const MAX_EPOCHS: usize = 3;

/// The secrets of an epoch. Wiped when the last session that uses them ends.
#[derive(Debug)]
pub struct Keys {
    /// Answers handshakes.
    pub noise: StaticKey,
    /// Signs receipts.
    pub receipt: SigningKey,
}

/// See the module page.
#[derive(Debug)]
pub struct Epoch {
    /// The secrets.
    pub keys: Arc<Keys>,
    /// What askers fetch.
    pub evidence: Bytes,
    /// How askers name it.
    pub digest: [u8; 32],
    /// End of validity, Unix seconds.
    pub not_after: u64,
    /// Collects live-binding challenges into quotes.
    pub live: Batcher,
}

/// What evidence says about this enclave besides keys and times.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Hash of the genesis file.
    pub network_id: [u8; 32],
    /// The host's identity.
    pub peer_id: Vec<u8>,
    /// This executable.
    pub image: Measurement,
    /// The measured configuration.
    pub config_digest: [u8; 32],
    /// The model.
    pub model_digest: [u8; 32],
}

impl Epoch {
    /// Makes keys and evidence. Takes as long as the quoter does; not for the I/O thread.
    ///
    /// # Errors
    /// A sentence for the host: the request is out of bounds or the quoter failed.
    pub fn generate(subject: &Subject, attest: &Attest, quoter: &dyn Quoter) -> Result<Self, String> {
        let lasts = attest.not_after.saturating_sub(attest.not_before);
        if lasts == 0 || lasts > MAX_VALIDITY_S {
            return Err(format!(
                "field `not_after` of `Attest` is {lasts} s after `not_before`, expected 1 to {MAX_VALIDITY_S}"
            ));
        }
        let noise = StaticKey::generate().map_err(|error| error.to_string())?;
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())
            .map_err(|error| format!("no randomness for the receipt key: {error}"))?;
        let receipt = SigningKey::from_bytes(&seed);
        let claims = Claims {
            network_id: subject.network_id,
            role: Role::Worker,
            noise_key: noise.public(),
            receipt_key: receipt.verifying_key().to_bytes(),
            peer_id: subject.peer_id.clone(),
            image: subject.image,
            config_digest: subject.config_digest,
            model_digest: subject.model_digest,
            gpu_evidence: None,
            not_before: attest.not_before,
            not_after: attest.not_after,
            beacon: Beacon { seqno: attest.beacon.seqno, hash: attest.beacon.hash },
        };
        let quote = quoter.quote(&claims.report_data()).map_err(|error| chain(&error))?;
        let collateral = quoter.collateral().map_err(|error| chain(&error))?;
        let evidence = Evidence { claims: claims.encode(), quote, collateral };
        let live = Batcher::new(Role::Worker, noise.public());
        Ok(Self {
            keys: Arc::new(Keys { noise, receipt }),
            digest: evidence.digest(),
            evidence: Bytes::from(evidence.encode()),
            not_after: attest.not_after,
            live,
        })
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The epochs that can still be used, newest last.
#[derive(Debug, Default)]
pub struct Epochs {
    subject: Option<([u8; 32], Vec<u8>)>,
    list: Vec<Epoch>,
}

impl Epochs {
    /// A host connected. Evidence names the host, so another host's epochs are of no use to this one.
    pub fn host(&mut self, network_id: [u8; 32], peer_id: &[u8]) {
        let subject = Some((network_id, peer_id.to_owned()));
        if self.subject != subject {
            self.list.clear();
            self.subject = subject;
        }
    }

    /// Adds the newest, forgetting the oldest where there are too many.
    pub fn push(&mut self, epoch: Epoch) {
        self.list.push(epoch);
        if self.list.len() > MAX_EPOCHS {
            self.list.remove(0);
        }
    }

    /// The epoch that an asker's evidence belongs to, if it has not ended.
    pub fn find(&mut self, digest: &[u8; 32], now_unix: u64) -> Option<&mut Epoch> {
        self.list.iter_mut().find(|epoch| epoch.digest == *digest && now_unix < epoch.not_after)
    }

    /// Any epoch still held, ended or not.
    pub fn held(&mut self, digest: &[u8; 32]) -> Option<&mut Epoch> {
        self.list.iter_mut().find(|epoch| epoch.digest == *digest)
    }

    /// Forgets what has ended.
    pub fn expire(&mut self, now_unix: u64) {
        self.list.retain(|epoch| now_unix < epoch.not_after);
    }
}
