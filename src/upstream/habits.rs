//! How reliable a registry's answers to HEAD are. Pure; the caller passes the time.
//!
//! Registries refuse HEAD, or answer it wrongly, for objects that they give to GET: ECR Public answers every blob with
//! 401 or 403 (distribution#4383, aws/containers-roadmap#2671), storages behind URLs signed for GET answer 403
//! (moby#50065), others 405, 406 or 5xx (containerd#6684). So a GET decides, and its result is remembered: asking twice
//! each time costs a request, and time.

use std::time::Duration;

use crate::clock::Instant;
use http::StatusCode;

/// How long a registry is sent no HEAD after HEAD was of no use.
const LIFE: Duration = Duration::from_secs(3600);
/// Number of refusals in a row that make a habit, where each alone may be a passing failure.
const MANY: u32 = 3;
/// Most objects remembered for which HEAD was refused and the GET is still to come.
const SUSPECTS: usize = 64;

/// How a registry answers HEAD for one kind of object.
#[derive(Debug, Default)]
pub struct Habit {
    /// Refusals in a row of HEAD, each for an object that GET gave.
    in_row: u32,
    useless_until: Option<Instant>,
    suspects: Vec<(u64, StatusCode)>,
}

impl Habit {
    /// Returns whether HEAD is worth a request.
    pub fn is_worth_asking(&self, now: Instant) -> bool {
        self.useless_until.is_none_or(|until| until <= now)
    }

    /// Notes that HEAD was answered as it should be.
    pub fn served(&mut self) {
        (self.in_row, self.useless_until) = (0, None);
    }

    /// Notes that HEAD was refused with `status`, and that GET gave the object. Status 200: what the answer to HEAD
    /// said cannot be true.
    pub fn refused(&mut self, status: StatusCode, now: Instant) {
        self.in_row += if status.is_server_error() { 1 } else { MANY };
        if self.in_row >= MANY {
            self.useless_until = Some(now + LIFE);
        }
    }

    /// Notes that HEAD was refused for an object; a GET for the object will tell more.
    pub fn suspect(&mut self, object: u64, status: StatusCode) {
        if self.suspects.len() >= SUSPECTS {
            self.suspects.remove(0);
        }
        self.suspects.push((object, status));
    }

    /// Notes that GET gave an object. If HEAD was refused for the same object, the refusal counts.
    pub fn given(&mut self, object: u64, now: Instant) {
        if let Some(at) = self.suspects.iter().position(|(suspect, _)| *suspect == object) {
            let (_, status) = self.suspects.remove(at);
            self.refused(status, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_head_is_remembered_and_tried_again_an_hour_later() {
        let (mut habit, now) = (Habit::default(), Instant::now());
        assert!(habit.is_worth_asking(now));
        habit.refused(StatusCode::FORBIDDEN, now);
        assert!(!habit.is_worth_asking(now + LIFE / 2));
        assert!(habit.is_worth_asking(now + LIFE));
        habit.served();
        assert!(habit.is_worth_asking(now));
    }

    #[test]
    fn a_failure_that_may_pass_is_a_habit_only_if_it_comes_again_and_again() {
        let (mut habit, now) = (Habit::default(), Instant::now());
        for _ in 0..2 {
            habit.refused(StatusCode::BAD_GATEWAY, now);
            habit.refused(StatusCode::BAD_GATEWAY, now);
            assert!(habit.is_worth_asking(now));
            habit.served();
        }
        (0..3).for_each(|_| habit.refused(StatusCode::BAD_GATEWAY, now));
        assert!(!habit.is_worth_asking(now));
    }

    #[test]
    fn only_a_get_for_the_same_object_shows_that_a_head_was_refused_without_reason() {
        let (mut habit, now) = (Habit::default(), Instant::now());
        habit.suspect(1, StatusCode::FORBIDDEN);
        habit.given(2, now);
        assert!(habit.is_worth_asking(now));
        habit.given(1, now);
        assert!(!habit.is_worth_asking(now));
        let mut habit = Habit::default();
        (0..1000).for_each(|object| habit.suspect(object, StatusCode::FORBIDDEN));
        assert!(habit.suspects.len() <= SUSPECTS);
    }
}
