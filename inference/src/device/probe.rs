//! Whether CUDA can be used here, before anything that would panic if it cannot.
//!
//! The driver and the compiler are loaded while the program runs, so that one program serves machines with and
//! without them. What is missing is then found by whoever first calls it, in a thread of the runtime that can only
//! panic; so each part is asked for here first.

#![allow(unsafe_code, reason = "asking whether a library can be loaded runs its initialisers")]

use std::panic::catch_unwind;
use std::path::PathBuf;

use super::DeviceError;

/// Looks for the driver, this GPU, the compiler and its headers, in this order: the order in which one would install
/// them.
pub(super) fn cuda(index: usize) -> Result<(), DeviceError> {
    // SAFETY: the driver's library has no initialiser that this program could disturb.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    // A driver that lacks one of these functions makes the call panic.
    let count = catch_unwind(|| {
        cudarc::driver::result::init()?;
        cudarc::driver::result::device::get_count()
    });
    let available = match count {
        Ok(Ok(count)) => usize::try_from(count).unwrap_or(0),
        Ok(Err(why)) => return Err(DeviceError::Driver { why: why.to_string() }),
        Err(_) => {
            return Err(DeviceError::Driver { why: "it lacks functions that this program needs".into() });
        }
    };
    if index >= available {
        return Err(DeviceError::NoSuchGpu { index, available });
    }
    // SAFETY: as for the driver's.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(DeviceError::NoCompiler);
    }
    headers(cubecl::cuda::install::cuda_path())
}

/// The kernels include CUDA's own headers for half precision.
fn headers(toolkit: Option<PathBuf>) -> Result<(), DeviceError> {
    let include = toolkit.map(|toolkit| toolkit.join("include"));
    match include {
        Some(include) if include.join("cuda_fp16.h").exists() => Ok(()),
        Some(include) => Err(DeviceError::NoHeaders { place: include.display().to_string() }),
        None => Err(DeviceError::NoHeaders { place: "/usr/local/cuda and /opt/cuda".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_looked_for_where_the_toolkit_is() {
        let folder = tempfile::tempdir().unwrap();
        let toolkit = folder.path().to_owned();
        let missing = headers(Some(toolkit.clone())).unwrap_err().to_string();
        assert!(
            missing.contains(&toolkit.display().to_string()) && missing.contains("CUDA_PATH"),
            "{missing}"
        );
        assert!(headers(None).unwrap_err().to_string().contains("/usr/local/cuda"));
        std::fs::create_dir(toolkit.join("include")).unwrap();
        std::fs::write(toolkit.join("include/cuda_fp16.h"), "").unwrap();
        assert_eq!(headers(Some(toolkit)), Ok(()));
    }
}
