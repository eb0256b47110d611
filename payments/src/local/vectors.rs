//! The official emulator as oracle: its transactions, replayed here, come out the same.
//!
//! `tests/vectors/generate.mjs` says where the vectors come from. Gas, fees, exit codes, balances, contract
//! states and sent messages must be equal in all of them. Hashes may differ for two reasons only, both
//! explained in the documentation of [`local`](super), and only there.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use tycho_types::{
    models::{
        Account, AccountState, BlockchainConfigParams, ComputePhase, IntAddr, MsgInfo, ShardAccount,
        StorageUsed, Transaction, TxInfo,
    },
    num::VarUint56,
    prelude::{Boc, Cell},
};

use super::{
    StackValue,
    execute::{self, Moment},
    getter::{self, Method},
};

const VECTORS: &str = include_str!("../../tests/vectors/vectors.json");

fn vectors() -> Value {
    serde_json::from_str(VECTORS).unwrap()
}

fn cell(value: &Value) -> Cell {
    Boc::decode(BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

fn config(vectors: &Value) -> BlockchainConfigParams {
    BlockchainConfigParams::from_raw(cell(&vectors["config"]))
}

/// What may differ in one transaction.
#[derive(Debug, Default, Clone, Copy)]
struct Allowed {
    /// tycho says that the message's state was used and the account activated; the official node never does.
    activation: bool,
    /// tycho counts the storage of accounts without code differently.
    uninit_storage: bool,
}

fn without_activation_flags(mut info: TxInfo) -> (TxInfo, bool) {
    let mut had = false;
    if let TxInfo::Ordinary(info) = &mut info
        && let ComputePhase::Executed(phase) = &mut info.compute_phase
    {
        had = phase.msg_state_used || phase.account_activated;
        phase.msg_state_used = false;
        phase.account_activated = false;
    }
    (info, had)
}

fn without_uninit_storage(mut account: Account) -> (Account, StorageUsed) {
    let used = account.storage_stat.used.clone();
    if matches!(account.state, AccountState::Uninit) {
        account.storage_stat.used = StorageUsed::ZERO;
    }
    (account, used)
}

#[test]
fn transactions_of_the_official_emulator_come_out_the_same() {
    let vectors = vectors();
    let config = execute::parse_config(&config(&vectors)).unwrap();
    let transactions = vectors["transactions"].as_array().unwrap();
    assert_eq!(transactions.len(), 36);
    let (mut equal_transactions, mut equal_states) = (0, 0);
    for (index, vector) in transactions.iter().enumerate() {
        let before: ShardAccount = cell(&vector["before"]).parse().unwrap();
        let message = cell(&vector["message"]);
        let (destination, external) = match message.parse::<MsgInfo>().unwrap() {
            MsgInfo::Int(info) => (info.dst, false),
            MsgInfo::ExtIn(info) => (info.dst, true),
            MsgInfo::ExtOut(_) => panic!("vector {index} is an outbound message"),
        };
        let IntAddr::Std(destination) = destination else { panic!("vector {index} has no standard address") };
        let lt: u64 = vector["lt"].as_str().unwrap().parse().unwrap();
        let moment = Moment {
            unixtime: u32::try_from(vector["now"].as_u64().unwrap()).unwrap(),
            block_lt: lt - lt % 1_000_000,
            min_lt: lt,
            rand_seed: [0; 32],
        };
        let output =
            execute::execute(&config, moment, &destination, external, &message, &before, false).unwrap();

        let expected_cell = cell(&vector["transaction"]);
        let expected: Transaction = expected_cell.parse().unwrap();
        let found = output.transaction.load().unwrap();
        assert_eq!(found.account, expected.account, "vector {index}");
        assert_eq!((found.lt, found.now), (expected.lt, expected.now), "vector {index}");
        assert_eq!(found.total_fees, expected.total_fees, "vector {index}");
        assert_eq!((found.orig_status, found.end_status), (expected.orig_status, expected.end_status));
        assert_eq!(found.in_msg, expected.in_msg, "vector {index}");
        assert_eq!(found.out_msgs, expected.out_msgs, "vector {index}");
        // Gas, exit codes and every phase's fees are in here.
        let mut allowed = Allowed::default();
        let (found_info, activation) = without_activation_flags(found.load_info().unwrap());
        allowed.activation = activation;
        assert_eq!(found_info, expected.load_info().unwrap(), "vector {index}");

        let expected_state: ShardAccount = cell(&vector["after"]).parse().unwrap();
        let (found_account, expected_account) =
            (output.new_state.load_account().unwrap(), expected_state.load_account().unwrap());
        match (found_account, expected_account) {
            (Some(found), Some(expected)) => {
                let (found, found_used) = without_uninit_storage(found);
                let (expected, expected_used) = without_uninit_storage(expected);
                if found_used != expected_used {
                    assert_eq!((found_used.cells, expected_used.cells), (VarUint56::new(1), VarUint56::ZERO));
                    allowed.uninit_storage = true;
                }
                assert_eq!(found, expected, "vector {index}");
            }
            (found, expected) => assert_eq!(found, expected, "vector {index}"),
        }

        let same_transaction = output.transaction.inner().repr_hash() == expected_cell.repr_hash();
        let same_state =
            output.new_state.account.inner().repr_hash() == expected_state.account.inner().repr_hash();
        assert!(same_state || allowed.uninit_storage, "vector {index}: state hash");
        assert!(
            same_transaction || allowed.activation || allowed.uninit_storage,
            "vector {index}: transaction hash"
        );
        equal_transactions += usize::from(same_transaction);
        equal_states += usize::from(same_state);
    }
    // Six deployments and two deposits to accounts without code. More equal hashes than this would be
    // welcome, but they would make the documentation wrong.
    assert_eq!((equal_transactions, equal_states), (28, 34));
}

#[test]
fn a_get_method_of_the_official_emulator_comes_out_the_same() {
    let vectors = vectors();
    let expected = &vectors["getter"];
    let state: ShardAccount = cell(&expected["account"]).parse().unwrap();
    let account = state.load_account().unwrap();
    let method = Method::Name(expected["method"].as_str().unwrap().to_owned());
    let found = getter::run(&config(&vectors), 1_780_000_000, account.as_ref(), &method, &[]).unwrap();
    assert_eq!(found.exit_code, 0);
    assert_eq!(Some(found.gas_used), expected["gas"].as_u64());
    let stack: Vec<String> = found
        .stack
        .iter()
        .map(|value| match value {
            StackValue::Int(int) => int.to_string(),
            other => panic!("not an integer: {other:?}"),
        })
        .collect();
    assert_eq!(stack, serde_json::from_value::<Vec<String>>(expected["stack"].clone()).unwrap());
}
