//! One message meets one account: the real TVM, held at arm's length.
//!
//! Everything that is specific to tycho's executor is here: its parameters, and a barrier against its
//! panics. The executor runs code that anybody may deploy; should one of its assertions fail on such
//! code, the message is dropped and the chain goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tycho_executor::{Executor, ExecutorInspector, ExecutorOutput, ExecutorParams, ParsedConfig, TxError};
use tycho_types::{
    cell::Lazy,
    models::{BlockchainConfig, BlockchainConfigParams, OptionalAccount, ShardAccount, StdAddr},
    prelude::{Cell, HashBytes},
};
use tycho_vm::BehaviourModifiers;

use super::LocalChainError;

/// Where the configuration contract would live on the masterchain; no such account exists here.
const CONFIG_ADDRESS: HashBytes = HashBytes([0x55; 32]);

/// The moment at which transactions happen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) unixtime: u32,
    /// First logical time of the block.
    pub(super) block_lt: u64,
    /// Smallest logical time that the transaction may have.
    pub(super) min_lt: u64,
    pub(super) rand_seed: [u8; 32],
}

/// Why a message made no transaction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotExecuted {
    /// The account refused the external message, or does not exist; with the exit code if code ran.
    NotAccepted { exit_code: Option<i32> },
    /// The message cannot be executed at all.
    Impossible(String),
}

/// Parses the configuration once; storage prices have a single entry, valid at all times.
pub(super) fn parse_config(params: &BlockchainConfigParams) -> Result<ParsedConfig, LocalChainError> {
    let config = BlockchainConfig { address: CONFIG_ADDRESS, params: params.clone() };
    Ok(ParsedConfig::parse(config, u32::MAX)?)
}

/// An account that nothing has happened to.
pub(super) fn no_account() -> Result<ShardAccount, LocalChainError> {
    Ok(ShardAccount {
        account: Lazy::new(&OptionalAccount::EMPTY)?,
        last_trans_hash: HashBytes::ZERO,
        last_trans_lt: 0,
    })
}

/// Runs one message to the end.
pub(super) fn execute(
    config: &ParsedConfig,
    moment: Moment,
    address: &StdAddr,
    external: bool,
    message: &Cell,
    state: &ShardAccount,
    ignore_signatures: bool,
) -> Result<ExecutorOutput, NotExecuted> {
    let params = params(moment, ignore_signatures);
    contain(|| {
        let mut inspector = ExecutorInspector::default();
        let executor = Executor::new(&params, config).with_min_lt(moment.min_lt);
        let done = executor
            .begin_ordinary_ext(address, external, message.clone(), state, Some(&mut inspector))
            .and_then(|transaction| transaction.commit().map_err(TxError::Fatal));
        done.map_err(|error| refused(error, &inspector))
    })
}

/// Runs an external message up to the point where the contract accepts it.
pub(super) fn check(
    config: &ParsedConfig,
    moment: Moment,
    address: &StdAddr,
    message: &Cell,
    state: &ShardAccount,
) -> Result<(), NotExecuted> {
    let params = params(moment, false);
    contain(|| {
        let mut inspector = ExecutorInspector::default();
        let executor = Executor::new(&params, config).with_min_lt(moment.min_lt);
        executor
            .check_ordinary_ext(address, message.clone(), state, Some(&mut inspector))
            .map_err(|error| refused(error, &inspector))
    })
}

fn params(moment: Moment, ignore_signatures: bool) -> ExecutorParams {
    ExecutorParams {
        rand_seed: HashBytes(moment.rand_seed),
        block_unixtime: moment.unixtime,
        block_lt: moment.block_lt,
        // These two make the executor do as a TON node of global version 12 does.
        charge_action_fees_on_fail: true,
        strict_extra_currency: true,
        vm_modifiers: BehaviourModifiers {
            chksig_always_succeed: ignore_signatures,
            ..BehaviourModifiers::default()
        },
        ..ExecutorParams::default()
    }
}

fn refused(error: TxError, inspector: &ExecutorInspector<'_>) -> NotExecuted {
    match error {
        TxError::Skipped => NotExecuted::NotAccepted { exit_code: inspector.exit_code },
        TxError::Fatal(error) => NotExecuted::Impossible(format!("{error:#}")),
    }
}

/// Turns a panic inside the TVM into a refusal. Nothing that outlives the call is borrowed mutably.
pub(super) fn contain<T>(run: impl FnOnce() -> Result<T, NotExecuted>) -> Result<T, NotExecuted> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(NotExecuted::Impossible("the virtual machine gave up on this message".into()))
    })
}
