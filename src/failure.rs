//! Why content could not be served: one small type that tells who caused the failure and what may be done, so that
//! fallback, staleness and status codes depend on a field and not on a text.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A failure to get content. Cheap to clone, since all that wait for one transfer get the same failure.
#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: FailureKind,
    /// The message for people; holds no secrets.
    message: Arc<str>,
    /// How long to wait before asking the upstream again, if the upstream said so.
    pub retry_after: Option<Duration>,
    /// Whether a retry in a moment is likely to succeed.
    pub is_passing: bool,
    /// Whether any upstream answered that it does not have the content, or refused access to it.
    pub was_refused: bool,
    /// The reason that the upstream gave, in its own words.
    told: Option<Arc<str>>,
    /// The error that the failure was made from.
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The kind of a failure. If several upstreams fail, the kind that is last in this order is reported. Failures that may
/// still pass are behind those that will not, so that "does not exist" is reported only if every upstream said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// The upstream said that the content does not exist.
    NotFound,
    /// The upstream refused the credentials, or asks for some.
    Denied,
    /// The upstream sent other content than was asked for.
    WrongContent,
    /// No connection, a broken one, or a 5xx.
    Unavailable,
    Timeout,
    RateLimited,
    /// Larder itself has too many transfers or requests running.
    Busy,
    /// The transfer ended because nobody read it. A reader that came at that moment goes on by another transfer.
    Unread,
    /// The content does not fit into the cache.
    NoRoom,
    /// Larder's own disk or index failed.
    Storage,
}

impl FailureKind {
    /// Returns whether only the store failed: the content can still be served without being stored.
    pub fn is_of_the_store(self) -> bool {
        matches!(self, Self::NoRoom | Self::Storage)
    }

    /// Returns the kind that a word of [`Self::as_str`] names.
    pub fn named(word: &str) -> Option<Self> {
        let all = [
            Self::NotFound,
            Self::Denied,
            Self::WrongContent,
            Self::Unavailable,
            Self::Timeout,
            Self::RateLimited,
            Self::Busy,
            Self::Unread,
            Self::NoRoom,
            Self::Storage,
        ];
        all.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Returns the word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::WrongContent => "wrong_content",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::RateLimited => "rate_limited",
            Self::Busy => "busy",
            Self::Unread => "unread",
            Self::NoRoom => "no_room",
            Self::Storage => "storage",
        }
    }
}

impl Failure {
    /// Creates a failure without an error as its source.
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

    /// Makes a failure from an error. Its message is `what`, a colon and the error's own message.
    pub fn of(
        kind: FailureKind,
        what: impl fmt::Display,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::new(kind, format!("{what}: {error}")).caused_by(error)
    }

    /// Adds the error that the failure was made from, which [`std::error::Error::source`] returns. The message already
    /// has the part of it that is for people.
    pub fn caused_by(mut self, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(error));
        self
    }

    /// Sets how long to wait before asking the upstream again.
    pub fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// Adds to the message for people.
    pub fn adding(mut self, more: &str) -> Self {
        self.message = format!("{}{more}", self.message).into();
        self
    }

    /// Adds the reason that the upstream gave, if it gave one.
    pub fn told(mut self, reason: Option<&str>) -> Self {
        if let Some(reason) = reason {
            self.message = format!("{}: {reason}", self.message).into();
            self.told = Some(reason.into());
        }
        self
    }

    /// Returns the reason in the upstream's own words.
    pub fn reason(&self) -> Option<&str> {
        self.told.as_deref()
    }

    /// Returns whether another client may succeed where this one failed: by its rights or its rate limit.
    pub fn is_of_who_asked(&self) -> bool {
        matches!(self.kind, FailureKind::Denied | FailureKind::RateLimited)
    }

    /// Sets whether a retry in a moment is likely to succeed.
    pub fn passing(mut self, is_passing: bool) -> Self {
        self.is_passing = is_passing;
        self
    }

    /// Returns the message for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the failure to report, of the failures of two upstreams.
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
