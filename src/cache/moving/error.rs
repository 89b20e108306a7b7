//! Why a migration cannot begin, or broke off.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::super::opened::OpenError;
use super::content::ReadError;
use super::send::SendError;
use crate::index::IndexError;
use crate::oci::Digest;
use crate::s3::S3Error;

/// One of the two caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Old,
    New,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Old => "the old cache",
            Self::New => "the new cache",
        })
    }
}

/// Why a migration cannot begin, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum MovingError {
    #[error("both configurations name the same cache: the same directory, bucket and index")]
    Same,
    #[error("{0}: {path} is in use by a running Larder; stop it first: a migration needs both caches to itself", path = .1.display())]
    InUse(Side, PathBuf),
    #[error("there is no cache in {path}; name the configuration of the old one with --from", path = .0.display())]
    NoCache(PathBuf),
    #[error("the index of the old cache is damaged; run `larder verify --repair` with the old configuration first")]
    DamagedIndex,
    #[error("{0}: {1}")]
    Open(Side, #[source] OpenError),
    #[error("{0}: {1}")]
    Index(Side, #[source] IndexError),
    #[error("{0}: the bucket: {1}")]
    Bucket(Side, #[source] S3Error),
    #[error("{0}: cache.dir: {1}")]
    Disk(Side, #[source] io::Error),
    #[error("both have a bucket of their own, and their index in one directory; give the new cache another cache.dir")]
    TwoBuckets,
    #[error("{bytes} bytes are to be moved, and {key} has room for {room}")]
    NoRoom { bytes: u64, room: u64, key: &'static str },
    #[error(
        "{0} objects of the old cache are damaged or lost; look after its disk or its bucket, and run `larder verify \
         --repair` with the old configuration"
    )]
    TooMuchLost(usize),
    #[error("{digest}: {source}")]
    Object { digest: Digest, source: Box<SendError> },
}

impl MovingError {
    /// Returns the error of an object that could not be brought over, where it is none of the object's own.
    pub(super) fn of_object(digest: Digest, error: SendError) -> Self {
        match error {
            SendError::Bucket(error) => Self::Bucket(Side::New, error),
            SendError::Disk(error) => Self::Disk(Side::New, error),
            SendError::Read(ReadError::Bucket(error)) => Self::Bucket(Side::Old, error),
            SendError::Read(ReadError::File(error)) => Self::Disk(Side::Old, error),
            error => Self::Object { digest, source: Box::new(error) },
        }
    }

    /// Returns whether the same migration may go on from here once that is mended.
    pub fn may_go_on(&self) -> bool {
        matches!(self, Self::Index(..) | Self::Bucket(..) | Self::Disk(..) | Self::Object { .. })
    }
}
