//! Account states and get methods.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tycho_types::{
    models::{Account, AccountState, ShardAccount},
    prelude::{Boc, Cell},
};

use super::{
    super::{BlockInfo, LocalChain, StackValue, getter::Method},
    ToncenterError,
    blocks::{base64, block_id},
    params::{Params, bad},
    stack,
};
use crate::Address;

/// Code hashes of the wallets in use, and toncenter's names for them.
const WALLETS: [(&str, &str); 5] = [
    ("20834b7b72b112147e1b2fb457b84e74d1a30f04f737d4f62a668e9552d2b72f", "wallet v5 r1"),
    ("feb5ff6820e2ff0d9483e7e0d62c817d846789fb4ae580c878866d959dabd5c0", "wallet v4 r2"),
    ("64dd54805522c5be8a9db59cea0105ccf0d08786ca79beb8cb79e880a8d7322d", "wallet v4 r1"),
    ("84dafa449f98a6987789ba232358072bc0f76dc4524002a5d0918b9a75d2d599", "wallet v3 r2"),
    ("b61041a58a7980b946e8fb9e198e3c904d24799ffa36574ea4251c41a566f581", "wallet v3 r1"),
];

/// What toncenter tells of every account.
struct View {
    address: Address,
    shard: ShardAccount,
    account: Option<Account>,
    block: BlockInfo,
}

impl View {
    fn load(chain: &LocalChain, params: &Params<'_>) -> Result<Self, ToncenterError> {
        let address = params.address("address")?;
        // The block is read first: the state may be newer than the block that it is said to be of, but
        // never older.
        let block = chain.head();
        let (shard, account) = chain.load_account(&address)?;
        Ok(Self { address, shard, account, block })
    }

    fn balance(&self) -> String {
        self.account.as_ref().map_or(0, |account| account.balance.tokens.into_inner()).to_string()
    }

    fn status(&self) -> &'static str {
        match self.account.as_ref().map(|account| &account.state) {
            Some(AccountState::Active(_)) => "active",
            Some(AccountState::Frozen(_)) => "frozen",
            Some(AccountState::Uninit) | None => "uninitialized",
        }
    }

    fn code(&self) -> Option<&Cell> {
        match &self.account.as_ref()?.state {
            AccountState::Active(init) => init.code.as_ref(),
            _ => None,
        }
    }

    fn data(&self) -> Option<&Cell> {
        match &self.account.as_ref()?.state {
            AccountState::Active(init) => init.data.as_ref(),
            _ => None,
        }
    }

    fn frozen_hash(&self) -> String {
        match self.account.as_ref().map(|account| &account.state) {
            Some(AccountState::Frozen(hash)) => base64(&hash.0),
            _ => String::new(),
        }
    }

    fn last_transaction(&self) -> Value {
        transaction_id(self.shard.last_trans_lt, &self.shard.last_trans_hash.0)
    }

    fn wallet_type(&self) -> Option<&'static str> {
        let hash = hex::encode(self.code()?.repr_hash().0);
        WALLETS.iter().find(|(code, _)| *code == hash).map(|(_, name)| *name)
    }
}

pub(super) fn transaction_id(lt: u64, hash: &[u8; 32]) -> Value {
    json!({ "@type": "internal.transactionId", "lt": lt.to_string(), "hash": base64(hash) })
}

fn boc(cell: Option<&Cell>) -> String {
    cell.map(|cell| BASE64_STANDARD.encode(Boc::encode(cell))).unwrap_or_default()
}

pub(super) fn information(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let view = View::load(chain, params)?;
    Ok(json!({
        "@type": "raw.fullAccountState",
        "balance": view.balance(),
        "extra_currencies": [],
        "code": boc(view.code()),
        "data": boc(view.data()),
        "last_transaction_id": view.last_transaction(),
        "block_id": block_id(&view.block, -1),
        "frozen_hash": view.frozen_hash(),
        "sync_utime": view.block.unixtime,
        "state": view.status(),
    }))
}

pub(super) fn extended_information(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let view = View::load(chain, params)?;
    let state = if view.status() == "uninitialized" {
        json!({ "@type": "uninited.accountState", "frozen_hash": "" })
    } else {
        json!({
            "@type": "raw.accountState",
            "code": boc(view.code()),
            "data": boc(view.data()),
            "frozen_hash": view.frozen_hash(),
        })
    };
    Ok(json!({
        "@type": "fullAccountState",
        "address": { "@type": "accountAddress", "account_address": view.address.friendly(true, false) },
        "balance": view.balance(),
        "extra_currencies": [],
        "last_transaction_id": view.last_transaction(),
        "block_id": block_id(&view.block, -1),
        "sync_utime": view.block.unixtime,
        "account_state": state,
        "revision": 0,
    }))
}

pub(super) fn wallet_information(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let view = View::load(chain, params)?;
    let mut wallet = json!({
        "wallet": false,
        "balance": view.balance(),
        "extra_currencies": [],
        "account_state": view.status(),
        "last_transaction_id": view.last_transaction(),
    });
    if let Some(kind) = view.wallet_type() {
        let answer = chain.run_get_method(&view.address, "seqno", &[])?;
        wallet["wallet"] = json!(true);
        wallet["wallet_type"] = json!(kind);
        if let (0 | 1, [StackValue::Int(seqno)]) = (answer.exit_code, answer.stack.as_slice()) {
            // Wallets keep 32 bits.
            wallet["seqno"] = json!(u32::try_from(seqno).unwrap_or_default());
        }
    }
    Ok(wallet)
}

pub(super) fn balance(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    Ok(json!(View::load(chain, params)?.balance()))
}

pub(super) fn state(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    Ok(json!(View::load(chain, params)?.status()))
}

pub(super) fn run_get_method(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let view = View::load(chain, params)?;
    let method = match params.get("method") {
        Some(Value::String(name)) if name.len() <= 128 => Method::Name(name.clone()),
        Some(Value::Number(_)) => Method::Id(params.required_number::<i32>("method")?.cast_unsigned()),
        _ => return Err(bad("method", "is neither a name of at most 128 bytes nor a number")),
    };
    let arguments = stack::parse(params.get("stack"))?;
    let answer = chain.run_method(&view.address, &method, &arguments)?;
    Ok(json!({
        "@type": "smc.runResult",
        "gas_used": answer.gas_used,
        "stack": stack::render(&answer.stack),
        "exit_code": answer.exit_code,
        "block_id": block_id(&view.block, -1),
        "last_transaction_id": view.last_transaction(),
    }))
}
