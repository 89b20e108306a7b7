//! Why a request was answered as it was: one type, from which `Cache-Status`, the access log, the list of pulls,
//! `explain` and the dashboard are made.

use std::time::SystemTime;

use super::outcome::Outcome;
use crate::clock;
use crate::failure::Failure;

/// Why an answer came from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// Content under a digest, which never changes.
    Stored,
    /// The same, in the bucket of `[storage.s3]` and not in the cache directory.
    Storage,
    /// The tag or list is younger than `max_age`.
    Fresh { until: SystemTime },
    /// `immutable_tags`: the tag is never checked again.
    Immutable,
    /// The tag is older than `max_age`, but not by more than `stale_while_revalidate`: it is checked in the background.
    Aging,
    /// The upstream confirmed the tag a moment ago, for an earlier request of the same pull.
    JustChecked,
    /// The upstream was asked, and means the same manifest by this tag.
    Unchanged,
    /// The upstream was asked what the tag means, and that manifest was in the cache already.
    Present,
    /// The copy of a URL of `cache.patterns` is fresh by the headers of its server.
    FreshCopy,
}

/// Why an answer came from upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It was not in the cache.
    Absent,
    /// It was on its way into the cache already, for another client or behind a pull; this client shares the transfer.
    Joined,
    /// The upstream means another manifest by this tag than the cache did.
    Moved,
    /// A list that was older than `max_age`, or not in the cache.
    List,
    /// HEAD for uncached content: the upstream was asked, and nothing was downloaded.
    Asked,
    /// It is not stored: it is larger than the cache, or the disk has no room or cannot be written.
    Unstored,
}

/// Why a request was answered as it was.
#[derive(Clone, Debug)]
pub enum Reason {
    Hit(Hit),
    Miss(Miss),
    /// An old copy was served, because of this failure.
    Stale(Failure),
    /// Nothing that could be served was in the cache, and this failed.
    Failed(Failure),
    /// Larder refused the request, in these words.
    Refused(Box<str>),
}

/// Longest text of a refusal, in characters: a client may write most of it.
const REFUSAL: usize = 300;

impl Reason {
    /// Makes the reason of a refusal.
    pub fn refused(why: &dyn std::fmt::Display) -> Self {
        Self::Refused(why.to_string().chars().take(REFUSAL).collect())
    }

    /// Returns the outcome as which the statistics count the request; `None` for a refusal.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Hit(_) => Some(Outcome::Hit),
            Self::Miss(_) => Some(Outcome::Miss),
            Self::Stale(_) => Some(Outcome::Stale),
            Self::Failed(_) => Some(Outcome::Failed),
            Self::Refused(_) => None,
        }
    }

    /// Returns the word for machines, as in `Cache-Status`, the access log and the API. Of a failure: its kind.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Hit(hit) => hit.code(),
            Self::Miss(miss) => miss.code(),
            Self::Stale(failure) | Self::Failed(failure) => failure.kind.as_str(),
            Self::Refused(_) => "refused",
        }
    }

    /// Returns the sentence for people.
    pub fn text(&self) -> String {
        match self {
            Self::Hit(hit) => hit.text(),
            Self::Miss(miss) => miss.text().to_owned(),
            Self::Stale(failure) => {
                format!("an old copy was served, because the upstream failed: {}", failure.message())
            }
            Self::Failed(failure) => format!("nothing could be served: {}", failure.message()),
            Self::Refused(why) => format!("refused: {why}"),
        }
    }
}

impl Hit {
    /// Returns the word for machines.
    pub fn code(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Storage => "storage",
            Self::Fresh { .. } => "fresh",
            Self::Immutable => "immutable",
            Self::Aging => "stale_while_revalidate",
            Self::JustChecked => "just_checked",
            Self::Unchanged => "unchanged",
            Self::Present => "present",
            Self::FreshCopy => "fresh_copy",
        }
    }

    fn text(self) -> String {
        let text = match self {
            Self::Stored => "it is in the cache, and content under a digest never changes",
            Self::Storage => "it is in the bucket, from which it comes back, and content under a digest never changes",
            Self::Fresh { until } => {
                return format!("it is in the cache, and fresh by max_age until {}", clock_time(until));
            }
            Self::Immutable => "it is in the cache, and immutable_tags says that the tag never changes",
            Self::Aging => {
                "it is in the cache and past max_age; by stale_while_revalidate it is served at once, and checked in the background"
            }
            Self::JustChecked => "the upstream confirmed the tag a moment ago, in the same pull",
            Self::Unchanged => "it is in the cache, and the upstream was asked: the tag is unchanged",
            Self::Present => "the upstream was asked what the tag means, and that manifest was in the cache already",
            Self::FreshCopy => "a copy is in the cache, and fresh by the headers of its server",
        };
        text.to_owned()
    }
}

impl Miss {
    /// Returns whether the bytes come by a transfer of one's own or by that of another client.
    pub fn of(is_joined: bool) -> Self {
        if is_joined { Self::Joined } else { Self::Absent }
    }

    /// Returns the word for machines.
    pub fn code(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Joined => "joined",
            Self::Moved => "moved",
            Self::List => "list",
            Self::Asked => "asked",
            Self::Unstored => "unstored",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Absent => "it was not in the cache, and was fetched from the upstream",
            Self::Joined => "it was on its way into the cache already; this pull shares the transfer",
            Self::Moved => "the upstream has moved the tag to another manifest, which was fetched",
            Self::List => "the list was not in the cache or past max_age, and was fetched from the upstream",
            Self::Asked => "it is not in the cache; the upstream was asked, and HEAD downloads nothing",
            Self::Unstored => {
                "it passed from the upstream without being stored: it is larger than the cache, or the disk has no room or cannot be written"
            }
        }
    }
}

/// Writes a time of day in UTC, in whole seconds.
fn clock_time(at: SystemTime) -> String {
    match at > clock::wall() + std::time::Duration::from_secs(400 * 24 * 3600) {
        true => "further notice".to_owned(),
        false => humantime::format_rfc3339_seconds(at).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;

    #[test]
    fn each_reason_has_a_word_of_its_own_and_a_sentence() {
        let until = SystemTime::UNIX_EPOCH;
        let hits = [
            Hit::Stored,
            Hit::Storage,
            Hit::Fresh { until },
            Hit::Immutable,
            Hit::Aging,
            Hit::JustChecked,
            Hit::Unchanged,
            Hit::Present,
            Hit::FreshCopy,
        ];
        let misses = [Miss::Absent, Miss::Joined, Miss::Moved, Miss::List, Miss::Asked, Miss::Unstored];
        let failure = Failure::new(FailureKind::Timeout, "no answer in 20 s");
        let mut all: Vec<_> = hits.map(Reason::Hit).into_iter().chain(misses.map(Reason::Miss)).collect();
        all.extend([Reason::Stale(failure), Reason::refused(&"who are you?")]);
        let codes: std::collections::BTreeSet<_> = all.iter().map(Reason::code).collect();
        assert_eq!(codes.len(), all.len());
        let texts: std::collections::BTreeSet<_> = all.iter().map(Reason::text).collect();
        assert_eq!(texts.len(), all.len());
        assert!(texts.contains("it is in the cache, and fresh by max_age until 1970-01-01T00:00:00Z"));
        assert!(texts.contains("an old copy was served, because the upstream failed: no answer in 20 s"));
    }

    #[test]
    fn a_max_age_of_for_ever_is_no_date() {
        let until = clock::wall() + std::time::Duration::from_secs(1_000 * 24 * 3600);
        assert!(Reason::Hit(Hit::Fresh { until }).text().ends_with("until further notice"));
    }

    #[test]
    fn a_long_refusal_is_cut() {
        assert_eq!(Reason::refused(&"x".repeat(5_000)).text().len(), "refused: ".len() + REFUSAL);
    }
}
