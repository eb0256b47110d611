//! Sizes of records.
//!
//! The length of each streamed token would give much of the text away. So a message grows to the
//! next of a few sizes before it is encrypted:
//!
//! ```text
//! message ‖ zeros ‖ length of the message (u16, little endian)      = one of BUCKETS
//! ```
//!
//! The length stands last so that opening a record cuts its tail off instead of moving the message.

use super::{NoiseError, TAG_BYTES};

/// Sizes of a padded message. Doubling bounds the overhead by half beyond the smallest, which holds
/// a typical batch of tokens; the largest fits Noise's 65,535-byte messages with room for framing.
pub const BUCKETS: [usize; 10] = [128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 61_440];

const LENGTH_BYTES: usize = size_of::<u16>();

/// The longest message of one record: 60 KiB less its length field.
pub const MAX_MESSAGE: usize = BUCKETS[BUCKETS.len() - 1] - LENGTH_BYTES;

/// The length of the record that carries `message_len` bytes; `None` if none does.
pub fn record_len(message_len: usize) -> Option<usize> {
    bucket(message_len).map(|bucket| bucket + TAG_BYTES)
}

fn bucket(message_len: usize) -> Option<usize> {
    BUCKETS.into_iter().find(|&bucket| message_len.saturating_add(LENGTH_BYTES) <= bucket)
}

/// Whether a record may have this length.
pub(super) fn is_record_len(len: usize) -> bool {
    BUCKETS.into_iter().any(|bucket| bucket + TAG_BYTES == len)
}

/// Writes `message`, padded, into `out`, whose previous content is replaced.
pub(crate) fn pad(message: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
    let len = message.len();
    let too_large = NoiseError::MessageTooLarge { len };
    let (Some(bucket), Ok(short)) = (bucket(len), u16::try_from(len)) else {
        return Err(too_large);
    };
    out.clear();
    out.extend_from_slice(message);
    out.resize(bucket - LENGTH_BYTES, 0);
    out.extend_from_slice(&short.to_le_bytes());
    Ok(())
}

/// Cuts the padding off, which must be what [`pad`] writes: a peer cannot hide bytes in it.
pub(crate) fn unpad(padded: &mut Vec<u8>) -> Result<(), NoiseError> {
    let (body, length) = padded.split_last_chunk::<LENGTH_BYTES>().ok_or(NoiseError::Padding)?;
    let len = usize::from(u16::from_le_bytes(*length));
    let zeros = body.get(len..).ok_or(NoiseError::Padding)?;
    if bucket(len) != Some(padded.len()) || zeros.iter().any(|&byte| byte != 0) {
        return Err(NoiseError::Padding);
    }
    padded.truncate(len);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unpad_reverses_pad(message in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut padded = vec![0xAA; 10];
            pad(&message, &mut padded).unwrap();
            prop_assert!(BUCKETS.contains(&padded.len()));
            prop_assert_eq!(Some(padded.len() + TAG_BYTES), record_len(message.len()));
            unpad(&mut padded).unwrap();
            prop_assert_eq!(padded, message);
        }

        #[test]
        fn only_one_padding_is_accepted(message in prop::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, flip in 1u8..) {
            let mut padded = Vec::new();
            pad(&message, &mut padded).unwrap();
            let padding = message.len()..padded.len();
            let at = padding.start + at.index(padding.len());
            padded[at] ^= flip;
            // A shorter length would call message bytes padding: allowed only if they are zero.
            if let Ok(()) = unpad(&mut padded) {
                prop_assert!(at >= padding.end - 2);
                prop_assert_ne!(padded, message);
            }
        }
    }

    #[test]
    fn a_bucket_larger_than_needed_is_refused() {
        let mut padded = vec![0; 256];
        assert_eq!(unpad(&mut padded), Err(NoiseError::Padding));
        assert_eq!(unpad(&mut vec![0; 1]), Err(NoiseError::Padding));
    }
}
