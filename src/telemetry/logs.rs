//! One sink: the journal where stderr is the journal's, else stderr.

use std::{
    env::{self, VarError},
    io::{self, IsTerminal},
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::ParseError, fmt, layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Says what is logged, in the syntax of `RUST_LOG`: `debug`, `info,understudy::check=debug`.
pub(crate) const FILTER: &str = "UNDERSTUDY_LOG";

const DEFAULT_FILTER: &str = "info";

/// Set by systemd to `device:inode` of a service's stderr where that is the journal.
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// To the journal with fields where stderr is the journal's, else text.
    Auto,
    /// Lines for people, on stderr.
    Text,
    /// One JSON object a line, on stderr.
    Json,
}

/// Logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter cannot be read.
    #[error("{FILTER} is not a log filter: write for example info or understudy::check=debug")]
    Filter(#[source] ParseError),
    /// The filter is no text.
    #[error("{FILTER} is not UTF-8")]
    FilterText,
    /// The journal does not answer.
    #[error("the journal's socket could not be opened: is systemd-journald running?")]
    Journal(#[source] io::Error),
    /// Logs were set up before.
    #[error("logs are set up already")]
    Again(#[source] tracing_subscriber::util::TryInitError),
}

/// Sets up the process's logs. Called once, before any task starts.
///
/// # Errors
///
/// See [`Error`].
pub fn init(format: LogFormat) -> Result<(), Error> {
    let filter = match env::var(FILTER) {
        Ok(text) => filter(&text)?,
        Err(VarError::NotPresent) => filter(DEFAULT_FILTER)?,
        Err(VarError::NotUnicode(_)) => return Err(Error::FilterText),
    };
    let sink = sink(format)?;
    tracing_subscriber::registry()
        .with(sink.with_filter(filter))
        .try_init()
        .map_err(Error::Again)
}

fn filter(text: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(text).map_err(Error::Filter)
}

fn sink(format: LogFormat) -> Result<Box<dyn Layer<Registry> + Send + Sync>, Error> {
    let to_stderr = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Json => Ok(to_stderr.json().flatten_event(true).boxed()),
        LogFormat::Auto if stderr_is_journal() => {
            let journal = tracing_journald::layer()
                .map_err(Error::Journal)?
                .with_syslog_identifier(env!("CARGO_PKG_NAME").to_owned())
                // `journalctl UNDERSTUDY_SERVER=10.0.0.1:80`
                .with_field_prefix(Some("UNDERSTUDY".to_owned()));
            Ok(journal.boxed())
        }
        LogFormat::Auto | LogFormat::Text => Ok(to_stderr.boxed()),
    }
}

fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var(JOURNAL_STREAM) else {
        return false;
    };
    nix::sys::stat::fstat(io::stderr())
        .is_ok_and(|stat| is_stream(&stream, stat.st_dev, stat.st_ino))
}

/// Whether `stream`, as systemd writes it, is the file (`dev`, `ino`). Inherited variables of a
/// service that redirected its stderr are not.
fn is_stream(stream: &str, dev: u64, ino: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(d, i)| d.parse() == Ok(dev) && i.parse() == Ok(ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_stream_is_the_journal() {
        assert!(is_stream("8:4711", 8, 4711));
        for other in ["8:4712", "9:4711", "8", "", "8:4711:1", "a:b"] {
            assert!(!is_stream(other, 8, 4711), "{other}");
        }
    }

    #[test]
    fn a_filter_that_is_none_says_so() {
        filter("info,understudy::check=debug").unwrap();
        let e = filter("understudy=loud").unwrap_err();
        assert!(e.to_string().starts_with("UNDERSTUDY_LOG is not"), "{e}");
    }
}
