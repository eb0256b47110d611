//! The arithmetic of decoders and encoders on a processor: matrix products, norms, rotary positions, activations,
//! attention.
//!
//! # The same bits everywhere
//!
//! Results do not depend on how many rows are computed together, on the number of threads, or on the
//! instruction set. So an answer does not depend on who else is being answered, and another worker can
//! take it over in the middle. Two rules give this:
//!
//! * Every output element is **one chain** of operations in a defined order. Vectors go across outputs that
//!   do not depend on each other, threads take whole outputs, and tiling only decides which outputs share a
//!   load. Where a sum must go across a vector (norms, the sum of a softmax), sixteen lanes are summed apart
//!   and then in one tree (`Simd::sum`), on machines with narrower registers too.
//! * Every operation is IEEE 754 single precision, rounded to nearest, with multiply-add rounded once.
//!   There is no libm: [`activation`] and [`mod@gelu`] have their own exponential.
//!
//! The chains, with `fma(a, b, c) = a · b + c`:
//!
//! | what | order |
//! |---|---|
//! | [`matmul()`], `F32` and `F16` | `s = 0; for k in 0..in { s = fma(x[k], w[k], s) }` |
//! | [`matmul()`], `Int8` and `Int4` | `s = 0; for g in groups of 32 { s = fma(Σ xq · wq, xs[g] · ws[g], s) }`, the inner sum in integers and exact, the product of scales rounded |
//! | [`norm`] | lane `l` sums the squares of `x[l], x[l + 16], …` by fma; the tree; then `(x · r) · w`, `r = 1 / sqrt(sum / n + eps)` |
//! | [`layer_norm`] | lane `l` sums `x[l], x[l + 16], …`, then the squares of what differs from the mean by fma; the tree each time; then `fma((x - mean) · r, w, b)` |
//! | [`rope`] | `fma(a, cos, -(b · sin))`, `fma(a, sin, b · cos)` |
//! | [`attention`] scores | as `matmul` over the dimensions of the head, then `· scale` |
//! | [`attention`] softmax | `exp(s - max)`; lane `l` sums the tokens of positions `≡ l mod 16`; the tree |
//! | [`attention`] values | `o = 0; for t in first_key..=position { o = fma(p[t], v[t], o) }`, then `o / sum` |
//!
//! A sum of infinities or of anything with a NaN is not a number, or infinite, on every machine, but which
//! NaN it is may differ. Nothing panics on such values.
//!
//! # Threads
//!
//! Work above a small size is split over rayon's current pool. Waking a pool from outside takes longer than
//! a small product does: run a whole forward pass inside one `ThreadPool::install`.

pub mod activation;
pub mod attention;
mod exp;
pub mod gelu;
mod heads;
pub mod layer_norm;
mod matmul;
mod matrix;
mod memory;
pub mod norm;
mod out;
mod pack;
mod pool;
mod quant;
pub mod rope;
mod scratch;
mod simd;
mod tile;

#[cfg(test)]
mod tests;

pub use heads::Heads;
pub use matmul::matmul;
pub use matrix::{Matrix, Precision, RoundingError};
pub use pack::Filling;
pub use pool::{BLOCK, KvPool, KvPrecision};
pub use simd::Isa;
