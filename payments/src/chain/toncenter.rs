//! The chain through toncenter's HTTP API v2.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use thiserror::Error;

use super::{
    AccountState, AccountStatus, BoxFuture, Chain, ChainError, ChainIdentity, GetMethodResult, Head,
    MessageInfo, StackValue, TransactionInfo,
    http::Endpoint,
    json::{Answer, read_stack, write_stack},
    transaction,
};
use crate::{Address, cell};

/// Configuration parameter that holds the global id.
const GLOBAL_ID_PARAM: i32 = 19;
/// toncenter's own limit.
const MAX_PAGE: usize = 100;

/// A client of any toncenter v2 endpoint: toncenter.com, a server of one's own, or the local chain.
#[derive(Clone)]
pub struct Toncenter {
    endpoint: Transport,
}

#[derive(Clone)]
enum Transport {
    Http(Endpoint),
    #[cfg(feature = "local-chain")]
    Embedded(std::sync::Arc<crate::local::LocalChain>),
}

/// Why there is no client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ToncenterError {
    /// The URL is unusable.
    #[error("the chain endpoint's URL {why}")]
    Url {
        /// What is wrong.
        why: &'static str,
    },
    /// The key cannot be an HTTP header.
    #[error("the chain endpoint's api_key holds characters that an HTTP header cannot")]
    ApiKey,
    /// TLS or sockets.
    #[error("no HTTP client could be made: {0}")]
    Client(#[source] reqwest::Error),
}

impl Toncenter {
    /// A client. `url` may be the host, the API (`…/api/v2`), or its JSON-RPC path. Nothing is asked
    /// yet; compare [`Chain::identity`] with genesis first.
    pub fn new(url: &str, api_key: Option<String>) -> Result<Self, ToncenterError> {
        Ok(Self { endpoint: Transport::Http(Endpoint::new(url, api_key)?) })
    }

    /// The same client on a local chain in this process, without a socket.
    #[cfg(feature = "local-chain")]
    pub fn embedded(chain: std::sync::Arc<crate::local::LocalChain>) -> Self {
        Self { endpoint: Transport::Embedded(chain) }
    }

    async fn call(&self, method: &'static str, params: Value) -> Result<Value, ChainError> {
        match &self.endpoint {
            Transport::Http(endpoint) => endpoint.call(method, params).await,
            #[cfg(feature = "local-chain")]
            Transport::Embedded(chain) => crate::local::toncenter(chain, method, &params).map_err(|error| {
                ChainError::Refused { method, code: error.code.into(), message: error.message }
            }),
        }
    }

    async fn read_identity(&self) -> Result<ChainIdentity, ChainError> {
        let method = "getMasterchainInfo";
        let info = self.call(method, json!({})).await?;
        let zero_state = Answer { method, value: &info }.at("init")?.hash("root_hash")?;
        let method = "getConfigParam";
        let param =
            self.call(method, json!({ "config_id": GLOBAL_ID_PARAM, "param": GLOBAL_ID_PARAM })).await?;
        let text = Answer { method, value: &param }.at("config")?.text("bytes")?;
        let cell = cell::parse_base64(text).map_err(|source| ChainError::Boc { method, source })?;
        let global_id =
            cell.parser().load_i32(32).map_err(|_| ChainError::Answer { method, field: "config" })?;
        Ok(ChainIdentity { global_id, zero_state })
    }

    async fn read_head(&self) -> Result<Head, ChainError> {
        let method = "getMasterchainInfo";
        let info = self.call(method, json!({})).await?;
        let last = Answer { method, value: &info }.at("last")?;
        let (seqno, hash) = (last.number("seqno")?, last.hash("root_hash")?);
        let shard = last.value.get("shard").cloned().unwrap_or(Value::Null);
        let method = "getBlockHeader";
        let header = self.call(method, json!({ "workchain": -1, "shard": shard, "seqno": seqno })).await?;
        let unixtime = Answer { method, value: &header }.number("gen_utime")?;
        Ok(Head { seqno, hash, unixtime })
    }

    async fn read_account(&self, address: &Address) -> Result<AccountState, ChainError> {
        let method = "getAddressInformation";
        let value = self.call(method, json!({ "address": address.to_string() })).await?;
        let account = Answer { method, value: &value };
        let last = account.at("last_transaction_id")?;
        let last_lt = last.number("lt")?;
        let balance = account.coins("balance")?;
        let status = match account.text("state")? {
            "active" => AccountStatus::Active,
            "frozen" => AccountStatus::Frozen,
            _ if last_lt == 0 && balance.is_zero() => AccountStatus::Absent,
            _ => AccountStatus::Uninit,
        };
        Ok(AccountState {
            balance,
            status,
            code: account.bytes("code")?,
            data: account.bytes("data")?,
            last_lt,
            // An account without transactions has no hash, however a server writes that.
            last_hash: if last_lt == 0 { [0; 32] } else { last.hash("hash")? },
            unixtime: account.number("sync_utime")?,
        })
    }

    async fn call_getter(
        &self,
        address: &Address,
        getter: &str,
        stack: &[StackValue],
    ) -> Result<GetMethodResult, ChainError> {
        let method = "runGetMethod";
        let stack: Vec<Value> = stack.iter().map(write_stack).collect();
        let params = json!({ "address": address.to_string(), "method": getter, "stack": stack });
        let value = self.call(method, params).await?;
        let answer = Answer { method, value: &value };
        Ok(GetMethodResult {
            exit_code: answer.number("exit_code")?,
            gas_used: answer.number("gas_used")?,
            stack: answer.list("stack")?.iter().map(read_stack).collect(),
        })
    }

    async fn send_boc(&self, boc: &[u8]) -> Result<[u8; 32], ChainError> {
        let method = "sendBoc";
        let message = cell::parse(boc).map_err(|source| ChainError::Boc { method, source })?;
        self.call(method, json!({ "boc": BASE64_STANDARD.encode(boc) })).await?;
        Ok(cell::hash(&message))
    }

    async fn read_transactions(
        &self,
        address: &Address,
        limit: usize,
    ) -> Result<Vec<TransactionInfo>, ChainError> {
        let method = "getTransactions";
        let params = json!({ "address": address.to_string(), "limit": limit.min(MAX_PAGE) });
        let value = self.call(method, params).await?;
        let Some(list) = value.as_array() else {
            return Err(ChainError::Answer { method, field: "result" });
        };
        let read = |value| read_transaction(Answer { method, value });
        list.iter().take(limit).map(read).collect()
    }
}

fn read_transaction(answer: Answer<'_>) -> Result<TransactionInfo, ChainError> {
    let method = answer.method;
    let id = answer.at("transaction_id")?;
    let cell =
        cell::parse_base64(answer.text("data")?).map_err(|source| ChainError::Boc { method, source })?;
    let hash = id.hash("hash")?;
    if cell::hash(&cell) != hash {
        return answer.fail("transaction_id that is the hash of its data");
    }
    let outcome = transaction::outcome(&cell).map_err(|_| ChainError::Answer { method, field: "data" })?;
    let in_msg = answer.value.get("in_msg").filter(|message| message.is_object());
    let read = |value| read_message(Answer { method, value });
    Ok(TransactionInfo {
        hash,
        lt: id.number("lt")?,
        now: answer.number("utime")?,
        fees: answer.coins("fee")?,
        gas_used: outcome.gas_used,
        exit_code: outcome.exit_code,
        action_code: outcome.action_code,
        in_msg: in_msg.map(read).transpose()?,
        out_msgs: answer.list("out_msgs")?.iter().map(read).collect::<Result<_, _>>()?,
    })
}

fn read_message(message: Answer<'_>) -> Result<MessageInfo, ChainError> {
    Ok(MessageInfo {
        source: message.address("source"),
        destination: message.address("destination"),
        value: message.coins("value")?,
        body_hash: message.hash("body_hash")?,
    })
}

impl Chain for Toncenter {
    fn identity(&self) -> BoxFuture<'_, Result<ChainIdentity, ChainError>> {
        Box::pin(self.read_identity())
    }

    fn head(&self) -> BoxFuture<'_, Result<Head, ChainError>> {
        Box::pin(self.read_head())
    }

    fn account<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<AccountState, ChainError>> {
        Box::pin(self.read_account(address))
    }

    fn run_get_method<'a>(
        &'a self,
        address: &'a Address,
        method: &'a str,
        stack: &'a [StackValue],
    ) -> BoxFuture<'a, Result<GetMethodResult, ChainError>> {
        Box::pin(self.call_getter(address, method, stack))
    }

    fn send<'a>(&'a self, boc: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], ChainError>> {
        Box::pin(self.send_boc(boc))
    }

    fn transactions<'a>(
        &'a self,
        address: &'a Address,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<TransactionInfo>, ChainError>> {
        Box::pin(self.read_transactions(address, limit))
    }
}

impl fmt::Debug for Toncenter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.endpoint {
            Transport::Http(endpoint) => endpoint.url().as_str(),
            #[cfg(feature = "local-chain")]
            Transport::Embedded(_) => "embedded",
        };
        f.debug_tuple("Toncenter").field(&place).finish()
    }
}
