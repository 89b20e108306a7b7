//! The time, for all of Larder: no other code asks the system for it.
//!
//! Deadlines and ages go by [`Instant`], which is tokio's, so that a test can stop the time and let it pass. In such a
//! test, the time of day passes with it.

use std::time::{Duration, SystemTime};

pub use tokio::time::Instant;

/// Returns the time of day. An administrator or NTP may set it back: for deadlines and ages, use [`Instant`].
#[cfg(not(test))]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Returns the time of day. Where a test stops the time, this passes as that time does.
#[cfg(test)]
pub fn wall() -> SystemTime {
    use std::sync::OnceLock;
    static START: OnceLock<(SystemTime, std::time::Instant)> = OnceLock::new();
    let (day, since) = START.get_or_init(|| (SystemTime::now(), std::time::Instant::now()));
    let now = Instant::now().into_std();
    match now.checked_duration_since(*since) {
        Some(passed) => *day + passed,
        None => *day - since.duration_since(now),
    }
}

/// 2026-11-01: no clock that is right says less.
const RELEASED: Duration = Duration::from_secs(1_793_491_200);

/// Returns a time that is surely past: machines without a battery start in 1970, or when they were last switched off.
pub fn surely_past() -> SystemTime {
    SystemTime::UNIX_EPOCH + RELEASED
}

/// Returns whether the time of day may be right.
pub fn is_plausible() -> bool {
    wall() >= surely_past()
}

/// Returns the time of day at the start of the process, with the time that has passed since: it never jumps. After the
/// clock was set, it differs from the time of day by as much.
#[cfg(not(test))]
pub fn steady() -> SystemTime {
    use std::sync::LazyLock;
    static START: LazyLock<(SystemTime, Instant)> = LazyLock::new(|| (SystemTime::now(), Instant::now()));
    let (day, since) = *START;
    day + since.elapsed()
}

/// In a test, the time of day does not jump.
#[cfg(test)]
pub fn steady() -> SystemTime {
    wall()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_of_day_passes_with_the_time_that_a_test_holds() {
        let (day, instant) = (wall(), Instant::now());
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(wall().duration_since(day).expect("later").as_secs(), 86_400);
        assert_eq!(instant.elapsed().as_secs(), 86_400);
    }
}
