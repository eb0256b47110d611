//! Records after the handshake.

use std::fmt;

use snow::{HandshakeState, TransportState};
use zeroize::Zeroizing;

use super::{
    NoiseError,
    padding::{is_record_len, pad, record_len, unpad},
};

/// Each side replaces its sending key after this many records, counted per direction, and the
/// receiver follows in step (Noise §4.2, §11.3). The old key is gone then, so a key that leaks does
/// not open earlier records. The cost, one block of the cipher, vanishes at this rate.
pub const REKEY_EVERY: u64 = 1024;

/// Both directions of an established channel.
///
/// The first record that does not open closes it, in both directions: over a reliable stream that
/// is an attack or a bug, and in neither case is there anything to salvage.
pub struct Channel {
    transport: TransportState,
    handshake_hash: [u8; 32],
    /// The padded plaintext of the record being sealed; kept to spare an allocation per record.
    padded: Zeroizing<Vec<u8>>,
    closed: bool,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("sent", &self.transport.sending_nonce())
            .field("received", &self.transport.receiving_nonce())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Channel {
    pub(super) fn new(state: HandshakeState) -> Result<Self, NoiseError> {
        let mut handshake_hash = [0; 32];
        let hash = state.get_handshake_hash();
        if hash.len() != handshake_hash.len() {
            return Err(NoiseError::Setup { detail: "the handshake hash is not of 32 bytes".into() });
        }
        handshake_hash.copy_from_slice(hash);
        let transport = state.into_transport_mode().map_err(|_| NoiseError::Handshake)?;
        Ok(Self { transport, handshake_hash, padded: Zeroizing::default(), closed: false })
    }

    /// The hash of the whole handshake: equal on both sides, unique to this session, public.
    pub fn handshake_hash(&self) -> [u8; 32] {
        self.handshake_hash
    }

    /// Encrypts one message, of at most [`super::MAX_MESSAGE`] bytes, as one record.
    ///
    /// # Errors
    /// If the message is too long, or the channel is closed.
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, NoiseError> {
        if self.closed {
            return Err(NoiseError::Closed);
        }
        let len = plaintext.len();
        let record_len = record_len(len).ok_or(NoiseError::MessageTooLarge { len })?;
        if self.padded.capacity() < record_len {
            // Replaced, not grown in place: growing would leave an unwiped copy of plaintext behind.
            self.padded = Zeroizing::new(Vec::with_capacity(record_len));
        }
        pad(plaintext, &mut self.padded)?;
        let mut record = vec![0; record_len];
        self.transport.write_message(&self.padded, &mut record).map_err(|_| {
            self.closed = true;
            NoiseError::Closed
        })?;
        if self.transport.sending_nonce().is_multiple_of(REKEY_EVERY) {
            self.transport.rekey_outgoing();
        }
        Ok(record)
    }

    /// Decrypts one record into its message.
    ///
    /// # Errors
    /// If the record is not exactly the next one of the peer; the channel is closed then.
    pub fn open(&mut self, record: &[u8]) -> Result<Vec<u8>, NoiseError> {
        if self.closed {
            return Err(NoiseError::Closed);
        }
        let opened = self.open_next(record);
        self.closed = opened.is_err();
        opened
    }

    fn open_next(&mut self, record: &[u8]) -> Result<Vec<u8>, NoiseError> {
        if !is_record_len(record.len()) {
            return Err(NoiseError::RecordLength { len: record.len() });
        }
        // As long as the record, because some ciphers decrypt in place with the tag behind.
        let mut message = vec![0; record.len()];
        let len = self.transport.read_message(record, &mut message).map_err(|_| NoiseError::Record)?;
        message.truncate(len);
        unpad(&mut message)?;
        if self.transport.receiving_nonce().is_multiple_of(REKEY_EVERY) {
            self.transport.rekey_incoming();
        }
        Ok(message)
    }
}
