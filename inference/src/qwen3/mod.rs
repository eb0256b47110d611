//! The Qwen3 decoder.
//!
//! A decoder layer is `x + attention(norm(x))`, then `x + mlp(norm(x))`. What distinguishes Qwen3 from
//! Llama: queries and keys are RMS-normalised per head before the rotary embedding (`q_norm`,
//! `k_norm`), and `head_dim` is a parameter of its own, not `hidden_size / heads`. Grouped-query
//! attention shares each key/value head among `heads / kv_heads` query heads.
//!
//! * [`Qwen3::forward`] runs a batch of rows without a cache. burn tensors carry their device at run
//!   time, so it can be differentiated on an autodiff device.
//! * [`Qwen3::forward_cached`] appends tokens to one sequence's [`KvCache`]: this is what serving
//!   runs. The cache is allocated once and written in place; attention reads a view of it.
//! * [`weights`] maps parameters to the tensor names of a Hugging Face checkpoint, in both
//!   directions.
//!
//! Weights keep the checkpoint's `[out, in]` layout, which is also burn-flex's faster one for a
//! single row. Query, key and value projections are stacked into one matrix, gate and up
//! projections into another, so that a decode step makes four matrix products per layer.

mod cache;
mod config;
mod layer;
mod model;
mod rope;
pub mod weights;

pub use cache::KvCache;
pub use config::Qwen3Config;
pub use model::Qwen3;
