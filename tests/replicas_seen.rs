//! Promise: whichever of several replicas is asked, an operator sees all of them: who is alive, what each holds and is
//! filling; and one that hangs is shown as what it is, without anybody waiting for it.

use std::cell::RefCell;
use std::net::SocketAddr;

use serde_json::Value;

use crate::replicas::{SOON, Scene, expect, scene};
use crate::support::{Larder, On, blob, client, eventually, get, request};

async fn seen(larder: &Larder, query: &str) -> Vec<Value> {
    let url = format!("{}/api/replicas{query}", larder.admin_url());
    let answer = request("GET", url).deadline(SOON).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["replicas"].as_array().expect("a list").clone()
}

/// What a replica tells of another one, once that is as wanted: on a busy machine, one may be late with its answer.
async fn seen_of(scene: &Scene, by: usize, of: usize, query: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let address = format!("http://{}", scene.addresses[of]);
    let found = RefCell::new(Value::Null);
    eventually("it is told as it is", async || {
        let all = seen(&scene.replicas[by], query).await;
        let of = all.into_iter().find(|replica| replica["address"] == address.as_str()).unwrap_or_default();
        let is_right = is_wanted(&of);
        found.replace(of);
        is_right
    })
    .await;
    found.into_inner()
}

fn tells(replica: &Value) -> bool {
    replica["report"].is_object() && replica["alive_until"].is_string()
}

fn fills(replica: &Value) -> Vec<&Value> {
    replica["report"]["fills"].as_array().map(|fills| fills.iter().collect()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_each_replica_holds_and_fills_is_seen_at_all_of_them() {
    let scene = scene("").await;
    let content = blob(400, 1 << 20);
    let digest = scene.hub.push_blob("team/app", content.clone());
    let gate = scene.hub.gate(On::blob().get(), content.len() as u64 / 2);
    let mut client = client::open(scene.replicas[0].blob_url("hub/team/app", &digest)).await;
    client.read_exact(4096).await;
    gate.reached().await;
    let home = scene.home().await;
    for by in 0..3 {
        let all = seen(&scene.replicas[by], "").await;
        assert_eq!(all.len(), 3, "{all:?}");
        for of in 0..3 {
            let replica = seen_of(&scene, by, of, "", tells).await;
            assert_eq!(replica["state"], if by == of { "this" } else { "ready" }, "{replica}");
            let left = replica["alive_for"].as_f64().expect("it is alive");
            assert!(left > 0.0 && left <= 10.0 && replica["alive_until"].is_string(), "{replica}");
            let report = &replica["report"];
            assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
            assert!(report["since"].is_string() && report["free"].as_u64() > Some(0), "{replica}");
            assert!(report["holds"].is_null(), "nobody asked");
            let is_filling = of == home || of == 0;
            let fills = fills(&replica);
            assert_eq!(fills.len(), usize::from(is_filling), "{replica}");
            assert!(fills.iter().all(|fill| fill["digest"] == digest.as_str() && fill["size"] == content.len()));
        }
        let filling = seen_of(&scene, by, home, "", tells).await;
        assert!(fills(&filling)[0]["bytes"].as_u64() >= Some(4096), "{filling}");
        let names = |page: &str| scene.addresses.iter().all(|address| page.contains(&format!("http://{address}")));
        eventually("the page shows it", async || {
            let page = get(format!("{}/replicas", scene.replicas[by].admin_url())).await.text();
            names(&page) && ["<progress", &digest, "this one"].iter().all(|part| page.contains(part))
        })
        .await;
    }
    gate.open();
    assert!(client.read_to_end().await.complete());
    let is_stored =
        async || scene.replicas[0].object(&digest).exists() && scene.replicas[home].object(&digest).exists();
    eventually("it is stored", is_stored).await;
    let query = format!("?digest={digest}");
    let holders = async |by: usize| {
        let told = seen(&scene.replicas[by], &query).await;
        let of = |address: &SocketAddr| {
            told.iter().find(|replica| replica["address"] == format!("http://{address}").as_str())
        };
        let holds = scene.addresses.iter().map(|address| of(address)?["report"]["holds"].as_bool());
        holds.collect::<Option<Vec<_>>>()
    };
    let has_file: Vec<_> = scene.replicas.iter().map(|replica| replica.object(&digest).exists()).collect();
    for by in 0..3 {
        eventually("all know who has it", async || holders(by).await.as_ref() == Some(&has_file)).await;
    }
    let counted = seen_of(&scene, 1, 0, "", tells).await;
    assert_eq!((&counted["report"]["misses"], &counted["report"]["objects"]), (&1.into(), &1.into()), "{counted}");
    assert_eq!(counted["report"]["bytes"], content.len(), "{counted}");

    let admin = scene.replicas[2].admin_url();
    let run = async |arguments: &[&str]| {
        let ran = scene.replicas[2].run(&[&["replicas", "--admin", &admin], arguments].concat()).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran
    };
    eventually("the table says who has it", async || {
        let table = run(&[&digest]).await.stdout;
        let line = |address: &SocketAddr| table.lines().find(|line| line.contains(&address.to_string()));
        let says = |(address, has_file): (&SocketAddr, &bool)| {
            line(address).is_some_and(|line| line.ends_with(if *has_file { "yes" } else { "no" }))
        };
        table.lines().count() == 4 && scene.addresses.iter().zip(&has_file).all(says)
    })
    .await;
    assert_eq!(run(&["--json"]).await.json().as_array().map(Vec::len), Some(3));
    let wrong = get(format!("{admin}/api/replicas?digest=sha256:1")).await;
    assert_eq!(wrong.status, 400, "{}", wrong.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_hangs_is_shown_so_and_keeps_nobody_waiting() {
    let scene = scene("").await;
    scene.replicas[0].signal("STOP");
    let is_silent = |replica: &Value| replica["problem"] == "it does not answer";
    let silent = seen_of(&scene, 1, 0, "", is_silent).await;
    assert!(silent["report"].is_null() && silent["state"] != "ready", "{silent}");
    seen_of(&scene, 1, 2, "", |replica| replica["state"] == "ready").await;
    let page = request("GET", format!("{}/replicas", scene.replicas[2].admin_url())).deadline(SOON).send().await;
    assert!(page.text().contains("does not answer"), "{}", page.text());
    scene.replicas[0].signal("CONT");
    scene.all_know_each_other(3).await;
    // The database is no less silent, and everybody is still seen.
    scene.postgres.stop();
    for of in 0..3 {
        seen_of(&scene, 1, of, "", |replica| replica["report"]["version"].is_string()).await;
    }
    seen_of(&scene, 1, 2, "", |replica| replica["state"] == "ready" && replica["alive_until"].is_null()).await;
    scene.postgres.go_on();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replicas_tell_each_other_is_told_to_nobody_else() {
    let scene = scene("").await;
    expect(scene.replicas[0].url() + "/healthz", b"{\"status\":\"ok\"}").await;
    for (path, header) in [("/replica", None), ("/replica", Some("Larder-Replica 00")), ("/replica/sha256:0", None)] {
        let mut asked = request("GET", format!("http://{}{path}", scene.addresses[0]));
        if let Some(proof) = header {
            asked = asked.header("authorization", proof);
        }
        let answer = asked.send().await;
        assert_eq!((answer.status, answer.text().as_str()), (421, ""), "{path}");
    }
    for door in [scene.replicas[0].url(), scene.replicas[0].admin_url()] {
        assert_eq!(get(format!("{door}/replica")).await.status, 404, "{door}");
    }
}
