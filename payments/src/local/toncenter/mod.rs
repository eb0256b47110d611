//! toncenter's HTTP API v2 as one function from method and parameters to JSON.
//!
//! Every TON SDK can talk to toncenter, so the local chain answers in its shapes, and both of its
//! doors, JSON-RPC and one path per method, lead here. Field names, the `@type` marks and the habit of
//! writing amounts as strings and hashes in base64 are toncenter's (as served by ton-http-api, whose
//! shapes come from tonlib). What the local chain has no counterpart for is left out or constant.
//!
//! | file | what it holds |
//! |---|---|
//! | `params` | reading parameters, which arrive as JSON values or as query strings |
//! | `accounts`, `blocks`, `messages` | the methods |
//! | `stack` | values of get methods |

mod accounts;
mod blocks;
mod messages;
mod params;
mod stack;

use serde_json::{Value, json};
use thiserror::Error;

use self::params::Params;
use super::{GetMethodError, LocalChain, LocalChainError, SubmitError};

/// A refusal in toncenter's terms: the code is an HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ToncenterError {
    /// 404 for an unknown method or object, 422 for a bad parameter, 503 for "try again", 500 else.
    pub code: u16,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl ToncenterError {
    fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The body of an error response.
    pub fn body(&self) -> Value {
        json!({ "ok": false, "error": self.message, "code": self.code })
    }
}

impl From<LocalChainError> for ToncenterError {
    fn from(error: LocalChainError) -> Self {
        Self::new(500, error.to_string())
    }
}

impl From<tycho_types::error::Error> for ToncenterError {
    fn from(error: tycho_types::error::Error) -> Self {
        LocalChainError::from(error).into()
    }
}

impl From<GetMethodError> for ToncenterError {
    fn from(error: GetMethodError) -> Self {
        Self::new(500, error.to_string())
    }
}

impl From<SubmitError> for ToncenterError {
    fn from(error: SubmitError) -> Self {
        let code = match error {
            SubmitError::Full => 503,
            // toncenter passes the node's verdict on as its own failure.
            SubmitError::NotAccepted { .. } | SubmitError::Impossible(_) | SubmitError::Chain(_) => 500,
            _ => 422,
        };
        Self::new(code, error.to_string())
    }
}

/// Answers one toncenter v2 method. `params` is an object; numbers may be written as strings.
///
/// # Errors
/// [`ToncenterError`], ready to be sent.
pub fn toncenter(chain: &LocalChain, method: &str, params: &Value) -> Result<Value, ToncenterError> {
    let params = Params::new(params)?;
    let p = &params;
    match method {
        "getAddressInformation" => accounts::information(chain, p),
        "getExtendedAddressInformation" => accounts::extended_information(chain, p),
        "getWalletInformation" => accounts::wallet_information(chain, p),
        "getAddressBalance" => accounts::balance(chain, p),
        "getAddressState" => accounts::state(chain, p),
        "runGetMethod" => accounts::run_get_method(chain, p),
        "getTransactions" => messages::transactions(chain, p),
        "tryLocateTx" | "tryLocateResultTx" => messages::locate_result(chain, p),
        "tryLocateSourceTx" => messages::locate_source(chain, p),
        "sendBoc" => messages::send(chain, p),
        "sendBocReturnHash" => messages::send_return_hash(chain, p),
        "estimateFee" => messages::estimate_fee(chain, p),
        "getMasterchainInfo" => Ok(blocks::masterchain_info(chain)),
        "getConsensusBlock" => Ok(blocks::consensus_block(chain)),
        "getShards" | "shards" => blocks::shards(chain, p),
        "lookupBlock" => blocks::lookup(chain, p),
        "getBlockHeader" => blocks::header(chain, p),
        "getBlockTransactions" => blocks::transactions(chain, p),
        "getConfigParam" => blocks::config_param(chain, p),
        "getConfigAll" => Ok(blocks::config_all(chain)),
        unknown => {
            let unknown: String = unknown.chars().take(64).collect();
            Err(ToncenterError::new(404, format!("method {unknown:?} is not served by the local chain")))
        }
    }
}
