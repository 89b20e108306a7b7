//! Promise: what one of several replicas does for all, the others do not do again: schedules run at one of them, and what
//! one has asked its upstream counts for all.

use std::time::Duration;

use serde_json::Value;

use crate::replicas::{SOON, Scene, expect, scene, scene_of_clocks};
use crate::support::{Image, Larder, On, eventually, get, request, within};

/// Longer than a lease lasts that nobody takes again.
const TAKEN_OVER: Duration = Duration::from_secs(60);

async fn schedule(larder: &Larder) -> Value {
    let answer = get(format!("{}/api/warm", larder.admin_url())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["schedules"][0].clone()
}

async fn run_now(larder: &Larder) -> u16 {
    let url = format!("{}/api/warm/schedules/1", larder.admin_url());
    request("POST", url).deadline(SOON).send().await.status
}

/// Returns which replica runs the schedule; none of them contradicts it.
async fn runs_at(scene: &Scene) -> Option<usize> {
    let mut told = Vec::new();
    for replica in &scene.replicas {
        let schedule = schedule(replica).await;
        told.extend(schedule["replica"].as_str().map(str::to_owned));
    }
    let first = told.first()?.clone();
    let is_one = told.len() == scene.replicas.len() && told.iter().all(|address| *address == first);
    scene.addresses.iter().position(|address| is_one && first == format!("http://{address}"))
}

async fn the_one_that_runs(scene: &Scene) -> usize {
    within(TAKEN_OVER, "all name the same one", async || runs_at(scene).await.is_some()).await;
    runs_at(scene).await.expect("one runs it")
}

async fn has_run(larder: &Larder) -> bool {
    schedule(larder).await["last"]["ended"].is_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_runs_at_one_replica_and_at_the_next_when_that_one_ends() {
    let warm = "[[warm]]\nimages = [\"hub/team/app:1\"]\nevery = \"1m\"\n";
    let mut scene = scene_of_clocks("", warm, ["+0"; 3]).await;
    let image = Image::with_layers(1, &[1_000]);
    scene.hub.push_image("team/app", "1", &image);
    let first = the_one_that_runs(&scene).await;
    run_now(&scene.replicas[first]).await;
    eventually("it has run", async || has_run(&scene.replicas[first]).await).await;
    for (at, replica) in scene.replicas.iter().enumerate() {
        let schedule = schedule(replica).await;
        let is_here = schedule["next"].is_string() || schedule["running"] == true;
        assert_eq!((is_here, has_run(replica).await), (at == first, at == first), "{schedule}");
        assert_eq!(run_now(replica).await, if at == first { 200 } else { 409 });
    }
    assert_eq!(scene.postgres.sql("larder", "SELECT count(*) FROM larder.leases"), "1");
    // One that dies says nothing.
    scene.replicas[first].kill9();
    let (_, _) = (scene.replicas.remove(first), scene.addresses.remove(first));
    let second = the_one_that_runs(&scene).await;
    run_now(&scene.replicas[second]).await;
    eventually("it has run there", async || has_run(&scene.replicas[second]).await).await;
    // One that stops gives it back: before its time could be over, another has it.
    let holder = scene.postgres.sql("larder", "SELECT holder FROM larder.leases");
    scene.replicas[second].stop().await;
    let holds = format!("SELECT count(*) FROM larder.leases WHERE holder = {holder}");
    assert_eq!(scene.postgres.sql("larder", &holds), "0");
    let (_, _) = (scene.replicas.remove(second), scene.addresses.remove(second));
    assert_eq!(the_one_that_runs(&scene).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_index_is_away_who_runs_the_schedules_does_so_for_the_rest_of_its_time_and_nobody_else_begins() {
    let warm = "[[warm]]\nimages = [\"hub/team/app:1\"]\nevery = \"1h\"\n";
    // A clock that is wrong makes no replica run it out of turn.
    let scene = scene_of_clocks("", warm, ["-1h", "+0", "+1h"]).await;
    scene.hub.push_image("team/app", "1", &Image::with_layers(1, &[1_000]));
    let first = the_one_that_runs(&scene).await;
    scene.postgres.stop();
    assert_eq!(run_now(&scene.replicas[first]).await, 200);
    within(TAKEN_OVER, "its time is over", async || {
        for (at, replica) in scene.replicas.iter().enumerate() {
            assert!(at == first || run_now(replica).await == 409, "nobody else begins");
        }
        run_now(&scene.replicas[first]).await == 409
    })
    .await;
    assert_eq!(schedule(&scene.replicas[first]).await["running"], false);
    scene.postgres.go_on();
    let next = the_one_that_runs(&scene).await;
    assert_eq!(run_now(&scene.replicas[next]).await, 200);
}

/// All replicas serve this as `team/NAME:1`, and the upstream was asked so often about the tag.
async fn all_serve(scene: &Scene, name: &str, image: &Image, heads: usize) {
    // Before it is written, one that knows nothing of the tag has to ask.
    let digest = image.manifest.digest.trim_start_matches("sha256:");
    let written = format!(
        "SELECT count(*) > 0 FROM larder.tags JOIN larder.digests USING (digest) JOIN larder.objects USING (id) \
         WHERE name = 'team/{name}' AND digest = decode('{digest}', 'hex')"
    );
    eventually("it is written", async || scene.postgres.sql("larder", &written) == "t").await;
    for replica in &scene.replicas {
        let url = replica.manifest_url(&format!("hub/team/{name}"), "1");
        let is_served = async || {
            let answer = get(&url).await;
            answer.body == image.manifest.bytes && answer.header("x-cache") == "HIT"
        };
        eventually("it is served", is_served).await;
    }
    let asked = scene.hub.count_on(On::manifest().head().name(&format!("team/{name}")));
    assert_eq!(asked, heads, "{}", scene.hub.summary());
    let fetched = scene.hub.count_on(On::manifest().get().reference(&image.manifest.digest));
    assert_eq!(fetched, 1, "{}", scene.hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_was_told_to_ask_the_upstream_counts_for_all() {
    let scene = scene("max_age = \"12h\"\nnegative_max_age = \"12h\"").await;
    // Each tag has another home.
    for number in 0..6_usize {
        let (name, replica) = (format!("app-{number}"), &scene.replicas[number % 3]);
        let image = |version| Image::with_layers(10 * number as u64 + version, &[500]);
        let refresh = async || {
            let reference = format!("hub/team/{name}:1");
            let ran = replica.run(&["refresh", &reference, "--json", "--admin", &replica.admin_url()]).await;
            assert_eq!((ran.code, &ran.json()["reference"]), (Some(0), &reference.into()), "{ran:?}");
        };
        // That some are not there is remembered, too.
        for replica in scene.replicas.iter().filter(|_| number < 3) {
            let answer = get(replica.manifest_url(&format!("hub/team/{name}"), "1")).await;
            assert_eq!(answer.status, 404, "{}", answer.text());
        }
        let before = scene.hub.count_on(On::manifest().head().name(&format!("team/{name}")));
        scene.hub.push_image(&format!("team/{name}"), "1", &image(1));
        refresh().await;
        all_serve(&scene, &name, &image(1), before + 1).await;
        scene.hub.push_image(&format!("team/{name}"), "1", &image(2));
        expect(scene.replicas[0].manifest_url(&format!("hub/team/{name}"), "1"), &image(1).manifest.bytes).await;
        refresh().await;
        all_serve(&scene, &name, &image(2), before + 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_has_learnt_by_warming_counts_for_all() {
    let warm = "[[warm]]\nimages = [\"hub/team/app:1\"]\nevery = \"1h\"\n";
    let scene = scene_of_clocks("max_age = \"12h\"", warm, ["+0"; 3]).await;
    let (before, after) = (Image::with_layers(1, &[500]), Image::with_layers(2, &[500]));
    scene.hub.push_image("team/app", "1", &before);
    for replica in &scene.replicas {
        expect(replica.manifest_url("hub/team/app", "1"), &before.manifest.bytes).await;
    }
    scene.hub.push_image("team/app", "1", &after);
    let at = the_one_that_runs(&scene).await;
    assert_eq!(run_now(&scene.replicas[at]).await, 200);
    all_serve(&scene, "app", &after, 2).await;
}
