//! Promise: docs/outages.md says what a client gets, and it is so.

use std::time::Duration;

use crate::support::{Fault, Hub, Image, Larder, On, Options, RepositoryConfig, eventually, get};

/// The rows of the table: how the upstream does, and an answer for each column.
fn rows() -> Vec<(String, Vec<String>)> {
    // The first table of the document.
    let document = include_str!("../docs/outages.md").split("\n## ").next().unwrap_or_default();
    let lines = document.lines().filter(|line| line.starts_with('|'));
    let rows = lines.skip(2).map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        (cells.next().expect("a state"), cells.collect())
    });
    rows.collect()
}

/// Brings the hub into a state.
async fn bring_into(hub: &mut Hub, state: &str) {
    let fault = match state {
        "up" => return,
        "refused" => return hub.stop().await,
        "slow" => Fault::Delay(Duration::from_millis(300)),
        "hung" => Fault::Hang,
        "wrong bytes" => Fault::WrongBytes,
        status => Fault::status(status.parse().expect("a state that this test knows")),
    };
    hub.fault(On::any(), fault);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_the_upstream_and_the_cache_has_the_answer_of_the_table() {
    let rows = rows();
    assert_eq!(rows.len(), 10);
    for (state, expected) in rows {
        let mut hub = Hub::start(Options::default()).await;
        let (cached, absent) = (Image::new(1), Image::new(2));
        for tag in ["fresh", "stale"] {
            hub.push_image("team/app", tag, &cached);
        }
        let timeout = if state == "hung" { "timeout = \"1s\"" } else { "timeout = \"20s\"" };
        let rule = "[[repository.\"hub\".tag]]\nmatch = \"^fresh$\"\nmax_age = \"1h\"\n";
        let config = RepositoryConfig::new("hub").upstream_with(&hub, timeout).to_string() + rule;
        let larder = Larder::start(config).await;
        let url = |tag: &str| larder.manifest_url("hub/team/app", tag);
        let blob = |image: &Image| larder.blob_url("hub/team/app", &image.layer_digests()[0]);
        for url in [url("fresh"), url("stale"), blob(&cached)] {
            assert!(get(url).await.complete());
        }
        let stored = larder.object(&cached.layer_digests()[0]);
        eventually("the blob is stored", async || stored.exists()).await;
        hub.push_image("team/app", "absent", &absent);
        if state == "wrong bytes" {
            hub.push_image("team/app", "stale", &Image::new(3));
        }
        bring_into(&mut hub, &state).await;

        let asked = [url("fresh"), url("stale"), url("absent"), blob(&cached), blob(&absent)];
        for (url, expected) in asked.into_iter().zip(expected) {
            let answer = get(&url).await;
            let word = if answer.status == 200 { answer.header("x-cache").to_owned() } else { answer.error_code() };
            let got = if answer.complete() { format!("{} {word}", answer.status) } else { "aborted".to_owned() };
            assert_eq!(got, expected, "{state}: {url}");
            assert_eq!(answer.header("warning").is_empty(), word != "STALE", "{state}: {url}");
        }
    }
}
