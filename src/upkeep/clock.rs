//! The time, as the order of use needs it.

use crate::clock;
use crate::index::Timestamp;

/// Seconds since 1970.
pub type Seconds = u32;

/// Returns the current time.
pub fn now() -> Seconds {
    seconds(Timestamp::from_system_time(clock::wall()))
}

/// Converts a time of the index.
pub fn seconds(time: Timestamp) -> Seconds {
    Seconds::try_from(time.0 / 1000).unwrap_or(0)
}
