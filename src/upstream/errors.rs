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
    Failure::new(kind, format!("{upstream}: {message}"))
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
    Failure::new(kind, format!("{upstream}: answered {status}")).with_retry_after(retry_after(headers))
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
