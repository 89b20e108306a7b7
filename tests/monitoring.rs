//! Promise: what Larder tells about itself can be scraped, graphed and alerted on as Prometheus' users are used to.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::clients;
use crate::support::bucket::S3;
use crate::support::{Authority, Hub, Image, Larder, Options, RateLimit, RepositoryConfig, eventually, get, request};

/// Prometheus 2.42 (Debian 12), as seen on the wire.
const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// The alerts, and the dashboard.
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// A Larder that had something of everything to do: hits, misses, an absence, an outage.
async fn busy() -> (Hub, Larder) {
    let rate_limit = Some(RateLimit { pulls: 100, ..RateLimit::default() });
    let mut hub = Hub::start(Options { rate_limit, ..Options::default() }).await;
    let image = Image::with_layers(1, &[100 << 10]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(RepositoryConfig::new("hub").upstream(&hub)).await;
    for _ in 0..2 {
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
        for digest in image.layer_digests().iter().chain([&image.config_digest()]) {
            assert!(get(larder.blob_url("hub/team/app", digest)).await.complete());
        }
        let blobs = image.layer_digests();
        eventually("it is stored", async || larder.has_stored(&blobs).await).await;
    }
    assert_eq!(get(larder.manifest_url("hub/team/app", "none")).await.status, 404);
    hub.stop().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    (hub, larder)
}

/// Runs promtool (https://prometheus.io/docs/prometheus/latest/command-line/promtool/) on a text.
fn promtool(arguments: &[&str], directory: &Path, input: &str) -> Output {
    let mut command = Command::new(clients::program("promtool", "prometheus"));
    command.args(arguments).current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().expect("promtool starts");
    running.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("promtool reads");
    running.wait_with_output().expect("promtool ends")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_the_metrics() {
    let (_hub, larder) = busy().await;
    let metrics = larder.metrics().await;
    let checked = promtool(&["check", "metrics"], larder.home(), &metrics);
    assert!(checked.status.success() && said(&checked).is_empty(), "{}\n{metrics}", said(&checked));
    for begin in [
        "larder_build_info{version=\"",
        "larder_response_head_seconds_bucket{le=\"+Inf\",kind=\"blob\",outcome=\"hit\"} ",
        "larder_response_head_seconds_count{kind=\"manifest\",outcome=\"stale\"} 1",
        "larder_upstream_response_head_seconds_bucket{le=\"0.1\",",
        "larder_upstream_up{repository=\"hub\",upstream=\"127.0.0.1:",
        "larder_disk_free_bytes ",
        "larder_disk_bytes ",
        "larder_cache_limit_bytes ",
        "larder_fills_running 0",
        "larder_index_writes_dropped_total 0",
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_max_fds ",
        "process_start_time_seconds ",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(begin)), "{begin}\n{metrics}");
    }
    let is_down = |line: &str| line.starts_with("larder_upstream_up{") && line.ends_with(" 0");
    assert!(metrics.lines().any(is_down), "the upstream is down: {metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_in_the_form_that_the_scraper_asks_for() {
    let (_hub, larder) = busy().await;
    let url = format!("{}/metrics", larder.admin_url());
    let plain = get(&url).await;
    assert_eq!(plain.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(!plain.text().contains("# EOF") && plain.text().contains("# TYPE larder_fills_total counter"));
    let open = request("GET", &url).header("accept", PROMETHEUS_2).send().await;
    assert_eq!(open.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.text().ends_with("# EOF\n") && open.text().contains("# TYPE larder_fills counter"));
    // The figures go on between the two.
    let series = |text: String| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.rsplit_once(' ').expect("a value").0.to_owned()).collect::<BTreeSet<_>>()
    };
    assert!(series(plain.text()) == series(open.text()), "both have the same series");
}

#[test]
fn the_alerts_are_valid_and_come_when_they_should() {
    let rules = Path::new(DEPLOY).join("prometheus");
    for arguments in [&["check", "rules", "alerts.yaml"][..], &["test", "rules", "alerts_test.yaml"]] {
        let checked = promtool(arguments, &rules, "");
        assert!(checked.status.success(), "{}", said(&checked));
    }
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
    let is_metric = |word: &&str| word.starts_with("larder_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

/// The expressions in a dashboard.
fn expressions(dashboard: &Value) -> Vec<String> {
    match dashboard {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value) {
                ("expr" | "query", Value::String(expression)) => vec![expression.clone()],
                _ => expressions(value),
            })
            .collect(),
        Value::Array(values) => values.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_and_the_alerts_name_metrics_that_there_are() {
    let (_hub, busy) = busy().await;
    // One with a bucket, a certificate, and with a change of the configuration that was refused.
    let dir = tempfile::tempdir().expect("a directory");
    let certificate = Authority::new(dir.path(), "ca").issue("mirror.test");
    let (chain, key) = (certificate.certificate.display().to_string(), certificate.key.display().to_string());
    let tls = format!("[server.tls]\ncertificate = {chain:?}\nprivate_key = {key:?}\n");
    let s3 = S3::start().await;
    let mut other = Larder::start(format!("{}{tls}", s3.config(""))).await;
    eventually("the bucket was probed", async || other.metrics().await.contains("larder_s3_requests_total{")).await;
    other.write_config("[sever]");
    eventually("it is refused", async || other.metrics().await.contains("larder_config_reloads_total{")).await;
    let series = busy.metrics().await + &other.metrics().await;
    let there: BTreeSet<_> = series
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned())
        .collect();

    let read = |file: &str| std::fs::read_to_string(Path::new(DEPLOY).join(file)).expect("readable");
    let dashboard: Value = serde_json::from_str(&read("grafana/larder.json")).expect("JSON");
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 30, "{expressions:?}");
    for (file, text) in [("the dashboard", expressions.join("\n")), ("the alerts", read("prometheus/alerts.yaml"))] {
        let named = names(&text);
        assert!(named.len() > 10, "{file}: {named:?}");
        let missing: Vec<_> = named.difference(&there).collect();
        assert!(missing.is_empty(), "{file} names metrics that there are not: {missing:?}");
    }
    // The documents leave the ends of histograms out.
    let document = include_str!("../docs/monitoring.md").to_owned() + include_str!("../docs/api.md");
    let is_there = |name: &String| there.contains(name) || there.contains(&format!("{name}_count"));
    let missing: Vec<_> = names(&document).into_iter().filter(|name| !name.ends_with('_') && !is_there(name)).collect();
    assert!(missing.is_empty(), "the documents name metrics that there are not: {missing:?}");
}
