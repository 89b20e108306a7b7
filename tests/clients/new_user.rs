//! The way of a new user, by the commands that the README and its pages name: a mirror for Docker and for containerd by
//! `larder setup` alone, each pull with its reason, an old copy explained, and a list of images carried to a machine
//! without a network.

use std::fs;

use tempfile::TempDir;

use super::{
    containerd::Containerd,
    docker::Dockerd,
    pulls::Scene,
    set_up::{IMAGE, set_up},
};
use crate::support::{Larder, eventually, request};

const MULTI: &str = "docker.io/library/multi:1";

/// The words of a page of the dashboard.
async fn says(larder: &Larder, path: &str) -> String {
    let answer =
        request("GET", format!("{}{path}", larder.admin_url())).header("accept", "text/html").send().await.text();
    answer.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text)).collect()
}

/// Runs a command, which has to succeed. Returns what it printed.
async fn run(larder: &Larder, arguments: &[&str]) -> String {
    let ran = larder.run(arguments).await;
    assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
    ran.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_user_gets_from_the_readme_to_a_pull_without_a_network() {
    let mut scene = Scene::set("docker.io").await;
    let root = TempDir::new().expect("a directory");
    let etc = root.path().join("etc");
    fs::create_dir_all(etc.join("docker")).expect("made");
    fs::copy("/etc/hosts", etc.join("hosts")).expect("copied");

    // A mirror for Docker and for containerd.
    let dockerd = Dockerd::start_prepared(&etc, async || set_up(scene.larder(), &["docker"], root.path()).await).await;
    dockerd.pull("busybox:1.36").await.unwrap();
    let containerd = Containerd::start().await;
    let version = Containerd::version().await.unwrap();
    let for_containerd = ["containerd", "--client-version", &version];
    set_up(scene.larder(), &for_containerd, root.path()).await;
    let hosts = etc.join("containerd/certs.d").display().to_string();
    containerd.pull(IMAGE, &hosts).await.unwrap();
    containerd.remove(IMAGE).await.unwrap();

    // Both pulls are on the dashboard, each with its reason.
    let larder = scene.larder();
    for reason in ["it was not in the cache", "unchanged"] {
        eventually("the pulls are shown", async || says(larder, "/pulls?q=busybox").await.contains(reason)).await;
        assert!(run(larder, &["pulls"]).await.contains(reason), "{reason}");
    }

    // Why the tag is stale is one box or one command away.
    scene.registry_mut().stop();
    containerd.pull(IMAGE, &hosts).await.unwrap();
    containerd.remove(IMAGE).await.unwrap();
    let (larder, why) = (scene.larder(), "an old copy was served, because the upstream failed");
    eventually("it is explained", async || says(larder, &format!("/explain?reference={IMAGE}")).await.contains(why))
        .await;
    assert!(run(larder, &["explain", IMAGE]).await.contains(why));
    assert!(says(larder, "/diagnosis").await.contains("docker.io"), "an upstream that fails is a finding");

    // A list is warmed and exported.
    scene.registry_mut().start_again().await;
    let larder = scene.larder();
    let list = root.path().join("images.txt").display().to_string();
    fs::write(&list, format!("# ours\n{IMAGE}\n{MULTI}\n")).expect("written");
    let archive = root.path().join("images.tar").display().to_string();
    // The failures are remembered for a moment.
    eventually("the list is warmed", async || larder.run(&["warm", "-f", &list]).await.code == Some(0)).await;
    run(larder, &["export", IMAGE, MULTI, "-o", &archive]).await;

    // A machine without a network: its upstream is gone before it starts.
    scene.registry_mut().stop();
    let nothing = format!("[[repository.\"docker.io\".upstream]]\nurl = \"{}\"\n", scene.registry().url());
    let far = Larder::builder().config(&nothing).start().await;
    let there = TempDir::new().expect("a directory");
    set_up(&far, &for_containerd, there.path()).await;
    let hosts = there.path().join("etc/containerd/certs.d").display().to_string();
    assert!(containerd.pull(MULTI, &hosts).await.is_err(), "nothing is there yet");
    run(&far, &["import", "--check", &archive]).await;
    run(&far, &["import", &archive]).await;
    for image in [IMAGE, MULTI] {
        containerd.pull(image, &hosts).await.unwrap();
        containerd.remove(image).await.unwrap();
    }
}
