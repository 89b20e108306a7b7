//! Room on disk that is reserved for what comes in.

use std::sync::Arc;

use crate::failure::{Failure, FailureKind};
use crate::upkeep::room::{Reservation, Room};

/// What one object has reserved so far; clones share it.
#[derive(Clone)]
pub struct Reserved {
    room: Arc<dyn Room>,
    held: Arc<tokio::sync::Mutex<(u64, Vec<Reservation>)>>,
}

/// While the size is not known, as much again as there is already is reserved at a time, up to this.
const RESERVED_STEP: u64 = 32 << 20;

impl Reserved {
    pub fn new(room: Arc<dyn Room>) -> Self {
        Self { room, held: Arc::default() }
    }

    /// Reserves what is missing for an object of `bytes`.
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

    /// Fails for an object that is larger than all the room there is; reserves nothing.
    pub fn may_fit(&self, bytes: u64) -> Result<(), Failure> {
        match self.room.never_fits(bytes) {
            true => Err(Failure::new(FailureKind::NoRoom, format!("{bytes} bytes are more than the cache may hold"))),
            false => Ok(()),
        }
    }

    /// Hands over what was reserved.
    pub fn take(&self) -> Vec<Reservation> {
        // Only a transfer would hold the lock, and none is left when an object is complete.
        self.held.try_lock().map(|mut held| std::mem::take(&mut held.1)).unwrap_or_default()
    }
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reserved")
    }
}
