//! The one place where this crate looks at the wall clock. Cores get the result as an argument.

#![allow(clippy::disallowed_methods, reason = "this is the shell's clock")]

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix seconds.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
