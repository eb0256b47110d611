//! What our processes ask of the operating system about each other: to die with a parent, to be told to stop,
//! to be counted. All of it safe, through `nix` and `/proc`.

use std::{io, time::Duration};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Asks the kernel to kill this process when its parent, process `parent`, dies: a local network then leaves
/// nothing behind even after `kill -9`.
///
/// # Errors
/// The system's, or `NotFound` if that parent is already gone.
pub fn die_with_parent(parent: u32) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died between its fork and our request; nobody will send the signal then.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the parent process {parent} is gone")));
    }
    Ok(())
}

/// Asks a process to end. One that is gone already is no error.
pub fn terminate(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

/// Whether a process exists and has not ended (a zombie has).
#[must_use]
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z" && state != "X"))
}

/// Processor time, user and system, that a process has used so far.
#[must_use]
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let fields = stat(pid)?;
    // Fields 14 and 15 of proc_pid_stat(5); `fields` starts at field 3.
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()?.checked_add(fields.get(12)?.parse().ok()?)?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let per_second = u64::try_from(per_second).ok().filter(|ticks| *ticks > 0)?;
    Some(Duration::from_micros(ticks.checked_mul(1_000_000)? / per_second))
}

/// The fields of `/proc/<pid>/stat` after the command, which may itself hold blanks and parentheses.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Builds the runtime of a role. One thread is the default of `cocoon node` and `cocoon enclave`: every hop
/// between threads costs a wake-up, and one core moves more frames than one model can fill.
///
/// # Errors
/// The system's.
pub fn runtime(threads: usize) -> io::Result<tokio::runtime::Runtime> {
    if threads <= 1 {
        return tokio::runtime::Builder::new_current_thread().enable_all().build();
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}
