//! Fuzz bodies of this crate's parsers: they take any bytes and must not panic.

use bytes::Bytes;

use crate::config;
use crate::link::frame::Frame;
use crate::link::{ToEnclave, ToHost};

/// A host–enclave frame, in both directions; what decodes must encode to something that decodes to the same.
pub fn link_frame(bytes: &[u8]) {
    fn one<F: Frame + PartialEq>(bytes: &[u8]) {
        let Ok(frame) = F::decode(Bytes::copy_from_slice(bytes)) else { return };
        let mut again = Vec::new();
        if frame.encode(&mut again).is_ok() {
            assert!(
                F::decode(Bytes::from(again)).is_ok_and(|same| same == frame),
                "a frame changed in a round trip"
            );
        }
    }
    one::<ToEnclave>(bytes);
    one::<ToHost>(bytes);
}

/// What an inference server sends: events, and what is in them.
pub fn server_events(bytes: &[u8]) {
    crate::enclave::remote::fuzz(bytes);
}

/// A configuration file.
pub fn config_file(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        config::fuzz(text);
    }
}
