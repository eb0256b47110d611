//! Keys with an end, and the evidence over them.
//!
//! An epoch is one Noise key and one receipt key, made in this process's memory and never written anywhere,
//! together with a quote that binds them. The host asks for a new epoch well before the old one's evidence
//! ends; askers that fetched the old evidence may still open sessions under it until then, so a few epochs
//! live side by side. A session keeps its epoch's receipt key for as long as it lasts.
//!
//! Epochs outlive the host's connection, sessions and their live challenges do not: each connection begins with
//! empty batches ([`Epochs::host`]), and an epoch that leaves names the sessions that still waited for a quote.

use std::sync::Arc;

use bytes::Bytes;
use cocoon_attest::live::Batcher;
use cocoon_attest::noise::{NoiseError, StaticKey};
use cocoon_attest::{Beacon, Claims, Evidence, MAX_VALIDITY_S, Measurement, QuoteError, Quoter, Role};
use ed25519_dalek::SigningKey;
use thiserror::Error;

use crate::link::Attest;

/// The current epoch, the one before, and one that a restarted host asked for in between.
const MAX_EPOCHS: usize = 3;
/// How far the start of an epoch may be from this enclave's own clock. The host names it, and a host that named
/// the future would get keys attested for a time when nobody looks after them any more; askers judge the window
/// by their own clocks in any case. Wide enough for a clock that nobody sets.
const MAX_CLOCK_GAP_S: u64 = 600;

/// Why there is no new epoch.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EpochError {
    /// It would last no time or too long.
    #[error("field `not_after` of `Attest` is {lasts} s after `not_before`, expected 1 to {MAX_VALIDITY_S}")]
    Validity {
        /// Seconds asked for.
        lasts: u64,
    },
    /// The host's idea of now is not this enclave's.
    #[error(
        "field `not_before` of `Attest` is {not_before}, which is {} s from the enclave's clock ({now}), at most \
         {MAX_CLOCK_GAP_S} s are accepted; set the clock of the one that is wrong",
        not_before.abs_diff(*now)
    )]
    Clock {
        /// Asked for, Unix seconds.
        not_before: u64,
        /// By the enclave's clock, Unix seconds.
        now: u64,
    },
    /// No Noise key.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// No randomness.
    #[error("no randomness for the receipt key: {0}")]
    Randomness(getrandom::Error),
    /// No quote or no collateral.
    #[error(transparent)]
    Quote(#[from] QuoteError),
}

/// The secrets of an epoch. Wiped when the last session that uses them ends.
#[derive(Debug)]
pub struct Keys {
    /// Answers handshakes.
    pub noise: StaticKey,
    /// Signs receipts.
    pub receipt: SigningKey,
}

impl Keys {
    /// An empty collection of live challenges to these keys.
    fn batcher(&self) -> Batcher {
        Batcher::new(Role::Worker, self.noise.public())
    }
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
    /// The request is out of bounds, also by `now_unix`, the enclave's own clock; or the quoter failed.
    pub fn generate(
        subject: &Subject,
        attest: &Attest,
        quoter: &dyn Quoter,
        now_unix: u64,
    ) -> Result<Self, EpochError> {
        let (not_before, now) = (attest.not_before, now_unix);
        let lasts = attest.not_after.saturating_sub(not_before);
        if lasts == 0 || lasts > MAX_VALIDITY_S {
            return Err(EpochError::Validity { lasts });
        }
        if not_before.abs_diff(now) > MAX_CLOCK_GAP_S {
            return Err(EpochError::Clock { not_before, now });
        }
        let noise = StaticKey::generate()?;
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(EpochError::Randomness)?;
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
        let quote = quoter.quote(&claims.report_data())?;
        let collateral = quoter.collateral()?;
        let evidence = Evidence { claims: claims.encode(), quote, collateral };
        let keys = Keys { noise, receipt };
        let live = keys.batcher();
        Ok(Self {
            keys: Arc::new(keys),
            digest: evidence.digest(),
            evidence: Bytes::from(evidence.encode()),
            not_after: attest.not_after,
            live,
        })
    }
}

impl Epoch {
    /// Every session that asked for a live quote and has none, in flight or not.
    fn into_waiting(mut self) -> Vec<u64> {
        let mut waiting = self.live.fail();
        while self.live.start().is_some() {
            waiting.append(&mut self.live.fail());
        }
        waiting
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
    ///
    /// Its sessions are numbered anew, and a quote that was in flight for the connection before will be reported
    /// to nobody: a batch that waited for it would wait for ever, and with it every later challenge.
    pub fn host(&mut self, network_id: [u8; 32], peer_id: &[u8]) {
        let subject = Some((network_id, peer_id.to_owned()));
        if self.subject != subject {
            self.list.clear();
            self.subject = subject;
        }
        for epoch in &mut self.list {
            epoch.live = epoch.keys.batcher();
        }
    }

    /// Adds the newest, forgetting the oldest where there are too many. Returns the sessions that waited for a
    /// live quote of the one forgotten, which they will not get.
    #[must_use]
    pub fn push(&mut self, epoch: Epoch) -> Vec<u64> {
        self.list.push(epoch);
        if self.list.len() > MAX_EPOCHS { self.list.remove(0).into_waiting() } else { Vec::new() }
    }

    /// The epoch that an asker's evidence belongs to, if it has not ended.
    pub fn find(&mut self, digest: &[u8; 32], now_unix: u64) -> Option<&mut Epoch> {
        self.list.iter_mut().find(|epoch| epoch.digest == *digest && now_unix < epoch.not_after)
    }

    /// Any epoch still held, ended or not.
    pub fn held(&mut self, digest: &[u8; 32]) -> Option<&mut Epoch> {
        self.list.iter_mut().find(|epoch| epoch.digest == *digest)
    }

    /// Forgets what has ended. Returns the sessions that waited for a live quote of it.
    #[must_use]
    pub fn expire(&mut self, now_unix: u64) -> Vec<u64> {
        let ended: Vec<Epoch> = self.list.extract_if(.., |epoch| now_unix >= epoch.not_after).collect();
        ended.into_iter().flat_map(Epoch::into_waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use cocoon_attest::software_tee::Platform;

    use super::*;
    use crate::link::Beacon as LinkBeacon;

    const NOW: u64 = 1_795_000_000;
    const PEER: [u8; 38] = [9; 38];

    struct World {
        platform: Platform,
        subject: Subject,
    }

    impl World {
        fn new() -> Self {
            let subject = Subject {
                network_id: [1; 32],
                peer_id: PEER.to_vec(),
                image: Measurement([5; 48]),
                config_digest: [6; 32],
                model_digest: [7; 32],
            };
            Self { platform: Platform::generate(NOW).unwrap(), subject }
        }

        fn generate(&self, not_before: u64, not_after: u64) -> Result<Epoch, EpochError> {
            let beacon = LinkBeacon { seqno: 8, hash: [8; 32] };
            let attest = Attest { beacon, not_before, not_after };
            let quoter = self.platform.quoter(self.subject.image);
            Epoch::generate(&self.subject, &attest, &quoter, NOW)
        }

        fn epochs(&self) -> (Epochs, [u8; 32]) {
            let mut epochs = Epochs::default();
            epochs.host(self.subject.network_id, &PEER);
            let epoch = self.generate(NOW - 30, NOW + 3600).unwrap();
            let digest = epoch.digest;
            assert!(epochs.push(epoch).is_empty());
            (epochs, digest)
        }
    }

    fn ask(epochs: &mut Epochs, digest: &[u8; 32], session: u64) {
        epochs.held(digest).unwrap().live.push(session, &[1; 32], &[2; 32]).unwrap();
    }

    #[test]
    fn a_quote_in_flight_at_a_reconnect_does_not_hold_up_the_next_connection() {
        let world = World::new();
        let (mut epochs, digest) = world.epochs();
        ask(&mut epochs, &digest, 1);
        assert!(epochs.held(&digest).unwrap().live.start().is_some());
        // The same host again; the quote's result went to a connection that is gone.
        epochs.host(world.subject.network_id, &PEER);
        assert!(epochs.held(&digest).is_some(), "the keys stay");
        ask(&mut epochs, &digest, 1);
        assert!(epochs.held(&digest).unwrap().live.start().is_some(), "a new quote can be made");
        // Another host finds nothing.
        epochs.host(world.subject.network_id, &[8; 38]);
        assert!(epochs.held(&digest).is_none());
    }

    #[test]
    fn an_epoch_that_leaves_names_the_sessions_that_waited() {
        let world = World::new();
        let (mut epochs, digest) = world.epochs();
        ask(&mut epochs, &digest, 1);
        assert!(epochs.held(&digest).unwrap().live.start().is_some());
        ask(&mut epochs, &digest, 2);
        for _ in 1..MAX_EPOCHS {
            assert!(epochs.push(world.generate(NOW, NOW + 7200).unwrap()).is_empty());
        }
        assert_eq!(epochs.push(world.generate(NOW, NOW + 7200).unwrap()), [1, 2], "in flight and waiting");
        assert!(epochs.held(&digest).is_none());

        let (mut epochs, digest) = world.epochs();
        ask(&mut epochs, &digest, 3);
        assert!(epochs.expire(NOW + 3599).is_empty());
        assert_eq!(epochs.expire(NOW + 3600), [3]);
    }

    #[test]
    fn a_window_that_is_not_about_now_is_refused() {
        let world = World::new();
        for start in [NOW - 600, NOW - 30, NOW + 600] {
            assert!(world.generate(start, start + 3600).is_ok());
        }
        for start in [NOW - 601, NOW + 601] {
            let refused = world.generate(start, start + 3600).unwrap_err();
            assert!(
                matches!(refused, EpochError::Clock { not_before, now: NOW } if not_before == start),
                "{refused}"
            );
            assert!(refused.to_string().contains("601 s from the enclave's clock"), "{refused}");
        }
        assert!(matches!(world.generate(NOW, NOW), Err(EpochError::Validity { lasts: 0 })));
        let long = world.generate(NOW, NOW + MAX_VALIDITY_S + 1);
        assert!(matches!(long, Err(EpochError::Validity { .. })));
    }
}
