//! The local chain's source of coins.

use cocoon_payments::{Address, NanoTon};
use serde_json::json;

use super::supervisor::{UpError, http_client};
use crate::config::ChainConfig;

/// Gives coins of the local chain to whoever asks with the chain's key.
#[derive(Debug)]
pub(crate) struct Faucet {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Faucet {
    pub(crate) fn new(chain: &ChainConfig) -> Result<Self, UpError> {
        Self::at(&chain.url, chain.api_key.clone())
    }

    /// At a local chain's endpoint (it ends in `/api/v2`).
    pub(crate) fn at(url: &str, key: String) -> Result<Self, UpError> {
        let root = url.trim_end_matches('/').trim_end_matches("/api/v2");
        Ok(Self { http: http_client()?, url: format!("{root}/faucet"), key })
    }

    pub(crate) async fn fund(&self, address: &Address, amount: NanoTon) -> Result<(), UpError> {
        let body = json!({"address": address.to_string(), "amount": amount.0});
        let request = self.http.post(&self.url).header("X-API-Key", &self.key).json(&body);
        let response = request.send().await.map_err(|error| UpError::Faucet(error.to_string()))?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(UpError::Faucet(response.text().await.unwrap_or_default()))
    }
}
