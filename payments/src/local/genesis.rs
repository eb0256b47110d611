//! The zero state: what makes one local chain different from every other.
//!
//! A chain draws a random global id and 32 random bytes when it is created. Both are part of its zero
//! state, and the zero state's hash is the chain's identity: wallets and vouchers sign the global id, so
//! that nothing signed here means anything on another TON network, and every client compares both with
//! its network's genesis before it signs anything.
//!
//! The zero state is a cell (tag, global id, time, nonce) with two references: the blockchain
//! configuration and the faucet's account, which owns all coins that exist.

use sha2::{Digest as _, Sha256};
use tycho_types::{
    cell::Lazy,
    models::{
        Account, AccountState, BlockchainConfigParams, CurrencyCollection, OptionalAccount, ShardAccount,
        StateInit, StdAddr, StorageInfo,
    },
    prelude::{Boc, Cell, CellBuilder, CellSlice, HashBytes},
};

use super::{
    LocalChainError, account_key,
    store::{AccountKey, BlockRecord},
};

/// `config.boc` is written by `config/generate.mjs`, which says where each value comes from.
const CONFIG: &[u8] = include_bytes!("config/config.boc");

/// "COCZ": distinguishes the zero state from every other cell that is hashed here.
const ZERO_STATE_TAG: u32 = 0x434f_435a;

/// All coins of a local chain: a billion TON.
pub const SUPPLY_NANOTON: u64 = 1_000_000_000_000_000_000;

/// First logical time of the first block; TON moves in steps of a million.
pub(super) const LT_STEP: u64 = 1_000_000;

/// A new chain's first state.
#[derive(Debug)]
pub(super) struct Genesis {
    /// The zero state's BoC.
    pub(super) zero_state: Vec<u8>,
    pub(super) block: BlockRecord,
    pub(super) faucet: AccountKey,
    pub(super) faucet_account: Vec<u8>,
}

/// What every part of the chain needs to know of its zero state.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) global_id: i32,
    pub(super) zero_state_root: [u8; 32],
    pub(super) zero_state_file: [u8; 32],
    pub(super) config: BlockchainConfigParams,
}

/// A global id for a new chain: random and positive, which no public network's is (mainnet has −239,
/// testnet −3).
pub(super) fn global_id(random: [u8; 4]) -> i32 {
    // Zero reads as "not set" in too many programs.
    (i32::from_be_bytes(random) & i32::MAX).max(1)
}

impl Genesis {
    /// Builds the zero state around the faucet's wallet.
    pub(super) fn build(
        global_id: i32,
        nonce: &[u8; 32],
        now: u32,
        faucet: &StdAddr,
        faucet_init: StateInit,
    ) -> Result<Self, LocalChainError> {
        let root = Boc::decode(CONFIG).map_err(|_| LocalChainError::Corrupt { what: "embedded config" })?;
        let mut config = BlockchainConfigParams::from_raw(root);
        config.set_global_id(global_id)?;
        let config_root = config.as_dict().root().clone().unwrap_or_default();

        let faucet_account = CellBuilder::build_from(faucet_account(faucet, faucet_init, now)?)?;
        let mut builder = CellBuilder::new();
        builder.store_u32(ZERO_STATE_TAG)?;
        builder.store_u32(global_id.cast_unsigned())?;
        builder.store_u32(now)?;
        builder.store_raw(nonce, 256)?;
        builder.store_reference(config_root)?;
        builder.store_reference(faucet_account.clone())?;
        let zero_state = builder.build()?;
        let boc = Boc::encode(&zero_state);
        let block = BlockRecord {
            seqno: 0,
            previous: [0; 32],
            root_hash: zero_state.repr_hash().0,
            file_hash: Sha256::digest(&boc).into(),
            unixtime: now,
            start_lt: 0,
            end_lt: 0,
            transactions: 0,
        };
        Ok(Self {
            zero_state: boc,
            block,
            faucet: account_key(faucet),
            faucet_account: Boc::encode(faucet_account),
        })
    }
}

impl Network {
    /// Reads a stored zero state.
    pub(super) fn parse(zero_state: &[u8]) -> Result<Self, LocalChainError> {
        let corrupt = LocalChainError::Corrupt { what: "zero_state" };
        let Ok(root) = Boc::decode(zero_state) else { return Err(corrupt) };
        let mut slice: CellSlice<'_> = root.as_slice()?;
        if slice.load_u32()? != ZERO_STATE_TAG {
            return Err(corrupt);
        }
        let global_id = slice.load_u32()?.cast_signed();
        let config: Cell = slice.load_reference_cloned()?;
        Ok(Self {
            global_id,
            zero_state_root: root.repr_hash().0,
            zero_state_file: Sha256::digest(zero_state).into(),
            config: BlockchainConfigParams::from_raw(config),
        })
    }
}

fn faucet_account(address: &StdAddr, init: StateInit, now: u32) -> Result<ShardAccount, LocalChainError> {
    let account = Account {
        address: address.clone().into(),
        // The executor counts cells afresh at the first transaction when there is no count.
        storage_stat: StorageInfo { last_paid: now, ..StorageInfo::default() },
        last_trans_lt: 0,
        balance: CurrencyCollection::new(u128::from(SUPPLY_NANOTON)),
        state: AccountState::Active(init),
    };
    Ok(ShardAccount {
        account: Lazy::new(&OptionalAccount(Some(account)))?,
        last_trans_hash: HashBytes::ZERO,
        last_trans_lt: 0,
    })
}
