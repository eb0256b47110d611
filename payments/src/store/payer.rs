//! An asker's channels: terms, keys, and how much was promised.
//!
//! The file holds keys that sign vouchers, so only its owner may read it. Totals are written without
//! waiting for the disk: if a power cut loses the last ones, the worker shows its newest voucher at
//! the next session and the lane adopts it. Terms and keys are synced before anything is sent to the
//! chain, since a deposit whose key is lost could only be closed slowly.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use bincode::{Decode, Encode};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use zeroize::Zeroizing;

use super::{StoreError, open_database};
use crate::{Address, NanoTon, channel::ChannelParams, codec};

const TABLE: TableDefinition<'_, &[u8; 33], &[u8]> = TableDefinition::new("payer/v1");
const RECORD_VERSION: u8 = 1;
const MAX_RECORD_BYTES: usize = 512;
/// An asker has a handful.
const MAX_CHANNELS: usize = 10_000;

/// Where an asker's channel is in its life, as far as the asker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PayerStatus {
    /// Terms and key exist; `open` may or may not have been sent.
    Created,
    /// Open on the chain.
    Open,
    /// Being closed.
    Closing,
    /// Over; kept for the record.
    Closed,
}

/// One channel of an asker.
#[derive(Clone, PartialEq, Eq)]
pub struct PayerChannel {
    /// Its terms.
    pub params: ChannelParams,
    /// Seed of the key that signs its vouchers.
    pub key_seed: Zeroizing<[u8; 32]>,
    /// Total promised. Never lowered by [`PayerStore::put`].
    pub cumulative: NanoTon,
    /// What was deposited, as last known.
    pub deposit: NanoTon,
    /// Where it is in its life.
    pub status: PayerStatus,
    /// The worker's peer id.
    pub peer: Vec<u8>,
}

impl fmt::Debug for PayerChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PayerChannel")
            .field("params", &self.params)
            .field("cumulative", &self.cumulative)
            .field("deposit", &self.deposit)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// [`PayerChannel`] as it is stored.
#[derive(Encode, Decode)]
struct Record {
    params: ChannelParams,
    key_seed: [u8; 32],
    cumulative: NanoTon,
    deposit: NanoTon,
    status: PayerStatus,
    peer: Vec<u8>,
}

impl From<&PayerChannel> for Record {
    fn from(channel: &PayerChannel) -> Self {
        Self {
            params: channel.params,
            key_seed: *channel.key_seed,
            cumulative: channel.cumulative,
            deposit: channel.deposit,
            status: channel.status,
            peer: channel.peer.clone(),
        }
    }
}

impl From<Record> for PayerChannel {
    fn from(record: Record) -> Self {
        Self {
            params: record.params,
            key_seed: Zeroizing::new(record.key_seed),
            cumulative: record.cumulative,
            deposit: record.deposit,
            status: record.status,
            peer: record.peer,
        }
    }
}

/// An asker's durable memory.
#[derive(Debug)]
pub struct PayerStore {
    path: PathBuf,
    database: Database,
}

impl PayerStore {
    /// Opens or creates the database at `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(StoreError::io("creating the directory", dir))?;
        }
        Ok(Self { database: open_database(path)?, path: path.into() })
    }

    /// Stores a channel durably. A stored total is never lowered.
    pub fn put(&self, channel: &PayerChannel) -> Result<(), StoreError> {
        let address = channel.params.address()?;
        self.update(&address, redb::Durability::Immediate, |known, count| {
            if known.is_none() && count >= MAX_CHANNELS as u64 {
                return Err(StoreError::Full { max: MAX_CHANNELS });
            }
            let mut record = Record::from(channel);
            if let Some(known) = known {
                record.cumulative = record.cumulative.max(known.cumulative);
            }
            Ok(record)
        })
    }

    /// Notes a new total, without waiting for the disk. A lower one changes nothing.
    pub fn raise(&self, channel: &Address, cumulative: NanoTon) -> Result<(), StoreError> {
        self.update(channel, redb::Durability::None, |known, _| {
            let mut record = known.ok_or(StoreError::Unknown { channel: *channel })?;
            record.cumulative = record.cumulative.max(cumulative);
            Ok(record)
        })
    }

    /// Notes where the channel is in its life, durably.
    pub fn set_status(&self, channel: &Address, status: PayerStatus) -> Result<(), StoreError> {
        self.update(channel, redb::Durability::Immediate, |known, _| {
            let mut record = known.ok_or(StoreError::Unknown { channel: *channel })?;
            record.status = status;
            Ok(record)
        })
    }

    /// One channel.
    pub fn get(&self, channel: &Address) -> Result<Option<PayerChannel>, StoreError> {
        Ok(self.list()?.into_iter().find(|(address, _)| address == channel).map(|(_, channel)| channel))
    }

    /// All channels, by address.
    pub fn list(&self) -> Result<Vec<(Address, PayerChannel)>, StoreError> {
        let transaction = self.database.begin_read().map_err(|error| self.fail(error))?;
        let table = match transaction.open_table(TABLE) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table.map_err(|error| self.fail(error))?,
        };
        let mut channels = Vec::new();
        for record in table.iter().map_err(|error| self.fail(error))? {
            let (key, value) = record.map_err(|error| self.fail(error))?;
            let address = Address::from_bytes(key.value());
            channels.push((address, decode(address, value.value())?.into()));
        }
        Ok(channels)
    }

    fn update(
        &self,
        channel: &Address,
        durability: redb::Durability,
        change: impl FnOnce(Option<Record>, u64) -> Result<Record, StoreError>,
    ) -> Result<(), StoreError> {
        use redb::ReadableTableMetadata;
        let key = channel.to_bytes();
        let mut transaction = self.database.begin_write().map_err(|error| self.fail(error))?;
        transaction.set_durability(durability).map_err(|error| self.fail(error))?;
        {
            let mut table = transaction.open_table(TABLE).map_err(|error| self.fail(error))?;
            let count = table.len().map_err(|error| self.fail(error))?;
            let known = table.get(&key).map_err(|error| self.fail(error))?;
            let known = known.map(|value| decode(*channel, value.value())).transpose()?;
            let record = Zeroizing::new(codec::encode(RECORD_VERSION, &change(known, count)?));
            table.insert(&key, record.as_slice()).map_err(|error| self.fail(error))?;
        }
        transaction.commit().map_err(|error| self.fail(error))
    }

    fn fail(&self, error: impl Into<redb::Error>) -> StoreError {
        StoreError::Database { path: self.path.clone(), source: Box::new(error.into()) }
    }
}

fn decode(channel: Address, bytes: &[u8]) -> Result<Record, StoreError> {
    codec::decode(RECORD_VERSION, bytes, MAX_RECORD_BYTES)
        .map_err(|source| StoreError::Record { channel, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests_support::params;

    fn channel() -> PayerChannel {
        PayerChannel {
            params: params(),
            key_seed: Zeroizing::new([1; 32]),
            cumulative: NanoTon(100),
            deposit: NanoTon(1_000),
            status: PayerStatus::Created,
            peer: vec![7; 38],
        }
    }

    #[test]
    fn channels_survive_reopening_and_totals_never_fall() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("asker/payer.redb");
        let address = params().address().unwrap();
        let store = PayerStore::open(&path).unwrap();
        store.put(&channel()).unwrap();
        store.raise(&address, NanoTon(250)).unwrap();
        store.raise(&address, NanoTon(200)).unwrap();
        store.put(&channel()).unwrap();
        store.set_status(&address, PayerStatus::Open).unwrap();
        drop(store);
        let store = PayerStore::open(&path).unwrap();
        let expected = PayerChannel { cumulative: NanoTon(250), status: PayerStatus::Open, ..channel() };
        assert_eq!(store.get(&address).unwrap(), Some(expected));
        assert_eq!(store.list().unwrap().len(), 1);
    }

    #[test]
    fn an_unknown_channel_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = PayerStore::open(&dir.path().join("payer.redb")).unwrap();
        let unknown = Address::base([9; 32]);
        assert!(matches!(
            store.raise(&unknown, NanoTon(1)),
            Err(StoreError::Unknown { channel }) if channel == unknown
        ));
        assert_eq!(store.get(&unknown).unwrap(), None);
    }

    #[test]
    fn the_store_is_private_and_used_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("payer.redb");
        let _store = PayerStore::open(&path).unwrap();
        assert!(matches!(PayerStore::open(&path), Err(StoreError::InUse { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "the keys are the owner's alone");
        }
        assert!(!format!("{:?}", channel()).contains("key_seed"));
    }
}
