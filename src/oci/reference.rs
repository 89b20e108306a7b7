//! The reference by which a manifest is requested: a tag or a digest.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, InvalidDigest};

/// A tag: at most 128 characters of `[a-zA-Z0-9_][a-zA-Z0-9._-]*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// Returns the tag as a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the tag under which referrers of `subject` are listed in a registry without the referrers API:
    /// `<algorithm>-<hex>`, the hexadecimal part cut at 64 characters.
    pub fn referrers_fallback(subject: &Digest) -> Self {
        let mut hex = subject.hex();
        hex.truncate(64);
        Self(format!("{}-{hex}", subject.algorithm().as_str()))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tag is 1 to 128 letters, digits, '_', '.' and '-', and does not begin with '.' or '-'")]
pub struct InvalidTag;

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let begins_well = text.bytes().next().is_some_and(is_word);
        let goes_on_well = text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-');
        if text.len() > 128 || !begins_well || !goes_on_well {
            return Err(InvalidTag);
        }
        Ok(Self(text.to_owned()))
    }
}

/// A tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Why a text is neither a tag nor a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl FromStr for Reference {
    type Err = InvalidReference;

    /// Reads a reference. A colon tells a digest from a tag, which cannot contain a colon.
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_digest_and_none_a_tag() {
        let digest = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(digest.parse(), Ok(Reference::Digest(_))));
        assert!(matches!("v1.0-rc_1".parse(), Ok(Reference::Tag(_))));
        assert!(matches!("sha256:0".parse::<Reference>(), Err(InvalidReference::Digest(_))));
    }

    #[test]
    fn what_is_no_tag_is_refused() {
        let long = "a".repeat(129);
        for tag in ["", ".a", "-a", "a b", "a/b", "a\0", "ä", &long] {
            assert_eq!(tag.parse::<Tag>(), Err(InvalidTag), "{tag:?}");
        }
        assert!("a".repeat(128).parse::<Tag>().is_ok());
    }

    #[test]
    fn the_fallback_tag_of_a_long_digest_is_still_a_tag() {
        let subject = Digest::Sha512([0xab; 64]);
        let tag = Tag::referrers_fallback(&subject);
        assert_eq!(tag.as_str(), format!("sha512-{}", "ab".repeat(32)));
        assert!(tag.as_str().parse::<Tag>().is_ok());
    }
}
