//! The device that tests run on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cubecl::Device;
use cubecl::client::Client;

/// CUDA's first device, or else the one that wgpu would take, as far as this build links them and this machine has
/// them.
pub(super) fn client() -> Option<Client> {
    let cuda = Device::cuda(0).ok();
    let device = cuda.or_else(|| Device::wgpu(cubecl::device::WgpuDeviceKind::DefaultDevice).ok())?;
    Some(device.client())
}

/// Holds off other tests: the launches of a process are counted together, and one recording is made at a time.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
