//! What a person sees: logs, errors with their chain, JSON, progress.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;

/// Sends logs to standard error. `RUST_LOG` wins over `-v`.
pub(super) fn init_logs(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "cocoon=info,cocoon_node=info,cocoon_client=info,cocoon_p2p=info,cocoon_payments=info,warn",
        2 => "cocoon=debug,cocoon_node=debug,cocoon_client=debug,cocoon_p2p=debug,cocoon_payments=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}

/// Prints an error and its causes, one line each.
pub(super) fn error(error: &anyhow::Error) {
    let mut lines = format!("error: {error}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // An error that already quotes its source need not be followed by it.
        if !lines.contains(&cause) {
            lines.push_str("\n  because: ");
            lines.push_str(&cause);
        }
    }
    let _ = writeln!(std::io::stderr(), "{lines}");
}

/// Prints a line to standard output; a closed pipe is not an error of ours.
pub(super) fn line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout(), "{}", text.as_ref());
}

/// Prints text to standard output at once, without a line end.
pub(super) fn piece(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Prints a line to standard error.
pub(super) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
}

/// Prints one JSON value, indented.
pub(super) fn json(value: &serde_json::Value) {
    line(format!("{value:#}"));
}

/// A spinner on standard error for work whose end is not known; hidden when no person watches.
pub(super) fn spinner(text: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(text.into());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}

/// A bar on standard error for work of a known size.
pub(super) fn bar(total: u64, text: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(text.into());
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} [{elapsed}<{eta}]") {
        bar.set_style(style);
    }
    bar
}
