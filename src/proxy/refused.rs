//! The response to a client of the proxy door whose request is refused.

use http::header::{ALLOW, CONTENT_TYPE, PROXY_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::access::Refusal;
use crate::body::{Body, full};
use crate::config::Forbidden;
use crate::failure::{Failure, FailureKind};
use crate::upstream::PassError;

/// The header of RFC 9209.
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The methods that are allowed in a tunnel, for `Allow`.
const IN_A_TUNNEL: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE");

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Forbidden(Forbidden),
    #[error("this client may not use this proxy; see `proxy.allow` and `auth.allow_cidrs` of the configuration")]
    NotYou,
    /// The client has to log in; with the realm of the challenge.
    #[error("log in to this proxy, as in http://NAME:PASSWORD@PROXY")]
    Login(String),
    #[error("{0}")]
    Failure(Failure),
    /// Answered in the form of a registry.
    #[error("{0}")]
    Registry(Refusal),
    #[error("the proxy door is closed by now")]
    Closed,
    #[error("it is not in the cache, and the request asks for nothing else (only-if-cached)")]
    NotCached,
    #[error("in a tunnel no other one is opened: ask the proxy itself")]
    Tunnel,
    #[error("the request came back to this proxy; a server or another proxy leads in a circle")]
    Circle,
}

impl Refused {
    /// Returns the status, and the error type of RFC 9209, section 2.3.
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "http_request_error"),
            Self::Forbidden(Forbidden::Inside(_)) => (StatusCode::FORBIDDEN, "destination_ip_prohibited"),
            Self::Forbidden(_) | Self::NotYou => (StatusCode::FORBIDDEN, "http_request_denied"),
            Self::Login(_) => (StatusCode::PROXY_AUTHENTICATION_REQUIRED, "http_request_denied"),
            Self::Failure(failure) => match failure.kind {
                FailureKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
                FailureKind::Busy => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached"),
                FailureKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "http_request_denied"),
                _ => (StatusCode::BAD_GATEWAY, "destination_unavailable"),
            },
            Self::Registry(refusal) => (refusal.status_and_code().0, "http_request_error"),
            Self::Closed => (StatusCode::SERVICE_UNAVAILABLE, "proxy_configuration_error"),
            Self::NotCached => (StatusCode::GATEWAY_TIMEOUT, "http_request_denied"),
            Self::Tunnel => (StatusCode::METHOD_NOT_ALLOWED, "http_request_denied"),
            Self::Circle => (StatusCode::LOOP_DETECTED, "proxy_loop_detected"),
        }
    }

    /// Returns the response to the client.
    pub fn into_response(self) -> Response<Body> {
        let (status, word) = self.status();
        let text = self.to_string();
        if let Self::Registry(refusal) = self {
            return refusal.into_response();
        }
        let mut response = page(status, &text);
        let headers = response.headers_mut();
        headers.extend(HeaderValue::try_from(format!("larder; error={word}")).ok().map(|value| (PROXY_STATUS, value)));
        match self {
            Self::Login(realm) => {
                let value = HeaderValue::try_from(format!("Basic realm=\"{realm}\""));
                headers.extend(value.ok().map(|value| (PROXY_AUTHENTICATE, value)));
            }
            Self::Tunnel => drop(headers.insert(ALLOW, IN_A_TUNNEL)),
            _ => {}
        }
        response
    }

    /// Returns the failure for the log, if the reason is more than a client's own mistake.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failure(failure) | Self::Registry(Refusal::Failure { failure, .. }) => Some(failure),
            _ => None,
        }
    }
}

impl From<PassError> for Refused {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Forbidden(forbidden) => Self::Forbidden(forbidden),
            PassError::Failure(failure) => Self::Failure(failure),
        }
    }
}

impl From<Forbidden> for Refused {
    fn from(forbidden: Forbidden) -> Self {
        Self::Forbidden(forbidden)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Registry(refusal)
    }
}

fn page(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("Larder: {text}\n").into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Returns the response for a client that takes the door for a web server.
pub fn usage() -> Response<Body> {
    let text = "this is a proxy, not a web server or a registry. Set HTTP_PROXY and HTTPS_PROXY to this address; the certificate to trust is at /ca.crt.";
    page(StatusCode::BAD_REQUEST, text)
}
