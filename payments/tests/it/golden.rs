//! Pins what other programs and old disks depend on. A difference here is a new wire version, a new
//! contract, or a mistake. `UPDATE_GOLDEN=1` writes the file anew.

use std::fmt::Write as _;

use cocoon_payments::{SignedReceipt, SignedVoucher, channel};

use crate::testkit::{GLOBAL_ID, params, receipt, voucher};

#[test]
fn formats_are_what_they_were() {
    let params = params();
    let signed = voucher(&params, GLOBAL_ID, 1_234_567_890);
    let receipt = receipt();
    let mut found = String::new();
    for (name, value) in [
        ("code hash", hex::encode(channel::code_hash())),
        ("channel address", params.address().unwrap().to_string()),
        ("channel params", hex::encode(params.encode())),
        ("voucher hash", hex::encode(signed.voucher.hash())),
        ("signed voucher", hex::encode(signed.encode())),
        ("signed receipt", hex::encode(receipt.encode())),
    ] {
        writeln!(found, "{name}: {value}").unwrap();
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/formats.txt"), &found).unwrap();
    }
    assert_eq!(found, include_str!("../golden/formats.txt"));
    assert_eq!(SignedVoucher::decode(&signed.encode()), Ok(signed));
    assert_eq!(SignedReceipt::decode(&receipt.encode()), Ok(receipt));
}
