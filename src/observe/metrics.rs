//! The metrics of Larder: one struct, handed to all code that counts. No globals.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::counters::{AnswerTimes, RepositoryCounters, StatusCounters};
use super::lines::LogHealth;
pub use super::outcome::{Kind, Outcome};
use super::pulls::Pulls;

/// Upper bounds of the buckets of times to the head of a response, in seconds: from a hit in memory to the longest that
/// a client waits.
const HEAD_SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0];

/// The labels of answered requests for content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub repository: Arc<str>,
    pub kind: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReloadLabel {
    result: &'static str,
}

/// The label of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct NameLabel {
    name: String,
}

/// An upstream and the account with which it is asked: a user name, or `anonymous`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AccountLabels {
    upstream: String,
    account: String,
}

/// The label of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RepositoryLabel {
    pub repository: Arc<str>,
}

/// The label of images whose rest was to come in behind a pull.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PrefetchLabel {
    result: &'static str,
}

/// The labels of requests to upstreams.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabels {
    pub upstream: String,
    /// The status code, or the failure because of which there is none.
    pub result: String,
}

/// The labels of the times until the head of a response to a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AnswerLabels {
    kind: &'static str,
    outcome: &'static str,
}

/// The labels of the times until the head of an upstream's response.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HeadLabels {
    upstream: String,
    /// `2xx` and so on, or the failure because of which there is no response.
    result: &'static str,
}

/// Times until the head of a response, by labels.
#[derive(Clone, Debug)]
pub(super) struct HeadTimes<L>(pub(super) Family<L, Histogram, fn() -> Histogram>);

impl<L: Clone + std::hash::Hash + Eq> Default for HeadTimes<L> {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(HEAD_SECONDS)))
    }
}

/// The labels of requests to the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct S3Labels {
    operation: &'static str,
    /// The status code, or the failure because of which there is none.
    result: String,
}

/// The label of responses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabel {
    pub status: u16,
}

/// All metrics. Cloning a family or counter shares it.
#[derive(Debug, Default)]
pub struct Metrics {
    pub requests: Family<RequestLabels, Counter>,
    pub responses: Family<StatusLabel, Counter>,
    pub bytes_served: Family<RepositoryLabel, Counter>,
    pub bytes_fetched: Family<RepositoryLabel, Counter>,
    /// Content of whole responses from the cache.
    pub bytes_saved: Family<RepositoryLabel, Counter>,
    pub(super) answer_times: HeadTimes<AnswerLabels>,
    /// The counters of hosts that the configuration does not name.
    pub other_hosts: Arc<RepositoryCounters>,
    found_times: AnswerTimes,
    found_responses: StatusCounters,
    pub(super) upstream_times: HeadTimes<HeadLabels>,
    pub(super) config_reloads: Family<ReloadLabel, Counter>,
    pub(super) certificates: Family<NameLabel, Gauge<i64>>,
    /// The names in `certificates`.
    certificate_names: Mutex<HashSet<String>>,
    pub(super) quota_limit: Family<AccountLabels, Gauge>,
    pub(super) quota_remaining: Family<AccountLabels, Gauge>,
    pub upstream_requests: Family<UpstreamLabels, Counter>,
    pub(super) s3_requests: Family<S3Labels, Counter>,
    /// Content that was sent to the bucket.
    pub s3_bytes_sent: Counter,
    /// Content that came from the bucket.
    pub s3_bytes_received: Counter,
    /// Content that came from other replicas.
    pub replica_bytes_received: Counter,
    /// Replicas that are alive, this one included; 0 where Larder is alone.
    pub replicas: Gauge,
    /// Objects in the bucket, and their bytes.
    pub s3_objects: Gauge<i64>,
    pub s3_bytes: Gauge<i64>,
    /// Objects that wait for their upload, or are being uploaded.
    pub s3_uploads_waiting: Gauge,
    pub fills_started: Counter,
    pub fills_running: Gauge,
    /// Requests that joined a fill that another request had begun.
    pub coalesced: Counter,
    pub(super) prefetched: Family<PrefetchLabel, Counter>,
    /// Content that came in behind pulls.
    pub bytes_prefetched: Counter,
    pub stores: Counter,
    /// Objects that were served without being stored, because of Larder's own disk or its limits.
    pub unstored: Counter,
    pub evictions: Counter,
    /// Failures of the cache itself: disk or index.
    pub errors: Counter,
    pub cache_bytes: Gauge<i64>,
    pub cache_objects: Gauge<i64>,
    pub index_bytes: Gauge<i64>,
    /// Bytes that an empty disk would have for objects, by the limits of the configuration.
    pub cache_limit: Gauge<i64>,
    pub disk_bytes: Gauge<i64>,
    pub disk_free: Gauge<i64>,
    /// Changes to the index that were dropped because too many waited or the disk was full.
    pub index_writes_dropped: Counter,
    /// Whether the log is written.
    pub log: LogHealth,
    pub connections: Gauge,
    /// Hits, misses and stale responses of all repositories, for the statistics page.
    pub hits: Counter<u64, AtomicU64>,
    pub misses: Counter<u64, AtomicU64>,
    pub stale: Counter<u64, AtomicU64>,
    /// The last requests for content, for the API and the dashboard.
    pub pulls: Pulls,
}

impl Metrics {
    /// Creates the metrics of a process with this log.
    pub fn new(log: LogHealth) -> Self {
        Self { log, ..Self::default() }
    }

    /// Counts one answered request for content, and notes how long its client waited for the head of the response.
    pub fn answered(&self, of: &RepositoryCounters, kind: Kind, outcome: Outcome, took: Duration) {
        let (kind_word, outcome_word) = (kind.as_str(), outcome.as_str());
        let find = || {
            let labels = RequestLabels { repository: of.label.clone(), kind: kind_word, outcome: outcome_word };
            self.requests.get_or_create_owned(&labels)
        };
        of.requests[kind as usize][outcome as usize].get_or_init(find).inc();
        let find = || self.answer_times.0.get_or_create_owned(&AnswerLabels { kind: kind_word, outcome: outcome_word });
        self.found_times.of(kind, outcome, find).observe(took.as_secs_f64());
        match outcome {
            Outcome::Hit => self.hits.inc(),
            Outcome::Miss => self.misses.inc(),
            Outcome::Stale => self.stale.inc(),
            Outcome::Failed => 0,
        };
    }

    /// Counts a response by its status.
    pub fn responded(&self, status: u16) {
        self.found_responses.count(status, || self.responses.get_or_create_owned(&StatusLabel { status }));
    }

    /// Counts content that was sent to a client. `is_saved`: it is a whole response from the cache.
    pub fn served(&self, of: &RepositoryCounters, bytes: u64, is_saved: bool) {
        let find = |family: &Family<RepositoryLabel, Counter>| {
            family.get_or_create_owned(&RepositoryLabel { repository: of.label.clone() })
        };
        of.bytes_served.get_or_init(|| find(&self.bytes_served)).inc_by(bytes);
        if is_saved {
            of.bytes_saved.get_or_init(|| find(&self.bytes_saved)).inc_by(bytes);
        }
    }

    /// Counts content that was received from an upstream.
    pub fn fetched(&self, of: &RepositoryCounters, bytes: u64) {
        let label = || RepositoryLabel { repository: of.label.clone() };
        of.bytes_fetched.get_or_init(|| self.bytes_fetched.get_or_create_owned(&label())).inc_by(bytes);
    }

    /// Counts an image whose rest was to come in behind a pull, by what came of it.
    pub fn prefetch_ended(&self, result: &'static str) {
        self.prefetched.get_or_create(&PrefetchLabel { result }).inc();
    }

    /// Shows all results of [`Self::prefetch_ended`] from the start.
    pub fn prefetch_may_end(&self, results: &[&'static str]) {
        results.iter().for_each(|&result| drop(self.prefetched.get_or_create(&PrefetchLabel { result })));
    }

    /// Counts one request to an upstream, and how long it took until the head of the response, or until it failed.
    pub fn asked_upstream(&self, upstream: &str, result: Result<StatusCode, &'static str>, took: Duration) {
        let (result, class) = match &result {
            Ok(status) => (status.as_str(), class(*status)),
            Err(failure) => (*failure, *failure),
        };
        let labels = UpstreamLabels { upstream: upstream.to_owned(), result: result.to_owned() };
        self.upstream_requests.get_or_create(&labels).inc();
        let labels = HeadLabels { upstream: upstream.to_owned(), result: class };
        self.upstream_times.0.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts one request to the bucket.
    pub fn asked_s3(&self, operation: &'static str, result: String) {
        self.s3_requests.get_or_create(&S3Labels { operation, result }).inc();
    }

    /// Sets the rate limit of an upstream, and what is left of it.
    pub fn quota(&self, upstream: &str, account: &str, limit: u64, remaining: u64) {
        let labels = AccountLabels { upstream: upstream.to_owned(), account: account.to_owned() };
        let clamp = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.quota_limit.get_or_create(&labels).set(clamp(limit));
        self.quota_remaining.get_or_create(&labels).set(clamp(remaining));
    }

    /// Counts that the configuration was read again. `is_used`: whether it could be used.
    pub fn reloaded(&self, is_used: bool) {
        let result = if is_used { "used" } else { "refused" };
        self.config_reloads.get_or_create(&ReloadLabel { result }).inc();
    }

    /// Sets the time at which a certificate of the registry door expires.
    pub fn certificate(&self, name: &str, until: SystemTime) {
        let seconds = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let gauge = self.certificates.get_or_create(&NameLabel { name: name.to_owned() }).clone();
        gauge.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        self.certificate_names().insert(name.to_owned());
    }

    /// Shows no other certificates than these any more. Those that stay are shown all the time.
    pub fn keep_certificates(&self, names: &HashSet<String>) {
        for gone in self.certificate_names().extract_if(|name| !names.contains(name)) {
            self.certificates.remove(&NameLabel { name: gone });
        }
    }

    fn certificate_names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.certificate_names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the class of a status, as a label.
fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_shown_until_it_is_gone() {
        let metrics = Metrics::default();
        let shown =
            |name: &str| metrics.certificates.get(&NameLabel { name: name.to_owned() }).map(|gauge| gauge.get());
        for name in ["old", "kept"] {
            metrics.certificate(name, SystemTime::UNIX_EPOCH + Duration::from_secs(7));
        }
        metrics.keep_certificates(&["kept".to_owned()].into());
        assert_eq!((shown("old"), shown("kept")), (None, Some(7)));
        metrics.certificate("old", SystemTime::UNIX_EPOCH + Duration::from_secs(9));
        metrics.keep_certificates(&["old".to_owned()].into());
        assert_eq!((shown("old"), shown("kept")), (Some(9), None));
    }
}
