//! Promise: what one of several replicas does for all, the others do not do again: schedules run at one of them.

use std::time::Duration;

use serde_json::Value;

use crate::replicas::{SOON, Scene, scene_of_clocks};
use crate::support::{Image, Larder, eventually, get, request, within};

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
    scene.replicas[second].stop().await;
    assert_eq!(
        scene.postgres.sql("larder", "SELECT count(*) FROM larder.leases WHERE until > now() + '15 seconds'"),
        "0"
    );
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
