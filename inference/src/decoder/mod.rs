//! One decoder for the model families that share its skeleton.
//!
//! A layer is `x + attention(norm(x))`, then `x + mlp(norm(x))`, with grouped-query attention (each
//! key/value head serves `heads / kv_heads` query heads), rotary positions and a gated feed-forward
//! part. The families differ in what [`Family`] and [`DecoderConfig`] say:
//!
//! | | Qwen3 | Llama | Mistral | Gemma 3 |
//! |---|---|---|---|---|
//! | norms of query and key heads | yes | – | – | yes |
//! | norms of what joins the residual stream | – | – | – | yes |
//! | norm weights in the checkpoint | `w` | `w` | `w` | `w - 1` |
//! | gate | SiLU | SiLU | SiLU | GELU, tanh form |
//! | scores times | 1/√head_dim | 1/√head_dim | 1/√head_dim | 1/√query_pre_attn_scalar |
//! | embeddings times | 1 | 1 | 1 | √hidden_size |
//! | sliding window | – | – | all layers, or none | most layers, with a RoPE base of their own |
//! | biases of attention | – | optional | – | – |
//!
//! All of it was read in the modelling code of `transformers` 5.12, and `tests/parity` compares every
//! family with what that library computes.
//!
//! * [`Decoder`] runs a batch of rows in burn's own operations. Tensors carry their device at run time, so it
//!   can be differentiated on an autodiff device; it is also the reference of what serves.
//! * [`ServingDecoder`] appends tokens to sequences: packed weights, paged keys and values, and kernels that
//!   burn's flex backend gets as an extension ([`ops`]).
//! * [`Packing`] takes the weights of a [`ServingDecoder`] row by row, in whichever order files have them.
//! * [`weights`] maps the tensor names of a Hugging Face checkpoint to parameters of either.
//!
//! Query, key and value projections are stacked into one matrix, gate and up projections into another, so that
//! a decode step makes four matrix products per layer.

mod cache;
mod config;
mod layer;
mod model;
pub mod ops;
mod packing;
mod rope;
mod serving;
mod view;
pub mod weights;

pub use cache::KvCache;
pub(crate) use cache::{block_bytes, kv_pools};
pub use config::{Attention, DecoderConfig, Family, Gate, RopeScaling, Rotary};
pub use model::Decoder;
pub use packing::{Packing, Places};
pub use serving::ServingDecoder;
pub(crate) use serving::Spot;

#[cfg(feature = "gpu")]
pub(crate) use rope::frequencies;
#[cfg(feature = "gpu")]
pub(crate) use weights::{LayerParts, Make, Parts, Role, Whole, read};
