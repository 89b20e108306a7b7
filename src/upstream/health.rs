//! Whether an upstream is worth asking now: a circuit breaker, and the rest that a rate limit asks for.
//! Pure; the time is handed in.

use std::time::{Duration, Instant};

use crate::failure::{Failure, FailureKind};

/// The first rest after an upstream could not be reached; each further failure doubles it.
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// An upstream that answers is at work: only so many failures (5xx) in a row count as an outage.
const MAX_ERRORS: u32 = 5;
/// For a rate limit that does not say how long it lasts.
const LIMITED: Duration = Duration::from_secs(60);

/// How an upstream has done lately.
#[derive(Debug, Default)]
pub struct Health {
    /// Failures in a row to reach it.
    unreached: u32,
    /// Errors in a row that it answered with.
    errors: u32,
    rest: Option<Rest>,
    /// Its limit on pulls, which is not on other requests.
    pulls: Option<(Instant, Failure)>,
}

#[derive(Debug)]
struct Rest {
    until: Instant,
    why: Failure,
    /// When somebody was sent to see whether it is back.
    probed: Option<Instant>,
}

impl Health {
    /// Whether to ask at `now`; `is_pull`: for what counts against a limit on pulls. After a rest one
    /// request is let through to see; the others go on failing until it has come back, or for `patience`.
    pub fn may_ask(&mut self, now: Instant, patience: Duration, is_pull: bool) -> Result<(), Failure> {
        if is_pull && let Some((until, why)) = &self.pulls {
            if now < *until {
                return Err(why.clone().with_retry_after(Some(*until - now)));
            }
            self.pulls = None;
        }
        let Some(rest) = &mut self.rest else {
            return Ok(());
        };
        if now < rest.until {
            let left = rest.until - now;
            return Err(rest.why.clone().with_retry_after(Some(left)));
        }
        match rest.probed {
            Some(since) if now < since + patience => Err(rest.why.clone()),
            _ => {
                rest.probed = Some(now);
                Ok(())
            }
        }
    }

    /// It answered, if only that it does not have what was asked for. A rate limit goes on all the same:
    /// the answer may be to what was asked before.
    pub fn answered(&mut self, now: Instant) {
        let limited = self.rest.take().filter(|rest| rest.why.kind == FailureKind::RateLimited && now < rest.until);
        *self = Self { rest: limited, pulls: self.pulls.take(), ..Self::default() };
    }

    /// It did not answer, or with an error of its own. `spread` (0 to 1) keeps many from coming back at
    /// the same moment.
    pub fn failed(&mut self, failure: &Failure, was_reached: bool, now: Instant, spread: f64) {
        let length = match failure.kind {
            FailureKind::RateLimited => failure.retry_after.unwrap_or(LIMITED),
            _ if was_reached => {
                self.errors += 1;
                if self.errors < MAX_ERRORS {
                    return;
                }
                self.lengthen(spread)
            }
            _ => self.lengthen(spread),
        };
        self.rest = Some(Rest { until: now + length, why: failure.clone(), probed: None });
    }

    /// It limits pulls, and nothing else.
    pub fn pulls_limited(&mut self, failure: &Failure, now: Instant) {
        self.pulls = Some((now + failure.retry_after.unwrap_or(LIMITED), failure.clone()));
    }

    fn lengthen(&mut self, spread: f64) -> Duration {
        let doubled = FIRST_REST * 2u32.pow(self.unreached.min(16));
        self.unreached += 1;
        doubled.min(LONGEST_REST).mul_f64(0.8 + 0.4 * spread)
    }

    /// How long it is left alone from `now` on, and why.
    pub fn resting(&self, now: Instant) -> Option<(Duration, &Failure)> {
        let rest = self.rest.as_ref().filter(|rest| now < rest.until)?;
        Some((rest.until - now, &rest.why))
    }

    /// How long it is not asked for what counts as a pull, and why.
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
            health.failed(&failure(FailureKind::Timeout), false, now, MIDDLE);
            let (left, _) = health.resting(now).expect("it rests");
            assert_eq!(
                health.may_ask(now + left / 2, PATIENCE, false).expect_err("left alone").kind,
                FailureKind::Timeout
            );
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
        // Who was sent may never come back.
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
        health.failed(&failure(FailureKind::RateLimited), true, now, MIDDLE);
        health.answered(now);
        assert_eq!(health.resting(now).map(|(left, _)| left), Some(LIMITED));
    }
}
