//! Values with a unit, as the configuration writes them.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A length of time: `"500ms"`, `"60s"`, `"5m"`, `"12h"`, `"30d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

/// A length of time without an end: `"forever"` or `"none"`, or as [`Span`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Limit {
    Unlimited,
    Span(Duration),
}

impl Limit {
    /// Whether `age` is still within the limit.
    pub fn covers(self, age: Duration) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Span(span) => age < span,
        }
    }
}

/// Longest time that can be written: a hundred years, so that arithmetic on times cannot overflow.
const MAX_SECONDS: u64 = 100 * 365 * 86_400;

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no length of time; write for example \"60s\", \"5m\", \"12h\" or \"30d\"");
        let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds_each: u64 = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let milliseconds = number.checked_mul(milliseconds_each).ok_or_else(wrong)?;
        if milliseconds / 1_000 > MAX_SECONDS {
            return Err(format!("`{text}` is longer than a hundred years"));
        }
        Ok(Self(Duration::from_millis(milliseconds)))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for Limit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "forever" | "none" => Ok(Self::Unlimited),
            span => span.parse().map(|Span(span)| Self::Span(span)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        for (text, milliseconds) in
            [("0s", 0), ("500ms", 500), ("60s", 60_000), ("5m", 300_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(milliseconds))), "{text}");
        }
        for text in ["", "60", "s", "-1s", "1.5h", "1w", "99999999999999999999s", "40000d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_of_nothing_covers_nothing() {
        assert!(!Limit::Span(Duration::ZERO).covers(Duration::ZERO));
        assert!(Limit::Unlimited.covers(Duration::MAX));
    }
}
