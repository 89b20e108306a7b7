//! Times and addresses as Go's libraries read them, in Larder's form.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::units::Span;

/// Reads a time: `90s`, `1h30m`, `1.5h`, also `30d`; a number alone is nanoseconds, as in Go. `None` if the text is no
/// time.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim().trim_start_matches('+');
    if let Ok(nanoseconds) = rest.replace('_', "").parse::<u64>() {
        return Some(Duration::from_nanos(nanoseconds));
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let unit_end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_end);
        let seconds = match unit.trim() {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = behind;
    }
    (!text.trim().is_empty()).then_some(total)
}

/// Returns a time in Larder's form, rounded up to whole milliseconds, so that a short time does not become zero. `None`
/// if it is longer than Larder accepts.
pub fn span(time: Duration) -> Option<String> {
    let milliseconds = u64::try_from(time.as_nanos().div_ceil(1_000_000)).ok()?;
    let text = Span(Duration::from_millis(milliseconds)).to_string();
    text.parse::<Span>().ok().map(|_| text)
}

/// Returns the address of `:5000`, `localhost:5000` or an address with a port. `None` for another host name, or if
/// there is no port.
pub fn address(text: &str) -> Option<String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.to_string());
    }
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    match host {
        "" | "*" => Some(format!("0.0.0.0:{port}")),
        "localhost" => Some(format!("127.0.0.1:{port}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_mean_what_they_meant() {
        for (text, expected) in [
            ("60s", "60s"),
            ("1m30s", "90s"),
            ("1.5h", "90m"),
            ("168h", "7d"),
            ("30d", "30d"),
            ("2w", "14d"),
            ("500ms", "500ms"),
            ("60000000000", "60s"),
            ("1us", "1ms"),
            ("0", "0s"),
            ("0s", "0s"),
        ] {
            assert_eq!(duration(text).and_then(span).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "s", "1", "x5s", "5", "-5s", "5 fortnights", "1.2.3s", "s5"] {
            let is_nanoseconds = text.parse::<u64>().is_ok();
            assert_eq!(duration(text).is_some(), is_nanoseconds, "{text}");
        }
        assert_eq!(duration("9999999h").and_then(span), None);
    }

    #[test]
    fn addresses_are_addresses() {
        for (text, expected) in [
            (":5000", Some("0.0.0.0:5000")),
            ("0.0.0.0:80", Some("0.0.0.0:80")),
            ("localhost:5000", Some("127.0.0.1:5000")),
            ("[::]:5000", Some("[::]:5000")),
            ("registry.example:5000", None),
            ("5000", None),
            (":http", None),
        ] {
            assert_eq!(address(text).as_deref(), expected, "{text}");
        }
    }
}
