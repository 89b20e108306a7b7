//! The filter of the log, as `logging.level` gives it.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

/// The most that libraries tell where a level alone asks for more: what they add is about connections and frames.
const LIBRARIES: LevelFilter = LevelFilter::INFO;

/// Reads `logging.level`: a level, or a filter per module. A word alone has to be a level: the library would take a
/// misspelt level for the name of a module and log nothing. A level alone is for Larder itself; libraries tell more
/// than [`LIBRARIES`] only if the filter names them.
pub fn parse_filter(text: &str) -> Result<EnvFilter, FilterError> {
    if text.contains('[') {
        return Err(FilterError::Span);
    }
    let is_module = |part: &str| part.contains(['=', ':']);
    let mut level = None;
    for word in text.split(',').map(str::trim).filter(|part| !is_module(part)) {
        level = Some(word.parse::<LevelFilter>().map_err(|_| FilterError::Level(word.to_owned()))?);
    }
    let builder = EnvFilter::builder();
    Ok(match level.filter(|level| *level > LIBRARIES) {
        // Of two entries for one module the later counts.
        Some(level) => builder.parse(format!("larder={level},{text},{LIBRARIES}"))?,
        None => builder.parse(text)?,
    })
}

/// Why a text is no filter for the log.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("`{0}` is no level")]
    Level(String),
    #[error("there is a `[` in it, for the name of a span; the log has no spans")]
    Span,
    #[error(transparent)]
    Filter(#[from] ParseError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_tell_more_only_if_they_are_named() {
        for (text, entries) in [
            ("info", vec!["info"]),
            ("warn,hyper=debug", vec!["hyper=debug", "warn"]),
            ("debug", vec!["larder=debug", "info"]),
            ("trace", vec!["larder=trace", "info"]),
            ("hyper=trace,debug", vec!["larder=debug", "hyper=trace", "info"]),
            ("larder::upstream=trace,debug", vec!["larder::upstream=trace", "larder=debug", "info"]),
            ("larder=warn,debug", vec!["larder=warn", "info"]),
            ("larder::upstream=debug,info", vec!["larder::upstream=debug", "info"]),
        ] {
            let filter = parse_filter(text).expect("a filter").to_string();
            let mut found: Vec<_> = filter.split(',').collect();
            let mut expected = entries;
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{text}");
        }
        assert!(matches!(parse_filter("dbug"), Err(FilterError::Level(_))));
    }

    #[test]
    fn a_filter_for_a_span_is_refused() {
        let refused = parse_filter("info,larder[pull]=debug").expect_err("no span is in the log");
        assert!(matches!(refused, FilterError::Span));
    }
}
