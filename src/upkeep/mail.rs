//! The messages to the upkeep task, and its answers.

use std::io;

use tokio::sync::oneshot;

use crate::index::IndexError;
use crate::oci::Digest;

/// A message to the upkeep task.
pub enum Message {
    Reserve(Ask),
    /// Compare the files with the ledger, and bring both in line if `is_repair`.
    Census {
        is_repair: bool,
        done: oneshot::Sender<io::Result<Census>>,
    },
    /// Find out which objects are pinned, if that may have changed.
    RefreshPins {
        done: oneshot::Sender<Result<(), IndexError>>,
    },
    /// Read the index anew: the times for which objects are kept have changed.
    Load {
        done: oneshot::Sender<()>,
    },
}

/// The result of comparing the files with the ledger.
#[derive(Debug, Default)]
pub struct Census {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files that were not known.
    pub unknown: Vec<Digest>,
    /// Known objects without a file.
    pub missing: Vec<Digest>,
}

/// A request for room.
pub struct Ask {
    /// Bytes that are needed.
    pub wanted: u64,
    /// Bytes of them that are reserved already.
    pub held: Held,
    /// Whether objects were evicted for it.
    pub has_evicted: bool,
    /// Gets the reservation; `None`: there is no room.
    pub done: oneshot::Sender<io::Result<Option<Held>>>,
}

/// Bytes that are reserved until this is dropped. `give_back` tells the ledger.
pub struct Held {
    pub bytes: u64,
    give_back: Box<dyn Fn(u64) + Send + Sync>,
}

impl Held {
    /// Creates a reservation of no bytes yet.
    pub fn new(give_back: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self { bytes: 0, give_back: Box::new(give_back) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.give_back)(self.bytes);
    }
}

/// Returns the error that there is no upkeep task any more.
pub fn closed() -> io::Error {
    io::Error::other("the cache is closing")
}
