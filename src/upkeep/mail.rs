//! What is asked of the upkeep task, and what it answers.

use std::io;

use tokio::sync::oneshot;

use crate::index::IndexError;
use crate::oci::Digest;

/// What others ask of the task.
pub enum Message {
    Reserve(Ask),
    /// To compare with the files, and bring both in line if `is_repair`.
    Census {
        is_repair: bool,
        done: oneshot::Sender<io::Result<Census>>,
    },
    /// To find out what is pinned, if that may have changed.
    RefreshPins {
        done: oneshot::Sender<Result<(), IndexError>>,
    },
    /// To read anew what is stored: it is kept for other times.
    Load {
        done: oneshot::Sender<()>,
    },
}

/// How the files compare with what is known of them.
#[derive(Debug, Default)]
pub struct Census {
    /// Of all files.
    pub bytes: u64,
    /// Files that were not known.
    pub unknown: Vec<Digest>,
    /// Known objects without a file.
    pub missing: Vec<Digest>,
}

/// Somebody waits for room.
pub struct Ask {
    /// In bytes.
    pub wanted: u64,
    /// What is reserved already.
    pub held: Held,
    /// Whether objects had to go for it.
    pub has_evicted: bool,
    pub done: oneshot::Sender<io::Result<Option<Held>>>,
}

/// Bytes that are reserved until this is dropped; the ledger is told by `give_back`.
pub struct Held {
    pub bytes: u64,
    give_back: Box<dyn Fn(u64) + Send + Sync>,
}

impl Held {
    /// Nothing so far.
    pub fn new(give_back: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self { bytes: 0, give_back: Box::new(give_back) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.give_back)(self.bytes);
    }
}

/// There is no task any more.
pub fn closed() -> io::Error {
    io::Error::other("the cache is closing")
}
