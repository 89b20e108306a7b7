//! `[[warm]]`, checked: what is kept warm by schedule.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::check::Check;
use super::error::ConfigError;
use super::raw;
use super::tag_pattern::TagPattern;
use crate::oci::{Platform, Reference};

/// Shortest time between two runs: a registry is asked about each tag.
const SHORTEST: Duration = Duration::from_secs(60);
/// Most schedules.
const SCHEDULES: usize = 100;
/// Most images of one schedule, each with or without a pattern.
const IMAGES: usize = 1_000;
/// Most platforms of one schedule.
const PLATFORMS: usize = 100;

/// What is brought in again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct WarmSchedule {
    pub images: Vec<WarmImages>,
    /// Empty for all.
    pub platforms: Vec<Platform>,
    /// From the end of one run to the begin of the next.
    pub every: Duration,
}

/// One image, or the images of one name whose tags a pattern means.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct WarmImages {
    /// As in a pull, without tag and digest.
    pub path: String,
    pub which: Which,
}

/// Which images of a name.
#[derive(Clone, Debug, PartialEq)]
pub enum Which {
    One(Reference),
    Matching(TagPattern),
}

impl fmt::Display for WarmImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::One(Reference::Digest(digest)) => write!(f, "{}@{digest}", self.path),
            Which::One(Reference::Tag(tag)) => write!(f, "{}:{tag}", self.path),
            Which::Matching(pattern) => write!(f, "{}:{pattern}", self.path),
        }
    }
}

impl Serialize for WarmImages {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl TryFrom<String> for WarmImages {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for WarmImages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, tag) = split(text);
        if let Some(sign) = path.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-/:[]@".contains(*c))) {
            return Err(match sign {
                '*' | '?' | '{' => format!("`{text}`: a pattern may stand for the tag only; write each name out"),
                _ => format!("`{text}` is no image; write for example docker.io/library/alpine:3.*"),
            });
        }
        if path.is_empty() || path.ends_with('/') {
            return Err(format!("`{text}` has no name; write for example docker.io/library/alpine:3.*"));
        }
        let which = match tag {
            Some(tag) => match TagPattern::read(tag) {
                Some(pattern) => Which::Matching(pattern?),
                None => Which::One(reference(text, tag)?),
            },
            None => match path.split_once('@') {
                Some((path, digest)) => {
                    let which = Which::One(reference(text, digest)?);
                    return Ok(Self { path: path.to_owned(), which });
                }
                None => Which::One(reference(text, "latest")?),
            },
        };
        Ok(Self { path: path.to_owned(), which })
    }
}

/// Returns the path, and what stands behind the colon after it; with a digest behind a tag, the digest.
fn split(text: &str) -> (&str, Option<&str>) {
    let first = text.find('/').unwrap_or(text.len());
    // A colon before the first slash, with digits behind it, is that of a port.
    let is_port = |at: usize| {
        let port = text.get(at + 1..first).unwrap_or_default();
        first < text.len() && at < first && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
    };
    let colon = text.match_indices(':').map(|(at, _)| at).find(|&at| !is_port(at));
    match (colon, text.find('@')) {
        (Some(colon), at) if at.is_none_or(|at| colon < at) => {
            let tag = &text[colon + 1..];
            match tag.split_once("@sha") {
                Some(_) if !tag.starts_with('/') => (&text[..colon], tag.split_once('@').map(|(_, digest)| digest)),
                _ => (&text[..colon], Some(tag)),
            }
        }
        _ => (text, None),
    }
}

fn reference(text: &str, tag: &str) -> Result<Reference, String> {
    let said = |error: &dyn fmt::Display| {
        format!("`{text}`: {error}; a pattern is a glob (3.*), /a regular expression/, or a range (>=16, <18)")
    };
    tag.parse().map_err(|error: crate::oci::reference::InvalidReference| said(&error))
}

/// Checks all schedules.
pub fn check(check: &Check<'_>, written: &[raw::Warm]) -> Result<Vec<WarmSchedule>, ConfigError> {
    if written.len() > SCHEDULES {
        return Err(check.invalid(&["warm"], format!("there are more than {SCHEDULES} of them; put images together")));
    }
    written.iter().enumerate().map(|(at, schedule)| check_one(check, &at.to_string(), schedule)).collect()
}

fn check_one(check: &Check<'_>, at: &str, written: &raw::Warm) -> Result<WarmSchedule, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["warm", at, key], message);
    if written.images.is_empty() {
        return Err(invalid("images", "name at least one image, as in [\"docker.io/library/alpine:3.*\"]".to_owned()));
    }
    if written.images.len() > IMAGES {
        return Err(invalid("images", format!("a schedule has at most {IMAGES} images; write a second [[warm]]")));
    }
    if written.platforms.len() > PLATFORMS {
        return Err(invalid("platforms", format!("a schedule has at most {PLATFORMS} platforms")));
    }
    if written.every.0 < SHORTEST {
        let message = "every tag is asked about each time, so the least is \"1m\"; write for example \"6h\"";
        return Err(invalid("every", message.to_owned()));
    }
    let platforms = written.platforms.iter().map(|platform| platform.0.clone()).collect();
    Ok(WarmSchedule { images: written.images.clone(), platforms, every: written.every.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_split_at_the_colon_that_is_no_port() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let with_digest = format!("docker.io/a@{digest}");
        let with_both = format!("docker.io/a:1@{digest}");
        for (text, path, shown) in [
            ("alpine", "alpine", "alpine:latest"),
            ("alpine:3.20", "alpine", "alpine:3.20"),
            ("docker.io/library/alpine:3.*", "docker.io/library/alpine", "docker.io/library/alpine:3.*"),
            ("localhost:5000/a/b", "localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("localhost:5000/a:>=16, <18", "localhost:5000/a", "localhost:5000/a:>=16, <18"),
            ("alpine:/^3/", "alpine", "alpine:/^3/"),
            ("alpine:/a:b@sha/", "alpine", "alpine:/a:b@sha/"),
            (&with_digest, "docker.io/a", &with_digest),
            (&with_both, "docker.io/a", &with_digest),
        ] {
            let images: WarmImages = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!((images.path.as_str(), images.to_string().as_str()), (path, shown));
        }
        for (text, why) in [
            ("", "has no name"),
            (":3", "has no name"),
            ("docker.io/library/*:3", "for the tag only"),
            ("a b:1", "is no image"),
            ("alpine:", "a tag is 1 to 128"),
            ("alpine:16 - 18", "a range (>=16, <18)"),
            ("alpine@sha256:00", "digest"),
        ] {
            let said = text.parse::<WarmImages>().expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
