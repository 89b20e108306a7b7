//! The rate limit that an upstream reports. Pure.
//!
//! Docker Hub sends `RateLimit-Limit: 100;w=21600` and `RateLimit-Remaining: 20;w=21600` with manifests.
//! `Docker-RateLimit-Source` names the address or the account that Docker Hub counts. Where these headers are absent,
//! there is no limit.

use std::time::Duration;

use crate::clock::Instant;
use http::{HeaderMap, HeaderName};

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const SOURCE: HeaderName = HeaderName::from_static("docker-ratelimit-source");

/// The share of a limit that is kept for clients: when less is left, Larder fetches only what a client waits for.
const FLOOR: f64 = 0.1;
/// Longest source that is kept, in characters.
const LONGEST_SOURCE: usize = 100;

/// The state of a rate limit when the upstream last reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Pulls in one window.
    pub limit: u64,
    /// Pulls left in this window.
    pub remaining: u64,
    /// Length of the window, where it is known.
    pub window: Option<Duration>,
    /// The address or account that the upstream counts.
    pub source: Option<String>,
    /// When the upstream reported this.
    pub read_at: Instant,
}

impl Budget {
    /// Reads the headers of a response; `None` where they state no limit, or one that makes no sense.
    pub fn read(headers: &HeaderMap, now: Instant) -> Option<Self> {
        let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
        let (limit, window) = quota(text(&LIMIT)?)?;
        let (remaining, _) = quota(text(&REMAINING)?)?;
        let source = text(&SOURCE).map(|source| source.chars().take(LONGEST_SOURCE).collect());
        (limit > 0).then_some(Self { limit, remaining: remaining.min(limit), window, source, read_at: now })
    }

    /// Returns what is left as a share of the limit (0 to 1). One window later, all of it is left again.
    #[allow(clippy::cast_precision_loss)]
    pub fn left(&self, now: Instant) -> f64 {
        let is_over = self.window.is_some_and(|window| now.saturating_duration_since(self.read_at) >= window);
        if is_over { 1.0 } else { self.remaining as f64 / self.limit as f64 }
    }

    /// Returns whether what is left must be kept for clients that wait.
    pub fn is_below_floor(&self, now: Instant) -> bool {
        self.left(now) < FLOOR
    }
}

/// Reads `NUMBER;w=SECONDS`, perhaps with more parameters.
fn quota(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let seconds = parts.find_map(|part| part.strip_prefix("w="))?.parse().ok();
    Some((number, seconds.map(Duration::from_secs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)], now: Instant) -> Option<Budget> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(HeaderName::try_from(*name).expect("a name"), value.parse().expect("a value"));
        }
        Budget::read(&headers, now)
    }

    #[test]
    fn the_headers_of_docker_hub_are_read() {
        let now = Instant::now();
        let pairs = [
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "20;w=21600"),
            ("docker-ratelimit-source", "192.0.2.1"),
        ];
        let budget = read(&pairs, now).expect("a budget");
        assert_eq!((budget.limit, budget.remaining, budget.source.as_deref()), (100, 20, Some("192.0.2.1")));
        assert!((budget.left(now) - 0.2).abs() < 1e-9 && !budget.is_below_floor(now));
        let later = now + Duration::from_secs(21_600);
        assert!((budget.left(later) - 1.0).abs() < 1e-9, "a window later it is full");
    }

    #[test]
    fn the_last_tenth_is_kept() {
        let now = Instant::now();
        let left = |remaining: &str| {
            read(&[("ratelimit-limit", "100;w=60"), ("ratelimit-remaining", remaining)], now).expect("a budget")
        };
        assert!(!left("10;w=60").is_below_floor(now));
        assert!(left("9;w=60").is_below_floor(now));
    }

    #[test]
    fn what_makes_no_sense_is_no_budget() {
        let now = Instant::now();
        for (limit, remaining) in
            [("", "1;w=1"), ("0;w=60", "0;w=60"), ("-1;w=60", "1;w=60"), ("a", "b"), ("1e9;w=6", "1;w=6")]
        {
            assert_eq!(read(&[("ratelimit-limit", limit), ("ratelimit-remaining", remaining)], now), None, "{limit}");
        }
        assert_eq!(read(&[("ratelimit-limit", "100;w=60")], now), None);
        let more = read(&[("ratelimit-limit", "100;w=60"), ("ratelimit-remaining", "999;w=x")], now).expect("a budget");
        assert_eq!(more.remaining, 100);
    }
}
