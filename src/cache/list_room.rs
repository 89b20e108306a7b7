//! The memory for lists of tags and referrers: bounded, whoever holds the lists.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::{Failure, FailureKind};
use crate::index::Listing;

/// Lists of up to this many bytes need no room: they are no larger than what a connection may hold anyway.
pub const SMALL: u64 = 64 << 10;

/// Memory for all larger lists together, in bytes: lists kept for the next clients, lists that wait to be written,
/// lists on their way to clients.
const ROOM: u64 = 128 << 20;

/// The unit in which the room is counted, in bytes.
const UNIT: u64 = 1 << 10;

/// The memory for lists.
pub struct ListRoom {
    room: Arc<Semaphore>,
}

impl Default for ListRoom {
    fn default() -> Self {
        // A semaphore on 64-bit machines can hold far more.
        Self { room: Arc::new(Semaphore::new(usize::try_from(ROOM / UNIT).unwrap_or(usize::MAX))) }
    }
}

/// How long a list waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// The right to hold a list; `None` for a small list.
pub type Right = Option<OwnedSemaphorePermit>;

impl ListRoom {
    /// Waits for the room that a list of `bytes` takes.
    pub async fn admit(&self, bytes: u64) -> Result<Right, Failure> {
        if bytes <= SMALL {
            return Ok(None);
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let room = tokio::time::timeout(PATIENCE, self.room.clone().acquire_many_owned(units)).await;
        let too_many =
            || Failure::new(FailureKind::Busy, "too many large lists are on their way to clients; try again soon");
        room.ok().and_then(Result::ok).map(Some).ok_or_else(too_many)
    }
}

/// The bytes of a list. Their room is free again when nobody holds them any more.
struct Held {
    bytes: Box<[u8]>,
    _right: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Ties the right to a list: the room is taken while any part of the body is held.
pub fn hold(mut listing: Listing, right: Right) -> Listing {
    if let Some(right) = right {
        // Copied to a buffer of the list's own length, whatever was allocated while the list came in.
        let bytes = Vec::from(listing.body).into_boxed_slice();
        listing.body = Bytes::from_owner(Held { bytes, _right: right });
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Timestamp;

    fn listing(bytes: u64) -> Listing {
        Listing {
            body: vec![b' '; usize::try_from(bytes).expect("small")].into(),
            media_type: None,
            link: None,
            filters_applied: None,
            checked_at: Timestamp(1),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_lists_share_a_room_and_small_ones_need_none() {
        let lists = ListRoom::default();
        let take = async |bytes| lists.admit(bytes).await.map(|right| hold(listing(bytes), right));
        let mut held = Vec::new();
        while let Ok(list) = take(8 << 20).await {
            held.push(list);
        }
        assert_eq!(held.len(), 16);
        assert_eq!(take(SMALL + 1).await.expect_err("no room").kind, FailureKind::Busy);
        assert!(take(SMALL).await.is_ok());
        // A part of the body that is still read keeps all of the body.
        let part = held[0].body.slice(5..10);
        held.remove(0);
        assert!(take(SMALL + 1).await.is_err());
        assert_eq!(&part[..], b"     ");
        // A caller that waits gets the room once it is free.
        let waiting = take(8 << 20);
        let freed = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(part);
        };
        assert!(tokio::join!(waiting, freed).0.is_ok());
    }
}
