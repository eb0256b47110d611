//! The channel from an asker into an enclave: Noise NK as a sans-IO machine.
//!
//! The asker (initiator) knows the enclave's static key from verified [`crate::Claims`] and stays
//! anonymous; only code that holds that key can answer. The pattern is
//! `Noise_NK_25519_ChaChaPoly_SHA256` (Noise specification, revision 34, §7.5):
//!
//! ```text
//! <- s                 from the claims
//! ...
//! -> e, es             Initiator::start      no payload: message 1 could be replayed
//! <- e, ee             respond
//! ```
//!
//! Both sides hash the [`Prologue`] first, so they finish only if they agree on wire version,
//! network, evidence and policy. What follows are **records** ([`Channel`]): each carries one
//! message, padded to a size bucket ([`BUCKETS`]) so that lengths tell little about the text, under
//! keys that both sides replace every [`REKEY_EVERY`] records. Records must arrive complete, once and
//! in order; the channel refuses everything after the first that did not.
//!
//! The primitives come from a [`Crypto`] function. Production passes [`default_crypto`]; a test
//! that proves its own search for plaintext works passes a cipher that does nothing. No such cipher
//! is in this crate.

mod channel;
mod padding;

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use snow::{
    Builder, HandshakeState,
    params::NoiseParams,
    resolvers::{CryptoResolver, DefaultResolver, FallbackResolver, RingResolver},
};
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

pub use channel::{Channel, REKEY_EVERY};
#[cfg(test)]
pub(crate) use padding::pad;
pub(crate) use padding::unpad;
pub use padding::{BUCKETS, MAX_MESSAGE, record_len};

const PATTERN: &str = "Noise_NK_25519_ChaChaPoly_SHA256";
const PROLOGUE_DOMAIN: &[u8] = b"cocoon/session/v1";

/// Both handshake messages are one X25519 key and the tag of an empty payload.
pub const HANDSHAKE_BYTES: usize = 32 + TAG_BYTES;

/// Poly1305's tag.
const TAG_BYTES: usize = 16;

/// Where the primitives come from.
pub type Crypto = fn() -> Box<dyn CryptoResolver + Send>;

/// The primitives of production: ring for ChaCha20-Poly1305 and SHA-256 (several times faster than
/// the portable implementations), dalek for X25519.
pub fn default_crypto() -> Box<dyn CryptoResolver + Send> {
    Box::new(FallbackResolver::new(Box::new(RingResolver), Box::new(DefaultResolver)))
}

/// Why a handshake or record failed.
///
/// The texts name no secret, but a peer needs to know only *that* it failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// The primitives or the system's randomness failed before anything was sent.
    #[error("cannot start a handshake: {detail}")]
    Setup {
        /// What failed.
        detail: String,
    },
    /// Not a message of this handshake.
    #[error("a handshake message has {HANDSHAKE_BYTES} bytes, found {len}")]
    HandshakeLength {
        /// Bytes found.
        len: usize,
    },
    /// The message does not open.
    #[error(
        "the handshake failed: the peer holds another key, or wire version, network, evidence or policy differ; \
         fetch the worker's current evidence"
    )]
    Handshake,
    /// The message does not fit a record.
    #[error("a message has at most {MAX_MESSAGE} bytes, found {len}; split it")]
    MessageTooLarge {
        /// Bytes found.
        len: usize,
    },
    /// No record has this length.
    #[error("{len} bytes are no record: its size is none of the buckets")]
    RecordLength {
        /// Bytes found.
        len: usize,
    },
    /// The record does not open.
    #[error("the record was altered, lost, repeated or reordered; open a new session")]
    Record,
    /// The peer pads otherwise.
    #[error("the record's padding is not canonical; open a new session")]
    Padding,
    /// An earlier record failed, or the record counter is used up.
    #[error("the channel is closed; open a new session")]
    Closed,
}

/// What both sides must agree on before they speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prologue {
    /// Version of the session protocol.
    pub wire_version: u16,
    /// Hash of the genesis file.
    pub network_id: [u8; 32],
    /// Digest of the evidence the asker verified.
    pub evidence_digest: [u8; 32],
    /// The asker's policy, [`crate::Live::id`].
    pub policy: u8,
}

impl Prologue {
    pub(crate) fn encode(&self) -> Vec<u8> {
        [
            PROLOGUE_DOMAIN,
            &self.wire_version.to_le_bytes(),
            &self.network_id,
            &self.evidence_digest,
            &[self.policy],
        ]
        .concat()
    }
}

/// The enclave's Noise key: X25519, made and kept in the enclave's memory, wiped when dropped.
pub struct StaticKey(StaticSecret);

impl StaticKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn generate() -> Result<Self, NoiseError> {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new()
            .fill(bytes.as_mut())
            .map_err(|_| NoiseError::Setup { detail: "the system gave no randomness".into() })?;
        Ok(Self(StaticSecret::from(*bytes)))
    }

    /// The public half, for the claims.
    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }
}

impl fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticKey({})", hex::encode(self.public()))
    }
}

/// An asker that has sent message 1 and waits for message 2.
pub struct Initiator {
    state: HandshakeState,
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator").finish_non_exhaustive()
    }
}

impl Initiator {
    /// Begins a handshake with the enclave whose claims hold the key `responder`.
    ///
    /// # Errors
    /// If the primitives or the system's randomness fail.
    pub fn start(
        crypto: Crypto,
        prologue: &Prologue,
        responder: &[u8; 32],
    ) -> Result<(Self, Vec<u8>), NoiseError> {
        let mut state = Builder::with_resolver(params()?, crypto())
            .prologue(&prologue.encode())
            .and_then(|builder| builder.remote_public_key(responder))
            .and_then(Builder::build_initiator)
            .map_err(setup)?;
        let message = write_handshake(&mut state).map_err(setup)?;
        Ok((Self { state }, message))
    }

    /// Completes the handshake with the enclave's answer.
    ///
    /// # Errors
    /// If the answer is not from the holder of the key, or the prologues differ.
    pub fn finish(mut self, message: &[u8]) -> Result<Channel, NoiseError> {
        read_handshake(&mut self.state, message)?;
        Channel::new(self.state)
    }
}

/// Answers an asker's message 1: the enclave's side of the handshake, in one step.
///
/// # Errors
/// If the message is not for `key`, or the prologues differ.
pub fn respond(
    crypto: Crypto,
    key: &StaticKey,
    prologue: &Prologue,
    message: &[u8],
) -> Result<(Channel, Vec<u8>), NoiseError> {
    let private = Zeroizing::new(key.0.to_bytes());
    let mut state = Builder::with_resolver(params()?, crypto())
        .prologue(&prologue.encode())
        .and_then(|builder| builder.local_private_key(private.as_ref()))
        .and_then(Builder::build_responder)
        .map_err(setup)?;
    read_handshake(&mut state, message)?;
    let answer = write_handshake(&mut state).map_err(setup)?;
    Ok((Channel::new(state)?, answer))
}

fn params() -> Result<NoiseParams, NoiseError> {
    PATTERN.parse().map_err(setup)
}

fn setup(error: snow::Error) -> NoiseError {
    NoiseError::Setup { detail: error.to_string() }
}

fn write_handshake(state: &mut HandshakeState) -> Result<Vec<u8>, snow::Error> {
    let mut message = vec![0; HANDSHAKE_BYTES];
    let len = state.write_message(&[], &mut message)?;
    message.truncate(len);
    Ok(message)
}

/// Reads a handshake message, whose payload must be empty: its fixed length says so.
fn read_handshake(state: &mut HandshakeState, message: &[u8]) -> Result<(), NoiseError> {
    if message.len() != HANDSHAKE_BYTES {
        return Err(NoiseError::HandshakeLength { len: message.len() });
    }
    let mut payload = [0; HANDSHAKE_BYTES];
    state.read_message(message, &mut payload).map(drop).map_err(|_| NoiseError::Handshake)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prologue() -> Prologue {
        Prologue { wire_version: 1, network_id: [1; 32], evidence_digest: [2; 32], policy: 0 }
    }

    fn pair() -> (Channel, Channel) {
        let key = StaticKey::generate().unwrap();
        let (initiator, first) = Initiator::start(default_crypto, &prologue(), &key.public()).unwrap();
        let (enclave, second) = respond(default_crypto, &key, &prologue(), &first).unwrap();
        (initiator.finish(&second).unwrap(), enclave)
    }

    #[test]
    fn both_sides_end_with_one_handshake_hash() {
        let (asker, enclave) = pair();
        assert_eq!(asker.handshake_hash(), enclave.handshake_hash());
        assert_ne!(asker.handshake_hash(), pair().0.handshake_hash());
    }

    #[test]
    fn any_difference_in_the_prologue_or_key_stops_the_handshake() {
        let key = StaticKey::generate().unwrap();
        let (_, first) = Initiator::start(default_crypto, &prologue(), &key.public()).unwrap();
        let others = [
            Prologue { wire_version: 2, ..prologue() },
            Prologue { network_id: [9; 32], ..prologue() },
            Prologue { evidence_digest: [9; 32], ..prologue() },
            Prologue { policy: 2, ..prologue() },
        ];
        for other in others {
            let error = respond(default_crypto, &key, &other, &first).unwrap_err();
            assert_eq!(error, NoiseError::Handshake, "{other:?}");
        }
        let stranger = StaticKey::generate().unwrap();
        assert_eq!(
            respond(default_crypto, &stranger, &prologue(), &first).unwrap_err(),
            NoiseError::Handshake
        );
    }

    #[test]
    fn an_altered_or_cut_handshake_message_is_refused() {
        let key = StaticKey::generate().unwrap();
        let (initiator, first) = Initiator::start(default_crypto, &prologue(), &key.public()).unwrap();
        for at in 0..first.len() {
            let mut altered = first.clone();
            // The top bit of an X25519 key is ignored by RFC 7748, yet the transcript covers it.
            altered[at] ^= 0x80;
            assert_eq!(
                respond(default_crypto, &key, &prologue(), &altered).unwrap_err(),
                NoiseError::Handshake,
                "byte {at}"
            );
        }
        assert_eq!(
            respond(default_crypto, &key, &prologue(), &first[1..]).unwrap_err(),
            NoiseError::HandshakeLength { len: HANDSHAKE_BYTES - 1 }
        );
        let (_, mut second) = respond(default_crypto, &key, &prologue(), &first).unwrap();
        second[40] ^= 1;
        assert_eq!(initiator.finish(&second).unwrap_err(), NoiseError::Handshake);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Directions interleave freely, and both cross a rekey in some cases.
        #[test]
        fn any_sequence_of_messages_round_trips(
            start in 0..2 * REKEY_EVERY,
            steps in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..3000)), 1..40),
        ) {
            let (mut asker, mut enclave) = pair();
            for _ in 0..start {
                let record = asker.seal(b"").unwrap();
                prop_assert_eq!(enclave.open(&record).unwrap(), b"");
            }
            for (up, message) in steps {
                let (from, to) = if up { (&mut asker, &mut enclave) } else { (&mut enclave, &mut asker) };
                let record = from.seal(&message).unwrap();
                prop_assert_eq!(record.len(), record_len(message.len()).unwrap());
                prop_assert_eq!(to.open(&record).unwrap(), message);
            }
        }

        #[test]
        fn a_tampered_record_closes_the_channel(message in prop::collection::vec(any::<u8>(), 0..500), at: prop::sample::Index, flip in 1u8..) {
            let (mut asker, mut enclave) = pair();
            let record = asker.seal(&message).unwrap();
            let mut altered = record.clone();
            altered[at.index(record.len())] ^= flip;
            prop_assert_eq!(enclave.open(&altered), Err(NoiseError::Record));
            prop_assert_eq!(enclave.open(&record), Err(NoiseError::Closed));
            prop_assert_eq!(enclave.seal(b"x"), Err(NoiseError::Closed));
        }

        #[test]
        fn only_the_bucket_of_a_message_shows(a in 0..=MAX_MESSAGE, b in 0..=MAX_MESSAGE) {
            let (mut asker, _) = pair();
            let (long, short) = (asker.seal(&vec![b'a'; a]).unwrap(), asker.seal(&vec![0; b]).unwrap());
            let bucket = |len: usize| BUCKETS.iter().position(|&bucket| len + 2 <= bucket);
            prop_assert_eq!(long.len() == short.len(), bucket(a) == bucket(b));
        }
    }

    #[test]
    fn skipped_repeated_or_reflected_records_are_refused() {
        let (mut asker, mut enclave) = pair();
        let (first, second) = (asker.seal(b"1").unwrap(), asker.seal(b"2").unwrap());
        assert_eq!(enclave.open(&second), Err(NoiseError::Record));

        let (mut asker2, mut enclave2) = pair();
        let record = asker2.seal(b"1").unwrap();
        enclave2.open(&record).unwrap();
        assert_eq!(enclave2.open(&record), Err(NoiseError::Record));

        assert_eq!(asker.open(&first), Err(NoiseError::Record));
    }

    #[test]
    fn a_record_of_another_size_is_refused_unread() {
        let (_, mut enclave) = pair();
        assert_eq!(enclave.open(&[0; 100]), Err(NoiseError::RecordLength { len: 100 }));
        assert_eq!(enclave.open(&[0; 144]), Err(NoiseError::Closed));
    }

    #[test]
    fn messages_have_a_limit() {
        let (mut asker, mut enclave) = pair();
        let largest = vec![7; MAX_MESSAGE];
        assert_eq!(enclave.open(&asker.seal(&largest).unwrap()).unwrap(), largest);
        let error = asker.seal(&[0; MAX_MESSAGE + 1]).unwrap_err();
        assert_eq!(error, NoiseError::MessageTooLarge { len: MAX_MESSAGE + 1 });
        // Nothing was sent, so the channel goes on.
        assert_eq!(enclave.open(&asker.seal(b"ok").unwrap()).unwrap(), b"ok");
    }
}
