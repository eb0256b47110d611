//! The interface of `getrandom` 0.2 over libc's `getrandom`. See this package's `Cargo.toml` for why.

use std::{fmt, mem::MaybeUninit, num::NonZeroU32};

/// Why no random bytes could be had.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error(NonZeroU32);

impl Error {
    /// Codes below this are operating-system errors.
    pub const INTERNAL_START: u32 = 1 << 31;
    /// Codes from here on belong to custom implementations.
    pub const CUSTOM_START: u32 = (1 << 31) + (1 << 30);

    /// The operating system's error number, if it was one.
    pub fn raw_os_error(self) -> Option<i32> {
        i32::try_from(self.0.get()).ok()
    }

    /// The bare code.
    pub const fn code(self) -> NonZeroU32 {
        self.0
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "getrandom failed with code {}", self.0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl From<NonZeroU32> for Error {
    fn from(code: NonZeroU32) -> Self {
        Self(code)
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Self::from_raw_os_error(number),
            None => Self::other(error),
        }
    }
}

impl std::error::Error for Error {}

/// Fills `dest` with random bytes.
pub fn getrandom(dest: &mut [u8]) -> Result<(), Error> {
    let mut filled = 0;
    while filled < dest.len() {
        let rest = &mut dest[filled..];
        // SAFETY: `rest` is valid for writes of `rest.len()` bytes.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) => {
                let number = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                if number != libc::EINTR {
                    let code = u32::try_from(number).ok().and_then(NonZeroU32::new);
                    return Err(Error(code.unwrap_or(NonZeroU32::MIN)));
                }
            }
        }
    }
    Ok(())
}

/// Fills `dest` with random bytes and returns it as initialised.
pub fn getrandom_uninit(dest: &mut [MaybeUninit<u8>]) -> Result<&mut [u8], Error> {
    for byte in dest.iter_mut() {
        byte.write(0);
    }
    // SAFETY: every byte was initialised just now.
    let dest = unsafe { &mut *(dest as *mut [MaybeUninit<u8>] as *mut [u8]) };
    getrandom(dest)?;
    Ok(dest)
}
