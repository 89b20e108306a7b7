//! Why content could not be had: one small type that says who broke it and what may be done, so that
//! fallback, staleness and status codes read a field and not a text.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A failure to get content. Cheap to clone, since every waiter on one transfer is told the same.
#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: FailureKind,
    /// For people; holds no secrets.
    message: Arc<str>,
    /// When it may be asked again, where the upstream said so.
    pub retry_after: Option<Duration>,
    /// Whether asking again in a moment may well help.
    pub is_passing: bool,
    /// Whether any upstream said that it does not have it, or not for us.
    pub was_refused: bool,
    /// The reason that the upstream gave, in its own words.
    told: Option<Arc<str>>,
    /// The error that it was made of.
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// In the order in which they are reported when several upstreams failed: what may still come right
/// goes before what will not, so that "does not exist" is only said when every upstream said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// The upstream said that it does not exist.
    NotFound,
    /// The upstream refused our credentials, or asks for some.
    Denied,
    /// What came is not what was asked for.
    WrongContent,
    /// No connection, a broken one, or a 5xx.
    Unavailable,
    Timeout,
    RateLimited,
    /// Larder itself has too much under way.
    Busy,
    /// It does not fit into the cache.
    NoRoom,
    /// Larder's own disk or index failed.
    Storage,
}

impl FailureKind {
    /// Whether only the store is in the way: the content can still be had past it.
    pub fn is_of_the_store(self) -> bool {
        matches!(self, Self::NoRoom | Self::Storage)
    }

    /// Word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::WrongContent => "wrong_content",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::RateLimited => "rate_limited",
            Self::Busy => "busy",
            Self::NoRoom => "no_room",
            Self::Storage => "storage",
        }
    }
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        let was_refused = matches!(kind, FailureKind::NotFound | FailureKind::Denied);
        Self {
            kind,
            message: message.to_string().into(),
            retry_after: None,
            is_passing: false,
            was_refused,
            told: None,
            source: None,
        }
    }

    /// The failure that an error is: its message is `what`, a colon and the error's own.
    pub fn of(
        kind: FailureKind,
        what: impl fmt::Display,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::new(kind, format!("{what}: {error}")).caused_by(error)
    }

    /// With the error that it was made of, which [`std::error::Error::source`] gives back. The message holds what of it is
    /// for people.
    pub fn caused_by(mut self, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(error));
        self
    }

    pub fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// With the reason that the upstream gave, as far as it gave one.
    pub fn told(mut self, reason: Option<&str>) -> Self {
        if let Some(reason) = reason {
            self.message = format!("{}: {reason}", self.message).into();
            self.told = Some(reason.into());
        }
        self
    }

    /// The upstream's own words.
    pub fn reason(&self) -> Option<&str> {
        self.told.as_deref()
    }

    /// Whether another who asks may fare better.
    pub fn is_of_who_asked(&self) -> bool {
        matches!(self.kind, FailureKind::Denied | FailureKind::RateLimited)
    }

    /// Marks what may be over in a moment.
    pub fn passing(mut self, is_passing: bool) -> Self {
        self.is_passing = is_passing;
        self
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// Of the failures of several upstreams, the one to report.
    pub fn more_telling(self, other: Self) -> Self {
        let was_refused = self.was_refused || other.was_refused;
        let told = if other.kind > self.kind { other } else { self };
        Self { was_refused, ..told }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io;

    use super::*;

    #[test]
    fn a_failure_keeps_the_error_that_it_was_made_of() {
        let failure = Failure::of(FailureKind::Storage, "cannot read an object", io::Error::from_raw_os_error(5));
        assert_eq!(failure.message(), "cannot read an object: Input/output error (os error 5)");
        let told = failure.clone().more_telling(Failure::new(FailureKind::NotFound, "elsewhere"));
        let cause = told.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(cause.and_then(io::Error::raw_os_error), Some(5));
        assert!(Failure::new(FailureKind::Busy, "x").source().is_none());
    }
}
