//! The operating system that a simulation sees: a clock that only virtual time moves, and entropy that
//! comes from the seed.
//!
//! The executable defines libc's `clock_gettime` and `getrandom`. On a thread that called [`enter`],
//! they answer from the virtual clock and the seeded generator; on every other thread they make the real
//! system call. Everything in the process goes through them: `Instant::now`, `SystemTime::now`, the keys
//! of hash maps, and every version of the `getrandom` crate (0.2 through a shim, since it makes the
//! system call itself).
//!
//! A world must run on a thread that did nothing before: hash-map keys and `rand`'s generator are drawn
//! once per thread, on first use.

#![allow(unsafe_code, reason = "overrides two libc symbols")]
#![allow(clippy::disallowed_methods, reason = "this is the simulator's clock")]

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use tokio::time::Instant;

/// Unix time at which every world begins, so that certificates, ads and logs do not depend on the day.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_800_000_000);
/// The monotonic clock of every world at its beginning; far from zero, since protocols subtract from it.
const UPTIME: Duration = Duration::from_secs(1_000_000);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static ENTROPY: RefCell<Option<ChaCha12Rng>> = const { RefCell::new(None) };
}

/// Makes this thread's operating system virtual, with entropy from `seed`. There is no way back.
pub(crate) fn enter(seed: u64) {
    ENTROPY.set(Some(ChaCha12Rng::seed_from_u64(seed)));
    INSIDE.set(true);
}

/// Starts the virtual clock: from here on it shows the time that passed on tokio's clock. Call it first
/// thing on a paused runtime.
pub(crate) fn start_clock() {
    BEGAN.set(Some(Instant::now()));
}

/// Virtual time since [`start_clock`].
pub(crate) fn elapsed() -> Duration {
    // Outside a runtime the virtual clock stands still: tokio has no paused clock to read there.
    match BEGAN.try_with(Cell::get) {
        Ok(Some(began)) if tokio::runtime::Handle::try_current().is_ok() => began.elapsed(),
        _ => Duration::ZERO,
    }
}

/// Seconds on the machine's own monotonic clock, for reporting how long a simulation took.
pub(crate) fn wall_seconds() -> f64 {
    let mut real = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    real_clock(libc::CLOCK_MONOTONIC, &mut real);
    real.tv_sec as f64 + real.tv_nsec as f64 / 1e9
}

fn real_clock(clock: libc::clockid_t, into: *mut libc::timespec) -> libc::c_int {
    // SAFETY: the caller of `clock_gettime` vouches for `into`; the kernel checks it again.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, into) as libc::c_int }
}

/// libc's `clock_gettime`.
///
/// # Safety
/// As for libc's: `into` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    into: *mut libc::timespec,
) -> libc::c_int {
    if into.is_null() || !INSIDE.try_with(Cell::get).unwrap_or(false) {
        return real_clock(clock, into);
    }
    let base = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_TAI => EPOCH,
        _ => UPTIME,
    };
    let now = base + elapsed();
    // SAFETY: not null, and valid for writes as the caller promises.
    unsafe {
        (*into).tv_sec = now.as_secs() as libc::time_t;
        (*into).tv_nsec = libc::c_long::from(now.subsec_nanos());
    }
    0
}

/// libc's `getrandom`.
///
/// # Safety
/// As for libc's: `into` is valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(
    into: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if !INSIDE.try_with(Cell::get).unwrap_or(false) {
        // SAFETY: the caller vouches for the buffer; the kernel checks it again.
        return unsafe { libc::syscall(libc::SYS_getrandom, into, length, flags) as libc::ssize_t };
    }
    if length == 0 {
        return 0;
    }
    // SAFETY: valid for writes of `length` bytes as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts_mut(into.cast::<u8>(), length) };
    let filled = ENTROPY.try_with(|entropy| match entropy.try_borrow_mut() {
        Ok(mut entropy) => entropy.as_mut().map(|entropy| entropy.fill_bytes(bytes)).is_some(),
        Err(_) => false,
    });
    match filled {
        Ok(true) => length as libc::ssize_t,
        // No entropy is better than entropy that the seed does not determine.
        _ => -1,
    }
}
