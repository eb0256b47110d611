//! Fuzz bodies: feed each any bytes, none may panic. The integration tests replay a corpus through them
//! with seeded mutations; a fuzzer can call them directly.

use std::task::{Context, Poll, Waker};

use futures::io::Cursor;

use crate::{
    core::{Directory, DirectoryLimits, SignedAd},
    net::{self, SharedDirectory},
    wire::{FrameReader, MAX_SESSION_FRAME},
};

const NOW: u64 = 1_800_000_000;

/// A signed ad from a stranger, through envelope, bounds, clock, signature and directory.
pub fn ad(bytes: &[u8]) {
    let Ok(signed) = SignedAd::decode(bytes) else { return };
    if let Ok(ad) = signed.claims() {
        let mut directory = Directory::new(ad.network_id, DirectoryLimits::default());
        let _ = directory.insert(signed.clone(), ad.issued_at);
        let _ = directory.expire(NOW);
    }
    let _ = signed.verify(&[0; 32], NOW);
}

/// A byte stream, as frames.
pub fn frame(bytes: &[u8]) {
    let mut reader = FrameReader::new(Cursor::new(bytes), MAX_SESSION_FRAME);
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Ok(Some(frame))) = reader.poll_frame(&mut cx) {
        assert!(frame.len() <= MAX_SESSION_FRAME);
    }
}

/// Both directions of the exchange protocol; a snapshot goes into a directory.
pub fn snapshot(bytes: &[u8]) {
    let _ = net::decode_request(bytes);
    if let Ok(Some(ads)) = net::decode_response(bytes).map(net::ads_of) {
        let directory = SharedDirectory::new(Directory::new([7; 32], DirectoryLimits::default()));
        let (taken, _) = net::take_snapshot(&directory, &ads, NOW, |_| ());
        assert!(taken.len() <= ads.len());
    }
}
