//! Quotes from hardware, through the kernel's `configfs-tsm`.
//!
//! Linux gives confidential VMs of every kind one interface (Documentation/ABI/testing/configfs-tsm):
//! make a directory under `/sys/kernel/config/tsm/report`, write the 64 bytes to `inblob`, read the
//! quote from `outblob`. `generation` counts writes, so that a second user of the same directory
//! shows; ours has a name of its own and is removed afterwards. Only the measured enclave should be
//! able to open it, since whoever can may choose report data.
//!
//! The kernel does not know collateral. The host fetches it from a PCCS (it is public and signed)
//! and places it in a file, rewritten by [`crate::canonical_collateral`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    quote::MAX_QUOTE_BYTES,
    quoter::{QuoteError, Quoter},
};

const REPORTS: &str = "/sys/kernel/config/tsm/report";
const TDX: &str = "tdx_guest";

/// The TEE of the confidential VM that this process runs in. Intel TDX.
#[derive(Debug)]
pub struct ConfigfsTsm {
    reports: PathBuf,
    collateral: PathBuf,
    entries: AtomicU64,
}

impl ConfigfsTsm {
    /// With collateral from the file at `collateral`.
    ///
    /// # Errors
    /// [`QuoteError::Absent`] if this machine offers no such interface.
    pub fn new(collateral: PathBuf) -> Result<Self, QuoteError> {
        Self::at(PathBuf::from(REPORTS), collateral)
    }

    fn at(reports: PathBuf, collateral: PathBuf) -> Result<Self, QuoteError> {
        if !reports.is_dir() {
            return Err(QuoteError::Absent { path: reports.display().to_string() });
        }
        Ok(Self { reports, collateral, entries: AtomicU64::new(0) })
    }
}

impl Quoter for ConfigfsTsm {
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, QuoteError> {
        let name = format!("cocoon-{}-{}", process::id(), self.entries.fetch_add(1, Ordering::Relaxed));
        let directory = Directory::create(self.reports.join(name))?;
        request(&directory, report_data)
    }

    fn collateral(&self) -> Result<Vec<u8>, QuoteError> {
        let json = fs::read(&self.collateral).map_err(failed("read", &self.collateral))?;
        Ok(crate::canonical_collateral(&json)?)
    }

    fn describe(&self) -> &'static str {
        "tdx"
    }
}

/// A report entry: the kernel's, or a test's.
trait Entry {
    fn read(&self, attribute: &'static str) -> Result<Vec<u8>, QuoteError>;
    fn write(&self, attribute: &'static str, value: &[u8]) -> Result<(), QuoteError>;

    fn text(&self, attribute: &'static str) -> Result<String, QuoteError> {
        Ok(String::from_utf8_lossy(&self.read(attribute)?).trim().to_owned())
    }

    fn generation(&self) -> Result<u64, QuoteError> {
        // An unreadable number is no generation we wrote: it fails the comparison.
        Ok(self.text("generation")?.parse().unwrap_or(u64::MAX))
    }
}

fn request(entry: &impl Entry, report_data: &[u8; 64]) -> Result<Vec<u8>, QuoteError> {
    let found = entry.text("provider")?;
    if found != TDX {
        return Err(QuoteError::Provider { found });
    }
    let expected = entry.generation()?.saturating_add(1);
    entry.write("inblob", report_data)?;
    let quote = entry.read("outblob")?;
    let found = entry.generation()?;
    if found != expected {
        return Err(QuoteError::Raced { expected, found });
    }
    if quote.is_empty() || quote.len() > MAX_QUOTE_BYTES {
        return Err(QuoteError::Size { len: quote.len() });
    }
    Ok(quote)
}

/// A directory of configfs, which removes its attributes itself.
struct Directory(PathBuf);

impl Directory {
    fn create(path: PathBuf) -> Result<Self, QuoteError> {
        fs::create_dir(&path).map_err(failed("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Left behind, it would cost the kernel a few bytes: nothing to report.
        let _ = fs::remove_dir(&self.0);
    }
}

impl Entry for Directory {
    fn read(&self, attribute: &'static str) -> Result<Vec<u8>, QuoteError> {
        let path = self.0.join(attribute);
        fs::read(&path).map_err(failed("read", &path))
    }

    fn write(&self, attribute: &'static str, value: &[u8]) -> Result<(), QuoteError> {
        let path = self.0.join(attribute);
        // Not `fs::write`: configfs attributes exist already and cannot be truncated.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value));
        written.map_err(failed("write", &path))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> QuoteError {
    let path = path.display().to_string();
    move |source| QuoteError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Fake {
        provider: &'static str,
        generation: Cell<u64>,
        others_write: u64,
        quote: Vec<u8>,
        asked: Cell<Vec<u8>>,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                provider: "tdx_guest\n",
                generation: Cell::new(3),
                others_write: 0,
                quote: vec![1; 5000],
                asked: Cell::default(),
            }
        }
    }

    impl Entry for Fake {
        fn read(&self, attribute: &'static str) -> Result<Vec<u8>, QuoteError> {
            Ok(match attribute {
                "provider" => self.provider.into(),
                "generation" => format!("{}\n", self.generation.get()).into(),
                "outblob" => self.quote.clone(),
                other => panic!("read {other}"),
            })
        }

        fn write(&self, attribute: &'static str, value: &[u8]) -> Result<(), QuoteError> {
            assert_eq!(attribute, "inblob");
            self.asked.set(value.into());
            self.generation.set(self.generation.get() + 1 + self.others_write);
            Ok(())
        }
    }

    #[test]
    fn a_quote_is_what_the_kernel_answers() {
        let fake = Fake::new();
        assert_eq!(request(&fake, &[9; 64]).unwrap(), fake.quote);
        assert_eq!(fake.asked.take(), [9; 64]);
    }

    #[test]
    fn another_tee_another_writer_or_no_quote_is_refused() {
        let refused = |fake: Fake| request(&fake, &[0; 64]).unwrap_err();
        let error = refused(Fake { provider: "sev_guest", ..Fake::new() });
        assert!(matches!(error, QuoteError::Provider { found } if found == "sev_guest"));
        let error = refused(Fake { others_write: 1, ..Fake::new() });
        assert!(matches!(error, QuoteError::Raced { expected: 4, found: 5 }));
        for len in [0, MAX_QUOTE_BYTES + 1] {
            let error = refused(Fake { quote: vec![0; len], ..Fake::new() });
            assert!(matches!(error, QuoteError::Size { .. }));
        }
    }

    #[test]
    fn a_machine_without_the_interface_says_so() {
        let error = ConfigfsTsm::at("/nonexistent/report".into(), "/nonexistent".into()).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/report is absent: this is no confidential VM"));
    }
}
