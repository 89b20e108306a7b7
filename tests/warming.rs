//! Promise: `larder warm` brings whole images into the cache before anybody asks for them, and stops before the quota
//! does.

use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::{
    Hub, Image, Index, Larder, Options, RateLimit, eventually, get, head, repository_config, request,
};

const KIB: usize = 1 << 10;

async fn job(larder: &Larder, id: u64) -> Value {
    let answer = get(format!("{}/api/warm/{id}", larder.admin_url())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warmed_image_is_served_whole_with_the_upstream_gone() {
    let mut hub = Hub::start(Options::default()).await;
    let index = Index::new(1, &["linux/amd64", "linux/arm64"]);
    hub.push_index("team/app", "1", &index);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let warmed = larder.run(&["warm", "hub/team/app:1"]).await;
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    assert!(
        warmed.stdout.starts_with("hub/team/app:1  ") && warmed.stdout.contains(" came from upstream"),
        "{warmed:?}"
    );
    hub.take_requests();
    let again = larder.run(&["warm", "hub/team/app:1", "--json"]).await.json();
    assert_eq!((&again["done"], &again["images"][0]["fetched"]), (&json!(true), &json!(0)));
    assert_eq!(again["images"][0]["objects"], again["images"][0]["objects_done"]);
    let asked: Vec<_> = hub.requests().iter().filter(|request| request.method == "GET").cloned().collect();
    assert!(asked.is_empty(), "what is there is not fetched again: {asked:?}");
    hub.stop().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    for image in &index.images {
        assert_eq!(get(larder.manifest_url("hub/team/app", &image.manifest.digest)).await.status, 200);
        for digest in image.layer_digests().iter().chain([&image.config_digest()]) {
            assert_eq!(get(larder.blob_url("hub/team/app", digest)).await.status, 200, "{digest}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_platforms_that_are_named_are_brought_in() {
    let hub = Hub::start(Options::default()).await;
    let index = Index::new(1, &["linux/amd64", "linux/arm64"]);
    hub.push_index("team/app", "1", &index);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let warmed = larder.run(&["warm", "hub/team/app:1", "--platform", "linux/arm64"]).await;
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    let cached = async |digest: &str| head(larder.blob_url("hub/team/app", digest)).await.header("x-cache") == "HIT";
    assert!(cached(&index.images[1].layer_digests()[0]).await);
    assert!(!cached(&index.images[0].layer_digests()[0]).await);
    let wrong = larder.run(&["warm", "hub/team/app:1", "--platform", "arm64"]).await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("write it as linux/amd64"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_from_files_and_by_pipe() {
    let hub = Hub::start(Options::default()).await;
    for (name, seed) in [("team/one", 1), ("team/two", 2), ("team/three", 3)] {
        hub.push_image(name, "1", &Image::with_layers(seed, &[KIB]));
    }
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let dir = TempDir::new().expect("a directory");
    let list = dir.path().join("list");
    std::fs::write(&list, "# ours\nhub/team/one:1\n").expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(["warm", "-f", &list.display().to_string(), "--manifests", "-", "--admin", &larder.admin_url()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir(dir.path());
    let mut child = command.spawn().expect("it starts");
    let yaml = "kind: Pod\nspec:\n  containers:\n  - image: hub/team/two:1\n  - image: hub/team/three:1\n";
    let mut input = child.stdin.take().expect("piped");
    input.write_all(yaml.as_bytes()).await.expect("written");
    drop(input);
    let output = child.wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.lines().count() == 3, "{said}");
    eventually("all are listed", async || {
        get(format!("{}/api/images", larder.admin_url())).await.json()["images"]
            .as_array()
            .is_some_and(|all| all.len() == 3)
    })
    .await;
}

/// By the chart itself, and by a `helm` on the PATH, which is called as `helm template NAME CHART`
/// (<https://helm.sh/docs/helm/helm_template/>).
#[tokio::test(flavor = "multi_thread")]
async fn the_images_of_a_chart_come_as_it_names_them_or_as_helm_renders_it() {
    let hub = Hub::start(Options::default()).await;
    for (name, seed) in [("team/named", 1), ("team/rendered", 2)] {
        hub.push_image(name, "1", &Image::with_layers(seed, &[KIB]));
    }
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let dir = TempDir::new().expect("a directory");
    let (chart, programs) = (dir.path().join("chart"), dir.path().join("programs"));
    [&chart, &programs].into_iter().for_each(|folder| std::fs::create_dir(folder).expect("made"));
    std::fs::write(chart.join("Chart.yaml"), "name: app\nappVersion: \"1\"\n").expect("written");
    std::fs::write(chart.join("values.yaml"), "image: {repository: hub/team/named, tag: \"\"}\n").expect("written");
    let warm = async || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(["warm", "--admin", &larder.admin_url(), "--chart"]).arg(&chart).env("PATH", &programs);
        let output = command.stdin(Stdio::null()).output().await.expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (brought, told) = warm().await;
    assert!(brought.starts_with("hub/team/named:1  3 objects"), "{brought}");
    assert!(told.contains("1 image, as the chart names them (helm is not on PATH)"), "{told}");
    let helm = programs.join("helm");
    let script = "#!/bin/sh\n[ \"$1\" = template ] && [ -d \"$3\" ] || exit 1\necho 'spec: {containers: [{image: \"hub/team/rendered:1\"}]}'\n";
    write_program(&helm, script);
    let (brought, told) = warm().await;
    assert!(brought.starts_with("hub/team/rendered:1  3 objects"), "{brought}");
    assert!(told.contains("as helm template renders them"), "{told}");
    write_program(&helm, "#!/bin/sh\necho 'Error: values are missing' >&2\nexit 1\n");
    let (brought, told) = warm().await;
    assert!(brought.starts_with("hub/team/named:1"), "{brought}");
    assert!(told.contains("helm template failed: Error: values are missing"), "{told}");
    let none = larder.run(&["warm", "--chart", &programs.display().to_string()]).await;
    assert!(none.code == Some(2) && none.stderr.contains("has no Chart.yaml"), "{none:?}");
}

/// Writes a program. The file that is written to is another: a program that is still open cannot run.
fn write_program(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("set");
    std::fs::rename(new, path).expect("renamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_exist_fails_and_the_others_come() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[KIB]));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let warmed = larder.run(&["warm", "hub/team/none:1", "hub/team/app:1"]).await;
    assert_eq!(warmed.code, Some(1), "{warmed:?}");
    assert!(
        warmed.stdout.contains("hub/team/none:1  failed: ") && warmed.stdout.contains("hub/team/app:1  3 objects"),
        "{warmed:?}"
    );
    let unknown = larder.run(&["warm", "qay.io/app:1"]).await;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("no repository serves"), "{unknown:?}");
    assert_eq!(larder.run(&["warm"]).await.code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn warming_rests_before_the_quota_is_used_up() {
    let rate_limit = Some(RateLimit { pulls: 1, ..RateLimit::default() });
    let hub = Hub::start(Options { rate_limit, ..Options::default() }).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[KIB]));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    // The registry says with this answer how little is left.
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let begun = request("POST", format!("{}/api/warm", larder.admin_url()))
        .header("content-type", "application/json")
        .body(r#"{"images": ["hub/team/app:2"]}"#)
        .send()
        .await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let id = begun.json()["id"].as_u64().expect("a number");
    eventually("it rests", async || job(&larder, id).await["images"][0]["state"] == "resting").await;
    let image = job(&larder, id).await["images"][0].clone();
    assert!(image["why"].as_str().is_some_and(|why| why.contains("it goes on")), "{image}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_lists_are_refused_whole() {
    let hub = Hub::start(Options::default()).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let post = async |body: &str| {
        let url = format!("{}/api/warm", larder.admin_url());
        request("POST", url).header("content-type", "application/json").body(body.to_owned()).send().await
    };
    let many = format!("{{\"images\": [{}]}}", vec!["\"hub/a:1\""; 1_001].join(","));
    for (body, status) in [
        ("{}", 422),
        ("[", 400),
        (r#"{"images": []}"#, 400),
        (many.as_str(), 400),
        (r#"{"images": ["A B"]}"#, 400),
        (r#"{"images": ["hub/a:1"], "platforms": ["x"]}"#, 400),
        (r#"{"images": ["qay.io/a:1"]}"#, 404),
    ] {
        let answer = post(body).await;
        assert_eq!(answer.status, status, "{}: {}", &body[..body.len().min(60)], answer.text());
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(get(format!("{}/api/warm/7", larder.admin_url())).await.status, 404);
    assert_eq!(get(format!("{}/api/warm/x", larder.admin_url())).await.status, 400);
}
