//! The index: what is known about the objects in the store. It holds sizes, tags, visibility and edges.
//!
//! The index is a help, not the truth: the file of an object is the truth. [`Index`] makes three promises: reads end in
//! time; a write of a request never waits, and may be dropped ([`Index::note`]); a write of upkeep waits, and is not
//! dropped ([`Index::apply`]).

mod apply;
mod bounds;
mod catalog;
mod changes;
mod damage;
mod generation;
#[cfg(test)]
mod graph;
mod images;
mod leases;
mod listings;
mod local;
mod medium;
mod names;
mod open;
mod pins;
mod postgres;
mod purge;
mod queue;
mod reach;
mod replicas;
mod rows;
mod scope;
#[cfg(test)]
pub mod simulated;
mod size;
mod sqlite;
#[cfg(test)]
mod suite;
mod take_in;
mod urls;
mod writer;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

pub use bounds::Bounds;
pub use changes::{Change, Mark};
pub use generation::{Generation, NoGeneration};
pub use images::{ImageOrder, ImagePage, ImageSearch};
pub use leases::{Holder, Lease};
pub use local::LocalIndex;
pub use postgres::PostgresIndex;
pub use purge::{Purge, Purged};
pub use replicas::{Life, Replica};
pub use rows::{Row, RowKey, Table};
pub use scope::{Scope, Viewer};
pub use sqlite::Sqlite;
pub use urls::UrlEntry;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::clock;
use crate::oci::{Digest, MediaType, Reference};

/// The result of a call of an [`Index`].
pub type Call<'a, T> = BoxFuture<'a, Result<T, IndexError>>;

/// Takes one object of [`Index::objects_by_use`].
pub type TakeObject = Box<dyn FnMut(UsedObject<'_>) + Send>;

/// An object, as [`Index::objects_by_use`] gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedObject<'a> {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub last_use: Timestamp,
    /// The repositories in which it is visible, a line each.
    pub repositories: &'a str,
    /// Whether its content is in the bucket of `[storage.s3]`.
    pub is_uploaded: bool,
    /// Whether it has a file here. An index of one Larder does not tell so of what is in the bucket.
    pub has_file: bool,
}

/// How an object is used, by all Larders that share an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectUse {
    pub last_use: Timestamp,
    /// The repositories in which it is visible, a line each.
    pub repositories: String,
}

/// Tells whether the configuration pins a tag.
pub type IsPinned = Box<dyn Fn(&TagKey) -> bool + Send>;

/// What is known about objects. Each call ends in time, with an error if the disk or the server behind the index does
/// not answer. Calls that read all of the index take as long as that takes.
pub trait Index: Send + Sync + 'static {
    /// Returns what a tag was when its upstream was last asked.
    fn tag<'a>(&'a self, key: &'a TagKey) -> Call<'a, Option<TagEntry>>;

    /// Returns what is known about an object in the store.
    fn object<'a>(&'a self, digest: &'a Digest) -> Call<'a, Option<ObjectEntry>>;

    /// Returns whether an object is visible to a viewer.
    fn is_visible<'a>(&'a self, viewer: &'a Viewer, digest: &'a Digest) -> Call<'a, bool>;

    /// Returns whether a name is known to have a manifest: its upstream said so, or a tag or a manifest of the name
    /// leads there. What is queued to be
    /// written counts, too.
    fn knows_name<'a>(&'a self, repository: &'a str, name: &'a str, digest: &'a Digest) -> Call<'a, bool>;

    /// Returns for each of these objects one of its names for people, as far as they are known: that of an image that
    /// the object is a part of, else that of a name that has it.
    fn names(&self, objects: Vec<Digest>) -> Call<'_, Vec<String>>;

    /// Returns a list as it was last seen. Fails with [`IndexError::TooLarge`] if it takes more than `room` bytes.
    fn listing<'a>(&'a self, key: &'a ListKey, room: u64) -> Call<'a, Option<Listing>>;

    /// Returns the stored answers of the URL that `key` stands for, the newest first.
    fn urls<'a>(&'a self, key: &'a Digest) -> Call<'a, Vec<UrlEntry>>;

    /// Returns at most `count` names with cached content of these repositories behind `last`, in order.
    fn catalog(&self, repositories: Vec<String>, last: String, count: usize) -> Call<'_, Vec<String>>;

    /// Returns at most `count` images whose manifest is stored, in the order of their references, behind the reference
    /// `last`. What is queued to be
    /// written counts, too.
    fn images(&self, last: String, count: usize) -> Call<'_, ImagePage>;

    /// Finds images by a part of their reference, in an order; see [`Sqlite::find_images`]. What is queued to be written
    /// counts, too.
    fn find_images(&self, search: ImageSearch) -> Call<'_, ImagePage>;

    /// Returns which of these objects are stored.
    fn stored_of(&self, objects: Vec<Digest>) -> Call<'_, HashSet<Digest>>;

    /// Returns the images that are pinned by name, in order.
    fn pins(&self) -> Call<'_, Vec<ImageName>>;

    /// Checks whether the index can be read.
    fn check(&self) -> Call<'_, ()>;

    /// Returns all objects that pinned images consist of, as far as their manifests are known, and whether any image is
    /// pinned by name. Pinned are images by name, and the tags of `repositories` that `is_pinned` takes.
    fn pinned(&self, repositories: Vec<String>, is_pinned: IsPinned) -> Call<'_, (HashSet<Digest>, bool)>;

    /// Gives all objects to `each`, the least recently used first. `with_repositories`: whether `each` also gets the
    /// repositories in which an object is visible. Takes as long as reading them takes.
    fn objects_by_use(&self, with_repositories: bool, each: TakeObject) -> Call<'_, ()>;

    /// Reads all of the index and compares its parts. Takes as long as that takes.
    fn verify(&self) -> Call<'_, ()>;

    /// Queues a write of a request. Never waits: if too many writes wait already, this one is dropped and counted.
    fn note(&self, write: Write);

    /// Queues writes of upkeep, which are not dropped. Waits while too many writes wait.
    fn apply(&self, writes: Vec<Write>) -> Call<'_, ()>;

    /// Waits until everything that was queued is written, for as long as a client waits for a read.
    fn flush(&self) -> Call<'_, ()>;

    /// Writes what was queued and closes the index, whatever else still holds it. Later writes are dropped.
    fn close(&self) -> Call<'_, ()>;

    /// Pins an image, or takes its pin back. Returns whether that changed anything.
    fn set_pin(&self, image: ImageName, is_pinned: bool) -> Call<'_, bool>;

    /// Returns the bucket with which this index was once compared from the first key to the last. An index that was begun
    /// anew knows of none: what it lost is still in the bucket.
    fn compared_with(&self) -> Call<'_, Option<String>>;

    /// Notes with which bucket this index was compared from the first key to the last; `None`: with none.
    fn set_compared_with(&self, bucket: Option<String>) -> Call<'_, ()>;

    /// Says that this Larder keeps the bucket within its limits for so long from now on, unless another one does that shares
    /// the bucket. Returns whether it does.
    fn keep_bucket(&self, time: Duration) -> Call<'_, bool> {
        let _ = time;
        std::future::ready(Ok(true)).boxed()
    }

    /// Returns how the Larders that share the index use these objects, as far as it says; an index of one Larder says
    /// nothing, which knows itself.
    fn uses(&self, objects: Vec<Digest>) -> Call<'_, HashMap<Digest, ObjectUse>> {
        let _ = objects;
        std::future::ready(Ok(HashMap::new())).boxed()
    }

    /// Returns at most `count` rows of a table, in the order of their keys, behind a key. What is queued to be written is
    /// not among them.
    fn rows(&self, table: Table, behind: RowKey, count: usize) -> Call<'_, Vec<Row>>;

    /// Takes in rows of another index, all or none, and ends once they are written. What is here and newer stays: the same
    /// rows may come again.
    fn take_in(&self, rows: Vec<Row>) -> Call<'_, ()>;

    /// Removes rows in steps. After each step, tells which objects nothing refers to any more. The stream ends with the
    /// last step, or with an error; what was removed before the error stays removed.
    fn purge(&self, purge: Purge) -> BoxStream<'static, Result<Purged, IndexError>>;

    /// Holds no more than this from now on.
    fn keep_within(&self, bounds: Bounds);

    /// Returns the bytes of disk that the index needs.
    fn bytes(&self) -> Call<'_, u64>;

    /// Removes files that are kept only for people to look at. Returns how many bytes that gave back.
    fn remove_aside(&self) -> Call<'_, u64>;

    /// Returns how many writes were dropped since the start.
    fn dropped(&self) -> u64;

    /// Returns whether the index was damaged when it was opened, and had to be begun anew.
    fn was_damaged(&self) -> bool;

    /// Says that a replica is alive for so long from now on, by the clock of the index; no time at all: it leaves. Only
    /// an index that several Larders share notes it.
    fn announce<'a>(&'a self, me: &'a Replica, alive: Duration) -> Call<'a, ()> {
        let _ = (me, alive);
        std::future::ready(Ok(())).boxed()
    }

    /// Returns the replicas that are alive, by the clock of the index.
    fn replicas(&self) -> Call<'_, Vec<Replica>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    /// Returns the replicas that are alive, each with how long that is known.
    fn lives(&self) -> Call<'_, Vec<Life>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    /// Returns some of the other replicas that are alive and have an object stored.
    fn holders<'a>(&'a self, digest: &'a Digest) -> Call<'a, Vec<Replica>> {
        let _ = digest;
        std::future::ready(Ok(Vec::new())).boxed()
    }

    /// Takes a lease for so long from now on, unless another Larder has it; with no time at all, gives it back. Returns who
    /// has it then. An index of one Larder gives it at once.
    fn take_lease(&self, name: &'static str, time: Duration) -> Call<'_, Holder> {
        let _ = (name, time);
        std::future::ready(Ok(Holder::Me)).boxed()
    }

    /// Returns what other Larders changed, without what `known` knows, a part at a time, and what is known then; without
    /// `known`, only the latter.
    fn changes(&self, known: Option<Mark>) -> Call<'_, (Vec<Change>, Mark)> {
        std::future::ready(Ok((Vec::new(), known.unwrap_or_default()))).boxed()
    }

    /// Returns whether the index is kept by a server: it takes none of the cache's disk, and the cache serves without
    /// it for a while.
    fn is_on_server(&self) -> bool {
        false
    }

    /// Returns why the server that keeps the index does not answer; `None` if it does, or if there is none.
    fn server_trouble(&self) -> Option<String> {
        None
    }
}

/// A time as the index keeps it, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns the current time.
    pub fn now() -> Self {
        Self::from_system_time(clock::wall())
    }

    /// Converts a time of the system; a time before 1970 becomes 1970.
    pub fn from_system_time(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// Returns how long ago the time was; zero for a time in the future, as after the clock was set back.
    pub fn age(self) -> Duration {
        Duration::from_millis(u64::try_from(Self::now().0.saturating_sub(self.0)).unwrap_or(0))
    }

    /// Returns the time that was so long before this one.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns whether the time is still to come: the clock was ahead when it was noted, and has been set back.
    pub fn is_to_come(self) -> bool {
        self > Self::now()
    }

    /// Converts to a time of the system.
    pub fn to_system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0).unwrap_or(0))
    }
}

/// The key of a tag: repository prefix, name within it, tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TagKey {
    pub repository: String,
    /// The shelf: by whose credentials, and of which of the repository's upstreams, the tag is known; empty for
    /// Larder's own credentials and all upstreams in order.
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
    /// How many objects of it are stored, the manifest included.
    pub objects: u64,
    /// The bytes of these objects.
    pub bytes: u64,
    /// How many objects of it are known and not stored.
    pub missing: u64,
    /// Of an index with a stored manifest: how many of its manifests are there with all that they lead to, and how many
    /// there are.
    pub children: Option<(u64, u64)>,
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

/// What is known about an object in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    pub size: u64,
    /// Set for manifests.
    pub media_type: Option<MediaType>,
    pub stored_at: Timestamp,
    /// The upload by which the content is in the bucket of `[storage.s3]`; `None`: it is not there.
    pub generation: Option<Generation>,
}

/// The key of a page of a list: repository prefix, name within it, and the page's path and query below that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListKey {
    pub repository: String,
    pub name: String,
    pub page: String,
}

/// A list of tags or referrers, as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub body: Bytes,
    pub media_type: Option<MediaType>,
    pub link: Option<String>,
    pub filters_applied: Option<String>,
    pub checked_at: Timestamp,
}

/// A write to the index.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub enum Write {
    /// The object is in the store. A generation that its row has stays where this write has none.
    Object {
        digest: Digest,
        entry: ObjectEntry,
    },
    /// The tag leads to this manifest.
    Tag {
        key: TagKey,
        entry: TagEntry,
    },
    DropTag {
        key: TagKey,
    },
    /// The other Larders that share the index are to hear that it knows something new of the tag.
    TellTag {
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
    /// The manifest `parent` refers to these objects.
    Edges {
        parent: Digest,
        children: Vec<Digest>,
    },
    /// A list as it was just seen.
    Listing {
        key: ListKey,
        listing: Listing,
    },
    /// An answer of the URL that `key` stands for.
    Url {
        key: Digest,
        entry: UrlEntry,
    },
    /// The answer of this variant is gone.
    DropUrl {
        key: Digest,
        variant: [u8; 32],
    },
    /// The object was requested.
    Used {
        digest: Digest,
        at: Timestamp,
    },
    /// The content of the object is gone.
    DropObject {
        digest: Digest,
    },
    /// The content of the object is in the bucket by this upload. Noted only if the object has a row, and no other
    /// upload was noted before.
    Uploaded {
        digest: Digest,
        generation: Generation,
    },
    /// What this upload brought is no longer in the bucket, and the file of the object is here.
    NotUploaded {
        digest: Digest,
        generation: Generation,
    },
    /// What this upload brought goes, and so does the object, unless another upload was noted meanwhile. `None`: its file
    /// goes, and so does the object, unless any upload was noted meanwhile.
    DropUploaded {
        digest: Digest,
        generation: Option<Generation>,
    },
}

impl Write {
    /// Returns the bytes of memory that the write takes while it waits.
    fn weight(&self) -> u64 {
        let beside = match self {
            Self::Tag { key, entry } => key.name.len() + key.tag.len() + entry.media_type.as_str().len(),
            Self::DropTag { key } | Self::TellTag { key } => key.name.len() + key.tag.len(),
            Self::Object { entry, .. } => entry.media_type.as_ref().map_or(0, |media_type| media_type.as_str().len()),
            Self::Manifest { name, .. } => name.len(),
            Self::Visible { viewer, .. } => viewer.repository.len(),
            Self::Edges { children, .. } => size_of_val(&children[..]),
            Self::Listing { key, listing } => {
                return size_of::<Self>() as u64 + listing.weight(key);
            }
            Self::Url { entry, .. } => entry.head.len(),
            Self::DropUrl { .. }
            | Self::Used { .. }
            | Self::DropObject { .. }
            | Self::Uploaded { .. }
            | Self::NotUploaded { .. }
            | Self::DropUploaded { .. } => 0,
        };
        (size_of::<Self>() + beside) as u64
    }

    /// Returns whether the write only helps in an outage, so that it may be left out where room is short.
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
    /// The index is of a later version of Larder.
    #[error("the index has version {found}, and this Larder knows {known}: it is of a later Larder")]
    Later { found: usize, known: usize },
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
    /// The server that keeps the index refused something, or something went wrong on the way to it.
    #[error("index.url: {}", server_says(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The server that keeps the index sent what it cannot have, or cannot be used as it is.
    #[error("index.url: {0}")]
    Server(String),
    /// The server that keeps the index does not answer.
    #[error("{0}")]
    Away(String),
    /// It did not answer this call in time.
    #[error("index.url: the server does not answer in time")]
    Late,
    /// It answers, and all connections to it are in use.
    #[error("index.url: all connections are in use; try again")]
    Busy,
}

/// Returns what is wrong with the server that keeps the index, with what to do.
fn server_says(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let advice = match error.code().map(tokio_postgres::error::SqlState::code) {
        Some("28P01" | "28000") => "check the user in index.url, and index.password or index.password_file",
        Some("3D000") => "create the database, or correct its name in index.url",
        Some("42501" | "3F000") => {
            "as an administrator of the database, run: CREATE SCHEMA larder AUTHORIZATION the user of index.url"
        }
        Some("53300") => "raise max_connections of the server, or put PgBouncer before it",
        Some("25006") => "this server can only be read; let index.url lead to the primary",
        _ => return text,
    };
    format!("{text}; {advice}")
}
