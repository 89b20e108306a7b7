//! Turns errors of HTTP and of the network into a [`Failure`].

use std::error::Error as _;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::reason;
use crate::failure::{Failure, FailureKind};
use crate::web::Why;

/// Returns the failure for an error of the HTTP client. The whole source chain is read: the cause that a person can act
/// on is at its end.
pub fn network(upstream: &str, error: reqwest::Error) -> Failure {
    // The error's own text has the URL, whose query may hold a signature.
    let why = error.source().map_or_else(|| Why::Other("the request failed".to_owned()), Why::of);
    let kind = match why {
        Why::OwnShortage => FailureKind::Busy,
        _ if error.is_timeout() => FailureKind::Timeout,
        _ => FailureKind::Unavailable,
    };
    // A server that was reached and broke the connection off may be restarting behind a load balancer.
    let is_passing = kind == FailureKind::Unavailable && !error.is_connect();
    Failure::new(kind, format!("{upstream}: {why}")).passing(is_passing).caused_by(error.without_url())
}

/// Returns the failure for `what`, which did not come within `after`.
pub fn timeout(upstream: &str, what: &str, after: Duration) -> Failure {
    Failure::new(FailureKind::Timeout, format!("{upstream}: {what} did not come within {} s", after.as_secs_f32()))
}

/// Returns the failure for a status code other than success. `said`: the text of the body, of which only the time to
/// wait is used.
pub fn status(upstream: &str, status: StatusCode, headers: &HeaderMap, said: Option<&str>) -> Failure {
    let kind = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => FailureKind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            FailureKind::Denied
        }
        StatusCode::TOO_MANY_REQUESTS => FailureKind::RateLimited,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => FailureKind::Timeout,
        _ => FailureKind::Unavailable,
    };
    let after = reason::wait(headers, said);
    let is_passing = status.is_server_error() && kind == FailureKind::Unavailable && after.is_none();
    let failure = Failure::new(kind, format!("{upstream}: answered {status}"));
    failure.with_retry_after(after).passing(is_passing)
}

/// Which requests a rate limit covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Requests that fetch manifests: these are pulls to Docker Hub.
    Pulls,
    /// All requests, like Docker Hub's limit against abuse.
    All,
}

/// Returns which requests a 429 covers, and its failure. Docker Hub's limit on pulls comes as JSON that says so, its
/// limit on all requests as plain text.
pub fn rate_limit(upstream: &str, headers: &HeaderMap, said: Option<&str>) -> (Limited, Failure) {
    let is_of_pulls = said.is_some_and(|said| said.contains("pull rate limit"));
    let limited = if is_of_pulls { Limited::Pulls } else { Limited::All };
    let failure = Failure::new(FailureKind::RateLimited, format!("{upstream}: answered 429 Too Many Requests"));
    (limited, failure.with_retry_after(reason::wait(headers, said)))
}

/// Marks a response to a request that Larder sent as itself.
#[derive(Clone, Copy)]
pub struct AskedAsLarder {
    /// Whether the upstream has credentials in the configuration.
    pub has_login: bool,
}

impl AskedAsLarder {
    /// Returns what helps where the upstream denies something. Not the account: clients read this, too.
    pub fn hint(self) -> &'static str {
        match self.has_login {
            true => "; look whether the configured login is right, and may read this (username, password)",
            false => "; if it wants a login, set username and password of the upstream",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_of_docker_hub_are_told_apart() {
        let read = |body: &str| {
            let headers = HeaderMap::new();
            rate_limit("hub", &headers, reason::of(&headers, body.as_bytes()).as_deref())
        };
        let (limited, _) = read(
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit. You may increase the limit by upgrading"}]}"#,
        );
        assert_eq!(limited, Limited::Pulls);
        let (limited, abuse) = read("Too Many Requests (HAP429).\r\n");
        assert_eq!(limited, Limited::All);
        assert_eq!(abuse.message(), "hub: answered 429 Too Many Requests");
        for strange in ["", "{}", "{\"errors\":[]}", "{\"errors\":[{}]}", "\u{0}"] {
            assert_eq!(read(strange).0, Limited::All, "{strange}");
        }
    }
}
