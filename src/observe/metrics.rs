//! The metrics of Larder: one struct, handed to all code that counts. No globals.

use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// The kind of content that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Blob,
    Manifest,
    Listing,
    /// Content of servers that are no registries.
    Other,
}

impl Kind {
    /// Returns the value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
            Self::Listing => "listing",
            Self::Other => "other",
        }
    }
}

/// How a request for content was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Hit,
    Miss,
    Stale,
    Failed,
}

impl Outcome {
    /// Returns the value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Failed => "failed",
        }
    }
}

/// The labels of answered requests for content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub repository: String,
    pub kind: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabel {
    result: &'static str,
}

/// The label of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    name: String,
}

/// An upstream and the account with which it is asked: a user name, or `anonymous`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccountLabels {
    upstream: String,
    account: String,
}

/// The label of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RepositoryLabel {
    pub repository: String,
}

/// The labels of requests to upstreams.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabels {
    pub upstream: String,
    /// The status code, or the failure because of which there is none.
    pub result: String,
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
    config_reloads: Family<ReloadLabel, Counter>,
    certificates: Family<NameLabel, Gauge<i64>>,
    quota_limit: Family<AccountLabels, Gauge>,
    quota_remaining: Family<AccountLabels, Gauge>,
    pub upstream_requests: Family<UpstreamLabels, Counter>,
    pub fills_started: Counter,
    pub fills_running: Gauge,
    /// Requests that joined a fill that another request had begun.
    pub coalesced: Counter,
    pub stores: Counter,
    /// Objects that were served without being stored, because of Larder's own disk or its limits.
    pub unstored: Counter,
    pub evictions: Counter,
    /// Failures of the cache itself: disk or index.
    pub errors: Counter,
    pub cache_bytes: Gauge<i64>,
    pub cache_objects: Gauge<i64>,
    pub index_bytes: Gauge<i64>,
    /// Changes to the index that were dropped because too many waited or the disk was full.
    pub index_writes_dropped: Counter,
    pub connections: Gauge,
    /// Hits, misses and stale responses of all repositories, for the statistics page.
    pub hits: Counter<u64, AtomicU64>,
    pub misses: Counter<u64, AtomicU64>,
    pub stale: Counter<u64, AtomicU64>,
}

impl Metrics {
    /// Counts one answered request for content.
    pub fn answered(&self, repository: &str, kind: Kind, outcome: Outcome) {
        let labels =
            RequestLabels { repository: repository.to_owned(), kind: kind.as_str(), outcome: outcome.as_str() };
        self.requests.get_or_create(&labels).inc();
        match outcome {
            Outcome::Hit => self.hits.inc(),
            Outcome::Miss => self.misses.inc(),
            Outcome::Stale => self.stale.inc(),
            Outcome::Failed => 0,
        };
    }

    /// Counts content that was sent to a client.
    pub fn served(&self, repository: &str, bytes: u64) {
        self.bytes_served.get_or_create(&RepositoryLabel { repository: repository.to_owned() }).inc_by(bytes);
    }

    /// Counts content that was received from an upstream.
    pub fn fetched(&self, repository: &str, bytes: u64) {
        self.bytes_fetched.get_or_create(&RepositoryLabel { repository: repository.to_owned() }).inc_by(bytes);
    }

    /// Counts one request to an upstream.
    pub fn asked_upstream(&self, upstream: &str, result: &str) {
        let labels = UpstreamLabels { upstream: upstream.to_owned(), result: result.to_owned() };
        self.upstream_requests.get_or_create(&labels).inc();
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
    }

    /// Forgets all certificates: none of them is shown any more.
    pub fn forget_certificates(&self) {
        self.certificates.clear();
    }

    /// Returns all metrics in the Prometheus text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("larder");
        let r = &mut registry;
        r.register("requests", "Requests for content by repository, kind and outcome", self.requests.clone());
        r.register("responses", "Responses of the registry door by status", self.responses.clone());
        r.register_with_unit("served", "Content sent to clients", Unit::Bytes, self.bytes_served.clone());
        r.register_with_unit("fetched", "Content received from upstreams", Unit::Bytes, self.bytes_fetched.clone());
        r.register("upstream_requests", "Requests sent to upstreams by result", self.upstream_requests.clone());
        r.register("upstream_ratelimit_limit", "Pulls in a window that an upstream allows", self.quota_limit.clone());
        r.register("upstream_ratelimit_remaining", "Pulls that are left of it", self.quota_remaining.clone());
        r.register("fills", "Transfers begun from upstream", self.fills_started.clone());
        r.register("fills_running", "Transfers from upstream under way", self.fills_running.clone());
        r.register("coalesced", "Requests that joined a running transfer", self.coalesced.clone());
        r.register("stores", "Objects stored", self.stores.clone());
        r.register("unstored", "Objects not stored for want of room or a working disk", self.unstored.clone());
        r.register("evictions", "Objects removed to make room", self.evictions.clone());
        r.register("errors", "Failures of the cache's own disk or index", self.errors.clone());
        r.register_with_unit("cache", "Size of the stored objects", Unit::Bytes, self.cache_bytes.clone());
        r.register("cache_objects", "Stored objects", self.cache_objects.clone());
        r.register_with_unit("index", "Disk that the index needs", Unit::Bytes, self.index_bytes.clone());
        r.register("index_writes_dropped", "Changes to the index that were lost", self.index_writes_dropped.clone());
        r.register(
            "config_reloads",
            "Changes of the configuration that were used or refused",
            self.config_reloads.clone(),
        );
        let about = "When certificates of the registry door end, in seconds since 1970";
        r.register("certificate_expiry_timestamp_seconds", about, self.certificates.clone());
        r.register("connections", "Open client connections", self.connections.clone());
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_readable_by_prometheus() {
        let metrics = Metrics::default();
        metrics.answered("docker.io", Kind::Blob, Outcome::Hit);
        metrics.served("docker.io", 7);
        let text = metrics.encode().expect("encoded");
        assert!(
            text.contains(r#"larder_requests_total{repository="docker.io",kind="blob",outcome="hit"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"larder_served_bytes_total{repository="docker.io"} 7"#), "{text}");
    }
}
