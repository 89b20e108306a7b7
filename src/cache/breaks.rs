//! How long to wait before a transfer that broke is opened again. Pure.
//!
//! Each opening is a request upstream. Without a wait, a source that breaks off after a few bytes, again and again,
//! would be asked as fast as it answers.

use std::time::Duration;

/// A transfer that brought this many bytes before it broke is opened again at once.
const MUCH: u64 = 1 << 20;
/// A transfer that brought fewer bytes than this made no progress: the break counts against its source.
const LITTLE: u64 = 64 << 10;
/// For a small object, one part in so many counts as much, so that it costs at most that many openings.
const PARTS: u64 = 64;
/// The pause after a first break that brought less than [`MUCH`]; each further one in a row doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The breaks of one object's transfers so far.
#[derive(Debug, Default)]
pub struct Breaks {
    /// Breaks in a row, each after less than [`MUCH`] had been brought.
    in_row: u32,
    /// Bytes that had been brought in all at the last break.
    brought: u64,
}

/// What follows from a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Break {
    /// Whether the object has made progress since the last break.
    pub has_progressed: bool,
    /// How long to wait before the next opening.
    pub pause: Duration,
}

impl Breaks {
    /// Notes the break of a transfer that ran for `lasted` and brought `own` bytes. All transfers together have brought
    /// `brought` bytes of the object, which has `size` bytes where that is known.
    pub fn broke(&mut self, own: u64, brought: u64, size: Option<u64>, lasted: Duration) -> Break {
        let since = brought.saturating_sub(std::mem::replace(&mut self.brought, brought)).max(own);
        let much = size.map_or(MUCH, |size| MUCH.min(size / PARTS)).max(1);
        let has_progressed = since >= much.min(LITTLE);
        if since >= much {
            self.in_row = 0;
            return Break { has_progressed, pause: Duration::ZERO };
        }
        let doubled = FIRST_PAUSE * 2u32.pow(self.in_row.min(16));
        self.in_row += 1;
        // The time that the transfer ran counts as a pause: a slow line that is cut once a minute has waited already.
        Break { has_progressed, pause: doubled.min(LONGEST_PAUSE).saturating_sub(lasted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    fn milliseconds(breaks: &mut Breaks, own: u64, brought: u64, size: Option<u64>) -> (u128, bool) {
        let broke = breaks.broke(own, brought, size, AT_ONCE);
        (broke.pause.as_millis(), broke.has_progressed)
    }

    #[test]
    fn what_brings_little_is_opened_again_later_and_later() {
        let mut breaks = Breaks::default();
        let pauses: Vec<_> = (1..=8).map(|at| milliseconds(&mut breaks, 1, at, Some(100 * MUCH))).collect();
        let expected = [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(|pause| (pause, false));
        assert_eq!(pauses, expected);
        assert_eq!(milliseconds(&mut breaks, MUCH, 8 + MUCH, Some(100 * MUCH)), (0, true));
        assert_eq!(milliseconds(&mut breaks, 1, 9 + MUCH, Some(100 * MUCH)), (100, false));
    }

    #[test]
    fn progress_of_other_transfers_counts_and_of_small_objects_a_part_is_enough() {
        let mut breaks = Breaks::default();
        assert_eq!(milliseconds(&mut breaks, 0, 2 * MUCH, None), (0, true), "others brought it");
        assert_eq!(milliseconds(&mut breaks, 0, 2 * MUCH, None), (100, false));
        assert_eq!(milliseconds(&mut Breaks::default(), 100, 100, Some(6_400)), (0, true));
        assert_eq!(milliseconds(&mut Breaks::default(), 99, 99, Some(6_400)), (100, false));
        assert!(!milliseconds(&mut Breaks::default(), 0, 0, Some(3)).1, "nothing is never progress");
        assert!(milliseconds(&mut Breaks::default(), LITTLE, LITTLE, None).1);
    }

    #[test]
    fn a_transfer_that_ran_for_long_is_opened_again_at_once() {
        let mut breaks = Breaks::default();
        for at in 1..100 {
            let broke = breaks.broke(100, 100 * at, None, Duration::from_secs(60));
            assert_eq!(broke.pause, Duration::ZERO);
        }
    }

    #[test]
    fn a_transfer_of_any_pace_costs_few_openings_a_second_or_brings_much() {
        // Whatever a source brings before it breaks, openings stay below one for each mebibyte, plus a few a minute.
        for each in [1, 1000, LITTLE, MUCH - 1, MUCH, 5 * MUCH] {
            let (mut breaks, mut waited, mut brought) = (Breaks::default(), Duration::ZERO, 0);
            for openings in 1..=200u64 {
                brought += each;
                waited += breaks.broke(each, brought, None, AT_ONCE).pause;
                let allowed = 8 + brought / MUCH + waited.as_secs() / 5;
                assert!(openings <= allowed, "{openings} openings for {brought} bytes in {waited:?}");
            }
        }
    }
}
