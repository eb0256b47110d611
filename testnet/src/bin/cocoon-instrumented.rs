//! The `cocoon` program with a recording tap and, if asked for, a null cipher: for the capture test only.
//!
//! `COCOON_TEST_TAP` names the folder for recordings, `COCOON_TEST_CIPHER` is `real` or `null`. Both are
//! required, so that this program is never taken for the real one.

use std::{process::ExitCode, sync::Arc};

use cocoon_node::Instruments;
use cocoon_testnet::{capture::FileTap, null_cipher};

fn main() -> ExitCode {
    let var = |name: &str| std::env::var(name).ok();
    let (Some(folder), Some(cipher)) = (var("COCOON_TEST_TAP"), var("COCOON_TEST_CIPHER")) else {
        eprintln!("this is a test program; it needs COCOON_TEST_TAP and COCOON_TEST_CIPHER");
        return ExitCode::from(2);
    };
    let mut instruments = Instruments::default();
    match FileTap::new(&folder) {
        Ok(tap) => instruments.tap = Some(Arc::new(tap)),
        Err(error) => {
            eprintln!("cannot record into {folder}: {error}");
            return ExitCode::FAILURE;
        }
    }
    match cipher.as_str() {
        "real" => {}
        "null" => {
            eprintln!("NULL CIPHER: nothing is encrypted; this is a test");
            instruments.crypto = null_cipher::crypto;
        }
        other => {
            eprintln!("COCOON_TEST_CIPHER is {other}; it must be real or null");
            return ExitCode::from(2);
        }
    }
    cocoon_node::main_with(instruments)
}
