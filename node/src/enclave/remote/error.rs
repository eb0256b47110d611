//! Why there is no server.

use thiserror::Error;

use crate::config::ServerAddressError;

/// Why there is no server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Its address.
    #[error(transparent)]
    Address(#[from] ServerAddressError),
    /// No connections can be made at all.
    #[error(
        "no connection to the inference server can be made: {why}; this machine lacks something that HTTP needs"
    )]
    Client {
        /// What the library said.
        why: String,
    },
    /// It did not answer.
    #[error(
        "the inference server at {url} did not answer for {seconds} s ({why}); see its own log, and start it before the \
         enclave or raise `model.server_patience_s`"
    )]
    Silent {
        /// Its address.
        url: String,
        /// How long was waited.
        seconds: u64,
        /// What came last.
        why: String,
    },
    /// It serves other models.
    #[error(
        "the inference server has {found}, not \"{wanted}\"; set `engine.served_model` to the name that it uses \
         (vLLM: --served-model-name)"
    )]
    Model {
        /// What it has.
        found: String,
        /// What was asked for.
        wanted: String,
    },
}
