//! What is known about the bytes in the store: sizes, tags, who may see what, what refers to what.
//!
//! The index is a help, not the truth: an object's file is. Writes are queued and batched by one
//! thread, so that no request waits for them; reads have connections of their own.

mod apply;
mod bounds;
mod catalog;
mod damage;
#[cfg(test)]
mod graph;
mod images;
mod listings;
mod names;
mod open;
mod pins;
mod place;
mod purge;
mod queue;
mod reach;
mod scope;
mod size;
mod sqlite;
mod urls;
mod writer;

use std::time::{Duration, SystemTime};

pub use bounds::Bounds;
pub use images::ImagePage;
pub use purge::{Purge, Purged};
pub use scope::{Scope, Viewer};
pub use sqlite::Index;
pub use urls::UrlEntry;

use bytes::Bytes;

use crate::oci::{Digest, MediaType, Reference};

/// Milliseconds since 1970, as the index keeps times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn now() -> Self {
        Self::from_system_time(SystemTime::now())
    }

    pub fn from_system_time(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// How long ago it was; nothing for a time to come, as after a clock was set back.
    pub fn age(self) -> Duration {
        Duration::from_millis(u64::try_from(Self::now().0.saturating_sub(self.0)).unwrap_or(0))
    }

    pub fn to_system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0).unwrap_or(0))
    }
}

/// A tag's place: repository prefix, name within it, tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TagKey {
    pub repository: String,
    /// By whose credentials and of which of the repository's upstreams it is known; empty for Larder's own and all
    /// upstreams in order.
    pub shelf: String,
    pub name: String,
    pub tag: String,
}

/// One image by name: repository prefix, name within it, tag or digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    pub repository: String,
    pub name: String,
    pub reference: Reference,
}

/// A cached image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As clients write it: `docker.io/library/alpine:3.20`, or with a digest.
    pub reference: String,
    pub repository: String,
    pub name: String,
    pub digest: Digest,
    pub media_type: Option<MediaType>,
    /// Count and bytes of what is stored of it, the manifest included.
    pub objects: u64,
    pub bytes: u64,
    /// When its upstream was last asked about the tag.
    pub checked_at: Option<Timestamp>,
    pub last_use: Timestamp,
}

/// What a tag was when its upstream was last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagEntry {
    pub digest: Digest,
    pub media_type: MediaType,
    /// Length of the manifest in bytes.
    pub size: u64,
    pub checked_at: Timestamp,
}

/// An object in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    pub size: u64,
    /// For manifests.
    pub media_type: Option<MediaType>,
    pub stored_at: Timestamp,
}

/// A page of a list: repository prefix, name within it, and the page's path and query below that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListKey {
    pub repository: String,
    pub name: String,
    pub page: String,
}

/// A list of tags or referrers as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub body: Bytes,
    pub media_type: Option<MediaType>,
    pub link: Option<String>,
    pub filters_applied: Option<String>,
    pub checked_at: Timestamp,
}

/// A change to the index.
#[derive(Debug)]
pub enum Write {
    Object {
        digest: Digest,
        entry: ObjectEntry,
    },
    Tag {
        key: TagKey,
        entry: TagEntry,
    },
    DropTag {
        key: TagKey,
    },
    /// The upstream has the manifest under this name.
    Manifest {
        repository: String,
        name: String,
        digest: Digest,
        at: Timestamp,
    },
    /// The upstream has shown the object.
    Visible {
        viewer: Viewer,
        digest: Digest,
    },
    Edges {
        parent: Digest,
        children: Vec<Digest>,
    },
    Listing {
        key: ListKey,
        listing: Listing,
    },
    /// An answer of the URL that `key` stands for.
    Url {
        key: Digest,
        entry: UrlEntry,
    },
    DropUrl {
        key: Digest,
        variant: [u8; 32],
    },
    /// The object was asked for.
    Used {
        digest: Digest,
        at: Timestamp,
    },
    /// The object's file is gone.
    DropObject {
        digest: Digest,
    },
}

impl Write {
    /// Bytes of memory that it takes while it waits.
    fn weight(&self) -> u64 {
        let beside = match self {
            Self::Tag { key, entry } => key.name.len() + key.tag.len() + entry.media_type.as_str().len(),
            Self::DropTag { key } => key.name.len() + key.tag.len(),
            Self::Object { entry, .. } => entry.media_type.as_ref().map_or(0, |media_type| media_type.as_str().len()),
            Self::Manifest { name, .. } => name.len(),
            Self::Visible { viewer, .. } => viewer.repository.len(),
            Self::Edges { children, .. } => size_of_val(&children[..]),
            Self::Listing { key, listing } => {
                return size_of::<Self>() as u64 + listing.weight(key);
            }
            Self::Url { entry, .. } => entry.head.len(),
            Self::DropUrl { .. } | Self::Used { .. } | Self::DropObject { .. } => 0,
        };
        (size_of::<Self>() + beside) as u64
    }

    /// Whether it only helps in an outage, so that it may be left out where room is short.
    fn is_spare(&self) -> bool {
        matches!(self, Self::Listing { .. } | Self::Url { .. })
    }
}

/// Count and bytes of the objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub objects: u64,
    pub bytes: u64,
}

/// Why the index did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("index: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("index: {0}")]
    Io(#[from] std::io::Error),
    #[error("index: it is damaged ({0}); stop Larder and run `larder verify --repair`")]
    Damaged(String),
    #[error("index: larder.db was removed or replaced under a running Larder; restart it, or what it learns is lost")]
    Replaced,
    #[error("index: too many changes wait; try again")]
    Full,
    #[error("index: the list takes {0} bytes, more than there is room for in memory")]
    TooLarge(u64),
    #[error("index: its thread has ended")]
    Closed,
}
