//! What serving adds to burn: operations of the flex backend that run our [`kernels`](crate::kernels).
//!
//! burn's own operations would give the same numbers more slowly, and with bits that depend on the size of the
//! batch. Activations are burn tensors, `[rows, width]` in f32; weights are packed [`Matrix`]es, and keys and values
//! are in a [`KvPool`], which tensors cannot be without copying. Another backend joins by implementing
//! [`ServingOps`].

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};

use super::Gate;
use crate::kernels::attention::{Row, attend};
use crate::kernels::rope::Rope;
use crate::kernels::{Heads, KvPool, Matrix, activation, matmul, norm};

/// Operations of a serving step.
#[backend_extension(Flex)]
pub trait ServingOps: Backend {
    /// `x · weightᵀ`.
    fn packed_linear(x: FloatTensor<Self>, weight: &Matrix) -> FloatTensor<Self>;
    /// `x / sqrt(mean(x²) + eps) · weight` for each row.
    fn packed_norm(x: FloatTensor<Self>, weight: &[f32], eps: f32) -> FloatTensor<Self>;
    /// The gate of rows `[gate, up]`.
    fn packed_gate(x: FloatTensor<Self>, gate: Gate) -> FloatTensor<Self>;
    /// Norms and rotates the heads of rows `[queries, keys, values]`, keeps keys and values in the pool, and gives
    /// what the queries see.
    fn paged_attention(qkv: FloatTensor<Self>, spec: &HeadSpec<'_>, pool: &mut KvPool) -> FloatTensor<Self>;
}

/// What [`ServingOps::paged_attention`] does beside its tensors.
#[derive(Debug, Clone, Copy)]
pub struct HeadSpec<'a> {
    /// Query heads, and key heads.
    pub heads: (usize, usize),
    /// Width of each.
    pub dim: usize,
    /// Norm weights of query heads and of key heads.
    pub norms: Option<(&'a [f32], &'a [f32])>,
    /// Added to the mean square of those norms.
    pub eps: f32,
    /// What scores are multiplied with.
    pub scale: f32,
    /// The angles of the rows.
    pub rope: &'a Rope,
    /// Where each row is, and what it sees.
    pub rows: &'a [Row<'a>],
}

/// `x · weightᵀ`.
pub(super) fn linear(x: Tensor<2>, weight: &Matrix) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::packed_linear(x.into_dispatch(), weight))
}

/// The RMS norm of each row.
pub(super) fn rms_norm(x: Tensor<2>, weight: &[f32], eps: f32) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::packed_norm(x.into_dispatch(), weight, eps))
}

/// The gated rows.
pub(super) fn gated(x: Tensor<2>, gate: Gate) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::packed_gate(x.into_dispatch(), gate))
}

/// What the queries of `[queries, keys, values]` see.
pub(super) fn attention(qkv: Tensor<2>, spec: &HeadSpec<'_>, pool: &mut KvPool) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::paged_attention(qkv.into_dispatch(), spec, pool))
}

/// The width that heads have in a pool: whole vectors.
pub(super) fn pool_dim(dim: usize) -> usize {
    dim.next_multiple_of(crate::kernels::BLOCK)
}

impl ServingOps for Flex {
    fn packed_linear(x: FloatTensor<Self>, weight: &Matrix) -> FloatTensor<Self> {
        map(&x, weight.out_features(), |x, rows, out| matmul(x, rows, weight, out))
    }

    fn packed_norm(x: FloatTensor<Self>, weight: &[f32], eps: f32) -> FloatTensor<Self> {
        map(&x, weight.len(), |x, _, out| norm::rms_norm(x, weight, eps, out))
    }

    fn packed_gate(x: FloatTensor<Self>, gate: Gate) -> FloatTensor<Self> {
        let width = x.layout().shape()[1] / 2;
        map(&x, width, |x, _, out| match gate {
            Gate::Silu => activation::silu_gate(x, width, out),
            Gate::GeluTanh => activation::gelu_tanh_gate(x, width, out),
        })
    }

    fn paged_attention(qkv: FloatTensor<Self>, spec: &HeadSpec<'_>, pool: &mut KvPool) -> FloatTensor<Self> {
        let HeadSpec { heads: (heads, kv), dim, norms, eps, scale, rope, rows } = *spec;
        let stride = (heads + 2 * kv) * dim;
        let part = |offset: usize, count: usize| Heads { stride, offset: offset * dim, count, dim };
        let mut qkv = qkv.to_contiguous();
        let values: &mut [f32] = qkv.storage_mut();
        if let Some((queries, keys)) = norms {
            norm::head_norm(values, part(0, heads), queries, eps);
            norm::head_norm(values, part(heads, kv), keys, eps);
        }
        rope.apply(values, part(0, heads + kv));

        let wide = pool_dim(dim);
        let mut out = vec![0.0; rows.len() * heads * dim];
        if wide == dim {
            for (row, values) in rows.iter().zip(values.chunks_exact(stride)) {
                let (keys, values) = values[heads * dim..].split_at(kv * dim);
                pool.append(row.table, row.position, keys, values);
            }
            attend(pool, values, part(0, heads), rows, scale, &mut out);
        } else {
            // Zeros beside keys and queries change no score, and those beside values are dropped again.
            let values = widen(values, dim, wide);
            for (row, values) in rows.iter().zip(values.chunks_exact((heads + 2 * kv) * wide)) {
                let (keys, values) = values[heads * wide..].split_at(kv * wide);
                pool.append(row.table, row.position, keys, values);
            }
            let mut seen = vec![0.0; rows.len() * heads * wide];
            let queries = Heads { stride: (heads + 2 * kv) * wide, offset: 0, count: heads, dim: wide };
            attend(pool, &values, queries, rows, scale, &mut seen);
            for (out, seen) in out.chunks_exact_mut(dim).zip(seen.chunks_exact(wide)) {
                out.copy_from_slice(&seen[..dim]);
            }
        }
        tensor(out, rows.len(), heads * dim)
    }
}

/// Applies a kernel to the rows of a tensor, whose results have `width` values each.
fn map(
    x: &FloatTensor<Flex>,
    width: usize,
    kernel: impl FnOnce(&[f32], usize, &mut [f32]),
) -> FloatTensor<Flex> {
    let rows = x.layout().shape()[0];
    let x = x.to_contiguous();
    let mut out = vec![0.0; rows * width];
    // Nothing but f32 comes here; a kernel refuses rows that are not there.
    kernel(x.as_slice::<f32>().unwrap_or_default(), rows, &mut out);
    tensor(out, rows, width)
}

fn tensor(values: Vec<f32>, rows: usize, width: usize) -> FloatTensor<Flex> {
    FloatTensor::<Flex>::from_data(TensorData::new(values, [rows, width]))
}

/// Heads of `dim` values as heads of `wide`, filled up with zeros.
fn widen(x: &[f32], dim: usize, wide: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / dim * wide];
    for (out, head) in out.chunks_exact_mut(wide).zip(x.chunks_exact(dim)) {
        out[..dim].copy_from_slice(head);
    }
    out
}
