//! Evidence that a worker runs the code it claims inside a TEE, and the channel that ends there.
//!
//! An asker never trusts a worker's host; it trusts *measured code*. The chain of reasons is short:
//!
//! 1. A TEE signs a **quote** over 64 bytes of report data ([`Quoter`]: [`tsm`] on hardware,
//!    [`software_tee`] on test networks).
//! 2. Those bytes are the hash of the enclave's [`Claims`]: its Noise key, its receipt key, which
//!    network, image, configuration and model it serves, and until when.
//! 3. Claims, quote and the vendor's collateral travel together as [`Evidence`], and [`verify()`]
//!    judges them against a [`Policy`] as a pure function of bytes, policy and time.
//! 4. The asker opens a Noise channel to exactly the key of the claims ([`noise`]); only the
//!    measured code can complete it.
//! 5. A key may leak, so a fresh quote may also bind the finished handshake ([`live`]).
//!
//! Everything here is sans-IO and reads no clock, except that `tsm` and
//! [`software_tee::measure_executable`] read files and key generation asks the system for
//! randomness. Whatever a stranger sends is bounded, ends in a typed error, and never panics.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod claims;
mod codec;
mod collateral;
mod evidence;
#[cfg(test)]
mod golden;
mod hash;
mod hexed;
mod measurement;
mod pem;
mod policy;
mod quote;
mod quoter;
mod verify;

#[doc(hidden)]
pub mod fuzz;
pub mod live;
pub mod noise;
pub mod software_tee;
pub mod tsm;

pub use claims::{Beacon, Claims, ClaimsError, MAX_PEER_ID_BYTES, MAX_VALIDITY_S, Role};
pub use codec::WireError;
pub use collateral::{CollateralError, canonical_collateral};
pub use evidence::{Evidence, EvidenceError, MAX_EVIDENCE_BYTES};
pub use measurement::{Measurement, MeasurementError};
pub use policy::{Assurance, Expect, Live, Policy, TrustRoot, UnknownName};
pub use quote::{MAX_QUOTE_BYTES, QuoteCheck, VerifiedQuote, quoted_measurement, verify_quote};
pub use quoter::{QuoteError, Quoter};
pub use verify::{Verified, VerifyError, verify};
