//! Promise: the index in PostgreSQL, behind PgBouncer in transaction mode: pulls go on while the server hangs or is
//! gone, what was learnt meanwhile is written when it is back, and several Larders that share it know what each learns.

use std::time::Duration;

use crate::support::postgres::Postgres;
use crate::support::{Hub, Image, Larder, Options, RepositoryConfig, eventually, get, head, request};

/// Before any client gives up.
const SOON: Duration = Duration::from_secs(25);

fn config(url: &str, hub: &Hub) -> String {
    let repository = RepositoryConfig::new("hub").upstream(hub).to_string();
    format!("[index]\nurl = \"{url}\"\n{repository}")
}

async fn expect(url: String, content: &[u8]) {
    let answer = request("GET", &url).deadline(SOON).try_send().await;
    let answer = answer.unwrap_or_else(|error| panic!("{url} is not answered: {error}"));
    assert!(answer.complete() && answer.body == content, "{url}: {} {:?}", answer.status, answer.error);
}

/// Pulls a whole image `hub/team/TAG:1`.
async fn pull(larder: &Larder, name: &str, image: &Image) {
    let name = &format!("hub/team/{name}");
    let answer = head(larder.manifest_url(name, "1")).await;
    assert_eq!(answer.status, 200);
    expect(larder.manifest_url(name, &image.manifest.digest), &image.manifest.bytes).await;
    for (content, digest) in image.layers.iter().zip(image.layer_digests()) {
        expect(larder.blob_url(name, &digest), content).await;
    }
}

/// Returns the state of `/readyz` and what it warns of.
async fn readiness(larder: &Larder) -> (u16, String) {
    let answer = request("GET", format!("{}/readyz", larder.admin_url())).deadline(SOON).send().await;
    (answer.status, answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_go_on_while_the_server_hangs_or_is_gone_and_all_is_written_when_it_is_back() {
    let postgres = Postgres::start();
    postgres.create("larder");
    let hub = Hub::start(Options::default()).await;
    let images: Vec<_> = (0..4).map(|number| Image::with_layers(number, &[40_000, 500])).collect();
    for (number, image) in images.iter().enumerate() {
        hub.push_image(&format!("team/app-{number}"), "1", image);
    }
    let mut larder = Larder::start(config(&postgres.bouncer_url("larder"), &hub)).await;
    pull(&larder, "app-0", &images[0]).await;
    let tags = || postgres.sql("larder", "SELECT count(*) FROM larder.tags");
    eventually("the tag is written", async || tags() == "1").await;

    // The server takes connections and answers nothing; then it is gone.
    for (round, is_killed) in [(1, false), (2, true)] {
        if is_killed {
            postgres.kill()
        } else {
            postgres.stop()
        }
        pull(&larder, &format!("app-{round}"), &images[round]).await;
        // The upstream confirms tags, and sends nothing again: that these objects are stored is known by heart.
        let sent = || hub.count(|request| request.method == "GET");
        let before = sent();
        pull(&larder, &format!("app-{round}"), &images[round]).await;
        pull(&larder, "app-0", &images[0]).await;
        assert_eq!(sent(), before);
        eventually("it says so, and is ready all the same", async || {
            let (status, text) = readiness(&larder).await;
            status == 200 && text.contains("the index is away")
        })
        .await;
        for (page, status) in [("healthz", 200), ("metrics", 200), ("api/cache/stats", 200), ("api/images", 500)] {
            let url = format!("{}/{page}", larder.admin_url());
            let answer = request("GET", url).deadline(SOON).try_send().await.expect("it is answered");
            assert_eq!(answer.status, status, "{page}: {}", answer.text());
        }
        if is_killed {
            postgres.restart()
        } else {
            postgres.go_on()
        }
        let written = (round + 1).to_string();
        eventually("what was learnt is written", async || tags() == written).await;
        eventually("nothing is wrong any more", async || !readiness(&larder).await.1.contains("away")).await;
    }
    let digest = images[2].manifest.digest.trim_start_matches("sha256:");
    let stored =
        format!("SELECT count(*) FROM larder.objects JOIN larder.digests USING (id) WHERE digest = '\\x{digest}'");
    assert_eq!(postgres.sql("larder", &stored), "1");
    let dropped = larder.metrics().await;
    assert!(dropped.lines().any(|line| line == "larder_index_writes_dropped_total 0"), "{dropped}");

    // After a restart, the index tells what there is: with the upstream gone, nobody else can.
    larder.stop().await;
    let mut hub = hub;
    hub.stop().await;
    larder.restart().await;
    for (number, image) in images.iter().enumerate().take(3) {
        pull(&larder, &format!("app-{number}"), image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larder_starts_and_serves_while_the_server_is_away() {
    let postgres = Postgres::start();
    postgres.create("larder");
    postgres.kill();
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[40_000]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(config(&postgres.url("larder"), &hub)).await;
    pull(&larder, "app", &image).await;
    pull(&larder, "app", &image).await;
    let (status, text) = readiness(&larder).await;
    assert!(status == 200 && text.contains("index.url: error connecting to server"), "{status} {text}");
    postgres.restart();
    let tags =
        || postgres.sql("larder", "SELECT count(*) FROM pg_tables WHERE schemaname = 'larder' AND tablename = 'tags'");
    eventually("the tables are made", async || tags() == "1").await;
    let tags = || postgres.sql("larder", "SELECT count(*) FROM larder.tags");
    eventually("the tag is written", async || tags() == "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_larders_on_one_database_know_what_each_learns_and_restart_without_harm() {
    let postgres = Postgres::start();
    postgres.create("larder");
    let mut hub = Hub::start(Options::default()).await;
    let (image, own) = (Image::with_layers(1, &[40_000, 500]), Image::with_layers(2, &[700]));
    hub.push_image("team/app", "1", &image);
    hub.push_image("team/own", "1", &own);
    let config = config(&postgres.bouncer_url("larder"), &hub);
    let (one, mut other) = (Larder::start(&config).await, Larder::start(&config).await);
    pull(&one, "app", &image).await;
    pull(&other, "own", &own).await;
    eventually("all is stored", async || one.stats().await["stores"] == 3 && other.stats().await["stores"] == 2).await;
    let shown = || postgres.sql("larder", "SELECT count(*) FROM larder.visibility");
    eventually("all is visible", async || shown() == "5").await;

    let catalog = async |larder: &Larder| get(format!("{}/v2/_catalog", larder.url())).await.text();
    let names = catalog(&other).await;
    assert!(names.contains("hub/team/app"), "{names}");
    // A start compares its own files with its own rows, and leaves those of the other alone.
    other.stop().await;
    std::fs::remove_file(other.object(&own.layer_digests()[0])).expect("removed");
    other.restart().await;
    eventually("it has compared", async || other.log().contains("brought in line with the files")).await;
    let objects = || postgres.sql("larder", "SELECT count(*) FROM larder.objects");
    eventually("the row of the file that is gone goes", async || objects() == "4").await;
    assert_eq!(one.stats().await["objects"], 3);

    hub.stop().await;
    pull(&one, "app", &image).await;
    let gone = get(other.blob_url("hub/team/app", &image.layer_digests()[0])).await;
    assert!(gone.status >= 500, "it has no file of it, and the upstream is away: {}", gone.status);

    // A purge takes the rows of all.
    let purged = one.run(&["purge", "hub/team/app:1", "--admin", &one.admin_url()]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    assert_eq!((objects(), shown()), ("1".to_owned(), "1".to_owned()), "the manifest of the other image is left");
    assert!(!catalog(&other).await.contains("team/app"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_with_what_to_do_and_a_right_one_is_taken_from_its_file() {
    let postgres = Postgres::start();
    postgres.create("larder");
    postgres.sql("larder", "CREATE ROLE stranger LOGIN PASSWORD 'right'; CREATE SCHEMA larder AUTHORIZATION stranger");
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[500]);
    hub.push_image("team/app", "1", &image);
    let url = postgres.url("larder").replace("user=larder", "user=stranger");
    let file = std::env::temp_dir().join(format!("larder-password-{}", std::process::id()));
    std::fs::write(&file, "wrong-one\n").expect("written");
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    let config = format!("[index]\nurl = \"{url}\"\npassword_file = \"{}\"\n{repository}", file.display());
    let larder = Larder::start(config).await;
    pull(&larder, "app", &image).await;
    eventually("it is said", async || readiness(&larder).await.1.contains("password authentication failed")).await;
    let (_, text) = readiness(&larder).await;
    assert!(text.contains("index.password_file") && !text.contains("wrong-one"), "{text}");
    assert!(!larder.log().contains("wrong-one"));
    std::fs::write(&file, "right\n").expect("written");
    eventually("it logs in", async || !readiness(&larder).await.1.contains("away")).await;
    let tags = || postgres.sql("larder", "SELECT count(*) FROM larder.tags");
    eventually("the tag is written", async || tags() == "1").await;
    std::fs::remove_file(file).expect("removed");
}
