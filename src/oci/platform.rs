//! Platforms, as Docker writes them.

use std::fmt;
use std::str::FromStr;

/// Longest platform, in bytes.
const LONGEST: usize = 64;

/// A platform: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    /// `None`: any variant.
    pub variant: Option<String>,
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').collect();
        let is_word =
            |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        match parts[..] {
            _ if text.len() > LONGEST => Err("a platform is no longer than linux/amd64".to_owned()),
            [os, architecture] | [os, architecture, _] if parts.iter().all(is_word) => Ok(Self {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: parts.get(2).map(|&variant| variant.to_owned()),
            }),
            _ => Err(format!("`{text}` is no platform; write it as linux/amd64 or linux/arm/v7")),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_written_as_it_is_read() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().map(|platform| platform.to_string()).as_deref(), Ok(text));
        }
        let long = format!("linux/{}", "a".repeat(LONGEST));
        for wrong in ["amd64", "linux/", "a/b/c/d", "linux/amd 64", &long] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
    }
}
