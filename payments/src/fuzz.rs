//! Bodies for fuzzers: whatever the bytes, nothing may panic, and what decodes must encode back to the
//! same bytes. `tests/it/fuzz_replay.rs` replays the corpus with mutations on stable Rust; cargo-fuzz
//! targets can call the same functions.

use crate::{
    SignedReceipt, SignedVoucher, cell,
    channel::ChannelParams,
    store::{Entry, scan_journal},
};

/// A signed voucher from the wire.
pub fn voucher(bytes: &[u8]) {
    if let Ok(signed) = SignedVoucher::decode(bytes) {
        assert_eq!(signed.encode(), bytes);
        let _ = signed.voucher.hash();
        let _ = signed.verify_strict(&signed.voucher.channel.hash);
    }
}

/// Channel terms from the wire.
pub fn channel_params(bytes: &[u8]) {
    if let Ok(params) = ChannelParams::decode(bytes) {
        assert_eq!(params.encode(), bytes);
        let _ = params.address();
    }
}

/// A signed receipt from the wire.
pub fn receipt(bytes: &[u8]) {
    if let Ok(signed) = SignedReceipt::decode(bytes) {
        assert_eq!(signed.encode(), bytes);
        let _ = signed.verify();
    }
}

/// A journal file, as a crash may leave it.
pub fn journal(bytes: &[u8]) {
    let skipped = scan_journal(bytes, |payload| {
        if let Ok(entry) = Entry::decode(payload) {
            assert_eq!(entry.encode(), payload);
        }
    });
    assert!(skipped <= bytes.len());
}

/// A bag of cells from a chain endpoint.
pub fn boc(bytes: &[u8]) {
    if let Ok(cell) = cell::parse(bytes) {
        let again = cell::to_boc(&cell).ok().and_then(|boc| cell::parse(&boc).ok());
        assert_eq!(again.map(|again| cell::hash(&again)), Some(cell::hash(&cell)));
    }
}

/// Addresses and amounts as people and endpoints write them.
pub fn text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(address) = text.parse::<crate::Address>() {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    if let Ok(amount) = text.parse::<crate::NanoTon>() {
        assert_eq!(amount.to_string().parse(), Ok(amount));
    }
}
