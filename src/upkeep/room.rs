//! Room for objects: a fill asks for it before it writes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::desk::Upkeep;
use super::evict::on_disk;
use super::mail::{Ask, Held, Message, closed};
use crate::failure::{Failure, FailureKind};

/// How long a fill waits for room: until objects have gone, also objects that are being stored and can go only then. A
/// client waits meanwhile; after this time, the object passes uncached.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to check whether objects that are being stored have left room.
const LOOK: Duration = Duration::from_millis(20);

/// Room on disk for objects on their way in.
pub trait Room: Send + Sync + 'static {
    /// Makes room for an object. Fails with [`FailureKind::NoRoom`] if no room can be made.
    fn reserve(&self, bytes: u64) -> BoxFuture<'static, Result<Reservation, Failure>>;

    /// Returns whether so many bytes would not fit even if nothing else were there.
    fn never_fits(&self, bytes: u64) -> bool;
}

/// Room that is reserved until this is dropped.
pub struct Reservation(Option<Box<dyn FnOnce() + Send>>);

impl Reservation {
    /// Creates a reservation; `give_back` is called when it is dropped.
    pub fn new(give_back: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(give_back)))
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reservation")
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(give_back) = self.0.take() {
            give_back();
        }
    }
}

impl Upkeep {
    async fn reserve_bytes(self: Arc<Self>, bytes: u64) -> Result<Reservation, Failure> {
        let wanted = on_disk(bytes);
        if self.ledger().reserve_at_once(wanted) {
            let held = self.held(wanted);
            return Ok(Reservation::new(move || drop(held)));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = tokio::time::timeout_at(deadline, self.clone().ask_for_room(wanted)).await;
            let late = || Failure::new(FailureKind::Storage, "room could not be made in time; the disk is slow");
            match asked.map_err(|_| late())? {
                Ok(Some(held)) => return Ok(Reservation::new(move || drop(held))),
                // A verified object counts, and can be evicted, only once it is stored.
                Ok(None) if self.parts().cached.is_storing() && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                }
                Ok(None) => {
                    let key = self.ledger().limits().disk_key();
                    let message = format!("{wanted} bytes do not fit into {key} and cache.min_free");
                    return Err(Failure::new(FailureKind::NoRoom, message));
                }
                Err(error) => {
                    let message = format!("cannot tell how full the disk is: {error}");
                    return Err(Failure::new(FailureKind::Storage, message));
                }
            }
        }
    }

    /// Returns reserved bytes in a form that gives them back when it is dropped.
    fn held(self: &Arc<Self>, bytes: u64) -> Held {
        let upkeep = self.clone();
        let mut held = Held::new(move |bytes| upkeep.ledger().release(bytes));
        held.bytes = bytes;
        held
    }

    async fn ask_for_room(self: Arc<Self>, wanted: u64) -> io::Result<Option<Held>> {
        let (done, answer) = oneshot::channel();
        let ask = Ask { wanted, held: self.held(0), has_evicted: false, done };
        self.send(Message::Reserve(ask)).await?;
        answer.await.map_err(|_| closed())?
    }
}

impl Room for Arc<Upkeep> {
    fn reserve(&self, bytes: u64) -> BoxFuture<'static, Result<Reservation, Failure>> {
        self.clone().reserve_bytes(bytes).boxed()
    }

    fn never_fits(&self, bytes: u64) -> bool {
        Upkeep::never_fits(self, bytes)
    }
}
