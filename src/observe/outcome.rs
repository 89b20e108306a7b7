//! What a request asked for, and how it was answered, as the statistics count it.

/// The kind of content that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Blob,
    Manifest,
    Listing,
    /// Content of servers that are no registries.
    Other,
}

/// How many kinds there are.
pub const KINDS: usize = Kind::Other as usize + 1;

impl Kind {
    /// Returns the value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
            Self::Listing => "listing",
            Self::Other => "other",
        }
    }
}

/// How a request for content was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Hit,
    Miss,
    Stale,
    Failed,
}

/// How many outcomes there are.
pub const OUTCOMES: usize = Outcome::Failed as usize + 1;

impl Outcome {
    /// Returns the value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Failed => "failed",
        }
    }
}
