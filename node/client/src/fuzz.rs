//! Bodies of fuzz targets: every parser of this crate, fed with bytes of a stranger. None may panic,
//! and what decodes must encode to something that decodes to the same value.

use bytes::Bytes;

use crate::{
    genesis::Genesis,
    session::{
        inner::{self, Message, ToAsker, ToEnclave},
        outer::{ToClient, ToHost},
    },
};

/// A genesis file.
pub fn genesis(data: &[u8]) {
    if let Ok(genesis) = Genesis::parse(data) {
        let _ = genesis.find_model("cocoon-tiny");
    }
}

/// A frame from an asker.
pub fn to_host(data: &[u8]) {
    if let Ok(frame) = ToHost::decode(Bytes::copy_from_slice(data)) {
        let again = frame.encode().map(|bytes| ToHost::decode(bytes.into()));
        assert_eq!(again, Ok(Ok(frame)));
    }
}

/// A frame from a worker's host.
pub fn to_client(data: &[u8]) {
    if let Ok(frame) = ToClient::decode(Bytes::copy_from_slice(data)) {
        // A text beyond the limit is cut when encoded, so only the kind must agree.
        let again = frame.encode().map(|bytes| ToClient::decode(bytes.into()).is_ok());
        assert_eq!(again, Ok(true));
    }
}

/// A record from an asker.
pub fn to_enclave(data: &[u8]) {
    record::<ToEnclave>(data);
}

/// A record from an enclave.
pub fn to_asker(data: &[u8]) {
    record::<ToAsker>(data);
}

fn record<M: Message>(data: &[u8]) {
    if let Ok(messages) = inner::decode::<M>(data) {
        let again = inner::encode(&messages).map(|bytes| inner::decode::<M>(&bytes).map(|again| again.len()));
        assert_eq!(again, Ok(Ok(messages.len())));
    }
}
