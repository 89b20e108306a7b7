//! Values with a unit, as the configuration writes them.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

/// A length of time: `"500ms"`, `"60s"`, `"5m"`, `"1h30m"`, `"30d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A length of time like [`Span`], or one without an end: `"forever"` or `"none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    Span(Duration),
    /// Longer than any span.
    Unlimited,
}

impl Limit {
    /// Returns whether `age` is still within the limit.
    pub fn covers(self, age: Duration) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Span(span) => age < span,
        }
    }
}

/// Longest time that can be written, in seconds: a hundred years, so that arithmetic on times cannot overflow.
const MAX_SECONDS: u64 = 100 * 365 * 86_400;

impl FromStr for Span {
    type Err = String;

    /// Reads numbers with their units, one after the other: `1h30m`, as Go and systemd write times, too.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no length of time; write for example \"60s\", \"5m\", \"12h\" or \"30d\"");
        let (mut rest, mut milliseconds) = (text, 0_u64);
        loop {
            let digits = rest.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, behind) = rest.split_at(digits);
            let end = behind.find(|character: char| character.is_ascii_digit()).unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(end);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let milliseconds_each = milliseconds_in(unit.trim()).ok_or_else(wrong)?;
            let part = number.checked_mul(milliseconds_each).ok_or_else(wrong)?;
            milliseconds = milliseconds.checked_add(part).ok_or_else(wrong)?;
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        if milliseconds / 1_000 > MAX_SECONDS {
            return Err(format!("`{text}` is longer than a hundred years"));
        }
        Ok(Self(Duration::from_millis(milliseconds)))
    }
}

fn milliseconds_in(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "forever" | "none" => Ok(Self::Unlimited),
            span => span.parse().map(|Span(span)| Self::Span(span)),
        }
    }
}

impl fmt::Display for Span {
    /// Writes the time in the largest unit that fits into it twice or more without a rest, as people do: `60s`, `24h`,
    /// `30d`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let fits = |&(_, each): &(&str, u128)| milliseconds.is_multiple_of(each) && milliseconds / each >= 2;
        match units.into_iter().find(fits) {
            Some((unit, each)) => write!(f, "{}{unit}", milliseconds / each),
            None if milliseconds.is_multiple_of(1_000) => write!(f, "{}s", milliseconds / 1_000),
            None => write!(f, "{milliseconds}ms"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // In a limit of staleness, "none" could be taken for "never".
            Self::Unlimited => f.write_str("forever"),
            Self::Span(span) => Span(*span).fmt(f),
        }
    }
}

/// Reads a time from its text; the error for a bare number says that its unit is missing.
struct TimeVisitor<T>(PhantomData<T>);

impl<T: FromStr<Err = String>> serde::de::Visitor<'_> for TimeVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a length of time such as \"60s\", \"5m\", \"12h\" or \"30d\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        Err(E::custom(format!("`{number}` has no unit; write for example \"60s\", \"5m\", \"12h\" or \"30d\"")))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeVisitor(PhantomData))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An amount of disk: bytes, `"20GiB"`, `"500MB"`, Kubernetes' `"200Gi"`, a share of the filesystem `"10%"`, or `"none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    None,
    Bytes(u64),
    /// Percent of the filesystem.
    Share(u8),
}

impl Amount {
    /// Returns the amount in bytes, on a filesystem of `total` bytes; `None` for `"none"`.
    pub fn of(self, total: u64) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::Share(percent) => Some(total / 100 * u64::from(percent)),
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no amount of disk; write for example \"20GiB\", \"500MB\", \"10%\" or \"none\"");
        if text == "none" {
            return Ok(Self::None);
        }
        let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor: u64 = match unit.trim() {
            "%" if number <= 100 => return u8::try_from(number).map(Self::Share).map_err(|_| wrong()),
            "" | "B" => 1,
            // Without the B as Kubernetes writes them (its documentation: resource.Quantity).
            "KB" | "kB" | "k" => 1_000,
            "MB" | "M" => 1_000_000,
            "GB" | "G" => 1_000_000_000,
            "TB" | "T" => 1_000_000_000_000,
            "KiB" | "Ki" => 1 << 10,
            "MiB" | "Mi" => 1 << 20,
            "GiB" | "Gi" => 1 << 30,
            "TiB" | "Ti" => 1 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Self::Bytes).ok_or_else(wrong)
    }
}

impl fmt::Display for Amount {
    /// Writes the amount in the unit that gives the smallest number, as people do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Self::None => return f.write_str("none"),
            Self::Share(percent) => return write!(f, "{percent}%"),
            Self::Bytes(0) => return f.write_str("0"),
            Self::Bytes(bytes) => *bytes,
        };
        let units = [
            ("TiB", 1 << 40),
            ("TB", 1_000_000_000_000),
            ("GiB", 1 << 30),
            ("GB", 1_000_000_000),
            ("MiB", 1 << 20),
            ("MB", 1_000_000),
            ("KiB", 1 << 10),
            ("kB", 1_000),
            ("B", 1_u64),
        ];
        let fitting = units.into_iter().filter(|(_, each)| bytes.is_multiple_of(*each));
        let (number, unit) =
            fitting.map(|(unit, each)| (bytes / each, unit)).min_by_key(|(number, _)| *number).unwrap_or((bytes, "B"));
        write!(f, "{number}{unit}")
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of disk such as \"20GiB\", \"10%\" or \"none\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Amount, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Amount, E> {
                u64::try_from(bytes).map(Amount::Bytes).map_err(|_| E::custom("an amount of disk is not negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("500ms", 500),
            ("60s", 60_000),
            ("5m", 300_000),
            ("30d", 2_592_000_000),
            ("1h30m", 5_400_000),
            ("1m 500ms", 60_500),
        ] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(milliseconds))), "{text}");
        }
        for text in [
            "",
            "60",
            "s",
            "-1s",
            "1.5h",
            "1w",
            "99999999999999999999s",
            "40000d",
            "1h30",
            "h30m",
            "1h-30m",
            "36500d1d",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for text in ["0s", "1s", "90s", "60s", "2m", "5m", "1500ms", "24h", "30d", "36500d"] {
            assert_eq!(text.parse::<Span>().expect(text).to_string(), text);
            assert_eq!(text.parse::<Limit>().expect(text).to_string(), text);
        }
        assert_eq!("none".parse(), Ok(Limit::Unlimited));
        assert_eq!(Limit::Unlimited.to_string().parse(), Ok(Limit::Unlimited));
        for text in ["none", "0", "10%", "20GiB", "500MB", "1kB", "1KiB", "1023B", "1TiB", "1500GB", "16777215TiB"] {
            assert_eq!(text.parse::<Amount>().expect(text).to_string(), text);
        }
        let odd = Amount::Bytes(u64::MAX);
        assert_eq!(odd.to_string().parse(), Ok(odd));
    }

    #[test]
    fn a_limit_of_nothing_covers_nothing() {
        assert!(!Limit::Span(Duration::ZERO).covers(Duration::ZERO));
        assert!(Limit::Unlimited.covers(Duration::MAX));
    }

    #[test]
    fn amounts_are_bytes_or_shares() {
        for (text, amount) in [
            ("none", Amount::None),
            ("0", Amount::Bytes(0)),
            ("500MB", Amount::Bytes(500_000_000)),
            ("20GiB", Amount::Bytes(20 << 30)),
            ("200Gi", Amount::Bytes(200 << 30)),
            ("5G", Amount::Bytes(5_000_000_000)),
            ("10%", Amount::Share(10)),
        ] {
            assert_eq!(text.parse(), Ok(amount), "{text}");
        }
        for text in ["", "GB", "-1", "1.5GB", "101%", "1XB", "99999999TiB"] {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
        assert_eq!(Amount::Share(10).of(2_000), Some(200));
    }
}
