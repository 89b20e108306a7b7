//! Promises: the dashboard shows what happens and why, on pages that work without JavaScript, ask for nothing from
//! another place, and show what others wrote as text. Who may only look gets no buttons. In a browser the pages are up to
//! date by themselves, the buttons do what they say, and `axe-core` finds nothing serious.

pub mod browser;
mod scene;

use crate::support::{Answer, Connection, Hub, Image, Larder, Options, eventually, get, repository_config, request};
use scene::{HOSTILE, Scene};

/// All pages, each with what it says.
pub const PAGES: [(&str, &str, &str); 11] = [
    ("overview", "/", "By repository"),
    ("pulls", "/pulls", "containerd/2.2.1"),
    ("images", "/images", "team/"),
    ("image", "/image?reference=hub/team/tool:3.1", "linux/s390x"),
    ("warm", "/warm", "no tag fits"),
    ("upstreams", "/upstreams", "pulls left"),
    ("replicas", "/replicas", "This Larder is alone."),
    ("diagnosis", "/diagnosis", "fails"),
    ("connect", "/connect", "larder setup docker"),
    ("explain", "/explain?reference=hub/team/app:1", "fresh by max_age"),
    ("explain-nothing", "/explain", "Which image?"),
];

async fn page(larder: &Larder, path: &str) -> Answer {
    request("GET", format!("{}{path}", larder.admin_url())).header("accept", "text/html").send().await
}

/// The text between the tags.
fn words(html: &str) -> String {
    let parts = html.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
    parts.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The values of the attributes that make a browser ask for something.
fn asked_for(html: &str) -> Vec<&str> {
    let values = [" href=\"", " src=\"", " action=\"", " poster=\"", " srcset=\"", "url("];
    values.iter().flat_map(|begin| html.split(begin).skip(1)).filter_map(|rest| rest.split(['"', ')']).next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_page_is_there_without_javascript_under_a_strict_policy() {
    let scene = Scene::start("").await;
    for (_, path, says) in PAGES {
        let answer = page(&scene.larder, path).await;
        let text = answer.text();
        assert_eq!(answer.status, 200, "{path}: {text}");
        assert!(words(&text).contains(says), "{path} does not say {says}: {}", words(&text));
        let policy = answer.header("content-security-policy");
        for part in
            ["default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"]
        {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "same-origin");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        // The policy forbids them, so nothing may need them.
        for forbidden in [" style=", " onclick=", "<style", "javascript:"] {
            assert!(!text.contains(forbidden), "{path} has {forbidden}");
        }
        let is_own = |url: &str| {
            url.starts_with('/') && !url.starts_with("//") || url.starts_with('#') || url.starts_with("data:")
        };
        for url in asked_for(&text) {
            assert!(is_own(url), "{path} leads to {url}");
        }
    }
    let overview = page(&scene.larder, "/").await.text();
    let assets: Vec<_> = asked_for(&overview).into_iter().filter(|url| url.starts_with("/assets/")).collect();
    assert_eq!(assets.len(), 2, "a style and a script: {assets:?}");
    for asset in assets {
        let answer = page(&scene.larder, asset).await;
        assert_eq!((answer.status, answer.header("x-content-type-options")), (200, "nosniff"));
        assert!(answer.header("cache-control").contains("immutable"), "{asset}");
        assert!(!answer.text().contains("://"), "{asset} leads elsewhere");
        assert_eq!(page(&scene.larder, &asset.replace('.', "0.")).await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_is_text_and_no_markup() {
    let scene = Scene::start("").await;
    let hostile = url::form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect::<String>();
    let paths = [
        "/".to_owned(),
        "/pulls".to_owned(),
        format!("/pulls?q={hostile}&status={hostile}&repository={hostile}"),
        format!("/images?q={hostile}&sort={hostile}&last={hostile}"),
        format!("/image?reference={hostile}"),
        format!("/explain?reference={hostile}"),
        format!("/?range={hostile}"),
        format!("/{hostile}"),
    ];
    for path in paths {
        let text = page(&scene.larder, &path).await.text();
        assert_eq!(text.matches("<script").count(), 1, "{path}: only our own");
        assert!(!text.contains("<img"), "{path}: {text}");
    }
    let text = page(&scene.larder, "/pulls").await.text();
    assert!(text.contains("&lt;script&gt;alert(1)"), "the user agent is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_look_gets_no_buttons() {
    let scene = Scene::start("[admin]\nallow = [\"192.0.2.1\"]\nread = [\"127.0.0.0/8\"]\n").await;
    for (_, path, _) in PAGES {
        let text = page(&scene.larder, path).await.text();
        assert!(text.contains("you may look, and change nothing"), "{path}");
        assert!(!text.contains("data-action") && !text.contains("<dialog"), "{path} has actions");
    }
    let scene = Scene::start("").await;
    assert!(page(&scene.larder, "/pulls").await.text().contains("data-action=\"purge\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_a_page_for_a_browser_and_json_for_programs() {
    let scene = Scene::start("").await;
    let missing = page(&scene.larder, "/nothing-here").await;
    assert_eq!((missing.status, missing.header("content-type")), (404, "text/html; charset=utf-8"));
    assert!(missing.text().contains("no such page"), "{}", missing.text());
    assert!(!missing.header("content-security-policy").is_empty());
    let foreign = request("GET", scene.page("/")).header("accept", "text/html").header("host", "evil.example");
    let foreign = foreign.send().await;
    assert!(foreign.status == 403 && foreign.text().contains("admin.hosts"), "{}", foreign.text());
    assert!(foreign.header("content-type").starts_with("text/html"));
    let for_programs = get(scene.page("/nothing-here")).await;
    assert!(for_programs.status == 404 && for_programs.json()["error"].is_string());
    let api = page(&scene.larder, "/api/images?n=x").await;
    assert!(api.status == 400 && api.json()["error"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_tell_each_thing_in_its_place() {
    let scene = Scene::start("").await;
    let says = async |path: &str| words(&page(&scene.larder, path).await.text());
    let overview = says("/").await;
    assert!(overview.contains("things need attention") || overview.contains("thing needs attention"), "{overview}");
    for (filter, told) in [
        ("status=hit", "fresh by max_age"),
        ("status=stale", "an old copy was served, because the upstream failed"),
        ("repository=down", "nothing could be served"),
        ("q=registry.example", "404"),
        ("q=no-such-thing", "No pull fits."),
    ] {
        let text = says(&format!("/pulls?{filter}")).await;
        assert!(text.contains(told), "{filter}: {text}");
    }
    assert!(!says("/pulls?status=hit").await.contains("old copy was served"));
    let images = says("/images").await;
    for told in ["1 of 3 platforms", "2 of 4 objects", "all of it"] {
        assert!(images.contains(told), "{told}: {images}");
    }
    let found = says("/images?q=TEAM/P").await;
    assert!(found.contains("team/part:2026-11") && !found.contains("team/app:1"), "{found}");
    let sorted = says("/images?sort=size").await;
    let at = |name: &str| sorted.find(name).unwrap_or_else(|| panic!("no {name}: {sorted}"));
    assert!(at("team/app:1") < at("team/part:2026-11") && at("team/part:2026-11") < at("old/copy:1"), "{sorted}");
    let whole = says("/image?reference=hub/team/app:1").await;
    assert!(whole.contains("layer 2") && whole.contains("cosign.simplesigning"), "{whole}");
    assert!(!whole.contains("not stored application") && whole.contains("all of it"), "{whole}");
    assert!(says("/image?reference=hub/team/none:1").await.contains("Its manifest is not in the cache."));
    let connect = says("/connect").await;
    assert!(connect.contains(&format!("larder setup k3s --url {}", scene.larder.url())), "{connect}");
    // The files are those that setup writes, for each version that reads others.
    for file in
        ["/etc/docker/daemon.json", "/etc/docker/certs.d/_default/hosts.toml", "/etc/rancher/k3s/registries.yaml"]
    {
        assert!(connect.contains(file), "{file}: {connect}");
    }
    assert!(connect.contains("registry-mirrors") && connect.contains("io.containerd.grpc.v1.cri"), "{connect}");
    let explained = says("/explain?reference=down/old/copy:1").await;
    assert!(explained.contains("If it were pulled now") && explained.contains("Its last pulls"), "{explained}");
    assert!(says("/explain?reference=registry.example/a:1").await.contains("registry.example"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_asks_no_upstream() {
    let scene = Scene::start("").await;
    let asked = scene.hub.requests().len();
    for (_, path, _) in PAGES {
        assert_eq!(page(&scene.larder, path).await.status, 200);
    }
    assert_eq!(scene.hub.requests().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_cache_says_what_to_do_next() {
    let hub = Hub::start(Options::default()).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    for (path, says) in [
        ("/", "Nothing was pulled since the start."),
        ("/pulls", "Connect a client"),
        ("/images", "Nothing is cached yet."),
        ("/images?q=a", "No cached image has this in its name."),
        ("/diagnosis", "Nothing is wrong that Larder knows of."),
        ("/upstreams", "it was not asked yet"),
        ("/warm", "Nothing is kept warm by schedule."),
    ] {
        let text = words(&page(&larder, path).await.text());
        assert!(text.contains(says), "{path}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_stay_small_with_ten_thousand_pulls_and_many_images() {
    const MOST: usize = 400_000;
    let hub = Hub::start(Options::default()).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let image = Image::with_layers(1, &[10]);
    for number in 0..250 {
        hub.push_image("team/app", &format!("v{number:03}"), &image);
    }
    let connection = Connection::http1(larder.url()).await;
    for number in 0..250 {
        let url = larder.manifest_url("hub/team/app", &format!("v{number:03}"));
        assert_eq!(request("GET", url).send_on(&connection).await.status, 200);
    }
    for _ in 0..9_800 {
        let url = larder.manifest_url("hub/team/app", &image.manifest.digest);
        assert_eq!(request("HEAD", url).send_on(&connection).await.status, 200);
    }
    for path in
        ["/", "/pulls", "/pulls?q=nothing-has-this", "/images", "/images?sort=size", "/images?sort=use", "/images?q=v1"]
    {
        let answer = page(&larder, path).await;
        assert!(answer.status == 200 && answer.body.len() < MOST, "{path}: {} bytes", answer.body.len());
    }
    // By the links, each image is on one page.
    let (mut path, mut seen) = ("/images".to_owned(), 0);
    loop {
        let text = page(&larder, &path).await.text();
        seen += text.matches("<th scope=\"row\">").count();
        let Some(rest) = text.split("<nav class=\"pager\"").nth(1) else { break };
        let Some((link, _)) = rest.split_once("\">Next page<") else { break };
        path = link.rsplit("href=\"").next().expect("a link").replace("&amp;", "&");
    }
    assert_eq!(seen, 250);
    let pulls = async |path: &str| page(&larder, path).await.text().matches("<li class=\"pull\"").count();
    assert_eq!(pulls("/pulls").await, 100);
    assert_eq!(pulls("/pulls?before=60").await, 9, "the oldest that are kept: 10,050 less 10,000");
    eventually("the server is well", async || get(format!("{}/healthz", larder.admin_url())).await.status == 200).await;
}
