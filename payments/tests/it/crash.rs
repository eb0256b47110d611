//! `kill -9` in the middle of writing vouchers: whatever was acknowledged is there afterwards.
//!
//! The test runs its own binary again as a child that does nothing but append, sync and compact, and
//! says `ack N` on its output after each append has returned.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use cocoon_payments::store::PayeeStore;

use crate::testkit::{GLOBAL_ID, params, voucher};

const DIR: &str = "COCOON_TEST_CRASH_DIR";

/// The child. Without the variable it is an empty test.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = Arc::new(PayeeStore::open(Path::new(&dir)).unwrap());
    let params = params();
    let known = store.add(&params).unwrap().newest.map_or(0, |newest| newest.voucher.cumulative.0);
    let syncing = store.clone();
    std::thread::spawn(move || {
        loop {
            syncing.sync().unwrap();
            std::thread::yield_now();
        }
    });
    let mut out = std::io::stdout().lock();
    for cumulative in known + 1.. {
        store.append(&voucher(&params, GLOBAL_ID, cumulative)).unwrap();
        writeln!(out, "ack {cumulative}").unwrap();
        out.flush().unwrap();
        if cumulative % 64 == 0 {
            store.compact().unwrap();
        }
    }
}

#[test]
fn kill_9_loses_no_acknowledged_voucher() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child_that_appends_until_it_is_killed", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acks = 0;
        // A different number each round, so that the kill meets different moments.
        while acks < 40 + round * 53 {
            let line = lines.next().expect("the child went on").unwrap();
            if let Some(cumulative) = ack(&line) {
                assert!(cumulative > acknowledged, "the child continued from what was stored");
                acknowledged = cumulative;
                acks += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts, too.
        acknowledged =
            lines.map_while(Result::ok).filter_map(|line| ack(&line)).last().unwrap_or(acknowledged);
        let store = PayeeStore::open(dir.path()).unwrap();
        let newest = store.get(&params().address().unwrap()).unwrap().newest.unwrap();
        // The last append may have happened without being said.
        assert!((acknowledged..=acknowledged + 1).contains(&newest.voucher.cumulative.0));
        assert_eq!(newest, voucher(&params(), GLOBAL_ID, newest.voucher.cumulative.0), "and it is whole");
        acknowledged = newest.voucher.cumulative.0;
    }
}

/// The last line of a killed child may be cut off: only a whole one counts, and a shortened number is
/// lower than the true one.
fn ack(line: &str) -> Option<u64> {
    line.strip_prefix("ack ")?.parse().ok()
}
