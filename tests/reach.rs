//! Promise: no upstream, and no client of the proxy door, has Larder ask its own doors; and what an upstream hands out
//! as a list is one.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{
    Auth, Fault, Hub, Image, Larder, On, Options, RepositoryConfig, TokenService, eventually, get, raw, request,
};

const NAME: &str = "team/app";
const DOOR: &str = "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n";
const OURS: &str = "Larder itself listens";

/// The names that an address of this machine has.
fn names(port: u16) -> Vec<String> {
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::ffff:127.0.0.1]"]
        .map(|host| format!("{host}:{port}"))
        .into()
}

/// How often something came to the doors of a Larder.
fn requests(larder: &Larder) -> usize {
    larder.log().matches("\"larder::access\"").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_larder_itself_is_refused_and_asked_for_nothing() {
    const ONLY: &str = "[server]\ndefault_repository = \"\"";
    let mut larder = Larder::start(format!("{DOOR}{ONLY}")).await;
    let doors = ["registry", "admin", "proxy"].map(|door| larder.door(door).port());
    let names: Vec<_> = doors.into_iter().flat_map(names).collect();
    let table = |at: usize, url: &str| RepositoryConfig::new(&format!("own{at}")).upstream_url(url, "").to_string();
    let tables = names.iter().enumerate().map(|(at, name)| table(at, &format!("http://{name}")));
    larder.write_config(format!("{}\n{DOOR}{ONLY}", tables.collect::<Vec<_>>().join("\n")));
    let last = format!("own{}", names.len() - 1);
    let asked = AtomicUsize::new(0);
    let is_known = async || {
        asked.fetch_add(1, Ordering::Relaxed);
        get(larder.manifest_url(&format!("{last}/{NAME}"), "1")).await.status != 404
    };
    eventually("the repositories are known", is_known).await;
    for (at, name) in names.iter().enumerate() {
        let asked = asked.fetch_add(2, Ordering::Relaxed) + 2;
        for rest in ["manifests/1", "tags/list"] {
            let answer = get(format!("{}/v2/own{at}/{NAME}/{rest}", larder.url())).await;
            assert_eq!(answer.status, 502, "{name} {rest}: {}", answer.text());
            assert!(answer.text().contains(OURS), "{name} {rest}: {}", answer.text());
        }
        // A request is logged a moment after its answer.
        eventually("all requests are logged", async || requests(&larder) >= asked).await;
        assert_eq!(requests(&larder), asked, "{name}: only the test asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_on_all_addresses_is_found_at_each_of_them() {
    let mut larder = Larder::builder().env("LARDER_SERVER__LISTEN", "0.0.0.0:0").start().await;
    let port = larder.door("registry").port();
    larder.write_config(RepositoryConfig::new("own").upstream_url(&format!("http://127.0.0.9:{port}"), ""));
    let url = format!("http://127.0.0.1:{port}/v2/own/{NAME}/manifests/1");
    eventually("it is refused", async || get(&url).await.text().contains(OURS)).await;
    assert_eq!(get(&url).await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_does_not_lead_to_larders_own_doors() {
    let service = TokenService {
        challenges: vec!["Bearer realm=\"{realm}\",service=\"x\"".to_owned()],
        ..TokenService::default()
    };
    let hub = Hub::start(Options::default()).await;
    let tokens = Hub::start(Options { auth: Auth::Token(service), ..Options::default() }).await;
    let image = Image::new(1);
    hub.push_image(NAME, "1", &image);
    let config = format!(
        "{}\n{}",
        RepositoryConfig::new("hub").upstream(&hub),
        RepositoryConfig::new("tokens").upstream(&tokens)
    );
    let larder = Larder::start(config).await;
    for name in names(larder.door("admin").port()) {
        let there = format!("http://{name}/api/cache/stats");
        hub.fault(On::any(), Fault::reply(307, &[("location", &there)], ""));
        for rest in ["manifests/1".to_owned(), format!("blobs/{}", image.layer_digests()[0]), "tags/list".to_owned()] {
            let before = larder.stats().await["misses"].clone();
            let answer = get(format!("{}/v2/hub/{NAME}/{rest}", larder.url())).await;
            assert_eq!(answer.status, 502, "{name} {rest}: {}", answer.text());
            assert!(answer.text().contains(OURS) && !answer.text().contains("hit_rate"), "{name}: {}", answer.text());
            assert!(before.is_number());
        }
        hub.clear_faults();
        let challenge = format!("Bearer realm=\"http://{name}/api/cache\",service=\"x\"");
        tokens.fault(On::any().before_auth(), Fault::reply(401, &[("www-authenticate", &challenge)], ""));
        let answer = get(larder.manifest_url(&format!("tokens/{NAME}"), "1")).await;
        assert!(answer.status == 502 && answer.text().contains(OURS), "{name}: {} {}", answer.status, answer.text());
        tokens.clear_faults();
    }
    // Elsewhere on this machine it may lead.
    let other = Hub::start(Options::default()).await;
    other.push_image(NAME, "1", &image);
    hub.fault(
        On::blob(),
        Fault::reply(
            307,
            &[("location", &format!("{}/v2/{NAME}/blobs/{}", other.url(), image.layer_digests()[0]))],
            "",
        ),
    );
    assert_eq!(get(larder.blob_url(&format!("hub/{NAME}"), &image.layer_digests()[0])).await.body, image.blobs()[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_proxy_door_are_not_led_to_larders_own_doors() {
    let larder = Larder::start(format!("{DOOR}[allowlist]\ndomains = [\"127.0.0.0/8\", \"*\"]")).await;
    let doors = ["registry", "admin", "proxy"].map(|door| larder.door(door).port());
    let all: Vec<_> = doors.into_iter().flat_map(names).collect();
    // Named with their ports, they are open as far as the allowlist goes.
    let mut larder = larder;
    larder.write_config(format!("{DOOR}[allowlist]\ndomains = {all:?}"));
    let proxy = larder.door("proxy");
    for name in &all {
        let url = format!("http://{name}/v2/{NAME}/tags/list");
        let is_refused = async || request("GET", &url).through_proxy(proxy).send().await.text().contains(OURS);
        eventually("it is refused for being ours", is_refused).await;
        for path in ["/", "/api/cache/stats", "/v2/", &format!("/v2/{NAME}/manifests/1")] {
            for method in ["GET", "DELETE"] {
                let answer = request(method, format!("http://{name}{path}")).through_proxy(proxy).send().await;
                assert!(
                    matches!(answer.status, 403 | 502) && answer.text().contains(OURS),
                    "{method} {name}{path}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
        }
        let connect = format!("CONNECT {name} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = raw(proxy, connect.as_bytes(), std::time::Duration::from_secs(2)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains(OURS), "{name}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_list_is_not_handed_out_as_one() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image(NAME, "1", &Image::new(1));
    let larder = Larder::start(RepositoryConfig::new("hub").upstream(&hub)).await;
    let digest = Image::new(1).manifest.digest;
    let (tags, referrers) = ("tags/list".to_owned(), format!("referrers/{digest}"));
    let index = "application/vnd.oci.image.index.v1+json";
    for (rest, body, is_list) in [
        (&tags, r#"{"status":"ok"}"#, false),
        (&tags, r#"{"hits":1,"misses":2,"repositories":{}}"#, false),
        (&tags, r#"{"name":"team/app","tags":"1"}"#, false),
        (&tags, r#"{"name":"team/app","tags":{"1":"2"}}"#, false),
        (&tags, r#"{"name":"team/app","tags":[1,2]}"#, false),
        (&tags, r#"{"name":"team/app"}"#, false),
        (&tags, r#"{"name":7,"tags":[]}"#, false),
        (&tags, r#"{"tags":["1"]}"#, false),
        (&tags, r#"["1"]"#, false),
        (&tags, r#"{"name":"team/app","tags":["1"]} {}"#, false),
        (&tags, r#"{"name":"team/app","tags":["1"],"more":{"x":1}}"#, true),
        (&tags, r#"{"name":"team/app","tags":null}"#, true),
        (&referrers, r#"{"status":"ok"}"#, false),
        (&referrers, r#"{"name":"team/app","tags":["1"]}"#, false),
        (&referrers, r#"{"schemaVersion":2,"manifests":{}}"#, false),
        (&referrers, r#"{"schemaVersion":2,"manifests":["x"]}"#, false),
        (&referrers, r#"{"schemaVersion":2,"manifests":[{"size":1}]}"#, false),
        (
            &referrers,
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#,
            false,
        ),
        (
            &referrers,
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
            true,
        ),
        (&referrers, r#"{"schemaVersion":2,"manifests":[]}"#, true),
    ] {
        let kind = if *rest == tags { ("application/json", On::tags()) } else { (index, On::referrers()) };
        let injected = hub.fault(kind.1, Fault::reply(200, &[("content-type", kind.0)], body));
        let answer = get(format!("{}/v2/hub/{NAME}/{rest}", larder.url())).await;
        assert_eq!((answer.status, answer.text() == body), if is_list { (200, true) } else { (502, false) }, "{body}");
        injected.lift();
        // Or the last copy would stand in.
        request("DELETE", format!("{}/api/cache", larder.admin_url())).send().await;
    }
}
