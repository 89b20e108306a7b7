//! Promise: behind a reverse proxy a client is known by its own address, and by no other that it writes itself.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tempfile::TempDir;

use crate::clients::Nginx;
use crate::support::{Answer, Hub, Image, Larder, Options, RepositoryConfig, eventually, request};

/// From where the client really comes.
const CLIENT: &str = "203.0.113.9";
/// An address that the rules of these tests let in.
const INSIDE: &str = "10.1.2.3";

type Header = (&'static str, Vec<u8>);

fn header(name: &'static str, value: &str) -> Header {
    (name, value.as_bytes().to_vec())
}

/// What a client may send to be taken for somebody else.
fn forgeries() -> Vec<Vec<Header>> {
    let plain = |name, value| vec![header(name, value)];
    vec![
        vec![],
        plain("forwarded", "for=10.1.2.3"),
        plain("forwarded", "for=\"10.1.2.3:80\";proto=https;by=10.1.2.3"),
        plain("forwarded", "For=10.1.2.3, for=10.1.2.3"),
        plain("forwarded", "for=\"10.1.2.3"),
        plain("forwarded", "x=\""),
        plain("x-forwarded-for", "10.1.2.3"),
        plain("x-forwarded-for", "127.0.0.1"),
        plain("x-forwarded-for", "10.1.2.3, 10.1.2.3"),
        plain("x-forwarded-for", "10.1.2.3,"),
        plain("x-forwarded-for", ",,"),
        plain("x-forwarded-for", ""),
        plain("x-forwarded-for", "unknown"),
        plain("x-forwarded-for", "_hidden"),
        plain("x-forwarded-for", "\"10.1.2.3"),
        plain("x-forwarded-for", "for=10.1.2.3"),
        plain("x-forwarded-for", "[fe80::1%1]:80"),
        vec![("x-forwarded-for", b"\xff".to_vec())],
        vec![("x-forwarded-for", b"10.1.2.3, \xff".to_vec())],
        vec![header("x-forwarded-for", "10.1.2.3"), header("x-forwarded-for", "10.1.2.3")],
        vec![header("x-forwarded-for", "10.1.2.3"), ("x-forwarded-for", b"\xff".to_vec())],
        vec![header("forwarded", "for=10.1.2.3"), header("x-forwarded-for", "10.1.2.3")],
        plain("x-real-ip", "10.1.2.3"),
        plain("x-client-ip", "10.1.2.3"),
        plain("true-client-ip", "10.1.2.3"),
        plain("via", "1.1 10.1.2.3"),
    ]
}

/// How a proxy in front writes the header that it is configured to write. Other headers it passes on as they are.
#[derive(Clone, Copy, Debug)]
enum Proxy {
    /// `proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;` of nginx, which is the client's header "with
    /// the $remote_addr variable appended to it, separated by a comma" (its ngx_http_proxy_module documentation).
    AppendsXForwardedFor,
    /// `proxy_set_header X-Forwarded-For $remote_addr;`
    SetsXForwardedFor,
    /// A line of its own behind those of the client, as HAProxy's `option forwardfor` adds one.
    AddsALine,
    /// `Forwarded`, appended as in nginx's own recipe (its wiki, "Using the Forwarded header").
    AppendsForwarded,
    SetsForwarded,
}

impl Proxy {
    const ALL: [Self; 5] = [
        Self::AppendsXForwardedFor,
        Self::SetsXForwardedFor,
        Self::AddsALine,
        Self::AppendsForwarded,
        Self::SetsForwarded,
    ];

    fn header_name(self) -> &'static str {
        match self {
            Self::AppendsXForwardedFor | Self::SetsXForwardedFor | Self::AddsALine => "x-forwarded-for",
            Self::AppendsForwarded | Self::SetsForwarded => "forwarded",
        }
    }

    /// What arrives at the server.
    fn forwards(self, sent: &[Header]) -> Vec<Header> {
        let name = self.header_name();
        let (own, mut others): (Vec<_>, Vec<_>) = sent.iter().cloned().partition(|(of, _)| *of == name);
        let element = if name == "forwarded" { format!("for={CLIENT}") } else { CLIENT.to_owned() }.into_bytes();
        match self {
            Self::SetsXForwardedFor | Self::SetsForwarded => others.push((name, element)),
            Self::AddsALine => {
                others.extend(own);
                others.push((name, element));
            }
            Self::AppendsXForwardedFor | Self::AppendsForwarded => {
                let mut values: Vec<Vec<u8>> = own.into_iter().map(|(_, value)| value).collect();
                values.push(element);
                others.push((name, values.join(&b", "[..])));
            }
        }
        others
    }

    /// The keys of `[server]` that go with it.
    fn config(self) -> String {
        format!("trusted_proxies = [\"127.0.0.1\"]\nforwarded_header = \"{}\"\n", self.header_name())
    }
}

async fn ask(method: &str, url: &str, headers: &[Header], pair: &str) -> Answer {
    let mut asked = request(method, url);
    for (name, value) in headers {
        asked = asked.header_bytes(name, value);
    }
    if !pair.is_empty() {
        asked = asked.header("authorization", format!("Basic {}", BASE64_STANDARD.encode(pair)));
    }
    asked.send().await
}

async fn hub() -> Hub {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    hub
}

/// A directory with an htpasswd file for `bob:secret`, and the table that names it.
fn htpasswd() -> (TempDir, String) {
    let dir = TempDir::new().expect("a directory");
    let hash = bcrypt::hash_with_result("secret", 5).expect("hashed").format_for_version(bcrypt::Version::TwoY);
    std::fs::write(dir.path().join("htpasswd"), format!("bob:{hash}\n")).expect("written");
    let table = format!("[auth.htpasswd]\npath = \"{}\"\n", dir.path().join("htpasswd").display());
    (dir, table)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_behind_a_proxy_does_not_choose_its_address() {
    let hub = hub().await;
    let inside = RepositoryConfig::new("hub").set(&format!("allow = [\"{INSIDE}\", \"127.0.0.0/8\"]")).upstream(&hub);
    let open = RepositoryConfig::new("hub").upstream(&hub);
    for proxy in Proxy::ALL {
        let server = proxy.config();
        let by_repository =
            Larder::start(format!("[server]\n{server}[admin]\nallow = [\"loopback\", \"{INSIDE}\"]\n{inside}")).await;
        let by_door =
            Larder::start(format!("[server]\n{server}[auth]\nallow_cidrs = [\"{INSIDE}\", \"127.0.0.0/8\"]\n{open}"))
                .await;
        for sent in forgeries() {
            let arrives = proxy.forwards(&sent);
            let pages = [
                by_repository.manifest_url("hub/team/app", "1"),
                by_door.manifest_url("hub/team/app", "1"),
                format!("{}/v2/", by_door.url()),
                format!("{}/api/images", by_repository.admin_url()),
                format!("{}/metrics", by_repository.admin_url()),
            ];
            for url in pages {
                let refused = ask("GET", &url, &arrives, "").await;
                assert_eq!(refused.status, 403, "{proxy:?} {sent:?}: {url}: {}", refused.text());
            }
            let cleared = ask("DELETE", &format!("{}/api/cache", by_repository.admin_url()), &arrives, "").await;
            assert_eq!(cleared.status, 403, "{proxy:?} {sent:?}");
        }
        // One that really comes from there is let in.
        let from_inside: Vec<Header> = proxy
            .forwards(&[])
            .into_iter()
            .map(|(name, value)| (name, String::from_utf8(value).expect("text").replace(CLIENT, INSIDE).into_bytes()))
            .collect();
        for url in [by_repository.manifest_url("hub/team/app", "1"), by_door.manifest_url("hub/team/app", "1")] {
            assert_eq!(ask("GET", &url, &from_inside, "").await.status, 200, "{proxy:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_read_is_in_no_network() {
    let hub = hub().await;
    let everywhere = "\"0.0.0.0/0\", \"::/0\"";
    let config = format!(
        "[server]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n[admin]\nallow = [\"loopback\", {everywhere}]\n{}{}",
        RepositoryConfig::new("hub").set(&format!("allow = [{everywhere}]")).upstream(&hub),
        RepositoryConfig::new("all").upstream(&hub),
    );
    let larder = Larder::start(&config).await;
    let by_door = Larder::start(format!("{config}[auth]\nallow_cidrs = [{everywhere}]\n")).await;
    let values: [&[u8]; 16] = [
        b"",
        b" ",
        b",",
        b"unknown",
        b"_hidden",
        b"\xff",
        b"nonsense",
        b"192.0.2.1, unknown",
        b"192.0.2.1,",
        b"192.0.2.1:port",
        b"192.0.2.1:99999",
        b"192.0.2.300",
        b"fe80::1%eth0",
        b"[fe80::1%1]:80",
        b"unix:",
        // A proxy on another machine means that machine's loopback and not ours.
        b"127.0.0.1, 10.0.0.2",
    ];
    for value in values {
        let shown = String::from_utf8_lossy(value).into_owned();
        let headers = [("x-forwarded-for", value.to_vec())];
        for url in [
            larder.manifest_url("hub/team/app", "1"),
            by_door.manifest_url("all/team/app", "1"),
            format!("{}/api/images", larder.admin_url()),
        ] {
            assert_eq!(ask("GET", &url, &headers, "").await.status, 403, "{shown:?}: {url}");
        }
        // Who is let in from anywhere is let in from there, too.
        assert_eq!(ask("GET", &larder.manifest_url("all/team/app", "1"), &headers, "").await.status, 200, "{shown:?}");
    }
    eventually("the log says so", async || larder.log().contains("\"client\":\"unknown\"")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_hops_are_trusted_the_first_one_is_the_client() {
    let hub = hub().await;
    let config =
        "[server]\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n[auth]\nallow_cidrs = [\"10.9.9.9\"]\n";
    let larder = Larder::start(format!("{config}{}", RepositoryConfig::new("hub").upstream(&hub))).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    for (hops, status) in [
        ("10.9.9.9", 200),
        ("10.9.9.9, 10.0.0.2", 200),
        ("10.9.9.9, 10.0.0.3, 10.0.0.2", 200),
        ("10.9.9.8, 10.9.9.9", 403),
        ("192.0.2.1, 10.9.9.9", 403),
        ("10.9.9.9, 192.0.2.1, 10.0.0.2", 403),
        ("10.9.9.9, unknown, 10.0.0.2", 403),
    ] {
        let answer = ask("GET", &tag, &[header("x-forwarded-for", hops)], "").await;
        assert_eq!(answer.status, status, "{hops}: {}", answer.text());
    }
    // Several lines are one list, in order.
    let lines = [header("x-forwarded-for", "10.9.9.9"), header("x-forwarded-for", "10.0.0.2")];
    assert_eq!(ask("GET", &tag, &lines, "").await.status, 200);
    // The proxy itself asks, its health check for instance.
    assert_eq!(ask("GET", &tag, &[], "").await.status, 403);
    eventually("the log says so", async || larder.log().contains("\"client\":\"10.9.9.9\"")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_configured_header_is_read() {
    let hub = hub().await;
    let rest = format!("[auth]\nallow_cidrs = [\"{INSIDE}\"]\n{}", RepositoryConfig::new("hub").upstream(&hub));
    for (configured, other) in [("", "forwarded"), ("x-forwarded-for", "forwarded"), ("forwarded", "x-forwarded-for")] {
        let key = if configured.is_empty() { String::new() } else { format!("forwarded_header = \"{configured}\"\n") };
        let larder = Larder::start(format!("[server]\ntrusted_proxies = [\"127.0.0.1\"]\n{key}{rest}")).await;
        let tag = larder.manifest_url("hub/team/app", "1");
        let value = |name: &str, address: &str| {
            if name == "forwarded" { format!("for={address}") } else { address.to_owned() }
        };
        let one = if configured.is_empty() { "x-forwarded-for" } else { configured };
        for (of_one, of_other, status) in [
            (Some(INSIDE), None, 200),
            (Some(INSIDE), Some(CLIENT), 200),
            (Some(CLIENT), Some(INSIDE), 403),
            (None, Some(INSIDE), 403),
        ] {
            let mut asked = request("GET", &tag);
            for (name, address) in [(one, of_one), (other, of_other)] {
                if let Some(address) = address {
                    asked = asked.header(name, value(name, address));
                }
            }
            assert_eq!(asked.send().await.status, status, "{configured}: {of_one:?} {of_other:?}");
        }
    }
}

/// Tries wrong passwords and tells how many were compared and how many were not looked at.
async fn guess(urls: &[String], count: usize, headers_of: impl Fn(usize) -> Vec<Header>) -> (usize, usize) {
    let (mut compared, mut refused) = (0, 0);
    for number in 0..count {
        let url = &urls[number % urls.len()];
        match ask("GET", url, &headers_of(number), &format!("bob:wrong-{number}")).await.status {
            401 => compared += 1,
            429 => refused += 1,
            status => panic!("{status} for guess {number}"),
        }
    }
    (compared, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_header_gives_nobody_more_guesses() {
    let hub = hub().await;
    let (_dir, table) = htpasswd();
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    for proxy in Proxy::ALL {
        let config = format!("[server]\n{}{table}[admin]\nallow = [\"user:bob\"]\n{repository}", proxy.config());
        let larder = Larder::start(config).await;
        let urls = [
            larder.manifest_url("hub/team/app", "1"),
            format!("{}/v2/", larder.url()),
            format!("{}/api/images", larder.admin_url()),
        ];
        let forged = |number: usize| {
            let (a, b) = (number / 250, number % 250);
            let sent = match number % 4 {
                0 => vec![header("forwarded", &format!("for=10.1.{a}.{b}"))],
                1 => vec![header("x-forwarded-for", &format!("10.1.{a}.{b}"))],
                2 => vec![("x-forwarded-for", vec![0xff, b'0' + u8::try_from(b % 10).expect("a digit")])],
                _ => vec![header("x-forwarded-for", "unknown"), header("forwarded", "for=_x")],
            };
            proxy.forwards(&sent)
        };
        let (compared, refused) = guess(&urls, 60, forged).await;
        assert_eq!((compared, refused), (20, 40), "{proxy:?}");
    }
    // Addresses that cannot be read are one.
    let larder = Larder::start(format!("[server]\ntrusted_proxies = [\"127.0.0.1\"]\n{table}{repository}")).await;
    let urls = [larder.manifest_url("hub/team/app", "1")];
    let unreadable = |number: usize| vec![header("x-forwarded-for", &format!("_client-{number}"))];
    assert_eq!(guess(&urls, 60, unreadable).await, (20, 40));
    // That is nobody else's: the proxy itself, or a client with an address, may still log in.
    assert_eq!(ask("GET", &urls[0], &[], "bob:secret").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_the_real_nginx_a_client_has_its_own_address() {
    let hub = hub().await;
    let (_dir, table) = htpasswd();
    let config = format!(
        "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n{table}[admin]\nallow = [\"127.0.0.3\", \"{INSIDE}\"]\n{}{}",
        RepositoryConfig::new("hub").set(&format!("allow = [\"127.0.0.3\", \"{INSIDE}\"]")).upstream(&hub),
        RepositoryConfig::new("users").set("allow = [\"user:bob\"]").upstream(&hub),
    );
    let [client, inside] = ["127.0.0.2", "127.0.0.3"].map(|text| text.parse().expect("an address"));
    for recipe in ["$proxy_add_x_forwarded_for", "$remote_addr"] {
        let larder = Larder::start(&config).await;
        let directives = format!("proxy_set_header X-Forwarded-For {recipe};");
        let [registry, admin] = [
            Nginx::start(larder.door("registry"), &directives).await,
            Nginx::start(larder.door("admin"), &directives).await,
        ];
        let tag = |name: &str| format!("http://{}/v2/{name}/team/app/manifests/1", registry.address());
        let images = format!("http://{}/api/images", admin.address());
        let with = |url: &str, sent: &[Header]| {
            sent.iter().fold(request("GET", url), |asked, (name, value)| asked.header_bytes(name, value))
        };
        for sent in forgeries() {
            let refused = with(&tag("hub"), &sent).from(client).send().await;
            assert_eq!(refused.status, 401, "{recipe} {sent:?}: {}", refused.text());
            assert_eq!(with(&images, &sent).from(client).send().await.status, 401, "{recipe} {sent:?}");
            assert_eq!(with(&tag("hub"), &sent).from(inside).send().await.status, 200, "{recipe} {sent:?}");
            assert_eq!(with(&images, &sent).from(inside).send().await.status, 200, "{recipe} {sent:?}");
        }
        let (mut compared, mut refused) = (0, 0);
        for number in 0..60 {
            let pair = BASE64_STANDARD.encode(format!("bob:wrong-{number}"));
            let asked = request("GET", tag("users")).from(client).header("authorization", format!("Basic {pair}"));
            let asked = asked
                .header("forwarded", format!("for=10.1.0.{number}"))
                .header("x-forwarded-for", format!("10.2.0.{number}"))
                .header("x-forwarded-for", format!("10.3.0.{number}"));
            match asked.send().await.status {
                401 => compared += 1,
                429 => refused += 1,
                status => panic!("{status}"),
            }
        }
        assert_eq!((compared, refused), (20, 40), "{recipe}");
        eventually("the log says so", async || larder.log().contains("\"client\":\"127.0.0.2\"")).await;
    }
}
