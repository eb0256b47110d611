//! The kernels of a serving step, in CubeCL: for every runtime that has planes (subgroups, warps).
//!
//! Each file has a kernel and the method of [`Gpu`] that launches it. They compute what [`kernels`](crate::kernels)
//! computes on a processor, with sums in another order: see [`decoder`](super::decoder) for what that means for an
//! answer. Activations are f32, `[rows, width]`; where a product by matrix units comes next, what it reads is
//! rounded to [`Format::Bf16`].
#![allow(
    unsafe_code,
    reason = "a launch is checked by its caller, once for all its reads, and not at each of them"
)]
// What the `cube` macro makes of a kernel is not ours to write otherwise.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::too_many_arguments,
    clippy::needless_range_loop,
    clippy::collapsible_if,
    clippy::manual_is_multiple_of,
    clippy::manual_range_contains,
    clippy::assign_op_pattern
)]

pub(super) mod attention;
pub(super) mod format;
pub(super) mod gate;
pub(super) mod heads;
pub(super) mod matmul;
pub(super) mod matvec;
pub(super) mod norm;
pub(super) mod sample;
pub(super) mod stream;

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::{Handle, ServerError};
use cubecl_environment::stream::StreamId;

#[cfg(test)]
mod tests;

use self::format::Format;
use super::DeviceError;
use crate::kernels::BLOCK;

/// A device that computes, seen by its kernels.
#[derive(Clone)]
pub(super) struct Gpu {
    pub(super) client: Client,
    /// Lanes of a plane.
    pub(super) plane: usize,
    /// Bytes that the units of a cube can share.
    shared_bytes: usize,
    /// What absent parts are bound to.
    nothing: Buffer,
}

/// Memory of a device.
#[derive(Debug, Clone)]
pub(super) struct Buffer {
    handle: Handle,
    bytes: usize,
}

/// A weight `[rows, columns]` in a device's memory.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    pub(super) data: Buffer,
    /// Of [`Format::Int8`]; otherwise nothing.
    pub(super) scales: Buffer,
    pub(super) format: Format,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// What is done to the first half of a product's outputs before it is multiplied with the other half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Gating {
    /// Nothing: there are no halves.
    None,
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by hyperbolic tangent.
    GeluTanh,
}

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HeadShape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Values of a head.
    pub(super) dim: usize,
    /// The same, filled up to whole words.
    pub(super) wide: usize,
    /// How keys and values are kept.
    pub(super) format: Format,
}

impl HeadShape {
    /// Words of a head in the pool.
    fn words(self) -> usize {
        self.wide / self.format.per_word()
    }

    /// Bytes of a block of the pool.
    pub(super) fn block_bytes(self) -> usize {
        self.kv_heads * 2 * BLOCK * self.words() * 16
    }
}

impl Buffer {
    /// What it holds, as an argument of a kernel that reads words of four bytes or several of them.
    fn arg(&self) -> BufferArg {
        // SAFETY: the length is that of the allocation.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.bytes / 4) }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Weight {
    /// The memory it takes, which is what a product of one row reads.
    pub(super) fn bytes(&self) -> usize {
        let scales = if self.format == Format::Int8 { self.scales.bytes } else { 0 };
        self.data.bytes + scales
    }
}

impl Gpu {
    /// `None` if the device's planes are not of one size, or smaller than a kernel can use.
    ///
    /// All that it does is in the order in which it is asked, from whatever thread: it keeps the stream of the thread
    /// that made it.
    pub(super) fn new(mut client: Client) -> Option<Self> {
        // SAFETY: one stream for all that this device's memory is used for is what needs no further care.
        unsafe { client.set_stream(StreamId::current()) };
        let hardware = &client.properties().hardware;
        let plane = hardware.plane_size_max as usize;
        if hardware.plane_size_min != hardware.plane_size_max || !plane.is_power_of_two() || plane < 4 {
            return None;
        }
        // What CUDA gives a kernel that asks for no more.
        let shared_bytes = hardware.max_shared_memory_size.min(48 << 10) * 9 / 10;
        let nothing = Buffer { handle: client.create_from_slice(&[0; 16]), bytes: 16 };
        Some(Self { client, plane, shared_bytes, nothing })
    }

    /// Memory of arbitrary content.
    pub(super) fn empty(&self, bytes: usize) -> Buffer {
        let bytes = bytes.next_multiple_of(16).max(16);
        Buffer { handle: self.client.empty(bytes), bytes }
    }

    /// Zeros.
    pub(super) fn zeros(&self, bytes: usize) -> Buffer {
        let bytes = bytes.next_multiple_of(16).max(16);
        Buffer { handle: self.client.create(Bytes::from_bytes_vec(vec![0; bytes])), bytes }
    }

    /// At most this many bytes in one buffer.
    pub(super) fn largest(&self, bytes: usize) -> usize {
        let page = usize::try_from(self.client.properties().memory.max_page_size).unwrap_or(usize::MAX);
        bytes.min(page) / 16 * 16
    }

    /// Whether memory of this size fits beside what is used already.
    pub(super) fn fits(&self, used: usize, more: usize) -> Result<(), DeviceError> {
        let mib = |bytes: usize| (bytes >> 20) as u64;
        match self.client.properties().memory.max_memory() {
            Some(available) if (used + more) as u64 > available => {
                Err(DeviceError::Memory { available: available >> 20, needed: mib(used + more) })
            }
            _ => Ok(()),
        }
    }

    /// Waits for all that was asked.
    pub(super) fn wait(&self) -> Result<(), DeviceError> {
        Ok(cubecl::future::block_on(self.client.sync())?)
    }

    /// Memory with these words.
    pub(super) fn upload<T: bytemuck::NoUninit>(&self, values: &[T]) -> Buffer {
        if values.is_empty() {
            return self.nothing.clone();
        }
        let values = bytemuck::cast_slice(values);
        Buffer { handle: self.client.create_from_slice(values), bytes: values.len() }
    }
}

impl Gpu {
    /// Writes words over the beginning of a buffer, in the order of launches.
    pub(super) fn write<T: bytemuck::NoUninit>(&self, values: &[T], to: &Buffer) {
        if values.is_empty() {
            return;
        }
        let values: &[u8] = bytemuck::cast_slice(values);
        let beyond = (to.bytes - values.len()) as u64;
        self.client.write(&to.handle.clone().offset_end(beyond), Bytes::from_bytes_vec(values.to_vec()));
    }

    /// Waits for all that was asked and reads a buffer.
    #[cfg(test)]
    pub(super) fn read<T: bytemuck::Pod>(&self, from: &Buffer) -> Result<Vec<T>, DeviceError> {
        self.read_some(from, from.bytes / size_of::<T>())
    }

    /// Waits for all that was asked and reads the beginning of a buffer.
    pub(super) fn read_some<T: bytemuck::Pod>(
        &self,
        from: &Buffer,
        count: usize,
    ) -> Result<Vec<T>, DeviceError> {
        let beyond = (from.bytes - count * size_of::<T>()) as u64;
        let bytes = self.client.read_one(from.handle.clone().offset_end(beyond))?;
        Ok(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect())
    }

    /// Allocates for as long as the program runs: exactly what is asked for, and not in the pages of short-lived memory.
    pub(super) fn lasting<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        self.client.memory_persistent_allocation((), |()| make())
    }
}

impl From<ServerError> for DeviceError {
    fn from(error: ServerError) -> Self {
        // Beside the reason, such an error has a trace of the calls that led to it.
        Self::Failed { why: error.to_string().chars().take(400).collect() }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("runtime", &self.client.name())
            .field("plane", &self.plane)
            .finish_non_exhaustive()
    }
}
