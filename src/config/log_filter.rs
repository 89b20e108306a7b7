//! The filter of the log, as `logging.level` gives it.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

/// Reads `logging.level`: a level, or a filter per module. A word alone has to be a level: the library would take a
/// misspelt level for the name of a module and log nothing.
pub fn parse_filter(text: &str) -> Result<EnvFilter, FilterError> {
    let is_module = |part: &str| part.contains(['=', '[', ':']);
    for word in text.split(',').map(str::trim).filter(|part| !is_module(part)) {
        word.parse::<LevelFilter>().map_err(|_| FilterError::Level(word.to_owned()))?;
    }
    Ok(EnvFilter::builder().parse(text)?)
}

/// Why a text is no filter for the log.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("`{0}` is no level")]
    Level(String),
    #[error(transparent)]
    Filter(#[from] ParseError),
}
