//! Building a block: which messages run, in which order, and what is written afterwards.
//!
//! A block is built from a snapshot: the head, the oldest undelivered internal messages (the backlog),
//! and the external messages that wait. Internal messages are delivered strictly in the order in which
//! they were sent, and logical time grows with every transaction, so no message is delivered at a time
//! before it was sent. Messages sent within the block are delivered in the same block while it has room;
//! the rest stays queued.
//!
//! **Limits.** At most [`MAX_TRANSACTIONS`] transactions and about [`MAX_GAS`] gas. The backlog may use
//! three quarters of both, so that two contracts that send each other messages without end cannot lock
//! users out.

use std::collections::{BTreeMap, VecDeque};

use sha2::{Digest as _, Sha256};
use tycho_executor::ParsedConfig;
use tycho_types::{
    models::{AccountStatus, ComputePhase, IntAddr, MsgInfo, ShardAccount, StdAddr, TxInfo},
    prelude::{Boc, Cell, CellBuilder},
};

use super::{
    LocalChainError, account_key,
    execute::{self, Moment, NotExecuted},
    genesis::LT_STEP,
    mempool::Pending,
    store::{AccountKey, BlockChanges, BlockRecord, Store, TransactionRecord},
};

/// Most transactions of one block. With 255 messages each they still fit one step of logical time.
pub const MAX_TRANSACTIONS: usize = 1000;

/// No transaction starts after a block has used this much gas, twice mainnet's limit for a block. It takes
/// well under a second.
pub const MAX_GAS: u64 = 20_000_000;

/// "COCB": distinguishes block cells from every other cell that is hashed here.
const BLOCK_TAG: u32 = 0x434f_4342;

/// What a block was built from and what became of it.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) changes: BlockChanges,
    /// How many of the waiting external messages were dealt with.
    pub(super) externals_taken: usize,
}

/// A queued internal message.
struct Internal {
    /// Its place in the stored queue, or `None` if this block sent it.
    place: Option<u64>,
    message: Cell,
}

/// How much a block may hold.
#[derive(Debug, Clone, Copy)]
struct Limit {
    transactions: usize,
    gas: u64,
}

pub(super) struct Builder<'a> {
    store: &'a Store,
    config: &'a ParsedConfig,
    moment: Moment,
    accounts: BTreeMap<AccountKey, ShardAccount>,
    transactions: Vec<TransactionRecord>,
    queue: VecDeque<Internal>,
    delivered: Vec<u64>,
    gas: u64,
    limit: Limit,
}

impl<'a> Builder<'a> {
    /// Starts the block after `head`.
    pub(super) fn new(
        store: &'a Store,
        config: &'a ParsedConfig,
        head: &BlockRecord,
        now: u32,
    ) -> Result<Self, LocalChainError> {
        let moment = moment_after(head, now);
        let mut queue = VecDeque::new();
        for (place, boc) in store.queue(MAX_TRANSACTIONS)? {
            let message = Boc::decode(&boc).map_err(|_| LocalChainError::Corrupt { what: "queue" })?;
            queue.push_back(Internal { place: Some(place), message });
        }
        Ok(Self {
            store,
            config,
            moment,
            accounts: BTreeMap::new(),
            transactions: Vec::new(),
            queue,
            delivered: Vec::new(),
            gas: 0,
            limit: Limit { transactions: MAX_TRANSACTIONS, gas: MAX_GAS },
        })
    }

    /// Runs everything that fits and seals the block.
    pub(super) fn build(
        mut self,
        global_id: i32,
        head: &BlockRecord,
        externals: &[Pending],
    ) -> Result<Built, LocalChainError> {
        let limit = self.limit;
        self.deliver(Limit { transactions: limit.transactions / 4 * 3, gas: limit.gas / 4 * 3 })?;
        let mut externals_taken = 0;
        for external in externals {
            if self.is_full(limit) {
                break;
            }
            externals_taken += 1;
            self.run(&external.destination, true, &external.message)?;
        }
        self.deliver(limit)?;
        let changes = self.seal(global_id, head)?;
        Ok(Built { changes, externals_taken })
    }

    fn is_full(&self, limit: Limit) -> bool {
        self.transactions.len() >= limit.transactions || self.gas >= limit.gas
    }

    fn deliver(&mut self, limit: Limit) -> Result<(), LocalChainError> {
        while !self.is_full(limit) {
            let Some(Internal { place, message }) = self.queue.pop_front() else { break };
            self.delivered.extend(place);
            if let Some(destination) = internal_destination(&message) {
                self.run(&destination, false, &message)?;
            }
        }
        Ok(())
    }

    /// Runs one message. A message that makes no transaction leaves no trace but a log line.
    fn run(&mut self, destination: &StdAddr, external: bool, message: &Cell) -> Result<(), LocalChainError> {
        let key = account_key(destination);
        let state = self.load(&key)?;
        let output =
            match execute::execute(self.config, self.moment, destination, external, message, &state, false) {
                Ok(output) => output,
                Err(NotExecuted::NotAccepted { exit_code }) => {
                    tracing::debug!(account = %destination, ?exit_code, "external message was not accepted");
                    return Ok(());
                }
                Err(NotExecuted::Impossible(reason)) => {
                    tracing::warn!(account = %destination, external, reason, "message dropped");
                    return Ok(());
                }
            };
        let transaction = output.transaction.load()?;
        if let TxInfo::Ordinary(info) = transaction.load_info()?
            && let ComputePhase::Executed(phase) = info.compute_phase
        {
            self.gas = self.gas.saturating_add(phase.gas_used.into_inner());
        }
        for sent in &output.transaction_meta.out_msgs {
            let message = sent.inner().clone();
            if internal_destination(&message).is_some() {
                self.queue.push_back(Internal { place: None, message });
            }
        }
        self.moment.min_lt = self.moment.min_lt.max(output.transaction_meta.next_lt);
        self.transactions.push(TransactionRecord {
            account: key,
            lt: transaction.lt,
            hash: output.transaction.inner().repr_hash().0,
            boc: Boc::encode(output.transaction.inner()),
        });
        self.accounts.insert(key, output.new_state);
        Ok(())
    }

    fn load(&self, key: &AccountKey) -> Result<ShardAccount, LocalChainError> {
        match self.accounts.get(key) {
            Some(state) => Ok(state.clone()),
            None => load_account(self.store, key),
        }
    }

    fn seal(self, global_id: i32, head: &BlockRecord) -> Result<BlockChanges, LocalChainError> {
        let mut digest = Sha256::new();
        for record in &self.transactions {
            digest.update(record.account);
            digest.update(record.lt.to_be_bytes());
            digest.update(record.hash);
        }
        let mut accounts = BTreeMap::new();
        for (key, state) in self.accounts {
            let gone = state
                .load_account()?
                .is_none_or(|account| account.state.status() == AccountStatus::NotExists);
            // A deleted account's last transaction is forgotten, as on mainnet.
            let boc = if gone { None } else { Some(Boc::encode(CellBuilder::build_from(&state)?)) };
            accounts.insert(key, boc);
        }
        let mut queued = Vec::new();
        for internal in self.queue {
            if internal.place.is_none() {
                queued.push(Boc::encode(internal.message));
            }
        }
        let mut block = BlockRecord {
            seqno: head.seqno.checked_add(1).ok_or(LocalChainError::Corrupt { what: "blocks" })?,
            previous: head.root_hash,
            root_hash: [0; 32],
            file_hash: [0; 32],
            unixtime: self.moment.unixtime,
            start_lt: self.moment.block_lt,
            end_lt: self.moment.min_lt,
            transactions: u32::try_from(self.transactions.len()).unwrap_or(u32::MAX),
        };
        let cell = block_cell(&block, global_id, &digest.finalize().into())?;
        block.root_hash = cell.repr_hash().0;
        block.file_hash = Sha256::digest(Boc::encode(&cell)).into();
        Ok(BlockChanges {
            block,
            accounts,
            transactions: self.transactions,
            delivered: self.delivered,
            queued,
        })
    }
}

/// When transactions of the block after `head` happen. Time never goes back, whatever the clock does.
pub(super) fn moment_after(head: &BlockRecord, now: u32) -> Moment {
    let block_lt = (head.end_lt / LT_STEP).saturating_add(1).saturating_mul(LT_STEP);
    let mut seed = Sha256::new();
    seed.update(b"cocoon/local-chain/seed/v1");
    seed.update(head.root_hash);
    Moment {
        unixtime: now.max(head.unixtime),
        block_lt,
        min_lt: block_lt.saturating_add(1),
        rand_seed: seed.finalize().into(),
    }
}

/// An account's state, or that of an account that does not exist.
pub(super) fn load_account(store: &Store, key: &AccountKey) -> Result<ShardAccount, LocalChainError> {
    let Some(boc) = store.account(key)? else { return execute::no_account() };
    let cell = Boc::decode(&boc).map_err(|_| LocalChainError::Corrupt { what: "accounts" })?;
    Ok(cell.parse::<ShardAccount>()?)
}

fn internal_destination(message: &Cell) -> Option<StdAddr> {
    match message.parse::<MsgInfo>().ok()? {
        MsgInfo::Int(info) => match info.dst {
            IntAddr::Std(address) => Some(address),
            IntAddr::Var(_) => None,
        },
        MsgInfo::ExtIn(_) | MsgInfo::ExtOut(_) => None,
    }
}

/// What a block's hash commits to: the chain, the block before, the time, and every transaction, each of
/// which commits to the account states before and after it.
fn block_cell(
    block: &BlockRecord,
    global_id: i32,
    transactions: &[u8; 32],
) -> Result<Cell, tycho_types::error::Error> {
    let mut builder = CellBuilder::new();
    builder.store_u32(BLOCK_TAG)?;
    builder.store_u32(global_id.cast_unsigned())?;
    builder.store_u32(block.seqno)?;
    builder.store_u32(block.unixtime)?;
    builder.store_u64(block.start_lt)?;
    builder.store_u64(block.end_lt)?;
    builder.store_raw(&block.previous, 256)?;
    builder.store_raw(transactions, 256)?;
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{
        faucet::Faucet,
        genesis::{Genesis, Network},
        mempool::Grant,
    };

    /// A chain without its shell, whose blocks hold very little.
    struct Small {
        store: Store,
        network: Network,
        config: ParsedConfig,
        faucet: Faucet,
        _dir: tempfile::TempDir,
    }

    impl Small {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let faucet = Faucet::new(&[7; 32]).unwrap();
            let genesis =
                Genesis::build(5, &[1; 32], 1000, faucet.address(), faucet.state_init().unwrap()).unwrap();
            let store = Store::create(&dir.path().join("chain"), &genesis, &[7; 32]).unwrap();
            let network = Network::parse(&genesis.zero_state).unwrap();
            let config = execute::parse_config(&network.config).unwrap();
            Self { store, network, config, faucet, _dir: dir }
        }

        fn payment(&self, recipients: u8) -> Pending {
            let grants: Vec<Grant> = (0..recipients)
                .map(|byte| Grant { to: StdAddr::new(0, [byte; 32].into()), nanoton: 1_000_000 })
                .collect();
            let account = load_account(&self.store, &account_key(self.faucet.address())).unwrap();
            let account = account.load_account().unwrap();
            let message = self.faucet.pay(account.as_ref(), 1000, &grants).unwrap();
            let destination = self.faucet.address().clone();
            Pending { hash: message.repr_hash().0, destination, message, bytes: 0 }
        }

        fn block(&self, limit: Limit, externals: &[Pending]) -> BlockChanges {
            let head = self.store.head().unwrap();
            let mut builder = Builder::new(&self.store, &self.config, &head, 1000).unwrap();
            builder.limit = limit;
            let built = builder.build(self.network.global_id, &head, externals).unwrap();
            self.store.apply(&built.changes).unwrap();
            built.changes
        }
    }

    #[test]
    fn what_does_not_fit_is_delivered_later_in_the_order_of_sending() {
        let chain = Small::new();
        let limit = Limit { transactions: 4, gas: MAX_GAS };
        let first = chain.block(limit, &[chain.payment(10)]);
        assert_eq!((first.transactions.len(), first.queued.len()), (4, 7));
        let mut order: Vec<(u64, u8)> = Vec::new();
        let mut blocks = vec![first];
        while !chain.store.queue(1).unwrap().is_empty() {
            blocks.push(chain.block(limit, &[]));
        }
        for block in &blocks {
            assert!(block.transactions.len() <= 4);
            order.extend(block.transactions.iter().map(|record| (record.lt, record.account[1])));
        }
        assert!(order.windows(2).all(|pair| pair[0].0 < pair[1].0), "logical time grows: {order:?}");
        let recipients: Vec<u8> = order.iter().skip(1).map(|(_, recipient)| *recipient).collect();
        assert_eq!(recipients, (0..10).collect::<Vec<u8>>());
    }

    #[test]
    fn a_backlog_leaves_room_for_external_messages() {
        let chain = Small::new();
        let limit = Limit { transactions: 4, gas: MAX_GAS };
        chain.block(limit, &[chain.payment(20)]);
        let second = chain.block(limit, &[chain.payment(1)]);
        let faucet = account_key(chain.faucet.address());
        let place = second.transactions.iter().position(|record| record.account == faucet);
        assert_eq!(place, Some(3), "after three quarters of the block");
    }

    #[test]
    fn a_block_ends_when_its_gas_is_used_up() {
        let chain = Small::new();
        let block = chain.block(Limit { transactions: 100, gas: 1 }, &[chain.payment(3)]);
        assert_eq!((block.transactions.len(), block.queued.len()), (1, 3));
    }

    #[test]
    fn equal_inputs_make_equal_blocks_and_other_times_other_hashes() {
        let limit = Limit { transactions: 10, gas: MAX_GAS };
        let (one, two) = (Small::new(), Small::new());
        let (first, second) = (one.block(limit, &[one.payment(2)]), two.block(limit, &[two.payment(2)]));
        assert_eq!(first.block, second.block);
        assert_ne!(first.block.root_hash, one.block(limit, &[]).block.root_hash);
    }
}
