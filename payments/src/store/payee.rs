//! A worker's vouchers.
//!
//! The order that makes them safe:
//!
//! 1. `Payee::check` accepts a voucher;
//! 2. [`PayeeStore::append`] writes it to the journal, one `write(2)`: from here on a dead *process*
//!    cannot lose it;
//! 3. the worker credits the session;
//! 4. within 10 ms [`PayeeStore::sync`] makes everything written so far safe from a dead *machine*, in
//!    one `fdatasync` for all sessions. What a power cut can cost is thus bounded by what all askers
//!    together pay in 10 ms, and the askers still hold those vouchers.
//!
//! What must never be lost, not even to a power cut, is the promise to take no more vouchers once a
//! close was agreed: [`PayeeStore::mark_closing`] syncs before it returns.
//!
//! **Compaction.** The journal grows, the newest voucher of a channel does not. When the journal has
//! passed a size, `sync` compacts: appends move to a new file first; then everything known is committed to redb
//! (fsync'd); only then is the old file removed. A crash between any two of these steps finds redb,
//! perhaps an old journal and a new one, and reading them in order gives the same state, because
//! totals only rise and closing is never undone. So at each moment some durable place holds every
//! acknowledged record.
//!
//! **Failure.** When a write or sync fails, what the disk holds is unknown (Linux marks pages clean
//! that it failed to write), so the store refuses everything from then on.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bincode::{Decode, Encode};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    StoreError,
    journal::{self, Journal},
    open_database, private_file, sync_directory,
};
use crate::{
    Address, NanoTon, SignedVoucher,
    channel::ChannelParams,
    codec::{self, WireError},
};

const TABLE: TableDefinition<'_, &[u8; 33], &[u8]> = TableDefinition::new("payee/v1");
const DATABASE: &str = "payee.redb";
const JOURNAL_PREFIX: &str = "vouchers-";
const RECORD_VERSION: u8 = 1;
const MAX_RECORD_BYTES: usize = journal::MAX_PAYLOAD;

/// About ten seconds of vouchers at the rate this is built for.
const COMPACT_AT_BYTES: u64 = 4 * 1024 * 1024;

/// 100,000 channels take about 40 MB of memory.
const MAX_CHANNELS: usize = 100_000;

/// What is kept of one channel.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PayeeChannel {
    /// Its terms.
    pub params: ChannelParams,
    /// The best voucher.
    pub newest: Option<SignedVoucher>,
    /// Deadline of the latest agreement to close, if one was signed.
    pub closing_until: Option<u64>,
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Entry {
    /// A new channel.
    Channel(ChannelParams),
    /// A voucher.
    Voucher(SignedVoucher),
    /// An agreement to close.
    Closing(Address, u64),
    /// A channel that is over.
    Forget(Address),
}

impl Entry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(RECORD_VERSION, self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        codec::decode(RECORD_VERSION, bytes, MAX_RECORD_BYTES)
    }
}

/// Counters since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayeeStats {
    /// Vouchers written.
    pub vouchers: u64,
    /// Times the disk was told to sync.
    pub fsyncs: u64,
    /// Times the journal was folded into the database.
    pub compactions: u64,
    /// Bytes of the journal skipped when it was read, torn by a crash.
    pub skipped_bytes: u64,
}

/// A worker's durable memory. Shared between threads; every method takes `&self`.
#[derive(Debug)]
pub struct PayeeStore {
    dir: PathBuf,
    database: Database,
    state: Mutex<State>,
    /// Held while syncing: whoever gets it knows that all earlier syncs are done, not only begun.
    syncing: Mutex<()>,
    /// Held while compacting, so that two compactions cannot overlap.
    compacting: Mutex<()>,
    poisoned: AtomicBool,
    vouchers: AtomicU64,
    fsyncs: AtomicU64,
    compactions: AtomicU64,
    skipped: u64,
}

#[derive(Debug)]
struct State {
    channels: BTreeMap<Address, PayeeChannel>,
    journal: Journal<File>,
    number: u64,
    /// Written since the last sync.
    dirty: bool,
    /// Journals before the current one, not synced yet.
    unsynced: Vec<Arc<File>>,
}

impl PayeeStore {
    /// Opens or creates the store in `dir`, and folds in what a crash left in the journal.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(StoreError::io("creating the directory", dir))?;
        // The database's lock keeps a second process out of the journals as well.
        let path = dir.join(DATABASE);
        let database = open_database(&path)?;
        let mut channels = load(&database).map_err(|error| error.at(&path))?;

        let old = journals(dir)?;
        let mut skipped = 0;
        for (_, path) in &old {
            let bytes = fs::read(path).map_err(StoreError::io("reading", path))?;
            skipped += journal::scan(&bytes, |payload| match Entry::decode(payload) {
                Ok(entry) => apply(&mut channels, &entry),
                Err(error) => tracing::error!(%error, path = %path.display(), "a journal record was skipped"),
            });
        }
        if skipped > 0 {
            tracing::warn!(skipped, "the voucher journal was cut off by a crash; whole records were kept");
        }
        save(&database, &channels).map_err(|error| error.at(&path))?;
        let number = old.last().map_or(0, |(number, _)| number + 1);
        let journal = create_journal(dir, number)?;
        for (_, path) in &old {
            fs::remove_file(path).map_err(StoreError::io("removing", path))?;
        }
        Ok(Self {
            dir: dir.into(),
            database,
            state: Mutex::new(State { channels, journal, number, dirty: false, unsynced: Vec::new() }),
            syncing: Mutex::new(()),
            compacting: Mutex::new(()),
            poisoned: AtomicBool::new(false),
            vouchers: AtomicU64::new(0),
            fsyncs: AtomicU64::new(0),
            compactions: AtomicU64::new(0),
            skipped: skipped as u64,
        })
    }

    /// Notes a channel's terms, without which its vouchers mean nothing; returns what is known of it.
    pub fn add(&self, params: &ChannelParams) -> Result<PayeeChannel, StoreError> {
        let address = params.address()?;
        let mut state = self.lock()?;
        if let Some(known) = state.channels.get(&address) {
            return Ok(known.clone());
        }
        if state.channels.len() >= MAX_CHANNELS {
            return Err(StoreError::Full { max: MAX_CHANNELS });
        }
        self.write(&mut state, &Entry::Channel(*params))?;
        let channel = PayeeChannel { params: *params, newest: None, closing_until: None };
        state.channels.insert(address, channel.clone());
        Ok(channel)
    }

    /// Writes a voucher that was checked. When this returns, `kill -9` cannot lose it: now credit it.
    pub fn append(&self, signed: &SignedVoucher) -> Result<(), StoreError> {
        let mut state = self.lock()?;
        let channel = signed.voucher.channel;
        if !state.channels.contains_key(&channel) {
            return Err(StoreError::Unknown { channel });
        }
        let entry = Entry::Voucher(*signed);
        self.write(&mut state, &entry)?;
        apply(&mut state.channels, &entry);
        self.vouchers.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that a close was agreed, and makes that durable before it returns. Call it **before**
    /// the worker's signature leaves.
    pub fn mark_closing(&self, channel: &Address, deadline: u32) -> Result<(), StoreError> {
        let mut state = self.lock()?;
        if !state.channels.contains_key(channel) {
            return Err(StoreError::Unknown { channel: *channel });
        }
        let entry = Entry::Closing(*channel, u64::from(deadline));
        self.write(&mut state, &entry)?;
        apply(&mut state.channels, &entry);
        drop(state);
        self.sync()?;
        Ok(())
    }

    /// Drops a channel that is over on the chain.
    pub fn forget(&self, channel: &Address) -> Result<(), StoreError> {
        let mut state = self.lock()?;
        if state.channels.contains_key(channel) {
            let entry = Entry::Forget(*channel);
            self.write(&mut state, &entry)?;
            apply(&mut state.channels, &entry);
        }
        Ok(())
    }

    /// Makes everything written so far safe from a power cut; returns whether there was anything. The
    /// shell calls it within 10 ms of an append, off the async threads: it waits for the disk, while
    /// appends go on. It also compacts when the journal has grown.
    pub fn sync(&self) -> Result<bool, StoreError> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock()?;
        if !state.dirty && state.unsynced.is_empty() {
            return Ok(false);
        }
        let path = journal_path(&self.dir, state.number);
        let mut files = std::mem::take(&mut state.unsynced);
        if std::mem::take(&mut state.dirty) {
            let current = state.journal.medium.try_clone();
            files.push(Arc::new(
                current.map_err(|error| self.poison(StoreError::io("duplicating", &path)(error)))?,
            ));
        }
        let compact = state.journal.len() >= COMPACT_AT_BYTES;
        drop(state);
        for file in files {
            self.fsyncs.fetch_add(1, Ordering::Relaxed);
            file.sync_data().map_err(|error| self.poison(StoreError::io("syncing", &path)(error)))?;
        }
        if compact {
            self.compact()?;
        }
        Ok(true)
    }

    /// Whether anything waits for [`PayeeStore::sync`].
    pub fn needs_sync(&self) -> bool {
        self.lock().is_ok_and(|state| state.dirty || !state.unsynced.is_empty())
    }

    /// Folds the journal into the database. [`PayeeStore::sync`] does it when the journal has grown.
    pub fn compact(&self) -> Result<(), StoreError> {
        let Ok(_compacting) = self.compacting.try_lock() else {
            return Ok(());
        };
        // 1. Appends move to a new journal.
        let mut state = self.lock()?;
        let number = state.number + 1;
        let next = create_journal(&self.dir, number).map_err(|error| self.poison(error))?;
        let old = std::mem::replace(&mut state.journal, next);
        let old_path = journal_path(&self.dir, state.number);
        state.number = number;
        if std::mem::take(&mut state.dirty) {
            // Until the commit below is done, a `sync` must still cover it.
            state.unsynced.push(Arc::new(old.medium));
        }
        let channels = state.channels.clone();
        drop(state);
        // 2. What the old journal says becomes durable elsewhere.
        let path = self.dir.join(DATABASE);
        save(&self.database, &channels).map_err(|error| self.poison(error.at(&path)))?;
        // 3. Nothing needs it any more. If it stays, the next start reads it to no effect.
        if let Err(error) = fs::remove_file(&old_path) {
            tracing::warn!(%error, path = %old_path.display(), "an old journal could not be removed");
        }
        self.compactions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What is known of a channel.
    pub fn get(&self, channel: &Address) -> Option<PayeeChannel> {
        self.unpoisoned().channels.get(channel).cloned()
    }

    /// Everything known, by address.
    pub fn channels(&self) -> Vec<(Address, PayeeChannel)> {
        let state = self.unpoisoned();
        state.channels.iter().map(|(address, channel)| (*address, channel.clone())).collect()
    }

    /// Counters.
    pub fn stats(&self) -> PayeeStats {
        PayeeStats {
            vouchers: self.vouchers.load(Ordering::Relaxed),
            fsyncs: self.fsyncs.load(Ordering::Relaxed),
            compactions: self.compactions.load(Ordering::Relaxed),
            skipped_bytes: self.skipped,
        }
    }

    fn write(&self, state: &mut State, entry: &Entry) -> Result<(), StoreError> {
        state.dirty = true;
        state.journal.append(&entry.encode()).map_err(|error| {
            let path = journal_path(&self.dir, state.number);
            let failed = StoreError::io("appending", path)(error.source);
            if error.undone { failed } else { self.poison(failed) }
        })
    }

    fn poison(&self, error: StoreError) -> StoreError {
        self.poisoned.store(true, Ordering::SeqCst);
        tracing::error!(%error, "the voucher store stops");
        error
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.unpoisoned();
        if self.poisoned.load(Ordering::SeqCst) {
            return Err(StoreError::Poisoned);
        }
        Ok(state)
    }

    /// A thread that panicked in here left the state whole: it is changed only after the write.
    fn unpoisoned(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes one record into account. Order and repetition do not matter, except that `Forget` undoes what
/// came before it.
fn apply(channels: &mut BTreeMap<Address, PayeeChannel>, entry: &Entry) {
    match entry {
        Entry::Channel(params) => {
            if let Ok(address) = params.address() {
                channels.entry(address).or_insert_with(|| PayeeChannel {
                    params: *params,
                    newest: None,
                    closing_until: None,
                });
            }
        }
        Entry::Voucher(signed) => {
            if let Some(channel) = channels.get_mut(&signed.voucher.channel) {
                let known = channel.newest.map_or(NanoTon::ZERO, |newest| newest.voucher.cumulative);
                if signed.voucher.cumulative > known {
                    channel.newest = Some(*signed);
                }
            }
        }
        Entry::Closing(address, deadline) => {
            if let Some(channel) = channels.get_mut(address) {
                channel.closing_until = channel.closing_until.max(Some(*deadline));
            }
        }
        Entry::Forget(address) => {
            channels.remove(address);
        }
    }
}

/// Journals in `dir`, oldest first.
fn journals(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("listing", dir))? {
        let entry = entry.map_err(StoreError::io("listing", dir))?;
        let number =
            entry.file_name().to_str().and_then(|name| name.strip_prefix(JOURNAL_PREFIX)?.parse().ok());
        found.extend(number.map(|number: u64| (number, entry.path())));
    }
    found.sort();
    Ok(found)
}

fn journal_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{JOURNAL_PREFIX}{number:012}"))
}

fn create_journal(dir: &Path, number: u64) -> Result<Journal<File>, StoreError> {
    let path = journal_path(dir, number);
    let file = private_file().append(true).create_new(true).open(&path);
    let file = file.map_err(StoreError::io("creating", &path))?;
    sync_directory(dir)?;
    Ok(Journal::new(file, 0))
}

/// redb's errors, before the path is known.
enum Failure {
    Database(Box<redb::Error>),
    Other(StoreError),
}

impl Failure {
    fn at(self, path: &Path) -> StoreError {
        match self {
            Self::Database(source) => StoreError::Database { path: path.into(), source },
            Self::Other(error) => error,
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

fn load(database: &Database) -> Result<BTreeMap<Address, PayeeChannel>, Failure> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(TABLE) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
        table => table?,
    };
    let mut channels = BTreeMap::new();
    for record in table.iter()? {
        let (key, value) = record?;
        let channel = Address::from_bytes(key.value());
        let record = codec::decode(RECORD_VERSION, value.value(), MAX_RECORD_BYTES)
            .map_err(|source| Failure::Other(StoreError::Record { channel, source }))?;
        channels.insert(channel, record);
    }
    Ok(channels)
}

/// Commits everything, durably. Only records that differ are written.
fn save(database: &Database, channels: &BTreeMap<Address, PayeeChannel>) -> Result<(), Failure> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(redb::Durability::Immediate)?;
    {
        let mut table = transaction.open_table(TABLE)?;
        table.retain(|key, _| channels.contains_key(&Address::from_bytes(key)))?;
        for (address, channel) in channels {
            let key = address.to_bytes();
            let record = codec::encode(RECORD_VERSION, channel);
            let same = table.get(&key)?.is_some_and(|known| known.value() == record);
            if !same {
                table.insert(&key, record.as_slice())?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
#[path = "payee_tests.rs"]
mod tests;
