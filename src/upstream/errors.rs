//! From what HTTP and the network say to a [`Failure`].

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

use crate::failure::{Failure, FailureKind};

/// Longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The failure behind an error of the HTTP client. The whole source chain is read: the cause that a
/// person can act on is at its end.
pub fn network(upstream: &str, error: &reqwest::Error) -> Failure {
    let kind = if error.is_timeout() { FailureKind::Timeout } else { FailureKind::Unavailable };
    let mut cause = error.source();
    let mut message = None;
    while let Some(inner) = cause {
        message = Some(inner.to_string());
        cause = inner.source();
    }
    // The error's own text holds the URL, whose query may be signed.
    let message = message.unwrap_or_else(|| "the request failed".to_owned());
    // What was reached and broke off may be a server being restarted behind a load balancer.
    let is_passing = kind == FailureKind::Unavailable && !error.is_connect();
    Failure::new(kind, format!("{upstream}: {message}")).passing(is_passing)
}

pub fn timeout(upstream: &str, what: &str, after: Duration) -> Failure {
    Failure::new(FailureKind::Timeout, format!("{upstream}: {what} did not come within {} s", after.as_secs_f32()))
}

/// The failure that a status code other than success stands for.
pub fn status(upstream: &str, status: StatusCode, headers: &HeaderMap) -> Failure {
    let kind = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => FailureKind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            FailureKind::Denied
        }
        StatusCode::TOO_MANY_REQUESTS => FailureKind::RateLimited,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => FailureKind::Timeout,
        _ => FailureKind::Unavailable,
    };
    let after = retry_after(headers);
    let is_passing = status.is_server_error() && kind == FailureKind::Unavailable && after.is_none();
    Failure::new(kind, format!("{upstream}: answered {status}")).with_retry_after(after).passing(is_passing)
}

/// Which requests a rate limit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Manifests fetched: what Docker Hub counts as pulls.
    Pulls,
    /// Everything, as its limit against abuse.
    All,
}

/// What a 429 says. Docker Hub's limit on pulls comes as JSON that says so, its limit on requests of any
/// kind as plain text.
pub fn rate_limit(upstream: &str, headers: &HeaderMap, body: &[u8]) -> (Failure, Limited) {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Error>,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        #[serde(default)]
        message: String,
    }
    let document = serde_json::from_slice::<Document>(body).ok();
    let told = document.and_then(|document| document.errors.into_iter().next()).map(|error| error.message);
    let is_of_pulls = told.as_ref().is_some_and(|message| message.contains("pull rate limit"));
    let limited = if is_of_pulls { Limited::Pulls } else { Limited::All };
    let told = told.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let told: String = told.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    let colon = if told.is_empty() { "" } else { ": " };
    let message = format!("{upstream}: answered 429 Too Many Requests{colon}{told}");
    (Failure::new(FailureKind::RateLimited, message).with_retry_after(retry_after(headers)), limited)
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            date.duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(after.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_of_docker_hub_are_told_apart() {
        let read = |body: &str| rate_limit("hub", &HeaderMap::new(), body.as_bytes());
        let (pulls, limited) = read(
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit. You may increase the limit by upgrading"}]}"#,
        );
        assert_eq!(limited, Limited::Pulls);
        assert!(pulls.message().contains("pull rate limit"));
        let (abuse, limited) = read("Too Many Requests (HAP429).\r\n");
        assert_eq!(limited, Limited::All);
        assert_eq!(abuse.message(), "hub: answered 429 Too Many Requests: Too Many Requests (HAP429).");
        for strange in ["", "{}", "{\"errors\":[]}", "{\"errors\":[{}]}", "\u{0}"] {
            assert_eq!(read(strange).1, Limited::All, "{strange}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_bounded() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().expect("a header"));
            retry_after(&headers)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("99999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(read("Fri, 01 Jan 1999 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }
}
