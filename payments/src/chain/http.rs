//! One JSON-RPC call over HTTP, bounded in time and size.

use std::time::Duration;

use reqwest::{
    Client, Url,
    header::{HeaderMap, HeaderValue},
};
use serde_json::{Value, json};

use super::{ChainError, ToncenterError};

/// A page of transactions with their cells is the largest answer that is asked for.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Public endpoints allow about one request a second without a key.
const RETRY_AFTER: Duration = Duration::from_millis(1100);
const ATTEMPTS: usize = 3;

/// Where toncenter answers.
#[derive(Clone)]
pub(super) struct Endpoint {
    client: Client,
    url: Url,
}

impl Endpoint {
    pub(super) fn new(url: &str, api_key: Option<String>) -> Result<Self, ToncenterError> {
        let mut url = Url::parse(url.trim()).map_err(|_| ToncenterError::Url { why: "is not a URL" })?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(ToncenterError::Url { why: "must begin with https:// or http:// and name a host" });
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ToncenterError::Url { why: "must not hold a password; give the key as api_key" });
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&match path.as_str() {
            "" => "/api/v2/jsonRPC".to_owned(),
            path if path.ends_with("/jsonRPC") => path.to_owned(),
            path => format!("{path}/jsonRPC"),
        });
        let mut headers = HeaderMap::new();
        if let Some(key) = api_key {
            let mut key = HeaderValue::from_str(&key).map_err(|_| ToncenterError::ApiKey)?;
            key.set_sensitive(true);
            headers.insert("X-API-Key", key);
        }
        let mut client = Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            // A redirect could lead the key, or a POST, somewhere else.
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(4);
        if url.scheme() == "http" {
            // Without TLS no certificates are needed, so a machine that has none can still talk to a
            // chain of its own.
            client = client.tls_certs_only([]);
            if !is_loopback(&url) {
                tracing::warn!(
                    host = url.host_str(),
                    "the chain endpoint is read over plain http; use https"
                );
            }
        }
        let client = client.build().map_err(ToncenterError::Client)?;
        Ok(Self { client, url })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Calls a method, again if the endpoint says that it is busy. Everything that is asked may be
    /// asked twice, sending a message included: its sequence number lets it in once.
    pub(super) async fn call(&self, method: &'static str, params: Value) -> Result<Value, ChainError> {
        let mut attempt = 1;
        loop {
            match self.call_once(method, &params).await {
                Err(ChainError::Refused { code: 429 | 503, .. }) if attempt < ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                answer => return answer,
            }
        }
    }

    async fn call_once(&self, method: &'static str, params: &Value) -> Result<Value, ChainError> {
        let unreachable =
            |source: reqwest::Error| ChainError::Unreachable { method, source: source.without_url() };
        let request = json!({ "jsonrpc": "2.0", "id": "1", "method": method, "params": params });
        let mut response =
            self.client.post(self.url.clone()).json(&request).send().await.map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(ChainError::TooLarge { method, max: MAX_ANSWER_BYTES });
            }
            body.extend_from_slice(&chunk);
        }
        let refused = |code: i64, message: &str| ChainError::Refused {
            method,
            code,
            message: message.chars().filter(|c| !c.is_control()).take(300).collect(),
        };
        let Ok(mut answer) = serde_json::from_slice::<Value>(&body) else {
            return if status.is_success() {
                Err(ChainError::Answer { method, field: "JSON body" })
            } else {
                Err(refused(i64::from(status.as_u16()), &String::from_utf8_lossy(&body)))
            };
        };
        if answer.get("ok").and_then(Value::as_bool) == Some(true)
            && let Some(result) = answer.get_mut("result")
        {
            return Ok(result.take());
        }
        // toncenter puts its words under "error", "result" or "detail".
        let message = ["error", "result", "detail"].iter().find_map(|field| answer.get(field)?.as_str());
        let code = answer.get("code").and_then(Value::as_i64);
        let code = code.unwrap_or(i64::from(status.as_u16()));
        Err(refused(code, message.unwrap_or("it gave no reason")))
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_the_endpoint_leads_to_json_rpc() {
        for (given, used) in [
            ("https://toncenter.com", "https://toncenter.com/api/v2/jsonRPC"),
            ("https://toncenter.com/api/v2/", "https://toncenter.com/api/v2/jsonRPC"),
            ("http://127.0.0.1:81/api/v2/jsonRPC", "http://127.0.0.1:81/api/v2/jsonRPC"),
        ] {
            assert_eq!(Endpoint::new(given, None).unwrap().url().as_str(), used);
        }
    }

    #[test]
    fn loopback_is_recognised() {
        for (url, expected) in [
            ("http://127.0.0.9", true),
            ("http://[::1]:8081", true),
            ("http://localhost", true),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for url in ["", "toncenter.com", "ftp://x/", "file:///etc/passwd", "https://user:key@toncenter.com"] {
            assert!(Endpoint::new(url, None).is_err(), "{url}");
        }
        let key = Some("a\nb".to_owned());
        assert!(matches!(Endpoint::new("https://x.org", key), Err(ToncenterError::ApiKey)));
    }
}
