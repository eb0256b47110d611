//! The address of an inference server inside the enclave.

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

/// Where the server is, and what it calls the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The base of its API, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name there; empty if it serves one only.
    pub model: String,
    /// How long it may take until it answers for the first time: large models take minutes to load.
    pub patience: Duration,
}

/// Why an address cannot be asked.
#[derive(Debug, Error)]
pub enum ServerAddressError {
    /// Not an address.
    #[error("{why}; write the base of the server's API, such as http://127.0.0.1:8000/v1")]
    Url {
        /// What is wrong with it.
        why: String,
    },
    /// Not an address of this machine.
    #[error(
        "no loopback address: whoever answers there would read the prompts; run the server inside the enclave and name \
         it by 127.0.0.1"
    )]
    Elsewhere,
}

impl ServerConfig {
    /// The base of the API, without a slash at its end.
    ///
    /// # Errors
    /// If it is no address, or leaves this machine.
    pub fn base(&self) -> Result<String, ServerAddressError> {
        let wrong = |why: String| ServerAddressError::Url { why };
        let url = reqwest::Url::parse(&self.url).map_err(|e| wrong(e.to_string()))?;
        if url.scheme() != "http" {
            return Err(wrong(format!("the scheme is {}, not http", url.scheme())));
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        // A name could be made to point elsewhere; an address cannot.
        if !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) {
            return Err(ServerAddressError::Elsewhere);
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err(wrong("it has more than an address and a path".into()));
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(url: &str) -> Result<String, ServerAddressError> {
        ServerConfig { url: url.into(), model: String::new(), patience: Duration::ZERO }.base()
    }

    #[test]
    fn only_addresses_of_this_machine_are_taken() {
        assert_eq!(base("http://127.0.0.1:8000/v1/").unwrap(), "http://127.0.0.1:8000/v1");
        assert_eq!(base("http://[::1]:8000/v1").unwrap(), "http://[::1]:8000/v1");
        for elsewhere in ["http://10.0.0.1:8000/v1", "http://localhost:8000/v1", "http://example.com/v1"] {
            assert!(matches!(base(elsewhere), Err(ServerAddressError::Elsewhere)), "{elsewhere}");
        }
        for wrong in
            ["", "127.0.0.1:8000", "https://127.0.0.1/v1", "http://127.0.0.1/v1?key=1", "http://a@127.0.0.1/"]
        {
            assert!(matches!(base(wrong), Err(ServerAddressError::Url { .. })), "{wrong}");
        }
    }
}
