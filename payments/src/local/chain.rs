//! [`LocalChain`]: the parts put together, safe to share between threads.

use std::{
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
};

use tycho_executor::ParsedConfig;
use tycho_types::{
    models::{
        Account, BlockchainConfigParams, IntAddr, MsgInfo, OwnedMessage, ShardAccount, StdAddr, Transaction,
    },
    prelude::{Boc, Cell},
};

use super::{
    FILE_NAME, FaucetError, GetMethodError, GetMethodOutput, LocalChainError, MAX_GRANT_NANOTON,
    MAX_MESSAGE_BYTES, MAX_TRANSACTIONS, StackValue, SubmitError,
    block::{Builder, load_account, moment_after},
    execute::{self, Moment, NotExecuted},
    faucet::{Faucet, GRANTS_PER_BLOCK},
    genesis::{Genesis, Network, global_id},
    getter::{self, Method},
    mempool::{Grant, Mempool, Pending},
    std_addr,
    store::{BlockRecord, Store, TransactionId},
};
use crate::{Address, NanoTon, chain::ChainIdentity};

/// Deepest cell tree of an external message, as in TON's configuration parameter 43.
const MAX_MESSAGE_DEPTH: u16 = 512;

/// A block, as much of it as clients need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its number.
    pub seqno: u32,
    /// Its identity: commits to the chain, all blocks before and its transactions.
    pub root_hash: [u8; 32],
    /// SHA-256 of its serialisation.
    pub file_hash: [u8; 32],
    /// The root hash of the block before.
    pub previous: [u8; 32],
    /// When it was produced, in Unix seconds.
    pub unixtime: u32,
    /// Logical time of its first transaction, at least.
    pub start_lt: u64,
    /// Logical time after its last transaction.
    pub end_lt: u64,
    /// How many transactions it has.
    pub transactions: u32,
}

impl From<BlockRecord> for BlockInfo {
    fn from(block: BlockRecord) -> Self {
        let BlockRecord { seqno, previous, root_hash, file_hash, unixtime, start_lt, end_lt, transactions } =
            block;
        Self { seqno, root_hash, file_hash, previous, unixtime, start_lt, end_lt, transactions }
    }
}

/// A transaction as the chain keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTransaction {
    /// The account it happened on.
    pub account: Address,
    /// Its logical time.
    pub lt: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// The block it is part of.
    pub block: u32,
    /// The `Transaction` as a bag of cells.
    pub boc: Vec<u8>,
}

/// An embedded TON chain. See the [module](super) for what it is and how it differs from mainnet.
///
/// All methods may be called from many threads; blocks are produced one after the other. None of them
/// waits for the network, but `produce_block` waits for the disk, and `submit` and `run_get_method` run
/// up to a million gas of code: call them where blocking is allowed.
#[derive(Debug)]
pub struct LocalChain {
    store: Store,
    network: Network,
    config: ParsedConfig,
    faucet: Faucet,
    mempool: Mutex<Mempool>,
    head: RwLock<BlockRecord>,
    producing: Mutex<()>,
}

impl LocalChain {
    /// Creates a new chain in `dir`, with a random global id and zero state, at Unix time `now`.
    ///
    /// # Errors
    /// If the directory cannot be written or holds a chain already.
    pub fn create(dir: &Path, now: u32) -> Result<Self, LocalChainError> {
        let mut random = [0; 4 + 32 + 32];
        getrandom::fill(&mut random).map_err(|error| LocalChainError::Random(error.to_string()))?;
        let (id, rest) = random.split_at(4);
        let (nonce, secret) = rest.split_at(32);
        let corrupt = |_| LocalChainError::Corrupt { what: "random bytes" };
        let id = global_id(id.try_into().map_err(corrupt)?);
        let secret = secret.try_into().map_err(corrupt)?;
        let faucet = Faucet::new(&secret)?;
        let genesis = Genesis::build(
            id,
            nonce.try_into().map_err(corrupt)?,
            now,
            faucet.address(),
            faucet.state_init()?,
        )?;
        fs::create_dir_all(dir).map_err(|source| LocalChainError::Io { path: dir.to_owned(), source })?;
        let store = Store::create(&dir.join(FILE_NAME), &genesis, &secret)?;
        Self::assemble(store, &genesis.zero_state, faucet)
    }

    /// Opens the chain in `dir` where its last block left it.
    ///
    /// # Errors
    /// If there is none, it is open elsewhere, or it cannot be read.
    pub fn open(dir: &Path) -> Result<Self, LocalChainError> {
        let (store, zero_state, secret) = Store::open(&dir.join(FILE_NAME))?;
        Self::assemble(store, &zero_state, Faucet::new(&secret)?)
    }

    /// Opens the chain in `dir`, or creates it if there is none.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::create`].
    pub fn open_or_create(dir: &Path, now: u32) -> Result<Self, LocalChainError> {
        match Self::open(dir) {
            Err(LocalChainError::Missing { .. }) => Self::create(dir, now),
            done => done,
        }
    }

    fn assemble(store: Store, zero_state: &[u8], faucet: Faucet) -> Result<Self, LocalChainError> {
        let network = Network::parse(zero_state)?;
        let config = execute::parse_config(&network.config)?;
        let head = RwLock::new(store.head()?);
        let mempool = Mutex::default();
        Ok(Self { store, network, config, faucet, mempool, head, producing: Mutex::new(()) })
    }

    /// Global id and zero state in one value, as every client compares them with its genesis.
    pub fn identity(&self) -> ChainIdentity {
        ChainIdentity { global_id: self.global_id(), zero_state: self.zero_state() }
    }

    /// The number that wallets and vouchers of this chain sign.
    pub fn global_id(&self) -> i32 {
        self.network.global_id
    }

    /// Root hash of the zero state: with the global id, the chain's identity.
    pub fn zero_state(&self) -> [u8; 32] {
        self.network.zero_state_root
    }

    /// SHA-256 of the zero state's serialisation.
    pub fn zero_state_file_hash(&self) -> [u8; 32] {
        self.network.zero_state_file
    }

    /// The blockchain configuration.
    pub fn config(&self) -> &BlockchainConfigParams {
        &self.network.config
    }

    /// The newest block. Its number and root hash serve as an attestation's beacon.
    pub fn head(&self) -> BlockInfo {
        self.head_record().into()
    }

    fn head_record(&self) -> BlockRecord {
        self.head.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn mempool(&self) -> MutexGuard<'_, Mempool> {
        // Every change of the waiting room is complete, so a panic elsewhere leaves it usable.
        self.mempool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block by number, if it is still kept.
    ///
    /// # Errors
    /// If the database fails.
    pub fn block(&self, seqno: u32) -> Result<Option<BlockInfo>, LocalChainError> {
        Ok(self.store.block(seqno)?.map(BlockInfo::from))
    }

    pub(super) fn find_block(
        &self,
        limit: usize,
        accept: impl Fn(&BlockRecord) -> bool,
    ) -> Result<Option<BlockInfo>, LocalChainError> {
        Ok(self.store.find_block(limit, accept)?.map(BlockInfo::from))
    }

    pub(super) fn block_transactions(&self, seqno: u32) -> Result<Vec<TransactionId>, LocalChainError> {
        self.store.block_transactions(seqno)
    }

    /// Whether the next block would hold anything: a message or a grant waits, or one is undelivered.
    ///
    /// # Errors
    /// If the database fails.
    pub fn has_work(&self) -> Result<bool, LocalChainError> {
        Ok(!self.mempool().is_empty() || !self.store.queue(1)?.is_empty())
    }

    /// External messages that wait for a block.
    pub fn pending(&self) -> usize {
        self.mempool().len()
    }

    /// Internal messages sent and not delivered yet.
    ///
    /// # Errors
    /// If the database fails.
    pub fn undelivered(&self) -> Result<u64, LocalChainError> {
        Ok(self.store.sizes()?.0)
    }

    /// Produces the next block at Unix time `now`; a clock that went back is ignored. On return the block
    /// is on disk. After an error the chain is where it was, and waiting messages still wait.
    ///
    /// # Errors
    /// If the database fails.
    pub fn produce_block(&self, now: u32) -> Result<BlockInfo, LocalChainError> {
        let _one_at_a_time = self.producing.lock().unwrap_or_else(PoisonError::into_inner);
        let head = self.head_record();
        let (mut externals, grants) = self.mempool().front(MAX_TRANSACTIONS, GRANTS_PER_BLOCK);
        let own = usize::from(!grants.is_empty());
        if own == 1 {
            externals.insert(0, self.grant(now.max(head.unixtime), &grants)?);
        }
        let built = Builder::new(&self.store, &self.config, &head, now)?.build(
            self.network.global_id,
            &head,
            &externals,
        )?;
        self.store.apply(&built.changes)?;
        *self.head.write().unwrap_or_else(PoisonError::into_inner) = built.changes.block.clone();
        // The faucet's message is first: if any message was taken, it was.
        let granted = if built.externals_taken >= own { grants.len() } else { 0 };
        self.mempool().remove_front(built.externals_taken.saturating_sub(own), granted);
        Ok(built.changes.block.into())
    }

    fn grant(&self, now: u32, grants: &[Grant]) -> Result<Pending, LocalChainError> {
        let address = self.faucet.address();
        let account = self.shard_account(address)?.load_account()?;
        let message = self.faucet.pay(account.as_ref(), now, grants)?;
        Ok(Pending { hash: message.repr_hash().0, destination: address.clone(), message, bytes: 0 })
    }

    /// Takes an external message, if the account it goes to accepts it in its present state, and returns
    /// its hash. It runs in one of the next blocks, or never if it is no longer accepted then.
    ///
    /// # Errors
    /// [`SubmitError`] says what is wrong with the message.
    pub fn submit(&self, boc: &[u8]) -> Result<[u8; 32], SubmitError> {
        let (destination, message) = parse_external(boc)?;
        let state = self.shard_account(&destination)?;
        let moment = self.next_moment();
        execute::check(&self.config, moment, &destination, &message, &state).map_err(
            |error| match error {
                NotExecuted::NotAccepted { exit_code } => SubmitError::NotAccepted { exit_code },
                NotExecuted::Impossible(reason) => SubmitError::Impossible(reason),
            },
        )?;
        let hash = message.repr_hash().0;
        let pending = Pending { hash, destination, message, bytes: boc.len() };
        if self.mempool().push(pending) { Ok(hash) } else { Err(SubmitError::Full) }
    }

    /// Asks the faucet to pay `amount` to `to` in one of the next blocks.
    ///
    /// # Errors
    /// If the amount or the workchain is out of bounds, or too many wait already.
    pub fn faucet(&self, to: &Address, amount: NanoTon) -> Result<(), FaucetError> {
        let nanoton = amount.0;
        if !(1..=MAX_GRANT_NANOTON).contains(&nanoton) {
            return Err(FaucetError::Amount { nanoton });
        }
        if !matches!(to.workchain, 0 | -1) {
            return Err(FaucetError::Workchain { workchain: to.workchain });
        }
        let grant = Grant { to: std_addr(to), nanoton };
        if self.mempool().push_grant(grant) { Ok(()) } else { Err(FaucetError::Full) }
    }

    /// The faucet's own account.
    pub fn faucet_address(&self) -> Address {
        let address = self.faucet.address();
        Address { workchain: address.workchain, hash: address.address.0 }
    }

    /// Runs a get method on the newest state.
    ///
    /// # Errors
    /// If the virtual machine cannot run it; a failing contract is an exit code instead.
    pub fn run_get_method(
        &self,
        address: &Address,
        method: &str,
        arguments: &[StackValue],
    ) -> Result<GetMethodOutput, GetMethodError> {
        self.run_method(address, &Method::Name(method.to_owned()), arguments)
    }

    pub(super) fn run_method(
        &self,
        address: &Address,
        method: &Method,
        arguments: &[StackValue],
    ) -> Result<GetMethodOutput, GetMethodError> {
        let account = self.load_account(address)?.1;
        let now = self.head_record().unixtime;
        getter::run(&self.network.config, now, account.as_ref(), method, arguments).map_err(|error| {
            match error {
                NotExecuted::Impossible(reason) => GetMethodError::Impossible(reason),
                NotExecuted::NotAccepted { .. } => {
                    GetMethodError::Impossible("the account has no code".into())
                }
            }
        })
    }

    /// An account's newest state.
    pub(super) fn load_account(
        &self,
        address: &Address,
    ) -> Result<(ShardAccount, Option<Account>), LocalChainError> {
        let state = self.shard_account(&std_addr(address))?;
        let account = state.load_account()?;
        Ok((state, account))
    }

    fn shard_account(&self, address: &StdAddr) -> Result<ShardAccount, LocalChainError> {
        load_account(&self.store, &super::account_key(address))
    }

    /// Transactions of an account, newest first, with logical time at most `from_lt` and more than
    /// `to_lt`. Old ones are dropped as the module of the store says.
    ///
    /// # Errors
    /// If the database fails.
    pub fn stored_transactions(
        &self,
        address: &Address,
        from_lt: Option<u64>,
        to_lt: Option<u64>,
        limit: usize,
    ) -> Result<Vec<StoredTransaction>, LocalChainError> {
        let first = to_lt.map_or(0, |lt| lt.saturating_add(1));
        let last = from_lt.unwrap_or(u64::MAX);
        let found = self.store.transactions(&address.to_bytes(), first..=last, limit)?;
        found
            .into_iter()
            .map(|(lt, block, boc)| {
                let corrupt = |_| LocalChainError::Corrupt { what: "transactions" };
                let hash = Boc::decode(&boc).map_err(corrupt)?.repr_hash().0;
                Ok(StoredTransaction { account: *address, lt, hash, block, boc })
            })
            .collect()
    }

    /// What an external message would do if the next block began with it. Nothing is kept.
    pub(super) fn simulate(
        &self,
        destination: &StdAddr,
        message: &Cell,
        ignore_signatures: bool,
    ) -> Result<Transaction, SubmitError> {
        let state = self.shard_account(destination)?;
        let moment = self.next_moment();
        let output =
            execute::execute(&self.config, moment, destination, true, message, &state, ignore_signatures)
                .map_err(|error| match error {
                    NotExecuted::NotAccepted { exit_code } => SubmitError::NotAccepted { exit_code },
                    NotExecuted::Impossible(reason) => SubmitError::Impossible(reason),
                })?;
        Ok(output.transaction.load().map_err(LocalChainError::from)?)
    }

    fn next_moment(&self) -> Moment {
        moment_after(&self.head_record(), 0)
    }
}

/// Reads an external inbound message to an account of this chain.
pub(super) fn parse_external(boc: &[u8]) -> Result<(StdAddr, Cell), SubmitError> {
    if boc.len() > MAX_MESSAGE_BYTES {
        return Err(SubmitError::TooLarge { bytes: boc.len() });
    }
    let cell = Boc::decode(boc).map_err(|error| SubmitError::NotABoc(error.to_string()))?;
    if cell.is_exotic() || cell.repr_depth() > MAX_MESSAGE_DEPTH {
        return Err(SubmitError::NotExternal("its root is exotic or it is too deep".into()));
    }
    let message: OwnedMessage = cell.parse().map_err(|error| SubmitError::NotExternal(error.to_string()))?;
    let MsgInfo::ExtIn(info) = message.info else {
        return Err(SubmitError::NotExternal("it is internal or outbound".into()));
    };
    match info.dst {
        IntAddr::Std(address) if address.anycast.is_none() && matches!(address.workchain, 0 | -1) => {
            Ok((address, cell))
        }
        other => Err(SubmitError::Destination(other.to_string())),
    }
}
