//! Promise: `/api/openapi.json` describes the API as it is: `schemathesis` makes requests from it and finds no answer
//! that differs, and the page about the API names the same pages.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{Hub, Image, Larder, Options, eventually, get, repository_config};

/// Longest time for schemathesis, which makes a few hundred requests.
const PATIENCE: Duration = Duration::from_secs(240);

/// Operations that schemathesis cannot make: the events have no end, and it makes no tar archives.
const LEFT_OUT: [&str; 2] = ["/api/events", "/api/import"];

/// What a description cannot say: a purge takes one parameter of two, and an export takes names or all.
const EXCEPTIONS: &str = r#"
[[operations]]
include-name = "DELETE /api/cache"
checks.positive_data_acceptance.enabled = false
[[operations]]
include-name = "GET /api/export"
checks.positive_data_acceptance.enabled = false
"#;

async fn description(larder: &Larder) -> Value {
    let answer = get(format!("{}/api/openapi.json", larder.admin_url())).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_about_the_api_names_what_the_description_has() {
    let larder = Larder::start("").await;
    let described = description(&larder).await;
    let described: BTreeSet<_> = described["paths"].as_object().expect("paths").keys().map(String::as_str).collect();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md")).expect("the page");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let named: BTreeSet<_> = rows
        .filter_map(|row| row.split(['`', ' ', '?']).find(|word| word.starts_with('/')))
        .filter(|path| !matches!(*path, "/" | "/api/openapi.json"))
        .collect();
    assert_eq!(described, named, "the description, and the table in docs/api.md");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_says_what_it_does_and_how_it_fails() {
    let larder = Larder::start("").await;
    let described = description(&larder).await;
    for (path, operations) in described["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            assert!(operation["responses"]["200"].is_object(), "{method} {path}");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                assert!(parameter["description"].is_string(), "{method} {path}: {parameter}");
                assert!(operation["responses"]["400"].is_object(), "{method} {path} can be asked wrongly");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_answer_that_is_not_described() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    // The upstream is gone: a request for a made-up image is answered at once.
    let larder =
        Larder::start(format!("[server]\ndefault_repository = \"hub\"\n{}", repository_config("hub", &[&hub]))).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    eventually("it is stored", async || larder.stats().await["objects"] == 1).await;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/python/bin/schemathesis");
    assert!(program.exists(), "`{}` is missing; ./test installs it", program.display());
    let folder = TempDir::new().expect("a directory");
    std::fs::write(folder.path().join("schemathesis.toml"), EXCEPTIONS).expect("written");
    let url = format!("{}/api/openapi.json", larder.admin_url());
    let mut command = Command::new(program);
    command
        .args(["run", &url, "--max-examples", "20", "--seed", "1", "--no-color"])
        .args(LEFT_OUT.into_iter().flat_map(|path| ["--exclude-path", path]))
        .args(["--suppress-health-check", "all", "--request-timeout", "30"])
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ran = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    let described = description(&larder).await;
    let count: usize =
        described["paths"].as_object().expect("paths").values().map(|of| of.as_object().map_or(0, |of| of.len())).sum();
    assert!(said.contains(&format!("Tested: {}", count - LEFT_OUT.len())), "all others: {said}");
}
