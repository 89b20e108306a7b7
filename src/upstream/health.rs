//! Whether an upstream is worth asking now: a circuit breaker, and the wait that a rate limit asks for. A rest is the
//! time for which Larder backs off and sends the upstream no requests. Pure; the caller passes the time.

use std::time::Duration;

use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};

/// The first rest after the upstream could not be reached; each further failure doubles it.
const FIRST_REST: Duration = Duration::from_millis(500);
/// The longest rest after the upstream could not be reached, apart from its random spread.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// The shortest rest of an upstream that did not answer in time. Each new try costs its caller the whole timeout.
const HUNG_REST: Duration = Duration::from_secs(10);
/// Number of failures (such as 5xx) in a row that count as an outage of an upstream that was reached. Fewer do not: an
/// upstream that answers is running.
const MAX_ERRORS: u32 = 5;
/// The first rest after a rate limit that does not state how long it lasts; each further one in a row doubles it.
const FIRST_LIMITED: Duration = Duration::from_secs(1);
/// The longest rest after such a rate limit.
const LONGEST_LIMITED: Duration = Duration::from_secs(60);

/// The recent failures of an upstream, and the rests that follow from them.
#[derive(Debug, Default)]
pub struct Health {
    /// Failures in a row to reach the upstream.
    unreached: u32,
    /// Failures in a row of the upstream after it was reached.
    errors: u32,
    rest: Option<Rest>,
    /// Rate limits in a row.
    limits: Limits,
    /// The rate limit that covers only pulls: when it ends, and its failure.
    pulls: Option<(Instant, Failure)>,
    pull_limits: Limits,
    /// Whether requests were refused since the last probe.
    is_missed: bool,
    /// When the upstream last answered anything.
    answered_at: Option<Instant>,
}

#[derive(Debug)]
struct Rest {
    until: Instant,
    why: Failure,
    /// When a request was let through as a probe, to see whether the upstream is back.
    probed: Option<Instant>,
    /// Whether a background task probes the upstream when the rest is over, so that no request has to.
    is_watched: bool,
}

/// The number of rate limits in a row, which decides how long Larder backs off after the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    in_row: u32,
}

impl Limits {
    /// Counts a further rate limit and returns how long to back off: as long as the limit states, else twice as long
    /// each time.
    pub fn next(&mut self, failure: &Failure) -> Duration {
        let doubled = FIRST_LIMITED * 2u32.pow(self.in_row.min(16));
        self.in_row = self.in_row.saturating_add(1);
        failure.retry_after.unwrap_or(doubled.min(LONGEST_LIMITED))
    }
}

impl Rest {
    /// Returns the failure for a request that is refused when `left` of the rest remains.
    fn refusal(&self, left: Duration) -> Failure {
        limited_for(&self.why, left)
    }
}

/// Returns the failure `why` for a further request, to be retried after `left`. A rate limit that stated no time gets
/// no time here either: only the upstream knows when it ends.
pub fn limited_for(why: &Failure, left: Duration) -> Failure {
    let is_stated = why.kind != FailureKind::RateLimited || why.retry_after.is_some();
    why.clone().with_retry_after(is_stated.then_some(left))
}

impl Health {
    /// Checks whether the upstream may be asked at `now`; `is_pull`: whether the request counts against a limit on
    /// pulls. After a rest, one request is let through as a probe, unless a background task probes. All others go on
    /// failing until the upstream has answered, or for `patience`.
    pub fn may_ask(&mut self, now: Instant, patience: Duration, is_pull: bool) -> Result<(), Failure> {
        if is_pull && let Some((until, why)) = &self.pulls {
            if now < *until {
                return Err(limited_for(why, *until - now));
            }
            self.pulls = None;
        }
        let Some(rest) = &mut self.rest else {
            return Ok(());
        };
        if now < rest.until {
            self.is_missed = true;
            return Err(rest.refusal(rest.until - now));
        }
        match rest.probed {
            _ if rest.is_watched => {
                self.is_missed = true;
                Err(rest.why.clone())
            }
            Some(since) if now < since + patience => Err(rest.why.clone()),
            _ => {
                rest.probed = Some(now);
                Ok(())
            }
        }
    }

    /// Notes that the upstream answered, if only that it does not have the object. A rest for a rate limit goes on: the
    /// answer may be to an earlier request.
    pub fn answered(&mut self, now: Instant) {
        (self.unreached, self.errors, self.answered_at) = (0, 0, Some(now));
        let is_limit = |rest: &Rest| rest.why.kind == FailureKind::RateLimited && now < rest.until;
        if !self.rest.as_ref().is_some_and(is_limit) {
            (self.rest, self.limits) = (None, Limits::default());
        }
    }

    /// Notes that the upstream answered a request that counts as a pull.
    pub fn gave_pull(&mut self, now: Instant) {
        if self.pulls_resting(now).is_none() {
            self.pull_limits = Limits::default();
        }
    }

    /// Notes that a request that began at `since` got no answer in time. An upstream that answered other requests
    /// meanwhile does not hang: it is slow for this request, and other requests must not suffer from that.
    pub fn timed_out(&mut self, failure: &Failure, since: Instant, now: Instant, spread: f64) {
        if self.answered_at.is_none_or(|at| at <= since) {
            self.failed(failure, false, now, spread);
        }
    }

    /// Notes that the upstream did not answer, or answered with an error of its own. `spread` (0 to 1) varies the
    /// length of the rest, so that many callers do not come back at the same moment.
    pub fn failed(&mut self, failure: &Failure, was_reached: bool, now: Instant, spread: f64) {
        let is_hung = failure.kind == FailureKind::Timeout && !was_reached;
        let length = match failure.kind {
            FailureKind::RateLimited => self.limits.next(failure),
            // Failures of requests from before the rest tell nothing new.
            _ if self.resting(now).is_some() => return,
            _ if was_reached => {
                self.errors += 1;
                if self.errors < MAX_ERRORS {
                    return;
                }
                self.lengthen(spread)
            }
            _ => self.lengthen(spread),
        };
        let length = if is_hung { length.max(HUNG_REST) } else { length };
        self.rest = Some(Rest { until: now + length, why: failure.clone(), probed: None, is_watched: false });
    }

    /// Notes a rate limit that covers only pulls.
    pub fn pulls_limited(&mut self, failure: &Failure, now: Instant) {
        self.pulls = Some((now + self.pull_limits.next(failure), failure.clone()));
    }

    fn lengthen(&mut self, spread: f64) -> Duration {
        let doubled = FIRST_REST * 2u32.pow(self.unreached.min(16));
        self.unreached += 1;
        doubled.min(LONGEST_REST).mul_f64(0.8 + 0.4 * spread)
    }

    /// Marks a rest that began with a timeout as watched by a background task, and returns when the rest ends; `None`
    /// where there is no such rest.
    pub fn watch(&mut self) -> Option<Instant> {
        let rest = self.rest.as_mut().filter(|rest| rest.why.kind == FailureKind::Timeout)?;
        rest.is_watched = true;
        Some(rest.until)
    }

    /// Returns whether requests were refused since the last call. If none was, the background task ends, and the next
    /// request is let through as a probe.
    pub fn goes_on_watching(&mut self) -> bool {
        let is_missed = std::mem::take(&mut self.is_missed);
        if let (false, Some(rest)) = (is_missed, &mut self.rest) {
            rest.is_watched = false;
        }
        is_missed
    }

    /// Returns how long Larder backs off from `now` on, and why; `None` where the upstream may be asked.
    pub fn resting(&self, now: Instant) -> Option<(Duration, &Failure)> {
        let rest = self.rest.as_ref().filter(|rest| now < rest.until)?;
        Some((rest.until - now, &rest.why))
    }

    /// Returns how long Larder sends no pulls from `now` on, and why; `None` where the upstream may be asked for them.
    pub fn pulls_resting(&self, now: Instant) -> Option<(Duration, &Failure)> {
        let (until, why) = self.pulls.as_ref().filter(|(until, _)| now < *until)?;
        Some((*until - now, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const MIDDLE: f64 = 0.5;

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "why")
    }

    #[test]
    fn an_upstream_out_of_reach_is_left_alone_longer_and_longer() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let mut rests = Vec::new();
        for _ in 0..10 {
            assert!(health.may_ask(now, PATIENCE, false).is_ok());
            health.failed(&failure(FailureKind::Unavailable), false, now, MIDDLE);
            let (left, _) = health.resting(now).expect("it rests");
            assert_eq!(
                health.may_ask(now + left / 2, PATIENCE, false).expect_err("left alone").kind,
                FailureKind::Unavailable
            );
            health.failed(&failure(FailureKind::Unavailable), false, now + left / 2, MIDDLE);
            rests.push(left.as_millis());
            now += left;
        }
        assert_eq!(rests, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000, 30000]);
        health.answered(now);
        assert!(health.may_ask(now, PATIENCE, false).is_ok());
        assert!(health.resting(now).is_none());
    }

    #[test]
    fn after_a_rest_one_looks_and_the_others_wait() {
        let (mut health, now) = (Health::default(), Instant::now());
        health.failed(&failure(FailureKind::Unavailable), false, now, MIDDLE);
        let later = now + FIRST_REST;
        assert!(health.may_ask(later, PATIENCE, false).is_ok());
        assert!(health.may_ask(later, PATIENCE, false).is_err());
        // The request that was let through may never end.
        assert!(health.may_ask(later + PATIENCE, PATIENCE, false).is_ok());
    }

    #[test]
    fn errors_count_only_in_a_row() {
        let (mut health, now) = (Health::default(), Instant::now());
        for round in 0..3 {
            for _ in 1..MAX_ERRORS {
                health.failed(&failure(FailureKind::Unavailable), true, now, MIDDLE);
                assert!(health.may_ask(now, PATIENCE, false).is_ok(), "round {round}");
            }
            health.answered(now);
        }
        for _ in 0..MAX_ERRORS {
            health.failed(&failure(FailureKind::Unavailable), true, now, MIDDLE);
        }
        assert!(health.may_ask(now, PATIENCE, false).is_err());
    }

    #[test]
    fn a_limit_on_pulls_is_none_on_other_requests() {
        let (mut health, now) = (Health::default(), Instant::now());
        let limit = failure(FailureKind::RateLimited).with_retry_after(Some(Duration::from_secs(90)));
        health.pulls_limited(&limit, now);
        health.answered(now);
        assert!(health.may_ask(now, PATIENCE, false).is_ok());
        let told = health.may_ask(now + Duration::from_secs(30), PATIENCE, true).expect_err("left alone");
        assert_eq!(told.retry_after, Some(Duration::from_secs(60)));
        assert!(health.resting(now).is_none() && health.pulls_resting(now).is_some());
        assert!(health.may_ask(now + Duration::from_secs(90), PATIENCE, true).is_ok());
        assert!(health.pulls_resting(now).is_none());
    }

    #[test]
    fn a_rate_limit_is_kept_to_the_second() {
        let (mut health, now) = (Health::default(), Instant::now());
        let limit = failure(FailureKind::RateLimited).with_retry_after(Some(Duration::from_secs(90)));
        health.failed(&limit, true, now, MIDDLE);
        let told = health.may_ask(now + Duration::from_secs(30), PATIENCE, false).expect_err("left alone");
        assert_eq!((told.kind, told.retry_after), (FailureKind::RateLimited, Some(Duration::from_secs(60))));
        assert!(health.may_ask(now + Duration::from_secs(90), PATIENCE, false).is_ok());
    }

    #[test]
    fn a_limit_that_states_no_time_doubles_and_tells_clients_none() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            health.failed(&failure(FailureKind::RateLimited), true, now, MIDDLE);
            health.answered(now);
            assert_eq!(health.resting(now).map(|(left, _)| left.as_secs()), Some(seconds));
            assert_eq!(health.may_ask(now, PATIENCE, false).expect_err("left alone").retry_after, None);
            now += Duration::from_secs(seconds);
        }
        health.answered(now);
        health.failed(&failure(FailureKind::RateLimited), true, now, MIDDLE);
        assert_eq!(health.resting(now).map(|(left, _)| left.as_secs()), Some(1));
        for seconds in [1, 2, 4] {
            health.pulls_limited(&failure(FailureKind::RateLimited), now);
            health.answered(now);
            assert_eq!(health.pulls_resting(now).map(|(left, _)| left.as_secs()), Some(seconds));
        }
        now += Duration::from_secs(4);
        health.gave_pull(now);
        health.pulls_limited(&failure(FailureKind::RateLimited), now);
        assert_eq!(health.pulls_resting(now).map(|(left, _)| left.as_secs()), Some(1));
    }

    #[test]
    fn an_upstream_that_answered_others_meanwhile_does_not_rest_for_one_that_is_slow() {
        let (mut health, begun) = (Health::default(), Instant::now());
        let now = begun + Duration::from_secs(20);
        health.answered(begun + Duration::from_secs(1));
        health.timed_out(&failure(FailureKind::Timeout), begun, now, MIDDLE);
        assert!(health.may_ask(now, PATIENCE, false).is_ok());
        health.timed_out(&failure(FailureKind::Timeout), begun + Duration::from_secs(2), now, MIDDLE);
        assert!(health.may_ask(now, PATIENCE, false).is_err(), "nothing came since that one began");
    }

    #[test]
    fn an_upstream_that_hangs_rests_for_ten_seconds_and_no_request_pays_for_the_look() {
        let (mut health, now) = (Health::default(), Instant::now());
        health.failed(&failure(FailureKind::Timeout), false, now, MIDDLE);
        health.failed(&failure(FailureKind::Timeout), false, now, MIDDLE);
        let until = health.watch().expect("it hangs");
        assert_eq!(until - now, HUNG_REST, "many that hung together are one failure");
        assert!(health.may_ask(until - Duration::from_millis(1), PATIENCE, false).is_err());
        assert!(health.goes_on_watching());
        assert!(health.may_ask(until, PATIENCE, false).is_err(), "somebody else looks");
        assert!(health.goes_on_watching(), "it is still asked for");
        assert!(!health.goes_on_watching(), "nobody asks any more");
        assert!(health.may_ask(until, PATIENCE, false).is_ok(), "the next one sees for itself");
        health.failed(&failure(FailureKind::Unavailable), false, until, MIDDLE);
        assert_eq!(health.watch(), None, "a refused connection costs nothing");
    }
}
