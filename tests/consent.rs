//! Promise: that an upstream redirects a client is no consent. What is there has to be the object, or the storage that sent
//! this very object before.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::support::{
    Answer, Auth, Fault, Hub, Image, Larder, On, Options, Origin, Page, Proxied, Redirect, RepositoryConfig, blob,
    eventually, get, request,
};

const PRIVATE: &str = "team/private";
const ME: &str = "me:mine";
const YOU: &str = "you:yours";

async fn get_as(pair: &str, url: &str) -> Answer {
    let asked = request("GET", url);
    let login = format!("Basic {}", BASE64_STANDARD.encode(pair));
    if pair.is_empty() { asked } else { asked.header("authorization", login) }.send().await
}

fn options() -> Options {
    Options { auth: Auth::Basic, ..Options::default() }.user("me", "mine").user("you", "yours").private(PRIVATE, "me")
}

/// A gateway before a registry: whom it does not know it leads to a page, whose path holds what was asked for.
struct Gateway {
    pages: Origin,
    digest: String,
}

impl Gateway {
    async fn start(digest: &str) -> Self {
        Self { pages: Origin::http().await, digest: digest.to_owned() }
    }

    fn path(&self) -> String {
        format!("/login/v2/blobs/{}", self.digest)
    }

    /// All that a page may look like, short of being the object; `size` is that of the object.
    fn all_pages(size: usize) -> Vec<(&'static str, Page)> {
        let page = |kind: &str, body: Vec<u8>| Page::new(body).header("content-type", kind);
        vec![
            ("a page", page("text/html", b"<title>Log in</title>".to_vec())),
            ("a page of the same length", page("text/html; charset=utf-8", vec![b'x'; size])),
            ("a page that says nothing of itself, of the same length", Page::new(vec![b'x'; size])),
            ("bytes of the same length", page("application/octet-stream", vec![b'x'; size])),
            ("bytes of another length", page("application/octet-stream", vec![b'x'; size + 1])),
            ("nothing", page("application/octet-stream", Vec::new())),
            ("an error", page("application/json", b"{}".to_vec()).status(404)),
        ]
    }

    fn lead_there(&self, hub: &Hub, status: u16) {
        let location = self.pages.url(&self.path());
        hub.fault(On::blob().before_auth(), Fault::reply(status, &[("location", &location)], ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_a_page_is_no_consent() {
    let image = Image::new(1);
    let digest = image.layer_digests()[0].clone();
    let hub = Hub::start(options()).await;
    hub.push_image(PRIVATE, "1", &image);
    let config =
        RepositoryConfig::new("hub").set("client_credentials = \"pass\"\nconsent_max_age = \"0s\"").upstream(&hub);
    let larder = Larder::start(config).await;
    let layer = larder.blob_url(&format!("hub/{PRIVATE}"), &digest);
    assert_eq!(get_as(ME, &layer).await.body, image.blobs()[1]);
    eventually("it is stored", async || larder.object(&digest).exists()).await;
    let mut gateway = Gateway::start(&digest).await;
    for status in [301, 302, 303, 307, 308] {
        gateway.lead_there(&hub, status);
        for (what, page) in Gateway::all_pages(image.blobs()[1].len()) {
            gateway.pages.put(&gateway.path(), page);
            for who in ["", YOU] {
                let answer = get_as(who, &layer).await;
                assert!(answer.status >= 400, "{status} to {what} as {who:?}: {}", answer.status);
            }
        }
        hub.clear_faults();
    }
    // Nor when the page cannot be had.
    gateway.pages.stop();
    for status in [302, 307] {
        gateway.lead_there(&hub, status);
        for who in ["", YOU] {
            assert!(get_as(who, &layer).await.status >= 400, "{status}");
        }
        hub.clear_faults();
    }
    gateway = Gateway::start(&digest).await;
    // Who may read it may go on by way of whatever serves it.
    gateway.lead_there(&hub, 302);
    gateway.pages.put(&gateway.path(), Page::new(image.blobs()[1].clone()));
    assert_eq!(get_as(ME, &layer).await.body, image.blobs()[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_shows_to_everybody_is_not_learnt_to_be_public() {
    let scene = Proxied::start_with(options(), "consent_max_age = \"0s\"", ["", ""], "").await;
    let image = Image::new(1);
    let digest = image.layer_digests()[0].clone();
    scene.hub.push_image(PRIVATE, "1", &image);
    let url = scene.blob(PRIVATE, &digest);
    let mine = format!("Basic {}", BASE64_STANDARD.encode(ME));
    let gateway = Gateway::start(&digest).await;
    for status in [302, 307] {
        for (what, page) in Gateway::all_pages(image.blobs()[1].len()) {
            gateway.pages.put(&gateway.path(), page);
            gateway.lead_there(&scene.hub, status);
            // Before it is cached, and when it is.
            for round in ["cold", "warm"] {
                for method in ["GET", "HEAD"] {
                    // What turns out to be something else may break off before anything came.
                    if let Ok(answer) = scene.browser().try_send(method, &url, &[], "").await {
                        assert_ne!(answer.body, image.blobs()[1], "{round}: {method} {status} to {what}");
                    }
                }
                scene.hub.clear_faults();
                let answer = scene.browser().get(&url).await;
                assert!(answer.status == 401, "{round}, after {status} to {what}: {}", answer.status);
                let answer = scene.browser().get_as(&mine, &url).await;
                assert!(answer.body == image.blobs()[1], "{round}, after {status} to {what}: {}", answer.status);
                eventually("it is stored", async || scene.larder.object(&digest).exists()).await;
                gateway.lead_there(&scene.hub, status);
            }
            scene.hub.clear_faults();
            let answer = scene.browser().get(&url).await;
            assert_eq!(answer.status, 401, "after {status} to {what}");
            let cleared = request("DELETE", format!("{}/api/cache", scene.larder.admin_url())).send().await;
            assert_eq!(cleared.status, 200);
        }
    }
    assert!(!scene.larder.log().contains("\"an object is for everybody"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_in_instead_of_an_object_is_no_consent_to_it() {
    let image = Image::new(1);
    let digest = image.layer_digests()[0].clone();
    let hub = Hub::start(options()).await;
    hub.push_image(PRIVATE, "1", &image);
    let config =
        RepositoryConfig::new("hub").set("client_credentials = \"pass\"\nconsent_max_age = \"1h\"").upstream(&hub);
    let larder = Larder::start(config).await;
    let layer = larder.blob_url(&format!("hub/{PRIVATE}"), &digest);
    let same = "x".repeat(image.blobs()[1].len());
    for body in ["something else", &same] {
        let page = Fault::reply(200, &[("content-type", "application/octet-stream")], body);
        hub.fault(On::blob().before_auth(), page);
        for who in ["", YOU] {
            let answer = get_as(who, &layer).await;
            assert!(!answer.complete() || answer.status >= 400, "{}", answer.status);
        }
        hub.clear_faults();
        assert_eq!(get_as(ME, &layer).await.body, image.blobs()[1]);
        eventually("it is stored", async || larder.object(&digest).exists()).await;
        for who in ["", YOU] {
            assert!(get_as(who, &layer).await.status >= 400, "{who:?}");
        }
        assert_eq!(request("DELETE", format!("{}/api/cache", larder.admin_url())).send().await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_anothers_transfer_is_shown_only_with_consent() {
    let bytes = blob(7, 400_000);
    let hub = Hub::start(options()).await;
    let digest = hub.push_blob(PRIVATE, bytes.clone());
    let config =
        RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream_with(&hub, "timeout = \"1s\"");
    let larder = Larder::start(config).await;
    let layer = larder.blob_url(&format!("hub/{PRIVATE}"), &digest);
    hub.fault(On::blob().get().times(1), Fault::Short { after: 300_000 });
    hub.fault(On::blob().ranged(), Fault::Drop);
    let mine = get_as(ME, &layer).await;
    assert!(!mine.complete() && mine.body.len() > 100_000, "{} {:?}", mine.body.len(), mine.error);
    hub.clear_faults();
    // Whom it does not know the gateway answers with something without an end in sight.
    let page = Fault::reply(200, &[("content-type", "application/octet-stream")], "log in");
    hub.fault(On::blob().before_auth(), page);
    hub.fault(On::blob().before_auth(), Fault::NoContentLength);
    for who in ["", YOU] {
        let stolen = get_as(who, &layer).await;
        assert!(!bytes.starts_with(&stolen.body) || stolen.body.is_empty(), "{} bytes of it", stolen.body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_storage_is_down_a_redirect_to_it_counts_if_it_sent_this_very_object() {
    let image = Image::new(1);
    let layers = image.layer_digests();
    let hub = Hub::start(Options { redirect: Redirect::Absolute, ..options() }).await;
    hub.push_image(PRIVATE, "1", &image);
    let other = Hub::start(Options::default()).await;
    let config = RepositoryConfig::new("hub")
        .set("client_credentials = \"pass\"\nconsent_max_age = \"0s\"\nstale_if_error = \"0s\"")
        .upstream(&hub);
    let larder = Larder::start(config).await;
    let url = |digest: &str| larder.blob_url(&format!("hub/{PRIVATE}"), digest);
    assert_eq!(get_as(ME, &url(&layers[0])).await.body, image.blobs()[1]);
    eventually("it is stored", async || larder.object(&layers[0]).exists()).await;
    hub.configure(|options| options.private.push((PRIVATE.to_owned(), "you".to_owned())));
    for fault in [Fault::Drop, Fault::status(503), Fault::Hang] {
        hub.fault(On::storage(), fault.clone());
        let asked = std::time::Instant::now();
        let answer = get_as(YOU, &url(&layers[0])).await;
        assert_eq!((answer.status, answer.body == image.blobs()[1]), (200, true), "{fault:?}: {}", answer.text());
        assert!(asked.elapsed().as_secs() < 10, "{fault:?}: it is not waited for");
        assert!(get_as("", &url(&layers[0])).await.status >= 400, "{fault:?}: whom the registry does not lead there");
        hub.clear_faults();
    }
    // Another way to say so, another place, another object.
    let storage = |place: &str, digest: &str| format!("{place}/storage/{digest}");
    let (right, elsewhere) = (hub.storage_url(), other.url());
    hub.fault(On::storage(), Fault::Drop);
    for (status, location) in [
        (302, storage(&right, &layers[0])),
        (303, storage(&right, &layers[0])),
        (307, storage(&elsewhere, &layers[0])),
        (307, format!("{right}/login?back=/storage/{}", layers[0])),
        (307, format!("{right}/login/{}", layers[0])),
    ] {
        let injected = hub.fault(On::blob(), Fault::reply(status, &[("location", &location)], ""));
        let answer = get_as(YOU, &url(&layers[0])).await;
        assert!(answer.status >= 400, "{status} {location}: {}", answer.status);
        injected.lift();
    }
    hub.clear_faults();
    assert_eq!(get_as(YOU, &url(&layers[0])).await.status, 200);
    assert!(get(format!("{}/v2/", larder.url())).await.status < 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_learnt_to_be_public_while_its_storage_is_down() {
    let options = Options { redirect: Redirect::Absolute, ..Options::default() };
    let scene = Proxied::start_with(options, "consent_max_age = \"0s\"", ["", ""], "").await;
    let image = Image::new(1);
    let layer = image.layer_digests()[0].clone();
    scene.hub.push_image("team/app", "1", &image);
    // By the other door, so that nobody asked as nobody yet.
    assert!(get(scene.larder.blob_url("hub/team/app", &layer)).await.complete());
    eventually("it is stored", async || scene.larder.object(&layer).exists()).await;
    scene.hub.fault(On::storage(), Fault::Drop);
    let url = scene.blob("team/app", &layer);
    for _ in 0..3 {
        scene.hub.take_requests();
        assert_eq!(scene.browser().get(&url).await.header("x-cache"), "HIT");
        assert!(scene.hub.count_on(On::blob().head()) > 0, "the registry is asked each time");
    }
    scene.hub.clear_faults();
    let is_learnt = async || {
        scene.hub.take_requests();
        let answer = scene.browser().get(&url).await;
        answer.header("x-cache") == "HIT" && scene.hub.take_requests().is_empty()
    };
    eventually("it is learnt when the storage shows it", is_learnt).await;
}
