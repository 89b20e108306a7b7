//! The details of an upstream's refusal: the reason for people in the body of an error, and when the upstream may be
//! asked again. Pure.
//!
//! Registries write `{"errors":[{"code","message","detail"}]}` (OCI Distribution Specification, "Error Codes"), token
//! services `{"details":"…"}` or `{"message":"…"}`, storages XML, others plain text.

use std::time::Duration;

use http::{HeaderMap, header};

use crate::clock;

/// The longest `Retry-After` that is believed; a longer one is shortened to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// The longest reason that is passed on, in characters; the rest is cut off.
const LONGEST: usize = 300;

/// Returns the reason in the body of an error; `None` where the body has none for people.
pub fn of(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    let said = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(document) => of_json(&document)?,
        Err(_) if text.starts_with('<') || media_type.contains("html") => between(text, "<Message>", "</Message>")?,
        Err(_) => text.to_owned(),
    };
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: String = said.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    (!said.is_empty()).then_some(said)
}

fn of_json(document: &serde_json::Value) -> Option<String> {
    let text = |value: &serde_json::Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let Some(errors) = document.get("errors").and_then(|errors| errors.as_array()) else {
        return ["message", "details", "detail", "error_description", "error"]
            .iter()
            .find_map(|key| document.get(key).and_then(&text));
    };
    let error = errors.first()?;
    let message = error.get("message").and_then(&text);
    let detail = error.get("detail").and_then(&text);
    match (message, detail) {
        (Some(message), Some(detail)) if !message.contains(&detail) => Some(format!("{message}: {detail}")),
        (message, detail) => message.or(detail),
    }
}

fn between(text: &str, from: &str, to: &str) -> Option<String> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(inner, _)| inner.to_owned())
}

/// Returns how long the upstream asks to wait before the next request: by `Retry-After`, else in the text of the error
/// (`reason`).
pub fn wait(headers: &HeaderMap, reason: Option<&str>) -> Option<Duration> {
    let by_header = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(parse_wait);
    by_header.or_else(|| reason.and_then(wait_in_words)).map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// Reads seconds or a date (RFC 9110, section 10.2.3), seconds with a fraction (Bitbucket, terrifi#50), or a duration
/// as Go writes it: GHCR says "985.86µs" (falcosecurity/plugins#1069).
fn parse_wait(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds_of(seconds);
    }
    if let Ok(date) = httpdate::parse_http_date(text) {
        return Some(date.duration_since(clock::wall()).unwrap_or_default());
    }
    go_duration(text)
}

fn seconds_of(seconds: f64) -> Option<Duration> {
    let is_number = seconds.is_finite() && seconds >= 0.0;
    is_number.then(|| Duration::try_from_secs_f64(seconds).unwrap_or(MAX_RETRY_AFTER))
}

/// Reads a duration as Go writes it, such as `1h2m3.5s`: numbers, each with its unit (Go, `time.ParseDuration`).
fn go_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    (!text.is_empty()).then(|| seconds_of(total)).flatten()
}

/// Reads the wait in a text such as "retry-after: 985.86µs, allowed: 44000/minute".
fn wait_in_words(reason: &str) -> Option<Duration> {
    let lower = reason.to_lowercase();
    let (_, rest) = lower.split_once("retry-after").or_else(|| lower.split_once("retry after"))?;
    let rest = rest.trim_start_matches([':', '=', ' ', '"']);
    let end = rest.find([',', ';', ' ', '"', ')', '}']).unwrap_or(rest.len());
    parse_wait(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        let value = header::HeaderValue::from_bytes(value.as_bytes()).expect("a header");
        HeaderMap::from_iter([(name, value)])
    }

    #[test]
    fn the_reason_is_found_in_each_form_of_an_error() {
        let read = |media_type: &str, body: &str| of(&headers(header::CONTENT_TYPE, media_type), body.as_bytes());
        for (media_type, body, expected) in [
            (
                "application/json",
                r#"{"errors":[{"code":"DENIED","message":"you need a licence","detail":null}]}"#,
                "you need a licence",
            ),
            (
                "application/json",
                r#"{"errors":[{"code":"DENIED","message":"denied","detail":"accept the terms"}]}"#,
                "denied: accept the terms",
            ),
            ("application/json", r#"{"errors":[{"code":"DENIED","detail":"only this"}]}"#, "only this"),
            ("application/json", r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            ("text/plain", "Too Many Requests (HAP429).\r\n", "Too Many Requests (HAP429)."),
            (
                "application/xml",
                "<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>",
                "Reduce your rate",
            ),
            ("text/plain", "two\n lines\u{0}", "two lines"),
        ] {
            assert_eq!(read(media_type, body).as_deref(), Some(expected), "{body}");
        }
        for nothing in ["", "{}", "[]", r#"{"errors":[]}"#, r#"{"errors":[{}]}"#, "<html><body>Log in</body></html>"] {
            assert_eq!(read("text/html", nothing), None, "{nothing}");
        }
        assert_eq!(read("text/plain", &"x".repeat(5000)).map(|text| text.len()), Some(LONGEST));
    }

    #[test]
    fn a_wait_is_read_in_each_form_and_bounded() {
        let read = |text: &str| wait(&headers(header::RETRY_AFTER, text), None);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(read("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(read("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(read("2h"), Some(Duration::from_secs(7200)));
        assert_eq!(read("99999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(read("1e300"), Some(MAX_RETRY_AFTER));
        assert_eq!(read("Fri, 01 Jan 1999 00:00:00 GMT"), Some(Duration::ZERO));
        for none in ["soon", "-1", "NaN", "inf", "5 parsecs", "", "s", "1x", "1.2.3s"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn a_wait_is_read_in_the_words_of_an_error() {
        let read = |text: &str| wait(&HeaderMap::new(), Some(text));
        assert_eq!(read("retry-after: 985.86\u{b5}s, allowed: 44000/minute"), Some(Duration::from_secs_f64(985.86e-6)));
        assert_eq!(read("Rate exceeded; Retry-After=3"), Some(Duration::from_secs(3)));
        assert_eq!(read("please retry after 2s"), Some(Duration::from_secs(2)));
        assert_eq!(read("You have reached your pull rate limit."), None);
        assert_eq!(wait(&headers(header::RETRY_AFTER, "7"), Some("retry-after: 9")), Some(Duration::from_secs(7)));
    }
}
