//! Promise: what Larder tells about itself can be scraped, graphed and alerted on as Prometheus' users are used to.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::clients;
use crate::support::{Hub, Image, Larder, Options, RepositoryConfig, eventually, get, request};

/// Prometheus 2.42 (Debian 12), as seen on the wire.
const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// A Larder that had something of everything to do: hits, misses, an absence, an outage.
async fn busy() -> (Hub, Larder) {
    let mut hub = Hub::start(Options::default()).await;
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
