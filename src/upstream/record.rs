//! How an upstream did lately: what people ask about it. Pure; the caller passes the time.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::failure::{Failure, FailureKind};

/// How many of the last requests count.
const RECENT: usize = 100;

/// The last requests to an upstream.
#[derive(Debug, Default)]
pub struct Record {
    last_success: Option<SystemTime>,
    last_failure: Option<(SystemTime, Failure)>,
    /// Whether the last request was answered; `None`: there was none.
    is_up: Option<bool>,
    /// The time until the head of each answer; `None`: the request failed. The oldest comes first.
    recent: VecDeque<Option<Duration>>,
}

/// What a [`Record`] says.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub last_success: Option<SystemTime>,
    pub last_failure: Option<(SystemTime, Failure)>,
    /// Whether the last request was answered; `None`: there was none.
    pub is_up: Option<bool>,
    /// Of the last requests, the share that failed (0 to 1); `None`: there was none.
    pub failed_share: Option<f64>,
    /// Of the last requests that were answered, the mean time until the head of the answer.
    pub mean_head: Option<Duration>,
}

impl Record {
    /// Notes that the upstream answered, `took` after it was asked.
    pub fn answered(&mut self, took: Duration, now: SystemTime) {
        (self.last_success, self.is_up) = (Some(now), Some(true));
        self.note(Some(took));
    }

    /// Notes that a request failed by the upstream.
    pub fn failed(&mut self, failure: &Failure, now: SystemTime) {
        self.last_failure = Some((now, failure.clone()));
        // An upstream that limits its clients is up.
        self.is_up = Some(failure.kind == FailureKind::RateLimited);
        self.note(None);
    }

    fn note(&mut self, took: Option<Duration>) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
    }

    /// Returns what the record says.
    pub fn summary(&self) -> Summary {
        let heads = || self.recent.iter().flatten();
        // At most a hundred.
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (all, answered) = (count(self.recent.len()), count(heads().count()));
        Summary {
            last_success: self.last_success,
            last_failure: self.last_failure.clone(),
            is_up: self.is_up,
            failed_share: (all > 0).then(|| f64::from(all - answered) / f64::from(all)),
            mean_head: heads().sum::<Duration>().checked_div(answered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn the_last_hundred_requests_count() {
        let (mut record, now) = (Record::default(), clock::wall());
        let nothing = record.summary();
        assert!(nothing.is_up.is_none() && nothing.failed_share.is_none() && nothing.mean_head.is_none());
        let refused = Failure::new(FailureKind::Unavailable, "refused");
        for _ in 0..RECENT {
            record.failed(&refused, now);
        }
        assert_eq!((record.summary().is_up, record.summary().failed_share), (Some(false), Some(1.0)));
        for at in 0..75 {
            record.answered(Duration::from_millis(if at % 2 == 0 { 10 } else { 30 }), now);
        }
        let summary = record.summary();
        assert_eq!((summary.is_up, summary.failed_share), (Some(true), Some(0.25)));
        let mean = summary.mean_head.expect("it answered");
        assert!(mean > Duration::from_millis(19) && mean < Duration::from_millis(21), "{mean:?}");
        assert_eq!(summary.last_success, Some(now));
        assert_eq!(summary.last_failure.map(|(_, why)| why.message().to_owned()).as_deref(), Some("refused"));
    }

    #[test]
    fn an_upstream_that_limits_its_clients_is_up() {
        let mut record = Record::default();
        record.failed(&Failure::new(FailureKind::RateLimited, "429"), clock::wall());
        let summary = record.summary();
        assert_eq!((summary.is_up, summary.failed_share), (Some(true), Some(1.0)));
    }
}
