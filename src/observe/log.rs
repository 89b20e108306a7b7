//! The log: text for people or JSON for machines, to standard error or a file.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::{EnvFilter, reload};

use super::text;
use crate::config::{FilterError, LogFormat, Logging, parse_filter};

/// Permissions of a new log file: names of images and users are not for everybody.
const MODE: u32 = 0o640;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("logging.file: cannot open {path}: {source}")]
    File { path: String, source: io::Error },
    #[error("logging.level: {0}")]
    Filter(#[from] FilterError),
}

/// The filter of the log, which can be changed while Larder is running.
pub struct LogLevel(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogLevel {
    /// Sets the filter, which was checked before. If it still cannot be set, the old one stays, with a warning.
    pub fn set(&self, level: &str) {
        let set = parse_filter(level).map_err(|error| error.to_string());
        let set = set.and_then(|filter| self.0(filter).map_err(|error| error.to_string()));
        if let Err(error) = set {
            tracing::warn!(error, "the log level stays as it was");
        }
    }
}

/// Returns whether the user wants colours: `NO_COLOR` says that they do not (no-color.org).
fn wants_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Sets up the log of the whole process. Called once.
pub fn init(logging: &Logging) -> Result<LogLevel, LogError> {
    let writer = if logging.file.as_os_str().is_empty() {
        BoxMakeWriter::new(io::stderr)
    } else {
        let file = OpenOptions::new().create(true).append(true).mode(MODE).open(&logging.file);
        let file = file.map_err(|source| LogError::File { path: logging.file.display().to_string(), source })?;
        BoxMakeWriter::new(Mutex::new(file))
    };
    let is_terminal = logging.file.as_os_str().is_empty() && io::IsTerminal::is_terminal(&io::stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(parse_filter(&logging.level)?)
        .with_writer(writer)
        .with_ansi(is_terminal && wants_colours());
    let handle = match logging.format {
        LogFormat::Text => {
            let log = log.fmt_fields(text::fields()).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            LogLevel(Box::new(move |filter| handle.reload(filter)))
        }
        LogFormat::Json => {
            let log = log.json().with_current_span(false).with_span_list(false).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            LogLevel(Box::new(move |filter| handle.reload(filter)))
        }
    };
    Ok(handle)
}
