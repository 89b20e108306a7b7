//! The access log: one line for each request, when its response has ended. Target `larder::access`.

use std::fmt::Display;
use std::time::Duration;

use http::Version;

/// The fields of the line for one request.
pub struct Entry<'a> {
    /// The client's address.
    pub client: &'a dyn Display,
    /// The name of the client by its login or certificate, if that decided whether it may read.
    pub user: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub version: Version,
    pub user_agent: &'a str,
    pub status: u16,
    /// Bytes of the body handed to the connection.
    pub bytes: u64,
    /// Whether the body was sent to its end.
    pub is_complete: bool,
    pub took: Duration,
    pub repository: Option<&'a str>,
    /// `hit`, `miss`, `stale` or `failed`
    pub cache: Option<&'static str>,
    /// The word of the reason, as [`super::Reason::code`] has it.
    pub reason: Option<&'static str>,
    /// The number of the trace, if the trace is kept.
    pub trace: Option<&'a str>,
}

/// Writes the line.
pub fn write(entry: &Entry<'_>) {
    tracing::info!(
        target: "larder::access",
        client = %entry.client,
        user = entry.user,
        method = entry.method,
        path = entry.path,
        version = ?entry.version,
        status = entry.status,
        bytes = entry.bytes,
        complete = entry.is_complete,
        took_ms = u64::try_from(entry.took.as_millis()).unwrap_or(u64::MAX),
        repository = entry.repository,
        cache = entry.cache,
        reason = entry.reason,
        trace = entry.trace,
        user_agent = entry.user_agent,
        "request"
    );
}
