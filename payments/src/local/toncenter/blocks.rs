//! Blocks and configuration.
//!
//! One local block stands for the masterchain's and the basechain's block of the same number, so both
//! workchains answer with the same hashes.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tycho_types::prelude::{Boc, Cell};

use super::{
    super::{BlockInfo, LocalChain, MAX_TRANSACTIONS},
    ToncenterError,
    params::{Params, bad},
};
use crate::Address;

/// The shard that is a whole workchain, as tonlib writes it.
const WHOLE_SHARD: &str = "-9223372036854775808";

/// Headers looked through for a time or logical time: more than a day of blocks.
const LOOKUP_LIMIT: usize = 100_000;

pub(super) fn base64(hash: &[u8; 32]) -> String {
    BASE64_STANDARD.encode(hash)
}

pub(super) fn block_id(block: &BlockInfo, workchain: i32) -> Value {
    json!({
        "@type": "ton.blockIdExt",
        "workchain": workchain,
        "shard": WHOLE_SHARD,
        "seqno": block.seqno,
        "root_hash": base64(&block.root_hash),
        "file_hash": base64(&block.file_hash),
    })
}

pub(super) fn masterchain_info(chain: &LocalChain) -> Value {
    let head = chain.head();
    json!({
        "@type": "blocks.masterchainInfo",
        "last": block_id(&head, -1),
        "state_root_hash": base64(&head.root_hash),
        "init": {
            "@type": "ton.blockIdExt",
            "workchain": -1,
            "shard": "0",
            "seqno": 0,
            "root_hash": base64(&chain.zero_state()),
            "file_hash": base64(&chain.zero_state_file_hash()),
        },
    })
}

pub(super) fn consensus_block(chain: &LocalChain) -> Value {
    let head = chain.head();
    json!({ "consensus_block": head.seqno, "timestamp": head.unixtime })
}

pub(super) fn shards(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let block = by_seqno(chain, params.required_number("seqno")?)?;
    Ok(json!({ "@type": "blocks.shards", "shards": [block_id(&block, 0)] }))
}

pub(super) fn lookup(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let workchain = workchain(params)?;
    let block = if let Some(seqno) = params.number("seqno")? {
        by_seqno(chain, seqno)?
    } else if let Some(lt) = params.number::<u64>("lt")? {
        found(chain.find_block(LOOKUP_LIMIT, |block| block.start_lt <= lt)?)?
    } else if let Some(unixtime) = params.number::<u32>("unixtime")? {
        found(chain.find_block(LOOKUP_LIMIT, |block| block.unixtime <= unixtime)?)?
    } else {
        return Err(bad("seqno", "is missing, and so are lt and unixtime"));
    };
    Ok(block_id(&block, workchain))
}

pub(super) fn header(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let workchain = workchain(params)?;
    let block = by_seqno(chain, params.required_number("seqno")?)?;
    let previous = block.seqno.checked_sub(1).map(|seqno| chain.block(seqno)).transpose()?.flatten();
    Ok(json!({
        "@type": "blocks.header",
        "id": block_id(&block, workchain),
        "global_id": chain.global_id(),
        "version": 0,
        "after_merge": false,
        "after_split": false,
        "before_split": false,
        "want_merge": false,
        "want_split": false,
        "validator_list_hash_short": 0,
        "catchain_seqno": 0,
        "min_ref_mc_seqno": block.seqno.saturating_sub(1),
        "is_key_block": false,
        "prev_key_block_seqno": 0,
        "start_lt": block.start_lt.to_string(),
        "end_lt": block.end_lt.to_string(),
        "gen_utime": block.unixtime,
        "prev_blocks": previous.iter().map(|block| block_id(block, workchain)).collect::<Value>(),
    }))
}

pub(super) fn transactions(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let workchain = workchain(params)?;
    let block = by_seqno(chain, params.required_number("seqno")?)?;
    let found = chain.block_transactions(block.seqno)?;
    let transactions: Vec<Value> = found
        .iter()
        .map(|id| (Address::from_bytes(&id.account), id))
        .filter(|(account, _)| i32::from(account.workchain) == workchain)
        .map(|(account, id)| {
            json!({
                "@type": "blocks.shortTxId",
                "mode": 135,
                "account": account.to_string(),
                "lt": id.lt.to_string(),
                "hash": base64(&id.hash),
            })
        })
        .collect();
    Ok(json!({
        "@type": "blocks.transactions",
        "id": block_id(&block, workchain),
        "req_count": MAX_TRANSACTIONS,
        "incomplete": false,
        "transactions": transactions,
    }))
}

pub(super) fn config_param(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    // toncenter has had both names for it.
    let id: i32 = match params.number("config_id")? {
        Some(id) => id,
        None => params.required_number("param")?,
    };
    let cell = chain.config().get_raw_cell(id.cast_unsigned())?;
    let cell =
        cell.ok_or_else(|| ToncenterError::new(404, format!("the configuration has no parameter {id}")))?;
    Ok(config_info(&cell))
}

pub(super) fn config_all(chain: &LocalChain) -> Value {
    config_info(&chain.config().as_dict().root().clone().unwrap_or_default())
}

fn config_info(cell: &Cell) -> Value {
    let bytes = BASE64_STANDARD.encode(Boc::encode(cell));
    json!({ "@type": "configInfo", "config": { "@type": "tvm.cell", "bytes": bytes } })
}

fn workchain(params: &Params<'_>) -> Result<i32, ToncenterError> {
    let workchain: i32 = params.required_number("workchain")?;
    if matches!(workchain, -1 | 0) { Ok(workchain) } else { Err(bad("workchain", "is neither -1 nor 0")) }
}

fn by_seqno(chain: &LocalChain, seqno: u32) -> Result<BlockInfo, ToncenterError> {
    found(chain.block(seqno)?)
}

fn found(block: Option<BlockInfo>) -> Result<BlockInfo, ToncenterError> {
    block.ok_or_else(|| {
        ToncenterError::new(
            404,
            "there is no such block, or it is no longer kept; the newest is in getMasterchainInfo",
        )
    })
}
