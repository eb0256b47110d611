//! The protocol between a worker's host and its enclave.
//!
//! The two are separate processes even in development: the enclave owns prompts, answers and session keys;
//! the host owns the network, the money and the disk. Everything that passes between them is one of the
//! frames here, on a Unix socket on which the enclave listens and the host connects:
//!
//! ```text
//! frame  = length: u32 BE (1 ..= 256 KiB) | type: u8 | payload
//! ```
//!
//! - The first frame in each direction is `Hello`, whose payload starts with the protocol version (u16 BE) in
//!   every version there will ever be, so that a mismatch is reported as one instead of as garbage.
//! - `Data` carries one Noise record, opaque to the host, without copying it through an encoder. `Credit` is
//!   the only word about money that crosses: the host has verified and stored a voucher, the enclave may
//!   release that much.
//! - The enclave never waits for the host in the middle of a frame and neither side buffers more than a frame
//!   beyond what it is allowed to: `Pause` and `Resume` carry a slow reader's back-pressure to the engine.
//!
//! [`frame`] defines the frames as pure functions of bytes, [`io`] moves many of them per system call.

pub mod codec;
pub mod frame;
pub mod io;

pub use frame::{
    Attest, Beacon, EnclaveHello, HostHello, LinkError, Load, Open, Prices, RefusedWhy, ToEnclave, ToHost,
};
pub use io::{LinkReader, LinkWriter};

/// Raised when a frame changes meaning. Host and enclave of one worker are upgraded together, so no older
/// version is accepted.
pub const VERSION: u16 = 1;

/// A padded Noise record is at most 64 KiB and evidence at most 64 KiB; four times that leaves room for both.
pub const MAX_FRAME: usize = 256 * 1024;

#[cfg(test)]
mod tests;
