//! The one place where this crate touches bincode, so that a compatible encoder can replace it without a wire
//! change.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

use super::MAX_FRAME;

type Config = Configuration<LittleEndian, Varint, Limit<MAX_FRAME>>;

const CONFIG: Config = bincode::config::standard().with_limit::<MAX_FRAME>();

/// Appends `value` to `out`. False if it exceeds the frame limit, in which case `out` is as it was.
pub fn encode_into<T: Encode>(value: &T, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    match bincode::encode_into_std_write(value, out, CONFIG) {
        Ok(_) if out.len() - start <= MAX_FRAME => true,
        _ => {
            out.truncate(start);
            false
        }
    }
}

/// Reads one value that fills `bytes` exactly; `None` for anything else.
#[must_use]
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Option<T> {
    if bytes.len() > MAX_FRAME {
        return None;
    }
    match bincode::decode_from_slice(bytes, CONFIG) {
        Ok((value, used)) if used == bytes.len() => Some(value),
        _ => None,
    }
}
