//! Promise: with `[telemetry]`, each pull has a trace that tells what it waited for. Without a collector nothing waits, and
//! nothing but spans goes there.
//!
//! The collector answers as OpenTelemetry's own does (receiver/otlpreceiver/otlphttp.go of open-telemetry's
//! opentelemetry-collector): 200 with an empty message to `POST /v1/traces`, 401 to who shows no credentials where it wants
//! some, 503 while its queue is full.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;

use crate::support::{
    Fault, Hub, Image, Larder, On, Options, Origin, Page, RepositoryConfig, eventually, get, request,
};

const PATH: &str = "/v1/traces";

/// A collector, with all spans that came so far.
struct Collector {
    origin: Origin,
    spans: Vec<Span>,
    /// The attributes of what sent them.
    resource: HashMap<String, String>,
}

#[derive(Clone, Debug)]
struct Span {
    name: String,
    kind: SpanKind,
    trace: String,
    id: String,
    parent: String,
    state: String,
    links: Vec<String>,
    is_error: bool,
    /// Nanoseconds since 1970.
    from: u64,
    to: u64,
    attributes: HashMap<String, String>,
}

impl Span {
    fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

impl Collector {
    async fn start() -> Self {
        let origin = Origin::http().await;
        origin.put(PATH, Page::new(""));
        Self { origin, spans: Vec::new(), resource: HashMap::new() }
    }

    fn config(&self) -> String {
        format!("[telemetry]\notlp_endpoint = \"{}\"\n", self.origin.url(""))
    }

    fn read(&mut self) {
        for request in self.origin.take_requests() {
            assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", PATH));
            assert_eq!(request.header("content-type"), "application/x-protobuf");
            let message = ExportTraceServiceRequest::decode(request.body).expect("spans");
            for spans in message.resource_spans {
                self.resource = map(spans.resource.expect("a resource").attributes);
                let all = spans.scope_spans.into_iter().flat_map(|spans| spans.spans);
                self.spans.extend(all.map(|span| Span {
                    kind: span.kind(),
                    is_error: span.status.is_some_and(|status| status.code() == StatusCode::Error),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    state: span.trace_state,
                    links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
                    from: span.start_time_unix_nano,
                    to: span.end_time_unix_nano,
                    attributes: map(span.attributes),
                }));
            }
        }
    }

    /// Stops the server, which sends its last spans, and returns all of them.
    async fn all_of(&mut self, mut larder: Larder) -> Vec<Span> {
        assert_eq!(larder.stop().await.code, Some(0));
        self.read();
        self.spans.clone()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn map(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = attributes.into_iter();
    pairs.map(|pair| (pair.key, text(pair.value.and_then(|value| value.value)))).collect()
}

/// The span of the pull of a reference that ends so.
fn pull<'a>(spans: &'a [Span], name: &str, reference: &str) -> &'a Span {
    let is_it = |span: &&Span| span.name == name && span.get("larder.reference").ends_with(reference);
    spans.iter().find(is_it).unwrap_or_else(|| panic!("{name} {reference}: {spans:#?}"))
}

fn of_trace<'a>(spans: &'a [Span], root: &Span) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.trace == root.trace && span.id != root.id).collect()
}

/// The requests to upstreams in a trace, as host and path, in order.
fn asked(spans: &[Span], root: &Span) -> Vec<(String, String)> {
    let mut sent: Vec<_> = of_trace(spans, root).into_iter().filter(|span| span.kind == SpanKind::Client).collect();
    sent.sort_by_key(|span| span.from);
    sent.iter().map(|span| (span.name.clone(), span.get("url.full").to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_one_trace_with_all_that_it_waited_for() {
    let mut collector = Collector::start().await;
    let hub = Hub::start(Options::docker_hub()).await;
    let image = Image::with_layers(1, &[20_000]);
    hub.push_image("team/app", "1", &image);
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string() + &collector.config();
    let larder = Larder::start(config).await;
    let layer = &image.layer_digests()[0];
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    assert!(get(larder.blob_url("hub/team/app", layer)).await.complete());
    assert!(get(larder.blob_url("hub/team/app", layer)).await.complete());
    let spans = collector.all_of(larder).await;

    let manifest = pull(&spans, "GET manifest", "hub/team/app:1");
    assert_eq!((manifest.kind, manifest.parent.as_str(), manifest.is_error), (SpanKind::Server, "", false));
    assert_eq!(manifest.get("larder.cache"), "miss");
    assert_eq!(manifest.get("http.response.status_code"), "200");
    assert_eq!(manifest.get("larder.repository"), "hub");
    assert_eq!(manifest.get("url.path"), "/v2/hub/team/app/manifests/1");
    let sent = asked(&spans, manifest);
    let paths: Vec<_> = sent.iter().map(|(_, url)| url.splitn(4, '/').nth(3).unwrap_or_default()).collect();
    assert!(paths.contains(&"token") && paths.contains(&"v2/team/app/manifests/1"), "{sent:?}");

    let blobs: Vec<_> = spans.iter().filter(|span| span.name == "GET blob").collect();
    let [miss, hit] = blobs[..] else { panic!("{blobs:#?}") };
    let (miss, hit) = if miss.get("larder.cache") == "miss" { (miss, hit) } else { (hit, miss) };
    assert_eq!((miss.get("larder.cache"), hit.get("larder.cache")), ("miss", "hit"));
    assert_ne!(miss.trace, hit.trace);
    assert_eq!(asked(&spans, hit), []);
    let transfer = of_trace(&spans, miss).into_iter().find(|span| span.name == "transfer").expect("a transfer");
    assert_eq!((transfer.parent.as_str(), transfer.get("larder.object")), (miss.id.as_str(), layer.as_str()));
    // The storage's address is a secret for whoever has it: its path is not told, nor any query.
    let sent = asked(&spans, miss);
    assert!(sent.iter().any(|(_, url)| *url == format!("{}/…", hub.storage_url())), "{sent:?}");
    for span in &spans {
        assert!(span.attributes.values().all(|value| !value.contains('?')), "{span:?}");
        assert!(span.from <= span.to);
    }
    assert_eq!(collector.resource.get("service.name").map(String::as_str), Some("larder"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_own_trace_goes_on_and_no_upstream_learns_of_it() {
    let mut collector = Collector::start().await;
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[20_000]);
    hub.push_image("team/app", "1", &image);
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string() + &collector.config();
    let larder = Larder::start(config).await;
    let ask = async |sampled: &str, reference: &str| {
        // As containerd sends it with tracing on: its transport is otelhttp's.
        let parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{sampled}");
        let url = larder.manifest_url("hub/team/app", reference);
        assert_eq!(request("GET", url).header("traceparent", parent).send().await.status, 200);
    };
    ask("00", "1").await;
    ask("01", "1").await;
    let unusable = request("GET", larder.manifest_url("hub/team/app", "1")).header("traceparent", "00-zz-1");
    assert_eq!(unusable.send().await.status, 200);
    let pulls = get(larder.admin_url() + "/api/pulls").await.json();
    let numbers: Vec<_> = pulls["pulls"].as_array().expect("a list").iter().map(|pull| pull["trace"].clone()).collect();
    let spans = collector.all_of(larder).await;
    let requests: Vec<_> = spans.iter().filter(|span| span.name == "GET manifest").collect();
    assert_eq!(requests.len(), 2, "the client did not want the first to be kept: {requests:?}");
    let theirs = "4bf92f3577b34da6a3ce929d0e0e4736";
    let continued = requests.iter().find(|span| span.trace == theirs).expect("the client's trace");
    assert_eq!(continued.parent, "00f067aa0ba902b7");
    let own = requests.iter().find(|span| span.trace != theirs).expect("a trace of its own");
    assert_eq!(own.parent, "");
    assert_eq!(numbers, [own.trace.clone().into(), theirs.into(), serde_json::Value::Null]);
    assert!(hub.requests().iter().all(|request| request.headers.get("traceparent").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_waits_for_anothers_transfer_refers_to_it_and_one_that_leaves_ends_at_once() {
    let mut collector = Collector::start().await;
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[300_000]);
    hub.push_image("team/app", "1", &image);
    let layer = &image.layer_digests()[0];
    let gate = hub.gate(On::blob().get().reference(layer), 1_000);
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string() + &collector.config();
    let larder = Larder::start(config).await;
    let url = larder.blob_url("hub/team/app", layer);
    let first = request("GET", &url).open().await;
    let second = request("GET", &url).open().await;
    drop(first);
    let left = async || {
        let pulls = get(larder.admin_url() + "/api/pulls").await.json();
        pulls["pulls"].as_array().is_some_and(|pulls| pulls.iter().any(|pull| pull["complete"] == false))
    };
    eventually("the first has left", left).await;
    let it_left = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos();
    gate.open();
    assert!(second.read_to_end().await.complete());
    let spans = collector.all_of(larder).await;
    let gone = spans.iter().find(|span| span.get("larder.complete") == "false").expect("the pull that left");
    let stayed = spans.iter().find(|span| span.get("larder.complete") == "true").expect("the pull that stayed");
    let transfer = spans.iter().find(|span| span.name == "transfer").expect("a transfer");
    assert_eq!((transfer.parent.as_str(), &stayed.links[..]), (gone.id.as_str(), &[transfer.id.clone()][..]));
    assert!(gone.is_error && u128::from(gone.to) <= it_left, "{gone:?} {transfer:?}");
    // Until the last byte, not only until the head.
    assert!(u128::from(stayed.to) > it_left && u128::from(transfer.to) > it_left, "{stayed:?} {transfer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_in_the_trace_with_its_kind() {
    let mut collector = Collector::start().await;
    let hub = Hub::start(Options::default()).await;
    hub.fault(On::manifest(), Fault::status(500));
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string() + &collector.config();
    let larder = Larder::start(config).await;
    let status = get(larder.manifest_url("hub/team/app", "1")).await.status;
    assert!(status >= 500);
    let spans = collector.all_of(larder).await;
    let failed = pull(&spans, "GET manifest", "hub/team/app:1");
    assert!(failed.is_error);
    assert_eq!(failed.get("http.response.status_code"), status.to_string());
    let of_upstream = of_trace(&spans, failed).into_iter().filter(|span| span.kind == SpanKind::Client);
    for span in of_upstream {
        assert!(span.is_error && span.get("http.response.status_code") == "500", "{span:?}");
    }
}

/// Pulls that wait for the same question refer to it.
#[tokio::test(flavor = "multi_thread")]
async fn what_pulls_share_is_found_from_each_of_their_traces() {
    let mut collector = Collector::start().await;
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[20_000]);
    hub.push_image("team/app", "1", &image);
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    let larder = Larder::start(repository + &collector.config()).await;
    let held = hub.hold(On::manifest().head());
    let url = larder.manifest_url("hub/team/app", "1");
    let pulls = [(); 20].map(|()| tokio::spawn(request("GET", &url).send()));
    held.reached().await;
    let all_wait = async || {
        let metrics = larder.metrics().await;
        let open = metrics.lines().find_map(|line| line.strip_prefix("larder_connections ")?.parse::<usize>().ok());
        open.is_some_and(|open| open >= pulls.len())
    };
    eventually("all have come", all_wait).await;
    held.open();
    for pull in pulls {
        assert_eq!(pull.await.expect("no panic").status, 200);
    }
    let spans = collector.all_of(larder).await;
    let shared: Vec<_> = spans.iter().filter(|span| span.name == "ask once for all").map(|span| &span.id).collect();
    let joined =
        spans.iter().find(|span| span.name == "GET manifest" && span.links.iter().any(|id| shared.contains(&id)));
    assert_eq!(asked(&spans, joined.expect("one that waited for another's question")), []);
}

/// A client that asks with a long path, a method of its own and a `tracestate` of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_does_not_decide_how_large_or_how_many_spans_are() {
    let mut collector = Collector::start().await;
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[20_000]));
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string() + &collector.config();
    let larder = Larder::start(config).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let ask = async |larder: &Larder, method: &str, tag: &str| {
        let request = request(method, larder.manifest_url("hub/team/app", tag)).header("traceparent", parent);
        request.header("tracestate", format!("other={}", "x".repeat(200))).send().await.status
    };
    assert_eq!(ask(&larder, &"X".repeat(5_000), "1").await, 405);
    assert_eq!(ask(&larder, "GET", &"y".repeat(5_000)).await, 400);
    assert_eq!(ask(&larder, "GET", "1").await, 200);
    let spans = collector.all_of(larder).await;
    assert!(spans.iter().any(|span| span.name == "_OTHER manifest"), "{spans:#?}");
    for span in &spans {
        let longest = span.attributes.values().map(String::len).max().unwrap_or_default();
        assert!(longest <= 600 && span.name.len() < 100 && span.state.is_empty(), "{span:?}");
    }
    let mut collector = Collector::start().await;
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string() + &collector.config() + "sampling = 0\n";
    let larder = Larder::start(config).await;
    assert_eq!(ask(&larder, "GET", "1").await, 200);
    assert_eq!(collector.all_of(larder).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn none_of_the_traces_are_kept_at_sampling_0() {
    let mut collector = Collector::start().await;
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[20_000]));
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string() + &collector.config() + "sampling = 0\n";
    let larder = Larder::start(config).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    assert_eq!(collector.all_of(larder).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_collector_the_server_goes_on_and_says_once_what_is_wrong() {
    let collector = Collector::start().await;
    collector.origin.put(PATH, Page::new("").status(401));
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[20_000]));
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string() + &collector.config();
    let larder = Larder::builder().config(config).env("OTEL_BSP_SCHEDULE_DELAY", "20").start().await;
    let said = async |what: &str| {
        eventually(what, async || {
            assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
            larder.log().contains(what)
        })
        .await;
    };
    said("credentials are set by the variable OTEL_EXPORTER_OTLP_HEADERS").await;
    let refused = std::sync::atomic::AtomicUsize::new(0);
    eventually("several batches are refused", async || {
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
        let more = collector.origin.take_requests().len();
        refused.fetch_add(more, std::sync::atomic::Ordering::Relaxed) + more >= 3
    })
    .await;
    collector.origin.put(PATH, Page::new(""));
    said("traces are sent again").await;
    assert_eq!(larder.log().matches("traces cannot be sent").count(), 1, "{}", larder.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_the_collector_come_from_the_environment_and_are_in_no_log() {
    let collector = Collector::start().await;
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[20_000]));
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string()
        + &collector.config()
        + "[logging]\nlevel = \"trace\"\n";
    let secret = "Authorization=Bearer%20c0llect0r";
    let builder = Larder::builder().config(config).env("OTEL_EXPORTER_OTLP_HEADERS", secret);
    let mut larder = builder.env("OTEL_SERVICE_NAME", "cache-7").start().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    assert_eq!(larder.stop().await.code, Some(0));
    assert!(!larder.log().contains("c0llect0r"));
    // A line of the log is as it is without traces.
    assert!(!larder.log().contains("request{"), "{}", larder.log());
    let sent = collector.origin.take_requests();
    assert!(!sent.is_empty() && sent.iter().all(|request| request.header("authorization") == "Bearer c0llect0r"));
    let message = ExportTraceServiceRequest::decode(sent[0].body.clone()).expect("spans");
    let resource = message.resource_spans[0].resource.clone().expect("a resource");
    assert_eq!(map(resource.attributes)["service.name"], "cache-7");
}
