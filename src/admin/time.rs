//! Times and lengths of time, as the API writes them.

use std::time::{Duration, SystemTime};

/// Writes a time as RFC 3339, in UTC and whole seconds.
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Writes a time as RFC 3339, in UTC and milliseconds.
pub fn rfc3339_millis(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// Returns milliseconds, with a fraction.
pub fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}
