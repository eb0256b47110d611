//! The session between an asker and a worker, layer by layer.
//!
//! ```text
//!   asker                         host                       enclave
//!     │  outer frames (libp2p)     │   link frames (socket)     │
//!     │ Open, Noise, Voucher, Bye  │  Open, Data, Credit, Close │
//!     │───────────────────────────►│───────────────────────────►│
//!     │ inner messages, inside Noise, which the host cannot read│
//!     │◄═══════════════════════════════════════════════════════►│
//! ```
//!
//! * [`outer`] is what the host sees: handshake bytes, opaque records, vouchers.
//! * [`inner`] is what only the enclave sees: requests, tokens, receipts.
//! * [`meter`] counts what is owed and paid, identically on both sides.
//! * [`asker`] is the asker's side as one machine without input or output.

pub mod asker;
pub mod inner;
pub mod meter;
pub mod outer;
#[cfg(test)]
pub(crate) mod testkit;

/// Version of the session protocol as a whole; bound into the Noise prologue.
pub const WIRE_VERSION: u16 = 1;
