use super::*;
use crate::{
    Voucher,
    channel::tests_support::{key, params},
};

fn voucher(cumulative: u64) -> SignedVoucher {
    Voucher {
        global_id: -217,
        channel: params().address().unwrap(),
        channel_id: params().channel_id,
        cumulative: NanoTon(cumulative),
    }
    .sign(&key(1))
}

fn newest(store: &PayeeStore) -> u64 {
    let channel = store.get(&params().address().unwrap()).unwrap();
    channel.newest.map_or(0, |newest| newest.voucher.cumulative.0)
}

fn journal_file(dir: &Path) -> PathBuf {
    journals(dir).unwrap().pop().unwrap().1
}

#[test]
fn everything_appended_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = PayeeStore::open(dir.path()).unwrap();
    store.add(&params()).unwrap();
    for cumulative in [10, 30, 20] {
        store.append(&voucher(cumulative)).unwrap();
    }
    store.mark_closing(&params().address().unwrap(), 77).unwrap();
    let before = store.channels();
    assert_eq!(newest(&store), 30, "an older voucher does not replace a newer one");
    assert_eq!(store.stats().vouchers, 3);
    drop(store);
    let store = PayeeStore::open(dir.path()).unwrap();
    assert_eq!(store.channels(), before);
    assert_eq!(before[0].1.closing_until, Some(77));
    // And from the database alone.
    drop(store);
    assert_eq!(PayeeStore::open(dir.path()).unwrap().channels(), before);
}

#[test]
fn one_sync_covers_many_appends() {
    let dir = tempfile::tempdir().unwrap();
    let store = PayeeStore::open(dir.path()).unwrap();
    store.add(&params()).unwrap();
    for cumulative in 1..=50 {
        store.append(&voucher(cumulative)).unwrap();
    }
    assert!(store.needs_sync());
    assert!(store.sync().unwrap());
    assert!(!store.sync().unwrap(), "nothing is left to do");
    assert_eq!(store.stats().fsyncs, 1);
}

/// Whatever byte a crash cuts the journal at, all vouchers before the cut are kept.
#[test]
fn a_cut_journal_keeps_every_whole_voucher() {
    let dir = tempfile::tempdir().unwrap();
    let store = PayeeStore::open(dir.path()).unwrap();
    store.add(&params()).unwrap();
    // The channel is in the database, the vouchers only in the journal.
    store.compact().unwrap();
    let mut ends = vec![(0, 0)];
    for cumulative in 1..=4 {
        store.append(&voucher(cumulative)).unwrap();
        ends.push((fs::metadata(journal_file(dir.path())).unwrap().len(), cumulative));
    }
    let journal = fs::read(journal_file(dir.path())).unwrap();
    drop(store);
    let database = fs::read(dir.path().join(DATABASE)).unwrap();
    for cut in (0..=journal.len()).step_by(7).chain([journal.len()]) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DATABASE), &database).unwrap();
        fs::write(journal_path(dir.path(), 9), &journal[..cut]).unwrap();
        let store = PayeeStore::open(dir.path()).unwrap();
        let expected = ends.iter().rev().find(|(end, _)| *end <= cut as u64).unwrap().1;
        assert_eq!(newest(&store), expected, "cut at {cut}");
    }
}

#[test]
fn compaction_keeps_everything_and_the_journal_small() {
    let dir = tempfile::tempdir().unwrap();
    let store = PayeeStore::open(dir.path()).unwrap();
    store.add(&params()).unwrap();
    store.append(&voucher(5)).unwrap();
    store.compact().unwrap();
    assert_eq!(fs::metadata(journal_file(dir.path())).unwrap().len(), 0);
    assert_eq!(journals(dir.path()).unwrap().len(), 1);
    store.append(&voucher(6)).unwrap();
    drop(store);
    let store = PayeeStore::open(dir.path()).unwrap();
    assert_eq!(newest(&store), 6);
    assert!(store.get(&params().address().unwrap()).unwrap().closing_until.is_none());
}

/// A crash between the steps of a compaction leaves two journals, and perhaps a database that holds
/// the old one's content already.
#[test]
fn a_crash_during_compaction_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = PayeeStore::open(dir.path()).unwrap();
    store.add(&params()).unwrap();
    store.append(&voucher(5)).unwrap();
    let old = fs::read(journal_file(dir.path())).unwrap();
    let before_commit = fs::read(dir.path().join(DATABASE)).unwrap();
    store.compact().unwrap();
    store.append(&voucher(8)).unwrap();
    let new = fs::read(journal_file(dir.path())).unwrap();
    drop(store);
    let after_commit = fs::read(dir.path().join(DATABASE)).unwrap();
    for database in [before_commit, after_commit] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DATABASE), &database).unwrap();
        fs::write(journal_path(dir.path(), 1), &old).unwrap();
        fs::write(journal_path(dir.path(), 2), &new).unwrap();
        let store = PayeeStore::open(dir.path()).unwrap();
        assert_eq!(newest(&store), 8);
        assert_eq!(journals(dir.path()).unwrap().len(), 1, "old journals are gone");
    }
}

#[test]
fn a_forgotten_channel_stays_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let store = PayeeStore::open(dir.path()).unwrap();
    store.add(&params()).unwrap();
    store.append(&voucher(5)).unwrap();
    store.compact().unwrap();
    store.forget(&params().address().unwrap()).unwrap();
    drop(store);
    let store = PayeeStore::open(dir.path()).unwrap();
    assert!(store.channels().is_empty());
    assert!(matches!(store.append(&voucher(6)), Err(StoreError::Unknown { .. })));
}

#[test]
fn two_processes_cannot_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let _store = PayeeStore::open(dir.path()).unwrap();
    assert!(matches!(PayeeStore::open(dir.path()), Err(StoreError::InUse { .. })));
}
