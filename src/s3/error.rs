//! Why a request to the bucket failed, in words that a person can act on.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::random::NoRandomness;
use crate::web::Why;

/// Why a request failed. Its text names no credentials.
#[derive(Debug)]
pub struct S3Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The key does not exist.
    Absent,
    /// The bucket does not exist.
    NoBucket,
    /// The credentials are wrong, or have no right to this.
    Denied,
    /// This machine's clock and the server's are too far apart.
    Skewed,
    /// The server asks for fewer requests, or cannot answer at the moment.
    Busy,
    /// The server does not know such requests.
    Unsupported,
    /// No answer in time.
    Late,
    /// No connection, or it broke.
    Unreachable,
    /// What was answered is not what was asked for.
    Wrong,
}

/// A refusal of the server: the status, and the code of its XML document ("Error responses" in the API reference of S3).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}")]
pub struct Refused {
    pub status: u16,
    /// Empty if the server gives none, as in an answer to HEAD.
    pub code: String,
}

impl Refused {
    /// Returns what follows from the refusal.
    fn kind(&self) -> Kind {
        match self.code.as_str() {
            "NoSuchBucket" => return Kind::NoBucket,
            "RequestTimeTooSkewed" | "RequestExpired" => return Kind::Skewed,
            "NotImplemented" | "MethodNotAllowed" => return Kind::Unsupported,
            "SlowDown" => return Kind::Busy,
            _ => {}
        }
        match self.status {
            404 => Kind::Absent,
            401 | 403 => Kind::Denied,
            405 | 501 => Kind::Unsupported,
            408 | 429 | 500.. => Kind::Busy,
            _ => Kind::Wrong,
        }
    }

    /// Says what to do.
    fn words(&self) -> String {
        let Self { status, code } = self;
        let why = match (self.kind(), code.as_str()) {
            (Kind::NoBucket, _) => "the bucket does not exist; create it, or correct storage.s3.bucket",
            (Kind::Skewed, _) => "this machine's clock is too far from the server's; set the clock (NTP)",
            (_, "SignatureDoesNotMatch") => {
                "the signature is wrong: secret_access_key_file does not belong to access_key_id, or region is another"
            }
            (_, "InvalidAccessKeyId") => "the server does not know access_key_id",
            (_, "AuthorizationHeaderMalformed") => "the bucket is in another region than storage.s3.region",
            (_, "ExpiredToken" | "InvalidToken") => "the credentials have expired",
            (Kind::Denied, _) => "these credentials have no right to this request",
            (Kind::Absent, _) => "the key does not exist",
            (Kind::Unsupported, _) => "the server does not know this request",
            (Kind::Busy, _) => "the server cannot answer at the moment",
            _ if (300..400).contains(status) => "the bucket is in another region or at another endpoint",
            _ => "the server refused the request",
        };
        match code.is_empty() {
            true => format!("{why} ({status})"),
            false => format!("{why} ({status} {code})"),
        }
    }
}

impl S3Error {
    /// Reads an error of the library with all that caused it.
    pub(super) fn of(error: object_store::Error) -> Self {
        let mut next: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            if let Some(refused) = cause.downcast_ref::<Refused>() {
                let (kind, message) = (refused.kind(), refused.words());
                return Self { kind, message, source: Some(Box::new(error)) };
            }
            if let Some(network) = cause.downcast_ref::<Network>() {
                let message = network.0.to_string();
                return Self { kind: Kind::Unreachable, message, source: Some(Box::new(error)) };
            }
            next = cause.source();
        }
        let kind = if is_absent(&error) { Kind::Absent } else { Kind::Wrong };
        let message = short(&error.to_string());
        Self { kind, message, source: Some(Box::new(error)) }
    }

    /// Creates the error of a request that took too long.
    pub fn late(patience: Duration) -> Self {
        Self { kind: Kind::Late, message: format!("no answer within {} s", patience.as_secs()), source: None }
    }

    /// Creates the error of content that comes too slowly.
    pub(super) fn slow() -> Self {
        Self { kind: Kind::Late, message: "it sends next to nothing".to_owned(), source: None }
    }

    /// Creates the error of settings that cannot be used.
    pub(super) fn unusable(message: String) -> Self {
        Self { kind: Kind::Wrong, message, source: None }
    }

    /// Creates the error of an answer that is not what was asked for.
    pub(super) fn wrong(message: impl Into<String>) -> Self {
        Self { kind: Kind::Wrong, message: message.into(), source: None }
    }

    /// Returns what follows from it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns whether another request in a moment may do better.
    pub fn is_passing(&self) -> bool {
        matches!(self.kind, Kind::Busy | Kind::Late | Kind::Unreachable)
    }
}

impl From<NoRandomness> for S3Error {
    fn from(error: NoRandomness) -> Self {
        Self { kind: Kind::Unreachable, message: error.to_string(), source: Some(Box::new(error)) }
    }
}

impl fmt::Display for S3Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for S3Error {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// No connection, or a broken one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Network(pub Why);

fn is_absent(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
}

/// Returns the beginning of a message that may have a whole document in it.
fn short(message: &str) -> String {
    message.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let words = |status, code: &str| Refused { status, code: code.to_owned() }.words();
        for (status, code, part) in [
            (404, "NoSuchBucket", "the bucket does not exist; create it"),
            (403, "RequestTimeTooSkewed", "set the clock"),
            (403, "SignatureDoesNotMatch", "secret_access_key_file"),
            (403, "", "no right to this request (403)"),
            (503, "SlowDown", "at the moment (503 SlowDown)"),
            (301, "PermanentRedirect", "another region"),
            (501, "NotImplemented", "does not know this request"),
        ] {
            assert!(words(status, code).contains(part), "{status} {code}: {}", words(status, code));
        }
    }
}
