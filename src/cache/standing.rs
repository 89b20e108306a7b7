//! Decides which source goes on with a transfer that broke, and when. Pure; the time is handed in.

use std::time::Duration;

use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};

/// Breaks in a row, each without much progress, after which a source rests.
const MAX_STRIKES: u8 = 3;
/// The first rest; each further break without progress doubles it.
const FIRST_REST: Duration = Duration::from_secs(2);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// What is known of the sources of one object, in order of preference.
#[derive(Debug)]
pub struct Standing {
    sources: Vec<State>,
    /// Why the last transfer broke.
    last: Option<Failure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Usable {
        /// Breaks in a row without progress.
        strikes: u8,
        /// The source is not asked before this time.
        rests_until: Option<Instant>,
    },
    /// The source sent wrong content.
    Rejected,
}

impl Standing {
    /// Creates the state of sources that have not been asked yet.
    pub fn new(sources: usize) -> Self {
        Self { sources: vec![State::Usable { strikes: 0, rests_until: None }; sources], last: None }
    }

    /// Returns the sources worth asking at `now`, the best first.
    pub fn worth_asking(&self, now: Instant) -> Vec<usize> {
        let is_worth = |state: &State| match state {
            State::Usable { rests_until, .. } => rests_until.is_none_or(|until| until <= now),
            State::Rejected => false,
        };
        (0..self.sources.len()).filter(|&at| is_worth(&self.sources[at])).collect()
    }

    /// Returns why no source is worth asking.
    pub fn why_none(&self) -> Failure {
        let is_rejected = |state: &State| *state == State::Rejected;
        match &self.last {
            Some(last) if !self.sources.iter().all(is_rejected) => last.clone(),
            _ => Failure::new(FailureKind::WrongContent, "no upstream is left that sends the right content"),
        }
    }

    /// Notes that a transfer broke. A break after much progress is no strike: the source works.
    pub fn broke(&mut self, at: usize, has_progressed: bool, why: &Failure, now: Instant) {
        self.last = Some(why.clone());
        let Some(State::Usable { strikes, rests_until }) = self.sources.get_mut(at) else {
            return;
        };
        if has_progressed {
            (*strikes, *rests_until) = (0, None);
            return;
        }
        *strikes = strikes.saturating_add(1);
        if *strikes >= MAX_STRIKES {
            let doubled = FIRST_REST * 2u32.pow(u32::from(*strikes - MAX_STRIKES).min(8));
            *rests_until = Some(now + doubled.min(LONGEST_REST));
        }
    }

    /// Notes that a source sent wrong content.
    pub fn reject(&mut self, at: usize) {
        if let Some(state) = self.sources.get_mut(at) {
            *state = State::Rejected;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> Failure {
        Failure::new(FailureKind::Unavailable, "it broke off")
    }

    #[test]
    fn a_source_that_brings_nothing_rests_after_three_tries_longer_each_time() {
        let (mut standing, mut now) = (Standing::new(2), Instant::now());
        for _ in 0..MAX_STRIKES {
            assert_eq!(standing.worth_asking(now), [0, 1]);
            standing.broke(0, false, &broken(), now);
        }
        for rest in [2, 4, 8, 16, 30, 30] {
            assert_eq!(standing.worth_asking(now), [1]);
            now += Duration::from_secs(rest);
            assert_eq!(standing.worth_asking(now - Duration::from_millis(1)), [1]);
            assert_eq!(standing.worth_asking(now), [0, 1]);
            standing.broke(0, false, &broken(), now);
        }
        standing.broke(0, true, &broken(), now);
        assert_eq!(standing.worth_asking(now), [0, 1], "it works again");
    }

    #[test]
    fn a_source_that_brings_much_may_break_as_often_as_it_likes() {
        let (mut standing, now) = (Standing::new(1), Instant::now());
        (0..100).for_each(|_| standing.broke(0, true, &broken(), now));
        assert_eq!(standing.worth_asking(now), [0]);
    }

    #[test]
    fn a_source_of_wrong_content_is_not_asked_again_and_the_last_failure_is_reported() {
        let (mut standing, now) = (Standing::new(2), Instant::now());
        assert_eq!(standing.why_none().kind, FailureKind::WrongContent);
        standing.reject(0);
        standing.broke(0, true, &broken(), now);
        assert_eq!(standing.worth_asking(now), [1]);
        (0..MAX_STRIKES).for_each(|_| standing.broke(1, false, &broken(), now));
        assert_eq!(standing.worth_asking(now), [0; 0]);
        assert_eq!(standing.why_none().kind, FailureKind::Unavailable);
        standing.reject(1);
        assert_eq!(standing.why_none().kind, FailureKind::WrongContent);
    }
}
