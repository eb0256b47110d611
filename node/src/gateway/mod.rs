//! The gateway: OpenAI's HTTP API on loopback, with a light peer behind it.
//!
//! `POST /v1/chat/completions` (plain and SSE), `GET /v1/models`, `GET /health`. Any program of the same
//! user that knows the key can spend from the wallet behind it and no web page can: see [`crate::http`].
//! Each answer carries the extension field `cocoon`, its receipt: who ran what, how that was attested and
//! what it cost.

mod billed;
pub mod openai;
mod server;
mod spend;
mod sse;

pub use server::{Gateway, GatewayError, ServeConfig};
