//! The room on disk that is reserved for an object on its way in.

use std::sync::Arc;

use crate::failure::{Failure, FailureKind};
use crate::upkeep::room::{Reservation, Room};

/// The room that one object has reserved so far; clones share it.
#[derive(Clone)]
pub struct Reserved {
    room: Arc<dyn Room>,
    /// The bytes reserved, and the reservations. The lock is held while further room is waited for.
    held: Arc<tokio::sync::Mutex<(u64, Vec<Reservation>)>>,
}

/// While the size is not known, each reservation is as large as all before it together, but not larger than this.
const RESERVED_STEP: u64 = 32 << 20;

impl Reserved {
    /// Creates the reservation of one object, which holds no room yet.
    pub fn new(room: Arc<dyn Room>) -> Self {
        Self { room, held: Arc::default() }
    }

    /// Reserves the room that is still missing for an object of `bytes`.
    pub async fn cover(&self, bytes: u64) -> Result<(), Failure> {
        let mut held = self.held.lock().await;
        if held.0 < bytes {
            let missing = bytes - held.0;
            let step = missing.max(held.0.min(RESERVED_STEP));
            let reservation = self.room.reserve(step).await?;
            held.1.push(reservation);
            held.0 += step;
        }
        Ok(())
    }

    /// Fails for an object that is larger than all the room of the cache. Reserves nothing.
    pub fn may_fit(&self, bytes: u64) -> Result<(), Failure> {
        match self.room.never_fits(bytes) {
            true => Err(Failure::new(FailureKind::NoRoom, format!("{bytes} bytes are more than the cache may hold"))),
            false => Ok(()),
        }
    }

    /// Hands over the reservations.
    pub fn take(&self) -> Vec<Reservation> {
        // Only a transfer could hold the lock, and no transfer is left when an object is complete.
        self.held.try_lock().map(|mut held| std::mem::take(&mut held.1)).unwrap_or_default()
    }
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reserved")
    }
}
