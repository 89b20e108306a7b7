//! The log: text for people or JSON for machines, to standard error or a file.

use std::io;

use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::lines::{Lines, Output};
use super::text;
use crate::config::{FilterError, LogFormat, Logging, parse_filter};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("logging.file: cannot open {path}: {source}")]
    File { path: String, source: io::Error },
    #[error("cannot begin to write the log: {0}")]
    Begin(io::Error),
    #[error("logging.level: {0}")]
    Filter(#[from] FilterError),
}

/// The log of the process, which can be changed while Larder is running.
pub struct Log {
    set_filter: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    lines: Lines,
}

impl Log {
    /// Sets up the log of the whole process. Called once. `traces`: what listens to spans.
    pub fn init(logging: &Logging, traces: Option<Box<dyn Layer<Registry> + Send + Sync>>) -> Result<Self, LogError> {
        let is_standard_error = logging.file.as_os_str().is_empty();
        let file = |source| LogError::File { path: logging.file.display().to_string(), source };
        let output = match is_standard_error {
            true => Output::standard_error().map_err(LogError::Begin)?,
            false => Output::file(&logging.file).map_err(file)?,
        };
        let lines = Lines::start(output).map_err(LogError::Begin)?;
        let (filter, set) = reload::Layer::new(parse_filter(&logging.level)?);
        let log = tracing_subscriber::fmt::layer()
            .with_writer(lines.clone())
            .with_ansi(is_standard_error && io::IsTerminal::is_terminal(&io::stderr()) && wants_colours())
            // They would go to standard error, whatever that is.
            .log_internal_errors(false);
        let log = match logging.format {
            LogFormat::Text => log.fmt_fields(text::fields()).boxed(),
            LogFormat::Json => log.json().with_current_span(false).with_span_list(false).boxed(),
        };
        // A line is the same with traces and without.
        let log = log
            .with_filter(filter.and(filter_fn(|metadata| !metadata.is_span()).with_max_level_hint(LevelFilter::TRACE)));
        tracing_subscriber::registry().with(traces).with(log).init();
        let set_filter = Box::new(move |filter| set.reload(filter));
        // The message of a panic, too, must not wait for standard error.
        std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a fault in Larder; please report it")));
        Ok(Self { set_filter, lines })
    }

    /// Sets the filter, which was checked before. If it still cannot be set, the old one stays, with a warning.
    pub fn set_level(&self, level: &str) {
        let set = parse_filter(level).map_err(|error| error.to_string());
        let set = set.and_then(|filter| (self.set_filter)(filter).map_err(|error| error.to_string()));
        if let Err(error) = set {
            tracing::warn!(error, "the log level stays as it was");
        }
    }

    /// Opens the log file by its name again: a program that rotates logs has renamed it.
    pub fn reopen(&self) {
        self.lines.reopen();
    }

    /// Returns the way of lines out of the process, which counts those that were dropped.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }
}

/// Returns whether the user wants colours, and the terminal has them: `NO_COLOR` with any text says that they do not
/// (no-color.org), `TERM=dumb` that it has none. Help and wrong arguments, which clap prints, follow the same rules.
fn wants_colours() -> bool {
    let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    is_wanted && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}
