//! The time, as the order of use needs it.

use crate::clock;
use crate::index::Timestamp;

/// Seconds since 1970.
pub type Seconds = u32;

/// Returns the current time. It does not jump: what was used while the clock was ahead must not seem to be used for as
/// long as the clock was ahead.
pub fn now() -> Seconds {
    seconds(Timestamp::from_system_time(clock::steady()))
}

/// Converts a time of the past that the index has noted. A time to come was noted while the clock was ahead, and becomes
/// the current time.
pub fn past(time: Timestamp) -> Seconds {
    seconds(time).min(now())
}

fn seconds(time: Timestamp) -> Seconds {
    Seconds::try_from(time.0 / 1000).unwrap_or(0)
}
