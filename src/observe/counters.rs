//! The counters that each request adds to, found once: to look a counter up by its labels takes a lock that all requests
//! share, and a hash of the labels.

use std::sync::{Arc, OnceLock};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::outcome::{KINDS, Kind, OUTCOMES, Outcome};

/// The name in metrics of all hosts that the configuration does not name: there may be any number of them.
pub const OTHER_HOSTS: &str = "other hosts";

/// A value for each kind of content and each outcome.
pub type ByAnswer<T> = [[OnceLock<T>; OUTCOMES]; KINDS];

/// The counters of one repository. A counter is shown from its first use on.
#[derive(Debug)]
pub struct RepositoryCounters {
    /// The repository's name in metrics.
    pub label: Arc<str>,
    pub(super) requests: ByAnswer<Counter>,
    pub(super) bytes_served: OnceLock<Counter>,
    pub(super) bytes_saved: OnceLock<Counter>,
    pub(super) bytes_fetched: OnceLock<Counter>,
}

impl RepositoryCounters {
    /// Makes the counters of a repository with this name in metrics. Counters of the same name count together.
    pub fn new(label: &str) -> Arc<Self> {
        Arc::new(Self::named(label))
    }

    fn named(label: &str) -> Self {
        Self {
            label: label.into(),
            requests: ByAnswer::default(),
            bytes_served: OnceLock::new(),
            bytes_saved: OnceLock::new(),
            bytes_fetched: OnceLock::new(),
        }
    }
}

/// The counters of everything that comes from hosts which the configuration does not name.
impl Default for RepositoryCounters {
    fn default() -> Self {
        Self::named(OTHER_HOSTS)
    }
}

/// The times until the head of a response, by what was answered and how.
#[derive(Debug, Default)]
pub(super) struct AnswerTimes(ByAnswer<Histogram>);

impl AnswerTimes {
    /// Returns the histogram of answers of this kind, which `find` finds at its first use.
    pub fn of(&self, kind: Kind, outcome: Outcome, find: impl FnOnce() -> Histogram) -> &Histogram {
        self.0[kind as usize][outcome as usize].get_or_init(find)
    }
}

/// The counters of responses by their status. An HTTP status is 100 to 999.
#[derive(Debug)]
pub(super) struct StatusCounters(Box<[OnceLock<Counter>]>);

impl Default for StatusCounters {
    fn default() -> Self {
        Self((0..1000).map(|_| OnceLock::new()).collect())
    }
}

impl StatusCounters {
    /// Counts a response; `find` finds the counter at its first use.
    pub fn count(&self, status: u16, find: impl FnOnce() -> Counter) {
        if let Some(counter) = self.0.get(usize::from(status)) {
            counter.get_or_init(find).inc();
        }
    }
}
