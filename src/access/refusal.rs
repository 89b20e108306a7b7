//! The response to a client that does not get what it asked for: one exhaustive match from the reason to status, code
//! and headers.

use http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use super::host::WrongHost;
use super::token_form::WrongForm;
use crate::body::{self, Body};
use crate::failure::{Failure, FailureKind};
use crate::oci::reference::InvalidReference;
use crate::oci::route::{InvalidRoute, Object};
use crate::oci::{Code, error};
use crate::routing::RoutingError;

/// What was asked for, where that decides the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Manifest,
    Blob,
    Name,
}

/// Why a request is not answered with content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Route(#[from] InvalidRoute),
    #[error(transparent)]
    Routing(#[from] RoutingError),
    #[error("this is a cache: it serves GET and HEAD; push to the registry itself")]
    Unsupported,
    #[error("{0}")]
    Host(#[from] WrongHost),
    /// With the name of the host.
    #[error(
        "`{0}` is no name of this cache: on this machine it is asked by address or as localhost; add the name to server.hosts, or the address of the reverse proxy that passes it on to server.trusted_proxies"
    )]
    StrangeName(String),
    #[error("the range lies outside the content, which has {size} bytes")]
    Range { size: u64 },
    #[error("{failure}")]
    Failure { failure: Failure, wanted: Wanted },
    #[error("this client may not pull here; see `allow` and `allow_cidrs` of the configuration")]
    Forbidden,
    /// If a missing login is the only reason, the message says so; `tried` is the failure of asking the upstream
    /// without a login.
    #[error("{why}{}", .tried.as_ref().map_or_else(String::new, |tried| format!("; without a login: {tried}")))]
    Unauthenticated { why: Challenge, challenge: Option<HeaderValue>, tried: Option<Failure> },
    #[error("{0}")]
    Form(#[from] WrongForm),
}

/// Why a client is asked to log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Challenge {
    #[error("log in to this cache (docker login)")]
    Missing,
    #[error("the credentials or the token are not accepted; log in again")]
    Invalid,
    /// Larder knows the client, but its rights do not suffice.
    #[error("this login may not pull this; log in with another one (docker login)")]
    Insufficient,
}

impl Refusal {
    /// Returns a function that makes the refusal of a failure, for `Result::map_err`.
    pub fn of(wanted: Wanted) -> impl Fn(Failure) -> Self {
        move |failure| Self::Failure { failure, wanted }
    }

    /// Returns the status of the response and the error code of the distribution specification.
    pub fn status_and_code(&self) -> (StatusCode, Code) {
        match self {
            Self::Route(InvalidRoute::NotFound) => (StatusCode::NOT_FOUND, Code::NameUnknown),
            Self::Route(InvalidRoute::Encoding | InvalidRoute::ControlCharacter) => {
                (StatusCode::BAD_REQUEST, Code::NameInvalid)
            }
            Self::Route(InvalidRoute::Digest(_) | InvalidRoute::Reference(InvalidReference::Digest(_))) => {
                (StatusCode::BAD_REQUEST, Code::DigestInvalid)
            }
            Self::Route(InvalidRoute::Reference(InvalidReference::Tag(_))) => {
                (StatusCode::BAD_REQUEST, Code::TagInvalid)
            }
            Self::Routing(RoutingError::InvalidName(_)) => (StatusCode::BAD_REQUEST, Code::NameInvalid),
            Self::Routing(
                RoutingError::UnknownNamespace(_) | RoutingError::UnknownName(_) | RoutingError::UnknownRegistry { .. },
            ) => (StatusCode::NOT_FOUND, Code::NameUnknown),
            Self::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported),
            Self::Host(_) | Self::Form(_) => (StatusCode::BAD_REQUEST, Code::Unsupported),
            Self::Forbidden | Self::StrangeName(_) => (StatusCode::FORBIDDEN, Code::Denied),
            Self::Unauthenticated { .. } => (StatusCode::UNAUTHORIZED, Code::Unauthorized),
            Self::Range { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, Code::RangeInvalid),
            Self::Failure { failure, wanted } => match failure.kind {
                FailureKind::NotFound => (StatusCode::NOT_FOUND, wanted.unknown()),
                FailureKind::Denied => (StatusCode::FORBIDDEN, Code::Denied),
                FailureKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests),
                FailureKind::Unavailable | FailureKind::WrongContent => (StatusCode::BAD_GATEWAY, Code::Unavailable),
                FailureKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, Code::Unavailable),
                FailureKind::Busy | FailureKind::Unread => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
                FailureKind::NoRoom | FailureKind::Storage => (StatusCode::INTERNAL_SERVER_ERROR, Code::Unavailable),
            },
        }
    }

    /// Returns the response to the client.
    pub fn into_response(self) -> Response<Body> {
        let (status, code) = self.status_and_code();
        let document = match &self {
            Self::Form(wrong) => {
                json!({ "error": wrong.code(), "error_description": wrong.to_string() }).to_string().into()
            }
            _ => error::document(code, &self.to_string(), json!(self.detail())),
        };
        let mut response = Response::new(body::full(document));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self {
            Self::Unauthenticated { challenge, .. } => {
                headers.extend(challenge.map(|challenge| (WWW_AUTHENTICATE, challenge)));
            }
            Self::Unsupported => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Self::Range { size } => {
                let value = HeaderValue::try_from(format!("bytes */{size}"));
                headers.extend(value.ok().map(|value| (CONTENT_RANGE, value)));
            }
            _ => {}
        }
        response
    }

    /// Returns the kind of the failure, and the reason in the upstream's own words.
    fn detail(&self) -> Option<String> {
        match self {
            Self::Failure { failure, .. } => Some(match failure.reason() {
                Some(reason) => format!("{}: {reason}", failure.kind.as_str()),
                None => failure.kind.as_str().to_owned(),
            }),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<u64> {
        let Self::Failure { failure, .. } = self else {
            return None;
        };
        // Rounded up: a client that comes back a moment too early would be told to wait again.
        let stated = failure.retry_after.map(|after| (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1));
        match failure.kind {
            FailureKind::Busy | FailureKind::Unread => Some(1),
            _ => stated,
        }
    }
}

impl Wanted {
    /// Returns what a request for an object asks for.
    pub fn of(object: &Object) -> Self {
        match object {
            Object::Manifest(_) | Object::Referrers(_) => Self::Manifest,
            Object::Blob(_) | Object::Upload => Self::Blob,
            Object::Tags => Self::Name,
        }
    }

    /// Returns the word for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Name => "name",
        }
    }

    fn unknown(self) -> Code {
        match self {
            Self::Manifest => Code::ManifestUnknown,
            Self::Blob => Code::BlobUnknown,
            Self::Name => Code::NameUnknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_the_upstream_has_its_own_answer() {
        for (kind, status, code) in [
            (FailureKind::NotFound, 404, "MANIFEST_UNKNOWN"),
            (FailureKind::Denied, 403, "DENIED"),
            (FailureKind::RateLimited, 429, "TOOMANYREQUESTS"),
            (FailureKind::Unavailable, 502, "UNAVAILABLE"),
            (FailureKind::WrongContent, 502, "UNAVAILABLE"),
            (FailureKind::Timeout, 504, "UNAVAILABLE"),
        ] {
            let refusal = Refusal::of(Wanted::Manifest)(Failure::new(kind, "why"));
            let (answered, with) = refusal.status_and_code();
            assert_eq!((answered.as_u16(), with.as_str()), (status, code));
        }
    }

    #[test]
    fn a_rate_limit_says_when_to_come_back_if_the_upstream_did() {
        let answer =
            |failure: Failure| Refusal::of(Wanted::Blob)(failure).into_response().headers().get(RETRY_AFTER).cloned();
        let limited = || Failure::new(FailureKind::RateLimited, "why");
        assert_eq!(answer(limited()), None);
        for (stated, told) in [(0.000_985, "1"), (0.5, "1"), (1.0, "1"), (1.5, "2"), (90.0, "90")] {
            let failure = limited().with_retry_after(Some(std::time::Duration::from_secs_f64(stated)));
            assert_eq!(answer(failure).expect("a header"), told, "{stated}");
        }
    }
}
