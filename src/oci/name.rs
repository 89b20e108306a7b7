//! Repository names (OCI Distribution Specification, "Pulling manifests").

use std::fmt;
use std::str::FromStr;

/// A repository name without registry, such as `library/alpine`: lower-case path components of any
/// number, with `.`, `_`, `__` and dashes between letters and digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Longest name that is accepted, in bytes. It is the limit of distribution (`RepositoryNameTotalLengthMax` in its
/// `reference` package, for the name without its registry). The OCI specification sets no limit and says that many
/// clients stop at 255. The limit bounds what a request can make Larder keep.
pub const MAX_LENGTH: usize = 255;

impl Name {
    /// Returns the name as a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no repository name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("the repository name is empty")]
    Empty,
    #[error("the repository name is longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error(
        "a repository name is made of lower-case letters and digits, with '.', '_', '__' or dashes between them and '/' between components"
    )]
    Grammar,
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        if text.len() > MAX_LENGTH {
            return Err(InvalidName::TooLong);
        }
        if !text.split('/').all(is_component) {
            return Err(InvalidName::Grammar);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Returns whether a text matches `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(text: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !is_alphanumeric(first) || !is_alphanumeric(last) {
        return false;
    }
    bytes.split(|&byte| is_alphanumeric(byte)).all(|separator| match separator {
        [] | b"." | b"_" | b"__" => true,
        dashes => dashes.iter().all(|&byte| byte == b'-'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_depth_are_accepted() {
        for name in ["alpine", "library/alpine", "a/b/c/d/e/f/g", "a.b/c_d/e__f/g---h/0", "manifests/blobs/tags"] {
            assert_eq!(name.parse::<Name>().map(|name| name.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        assert_eq!("".parse::<Name>(), Err(InvalidName::Empty));
        assert_eq!("a".repeat(MAX_LENGTH + 1).parse::<Name>(), Err(InvalidName::TooLong));
        for name in [
            "/", "a/", "/a", "a//b", "A", "a/../b", ".", "..", "a..b", "a._b", "a___b", "-a", "a-", "a b", "a\0b",
            "a%2fb", "ä", "a:b", "a@b",
        ] {
            assert_eq!(name.parse::<Name>(), Err(InvalidName::Grammar), "{name:?}");
        }
    }
}
