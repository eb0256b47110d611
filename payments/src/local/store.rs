//! What the chain keeps on disk: one redb file, one transaction per block.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | format version, genesis, faucet key, counters |
//! | `accounts` | address | `ShardAccount` BoC |
//! | `transactions` | address, logical time | block, `Transaction` BoC |
//! | `blocks` | seqno | header |
//! | `block_transactions` | seqno, index | address, logical time, hash |
//! | `queue` | order of sending | undelivered internal message BoC |
//!
//! **Crash safety.** Everything that a block changes is gathered in a [`BlockChanges`] first and written
//! by one durable redb transaction, so that a process killed at any moment finds, when it opens the file
//! again, either the whole block or nothing of it. External messages that wait for a block live in memory
//! only, as in any TON node: senders resend until their message is seen in a transaction.
//!
//! **Retention.** Headers of empty blocks are kept for [`KEEP_EMPTY_BLOCKS`] blocks, transactions and the
//! headers of their blocks until more than [`KEEP_TRANSACTIONS`] newer ones exist; accounts stay.

use std::{collections::BTreeMap, ops::RangeInclusive, path::Path};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};

use super::{LocalChainError, genesis::Genesis};

/// Headers of empty blocks older than this many blocks are dropped: a day at one block a second, so that
/// a beacon of an attestation that is valid for a day can still be looked up.
pub const KEEP_EMPTY_BLOCKS: u32 = 90_000;

/// Oldest transactions beyond this number are dropped, whole blocks at a time (some 300 MB at 1.5 kB each).
pub const KEEP_TRANSACTIONS: u64 = 200_000;

/// Pages kept in memory; redb's own default is a gigabyte.
const CACHE_BYTES: usize = 32 << 20;

/// Old blocks dropped with one new block, so that pruning never makes one block slow.
const PRUNE_PER_BLOCK: usize = 4;

/// Changes with every incompatible layout.
const FORMAT: u64 = 1;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const ACCOUNTS: TableDefinition<&AccountKey, &[u8]> = TableDefinition::new("accounts");
const TRANSACTIONS: TableDefinition<(&AccountKey, u64), (u32, &[u8])> = TableDefinition::new("transactions");
const BLOCKS: TableDefinition<u32, Header> = TableDefinition::new("blocks");
const BLOCK_TRANSACTIONS: TableDefinition<(u32, u32), (&AccountKey, u64, &[u8; 32])> =
    TableDefinition::new("block_transactions");
const QUEUE: TableDefinition<u64, &[u8]> = TableDefinition::new("queue");

type Header = (&'static [u8; 32], &'static [u8; 32], &'static [u8; 32], u32, u64, u64, u32);

/// Workchain byte and account id.
pub(super) type AccountKey = [u8; 33];

/// A block header as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockRecord {
    pub(super) seqno: u32,
    pub(super) previous: [u8; 32],
    pub(super) root_hash: [u8; 32],
    pub(super) file_hash: [u8; 32],
    pub(super) unixtime: u32,
    pub(super) start_lt: u64,
    pub(super) end_lt: u64,
    pub(super) transactions: u32,
}

/// A transaction as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TransactionRecord {
    pub(super) account: AccountKey,
    pub(super) lt: u64,
    pub(super) hash: [u8; 32],
    pub(super) boc: Vec<u8>,
}

/// A transaction's place in its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TransactionId {
    pub(super) account: AccountKey,
    pub(super) lt: u64,
    pub(super) hash: [u8; 32],
}

/// Everything that one block changes.
#[derive(Debug)]
pub(super) struct BlockChanges {
    pub(super) block: BlockRecord,
    /// `None` removes the account.
    pub(super) accounts: BTreeMap<AccountKey, Option<Vec<u8>>>,
    pub(super) transactions: Vec<TransactionRecord>,
    /// Internal messages delivered, by their place in the queue.
    pub(super) delivered: Vec<u64>,
    /// Internal messages sent and not delivered yet, in order.
    pub(super) queued: Vec<Vec<u8>>,
}

/// The database.
#[derive(Debug)]
pub(super) struct Store {
    db: Database,
}

impl Store {
    /// Writes a new chain. Refuses a file that already holds one.
    pub(super) fn create(path: &Path, genesis: &Genesis, secret: &[u8; 32]) -> Result<Self, LocalChainError> {
        let db = database(path)?;
        let txn = db.begin_write().map_err(redb::Error::from)?;
        {
            let mut counters = txn.open_table(COUNTERS).map_err(redb::Error::from)?;
            // A creation that was killed leaves a file without this entry, which is then written afresh.
            if counters.get("format").map_err(redb::Error::from)?.is_some() {
                return Err(LocalChainError::Exists { path: path.to_owned() });
            }
            counters.insert("format", FORMAT).map_err(redb::Error::from)?;
            counters.insert("transactions", 0).map_err(redb::Error::from)?;
            let mut meta = txn.open_table(META).map_err(redb::Error::from)?;
            meta.insert("zero_state", genesis.zero_state.as_slice()).map_err(redb::Error::from)?;
            meta.insert("faucet_key", secret.as_slice()).map_err(redb::Error::from)?;
            let mut accounts = txn.open_table(ACCOUNTS).map_err(redb::Error::from)?;
            accounts.insert(&genesis.faucet, genesis.faucet_account.as_slice()).map_err(redb::Error::from)?;
            let mut blocks = txn.open_table(BLOCKS).map_err(redb::Error::from)?;
            let block = &genesis.block;
            blocks.insert(block.seqno, header(block)).map_err(redb::Error::from)?;
            txn.open_table(TRANSACTIONS).map_err(redb::Error::from)?;
            txn.open_table(BLOCK_TRANSACTIONS).map_err(redb::Error::from)?;
            txn.open_table(QUEUE).map_err(redb::Error::from)?;
        }
        txn.commit().map_err(redb::Error::from)?;
        Ok(Self { db })
    }

    /// Opens an existing chain and returns its zero state and the faucet's key.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<u8>, [u8; 32]), LocalChainError> {
        if !path.is_file() {
            return Err(LocalChainError::Missing { path: path.to_owned() });
        }
        let db = database(path)?;
        let txn = db.begin_read().map_err(redb::Error::from)?;
        let found = match txn.open_table(COUNTERS) {
            Ok(counters) => counters.get("format").map_err(redb::Error::from)?.map(|format| format.value()),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        match found {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(LocalChainError::Format { path: path.to_owned(), found, expected: FORMAT });
            }
            None => return Err(LocalChainError::Missing { path: path.to_owned() }),
        }
        let meta = txn.open_table(META).map_err(redb::Error::from)?;
        let read = |name: &'static str| -> Result<Vec<u8>, LocalChainError> {
            let value = meta.get(name).map_err(redb::Error::from)?;
            value.map(|value| value.value().to_vec()).ok_or(LocalChainError::Corrupt { what: name })
        };
        let zero_state = read("zero_state")?;
        let secret =
            read("faucet_key")?.try_into().map_err(|_| LocalChainError::Corrupt { what: "faucet_key" })?;
        drop(meta);
        Ok((Self { db }, zero_state, secret))
    }

    /// The newest block.
    pub(super) fn head(&self) -> Result<BlockRecord, LocalChainError> {
        let txn = self.db.begin_read().map_err(redb::Error::from)?;
        let blocks = txn.open_table(BLOCKS).map_err(redb::Error::from)?;
        let last = blocks.last().map_err(redb::Error::from)?;
        last.map(|(seqno, header)| block(seqno.value(), header.value()))
            .ok_or(LocalChainError::Corrupt { what: "blocks" })
    }

    pub(super) fn block(&self, seqno: u32) -> Result<Option<BlockRecord>, LocalChainError> {
        let txn = self.db.begin_read().map_err(redb::Error::from)?;
        let blocks = txn.open_table(BLOCKS).map_err(redb::Error::from)?;
        let found = blocks.get(seqno).map_err(redb::Error::from)?;
        Ok(found.map(|header| block(seqno, header.value())))
    }

    /// The newest block that `accept`s, searched from the head down over at most `limit` headers.
    pub(super) fn find_block(
        &self,
        limit: usize,
        accept: impl Fn(&BlockRecord) -> bool,
    ) -> Result<Option<BlockRecord>, LocalChainError> {
        let txn = self.db.begin_read().map_err(redb::Error::from)?;
        let blocks = txn.open_table(BLOCKS).map_err(redb::Error::from)?;
        for entry in blocks.iter().map_err(redb::Error::from)?.rev().take(limit) {
            let (seqno, header) = entry.map_err(redb::Error::from)?;
            let record = block(seqno.value(), header.value());
            if accept(&record) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    pub(super) fn block_transactions(&self, seqno: u32) -> Result<Vec<TransactionId>, LocalChainError> {
        let txn = self.db.begin_read().map_err(redb::Error::from)?;
        let table = txn.open_table(BLOCK_TRANSACTIONS).map_err(redb::Error::from)?;
        let mut found = Vec::new();
        for entry in table.range(places(seqno)).map_err(redb::Error::from)? {
            let (_, value) = entry.map_err(redb::Error::from)?;
            let (account, lt, hash) = value.value();
            found.push(TransactionId { account: *account, lt, hash: *hash });
        }
        Ok(found)
    }

    /// The `ShardAccount` BoC of an account that exists.
    pub(super) fn account(&self, account: &AccountKey) -> Result<Option<Vec<u8>>, LocalChainError> {
        let txn = self.db.begin_read().map_err(redb::Error::from)?;
        let accounts = txn.open_table(ACCOUNTS).map_err(redb::Error::from)?;
        let found = accounts.get(account).map_err(redb::Error::from)?;
        Ok(found.map(|boc| boc.value().to_vec()))
    }

    /// Transactions of an account, newest first, with logical times in `range`: (lt, block, BoC).
    pub(super) fn transactions(
        &self,
        account: &AccountKey,
        range: RangeInclusive<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, u32, Vec<u8>)>, LocalChainError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let txn = self.db.begin_read().map_err(redb::Error::from)?;
        let table = txn.open_table(TRANSACTIONS).map_err(redb::Error::from)?;
        let range = (account, *range.start())..=(account, *range.end());
        let mut found = Vec::new();
        for entry in table.range(range).map_err(redb::Error::from)?.rev().take(limit) {
            let (key, value) = entry.map_err(redb::Error::from)?;
            let (seqno, boc) = value.value();
            found.push((key.value().1, seqno, boc.to_vec()));
        }
        Ok(found)
    }

    /// The oldest undelivered internal messages, in order.
    pub(super) fn queue(&self, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, LocalChainError> {
        let txn = self.db.begin_read().map_err(redb::Error::from)?;
        let queue = txn.open_table(QUEUE).map_err(redb::Error::from)?;
        let mut found = Vec::new();
        for entry in queue.iter().map_err(redb::Error::from)?.take(limit) {
            let (key, boc) = entry.map_err(redb::Error::from)?;
            found.push((key.value(), boc.value().to_vec()));
        }
        Ok(found)
    }

    /// How many messages and transactions are stored, for status displays and tests.
    pub(super) fn sizes(&self) -> Result<(u64, u64), LocalChainError> {
        let txn = self.db.begin_read().map_err(redb::Error::from)?;
        let queue = txn.open_table(QUEUE).map_err(redb::Error::from)?.len().map_err(redb::Error::from)?;
        let kept =
            txn.open_table(TRANSACTIONS).map_err(redb::Error::from)?.len().map_err(redb::Error::from)?;
        Ok((queue, kept))
    }

    /// Writes one block. Durable when it returns, absent when it fails.
    pub(super) fn apply(&self, changes: &BlockChanges) -> Result<(), LocalChainError> {
        let txn = self.db.begin_write().map_err(redb::Error::from)?;
        write_block(&txn, changes)?;
        prune(&txn, changes.block.seqno)?;
        txn.commit().map_err(redb::Error::from)?;
        Ok(())
    }
}

fn write_block(txn: &WriteTransaction, changes: &BlockChanges) -> Result<(), redb::Error> {
    let seqno = changes.block.seqno;
    txn.open_table(BLOCKS)?.insert(seqno, header(&changes.block))?;
    if changes.transactions.is_empty() && changes.delivered.is_empty() {
        return Ok(());
    }
    let mut accounts = txn.open_table(ACCOUNTS)?;
    for (account, state) in &changes.accounts {
        match state {
            Some(boc) => accounts.insert(account, boc.as_slice())?,
            None => accounts.remove(account)?,
        };
    }
    let mut transactions = txn.open_table(TRANSACTIONS)?;
    let mut of_block = txn.open_table(BLOCK_TRANSACTIONS)?;
    for (index, record) in (0u32..).zip(&changes.transactions) {
        transactions.insert((&record.account, record.lt), (seqno, record.boc.as_slice()))?;
        of_block.insert((seqno, index), (&record.account, record.lt, &record.hash))?;
    }
    let mut queue = txn.open_table(QUEUE)?;
    for place in &changes.delivered {
        queue.remove(place)?;
    }
    let last = queue.last()?.map(|(place, _)| place.value());
    let next = last.map_or(0, |place| place.saturating_add(1));
    for (place, boc) in (next..).zip(&changes.queued) {
        queue.insert(place, boc.as_slice())?;
    }
    let mut counters = txn.open_table(COUNTERS)?;
    let kept = counters.get("transactions")?.map_or(0, |count| count.value());
    counters.insert("transactions", kept.saturating_add(changes.transactions.len() as u64))?;
    Ok(())
}

fn prune(txn: &WriteTransaction, head: u32) -> Result<(), redb::Error> {
    let mut blocks = txn.open_table(BLOCKS)?;
    if let Some(old) = head.checked_sub(KEEP_EMPTY_BLOCKS) {
        let empty = blocks.get(old)?.is_some_and(|header| header.value().6 == 0);
        if empty {
            blocks.remove(old)?;
        }
    }
    let mut counters = txn.open_table(COUNTERS)?;
    let mut kept = counters.get("transactions")?.map_or(0, |count| count.value());
    if kept <= KEEP_TRANSACTIONS {
        return Ok(());
    }
    let mut transactions = txn.open_table(TRANSACTIONS)?;
    let mut of_block = txn.open_table(BLOCK_TRANSACTIONS)?;
    for _ in 0..PRUNE_PER_BLOCK {
        let Some(seqno) = of_block.first()?.map(|(key, _)| key.value().0) else { break };
        if kept <= KEEP_TRANSACTIONS || seqno == head {
            break;
        }
        for (index, account, lt) in listed(&of_block, seqno)? {
            of_block.remove((seqno, index))?;
            transactions.remove((&account, lt))?;
            kept = kept.saturating_sub(1);
        }
        blocks.remove(seqno)?;
    }
    counters.insert("transactions", kept)?;
    Ok(())
}

type BlockTransactions<'txn> = redb::Table<'txn, (u32, u32), (&'static AccountKey, u64, &'static [u8; 32])>;

fn listed(table: &BlockTransactions<'_>, seqno: u32) -> Result<Vec<(u32, AccountKey, u64)>, redb::Error> {
    let mut found = Vec::new();
    for entry in table.range(places(seqno))? {
        let (key, value) = entry?;
        let (account, lt, _) = value.value();
        found.push((key.value().1, *account, lt));
    }
    Ok(found)
}

fn places(seqno: u32) -> RangeInclusive<(u32, u32)> {
    (seqno, 0)..=(seqno, u32::MAX)
}

fn header(block: &BlockRecord) -> (&[u8; 32], &[u8; 32], &[u8; 32], u32, u64, u64, u32) {
    (
        &block.previous,
        &block.root_hash,
        &block.file_hash,
        block.unixtime,
        block.start_lt,
        block.end_lt,
        block.transactions,
    )
}

fn block(seqno: u32, header: (&[u8; 32], &[u8; 32], &[u8; 32], u32, u64, u64, u32)) -> BlockRecord {
    let (previous, root_hash, file_hash, unixtime, start_lt, end_lt, transactions) = header;
    BlockRecord {
        seqno,
        previous: *previous,
        root_hash: *root_hash,
        file_hash: *file_hash,
        unixtime,
        start_lt,
        end_lt,
        transactions,
    }
}

fn database(path: &Path) -> Result<Database, LocalChainError> {
    Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| open_error(path, error))
}

fn open_error(path: &Path, error: DatabaseError) -> LocalChainError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => LocalChainError::Locked { path: path.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(source)) => {
            LocalChainError::Io { path: path.to_owned(), source }
        }
        other => LocalChainError::Storage(Box::new(other.into())),
    }
}
