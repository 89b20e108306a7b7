//! What a scrape finds: all metrics by their names, those of the process and of the upstreams among them.
//!
//! Names follow Prometheus' conventions (https://prometheus.io/docs/practices/naming/): base units, `_total` for what
//! only grows, `process_*` as in each of its own libraries.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::metrics::Metrics;
use super::process::Process;

/// What is read only when it is asked for.
#[derive(Debug, Default)]
pub struct Scraped {
    process: Option<Process>,
    /// Whether each upstream, by repository, host and port, answered when it was last asked.
    upstreams: BTreeMap<(String, String), bool>,
}

/// An upstream of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamOfLabels {
    repository: String,
    upstream: String,
}

impl Scraped {
    /// Begins with the process; `None`: `/proc` cannot be read.
    pub fn new(process: Option<Process>) -> Self {
        Self { process, upstreams: BTreeMap::new() }
    }

    /// Adds an upstream (host and port) of a repository. `is_up`: whether it answered when it was last asked.
    pub fn add_upstream(&mut self, repository: &str, upstream: &str, is_up: bool) {
        let all_are_up = self.upstreams.entry((repository.to_owned(), upstream.to_owned())).or_insert(true);
        // A repository may name one host twice, with other credentials: then both have to answer.
        *all_are_up &= is_up;
    }

    /// Returns all metrics.
    pub fn with(&self, metrics: &Metrics) -> Registry {
        let mut registry = Registry::default();
        let larder = registry.sub_registry_with_prefix("larder");
        let build = [("version", env!("CARGO_PKG_VERSION")), ("architecture", std::env::consts::ARCH)];
        larder.register("build", "The running program", Info::new(build));
        traffic(larder, metrics);
        upstreams(larder, metrics, &self.upstreams);
        bucket(larder, metrics);
        replicas(larder, metrics);
        cache(larder, metrics);
        instance(larder, metrics);
        if let Some(process) = &self.process {
            of_process(&mut registry, process);
        }
        registry
    }
}

fn traffic(r: &mut Registry, metrics: &Metrics) {
    r.register("requests", "Requests for content by repository, kind and outcome", metrics.requests.clone());
    r.register("responses", "Responses of the registry door and the proxy door by status", metrics.responses.clone());
    let about = "Time until the head of the response to a request for content";
    r.register_with_unit("response_head", about, Unit::Seconds, metrics.answer_times.0.clone());
    r.register_with_unit("served", "Content sent to clients", Unit::Bytes, metrics.bytes_served.clone());
    r.register_with_unit("fetched", "Content received from upstreams", Unit::Bytes, metrics.bytes_fetched.clone());
    let about = "Content of whole responses from the cache";
    r.register_with_unit("saved", about, Unit::Bytes, metrics.bytes_saved.clone());
    r.register("connections", "Open client connections", metrics.connections.clone());
}

fn upstreams(r: &mut Registry, metrics: &Metrics, known: &BTreeMap<(String, String), bool>) {
    r.register("upstream_requests", "Requests sent to upstreams by result", metrics.upstream_requests.clone());
    let about = "Time until the head of an upstream's response, or until the request failed";
    r.register_with_unit("upstream_response_head", about, Unit::Seconds, metrics.upstream_times.0.clone());
    let up = Family::<UpstreamOfLabels, Gauge>::default();
    for ((repository, upstream), is_up) in known {
        let labels = UpstreamOfLabels { repository: repository.clone(), upstream: upstream.clone() };
        up.get_or_create(&labels).set(i64::from(*is_up));
    }
    r.register("upstream_up", "Whether an upstream answered when it was last asked", up);
    r.register("upstream_ratelimit_limit", "Pulls in a window that an upstream allows", metrics.quota_limit.clone());
    r.register("upstream_ratelimit_remaining", "Pulls that are left of it", metrics.quota_remaining.clone());
}

fn bucket(r: &mut Registry, metrics: &Metrics) {
    let about = "Requests sent to the bucket of [storage.s3] by operation and result";
    r.register("s3_requests", about, metrics.s3_requests.clone());
    r.register_with_unit("s3_sent", "Content sent to the bucket", Unit::Bytes, metrics.s3_bytes_sent.clone());
    let about = "Content received from the bucket";
    r.register_with_unit("s3_received", about, Unit::Bytes, metrics.s3_bytes_received.clone());
    r.register("s3_objects", "Objects in the bucket", metrics.s3_objects.clone());
    r.register_with_unit("s3", "Size of the objects in the bucket", Unit::Bytes, metrics.s3_bytes.clone());
    let about = "Objects that wait for their upload to the bucket, or are being uploaded";
    r.register("s3_uploads_waiting", about, metrics.s3_uploads_waiting.clone());
}

fn replicas(r: &mut Registry, metrics: &Metrics) {
    r.register("replicas", "Replicas that are alive, this one included; 0 without [cluster]", metrics.replicas.clone());
    let about = "Content received from other replicas";
    r.register_with_unit("replica_received", about, Unit::Bytes, metrics.replica_bytes_received.clone());
}

fn cache(r: &mut Registry, metrics: &Metrics) {
    r.register("fills", "Transfers begun from upstream", metrics.fills_started.clone());
    r.register("fills_running", "Transfers from upstream under way", metrics.fills_running.clone());
    r.register("coalesced", "Requests that joined a running transfer", metrics.coalesced.clone());
    let about = "Images whose rest was to come in behind a pull, by what came of it";
    r.register("prefetch_images", about, metrics.prefetched.clone());
    let about = "Content that came in behind pulls";
    r.register_with_unit("prefetch", about, Unit::Bytes, metrics.bytes_prefetched.clone());
    r.register("stores", "Objects stored", metrics.stores.clone());
    r.register("unstored", "Objects not stored for want of room or a working disk", metrics.unstored.clone());
    r.register("evictions", "Objects removed to make room", metrics.evictions.clone());
    r.register("errors", "Failures of the cache's own disk or index", metrics.errors.clone());
    r.register_with_unit("cache", "Size of the stored objects", Unit::Bytes, metrics.cache_bytes.clone());
    r.register("cache_objects", "Stored objects", metrics.cache_objects.clone());
    let about = "Most that stored objects may take by max_size and min_free on an empty disk";
    r.register_with_unit("cache_limit", about, Unit::Bytes, metrics.cache_limit.clone());
    let about = "Size of the filesystem of the cache directory";
    r.register_with_unit("disk", about, Unit::Bytes, metrics.disk_bytes.clone());
    r.register_with_unit("disk_free", "Free space on that filesystem", Unit::Bytes, metrics.disk_free.clone());
    r.register_with_unit("index", "Disk that the index needs", Unit::Bytes, metrics.index_bytes.clone());
    r.register("index_writes_dropped", "Changes to the index that were lost", metrics.index_writes_dropped.clone());
}

fn instance(r: &mut Registry, metrics: &Metrics) {
    r.register("log_lines_dropped", "Lines of the log that could not be written", metrics.log.lost.clone());
    let about = "Changes of the configuration that were used or refused";
    r.register("config_reloads", about, metrics.config_reloads.clone());
    let about = "When certificates of the registry door end, in seconds since 1970";
    r.register("certificate_expiry_timestamp_seconds", about, metrics.certificates.clone());
}

fn of_process(r: &mut Registry, process: &Process) {
    let r = r.sub_registry_with_prefix("process");
    let cpu = Counter::<f64, AtomicU64>::default();
    cpu.inc_by(process.cpu.as_secs_f64());
    r.register_with_unit("cpu", "Time that the processors worked for the process", Unit::Seconds, cpu);
    let gauge = |value: u64| {
        let gauge = Gauge::<i64, AtomicI64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge
    };
    r.register_with_unit("resident_memory", "Memory in use", Unit::Bytes, gauge(process.resident));
    r.register_with_unit("virtual_memory", "Address space in use", Unit::Bytes, gauge(process.virtual_memory));
    r.register("open_fds", "Open file descriptors", gauge(process.open_descriptors));
    if let Some(most) = process.most_descriptors {
        r.register("max_fds", "Most file descriptors", gauge(most));
    }
    let started = Gauge::<f64, AtomicU64>::default();
    started.set(process.started);
    r.register_with_unit("start_time", "When the process started, in seconds since 1970", Unit::Seconds, started);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::observe::metrics::{Kind, Outcome};
    use crate::observe::{Format, RepositoryCounters};

    #[test]
    fn the_figures_are_readable_by_prometheus() {
        let metrics = Metrics::default();
        let counters = RepositoryCounters::new("docker.io");
        metrics.answered(&counters, Kind::Blob, Outcome::Hit, Duration::ZERO);
        metrics.served(&counters, 7, true);
        let mut scraped = Scraped::new(None);
        for (host, is_up) in [("a", true), ("b", true), ("b", false)] {
            scraped.add_upstream("docker.io", host, is_up);
        }
        let text = Format::Text.write(&scraped.with(&metrics)).expect("written");
        for line in [
            r#"larder_requests_total{repository="docker.io",kind="blob",outcome="hit"} 1"#,
            r#"larder_served_bytes_total{repository="docker.io"} 7"#,
            r#"larder_saved_bytes_total{repository="docker.io"} 7"#,
            r#"larder_upstream_up{repository="docker.io",upstream="a"} 1"#,
            r#"larder_upstream_up{repository="docker.io",upstream="b"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
