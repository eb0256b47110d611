//! Where quotes come from.

use thiserror::Error;

/// Why a TEE gave no quote.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// This machine offers no such TEE.
    #[error(
        "{path} is absent: this is no confidential VM, or its kernel lacks configfs-tsm (Linux 6.7 with \
         CONFIG_TSM_REPORTS, configfs mounted); on a test network use the software TEE"
    )]
    Absent {
        /// What was looked for.
        path: String,
    },
    /// The kernel's report interface failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Another kind of TEE answered.
    #[error("the TEE here is {found:?}; only Intel TDX (\"tdx_guest\") is supported")]
    Provider {
        /// The kernel's name for it.
        found: String,
    },
    /// Something else used the same report entry between request and answer.
    #[error(
        "the report entry changed while it was read (generation {found}, expected {expected}); try again"
    )]
    Raced {
        /// Generation expected after our own write.
        expected: u64,
        /// Generation found.
        found: u64,
    },
    /// The answer is no quote.
    #[error("the TEE answered {len} bytes, which is no quote")]
    Size {
        /// Bytes found.
        len: usize,
    },
    /// The collateral file is unusable.
    #[error("cannot use the collateral")]
    Collateral(#[from] crate::CollateralError),
    /// A signature could not be made.
    #[error("the system's randomness or cryptography failed while signing a quote")]
    Crypto,
}

/// A TEE as the enclave inside it sees it: it signs report data, and knows its vendor's collateral.
pub trait Quoter: Send + Sync {
    /// A quote whose report data is `report_data`. May take about 50 ms on hardware.
    ///
    /// # Errors
    /// If there is no such TEE here, or it fails.
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, QuoteError>;

    /// Canonical collateral for this TEE's quotes.
    ///
    /// # Errors
    /// If the collateral cannot be read.
    fn collateral(&self) -> Result<Vec<u8>, QuoteError>;

    /// The TEE's name, for people.
    fn describe(&self) -> &'static str;
}
