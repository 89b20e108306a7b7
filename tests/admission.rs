//! Promise: who belongs is let in, and everybody else gets 401 with a challenge or 403.

use std::net::SocketAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::clients::{podman_pulls_as, skopeo_copies_as};
use crate::support::{Answer, Connection, Hub, Image, Larder, Options, RepositoryConfig, eventually, get, request};

/// Of a low cost, so that tests do not take long.
fn hash(password: &str) -> String {
    bcrypt::hash_with_result(password, 5).expect("hashed").format_for_version(bcrypt::Version::TwoY)
}

/// A directory with an htpasswd file for these users.
fn users(pairs: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().expect("a directory");
    write_users(&dir, pairs);
    dir
}

fn write_users(dir: &TempDir, pairs: &[(&str, &str)]) {
    let lines: String = pairs.iter().map(|(user, password)| format!("{user}:{}\n", hash(password))).collect();
    std::fs::write(dir.path().join("htpasswd"), format!("# people\n\n{lines}")).expect("written");
}

fn auth(dir: &TempDir) -> String {
    format!("[auth.htpasswd]\npath = {:?}\nrealm = \"the cache\"\n", dir.path().join("htpasswd").display().to_string())
}

async fn hub() -> (Hub, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    (hub, image)
}

async fn get_as(pair: &str, url: &str) -> Answer {
    match pair {
        "" => get(url).await,
        pair => with(url, &format!("Basic {}", BASE64_STANDARD.encode(pair))).await,
    }
}

async fn with(url: &str, authorization: &str) -> Answer {
    request("GET", url).header("authorization", authorization).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_passwords_only_who_logs_in_is_served() {
    let dir = users(&[("bob", "secret"), ("ümläut", "pässwörd")]);
    let (hub, image) = hub().await;
    let larder = Larder::start(auth(&dir) + &RepositoryConfig::new("hub").upstream(&hub).to_string()).await;
    let (tag, base) = (larder.manifest_url("hub/team/app", "1"), format!("{}/v2/", larder.url()));
    let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    for url in [&tag, &base, &layer, &format!("{}/v2/_catalog", larder.url())] {
        for who in ["bob:secret", "ümläut:pässwörd"] {
            assert_eq!(get_as(who, url).await.status, 200, "{url} as {who}");
        }
        let long = format!("bob:{}", "x".repeat(5_000));
        for who in ["bob:wrong", "bob:", ":secret", "eve:secret", "bob:secret ", "BOB:secret", long.as_str()] {
            let refused = get_as(who, url).await;
            assert_eq!((refused.status, refused.error_code().as_str()), (401, "UNAUTHORIZED"), "{url} as {who:.20}");
            assert_eq!(refused.header("www-authenticate"), "Basic realm=\"the cache\"");
        }
    }
    for garbage in ["Basic", "Basic !!!!", "Basic /////w==", "Bearer x", "Bearer larder.AAAA", "Negotiate x", "x"] {
        assert_eq!(with(&tag, garbage).await.status, 401, "{garbage}");
    }
    let huge = format!("Basic {}", BASE64_STANDARD.encode(format!("bob:{}", "x".repeat(10 << 10))));
    assert_eq!(with(&tag, &huge).await.status, 401);
    // The catalog is no object; whoever did not log in sees nothing of it.
    for url in [&tag, &base, &layer] {
        assert_eq!(get(url).await.status, 401, "{url}");
    }
    assert_eq!(get(format!("{}/v2/_catalog", larder.url())).await.json()["repositories"], serde_json::json!([]));
    assert!(!larder.log().contains("secret") && !larder.log().contains("pässwörd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_repository_says_who_may_pull() {
    let dir = users(&[("bob", "secret"), ("eve", "other")]);
    let (hub, _) = hub().await;
    let repository = |name: &str, allow: &str| {
        RepositoryConfig::new(name).set(&format!("allow = {allow}")).upstream(&hub).to_string()
    };
    let config = auth(&dir)
        + &repository("all", "[\"*\"]")
        + &repository("open", "[\"anonymous\"]")
        + &repository("bobs", "[\"user:bob\"]")
        + &repository("inside", "[\"127.0.0.0/8\"]")
        + &repository("elsewhere", "[\"10.0.0.0/8\", \"::1\"]");
    let larder = Larder::start(config).await;
    for (name, nobody, bob, eve) in [
        ("all", 401, 200, 200),
        ("open", 200, 200, 200),
        ("bobs", 401, 200, 403),
        ("inside", 200, 200, 200),
        ("elsewhere", 401, 403, 403),
    ] {
        let tag = larder.manifest_url(&format!("{name}/team/app"), "1");
        // Who needs no login is not asked for one, whatever it brings.
        let wrong = if nobody == 200 { 200 } else { 401 };
        for (who, status) in [("", nobody), ("bob:secret", bob), ("eve:other", eve), ("eve:wrong", wrong)] {
            let answer = get_as(who, &tag).await;
            assert_eq!(answer.status, status, "{name} as {who}: {}", answer.text());
            if status == 401 {
                // Some need no login: every client asks for a token, with one or without.
                assert!(answer.header("www-authenticate").starts_with("Bearer realm="), "{name}");
            }
        }
    }
    // The tokens of our own service stand for a login.
    let token = async |who: &str| get_as(who, &format!("{}/token?service=larder", larder.url())).await;
    let bobs = token("bob:secret").await.json()["token"].as_str().expect("a token").to_owned();
    let tag = |name: &str| larder.manifest_url(&format!("{name}/team/app"), "1");
    assert_eq!(with(&tag("bobs"), &format!("Bearer {bobs}")).await.status, 200);
    assert_eq!(token("bob:wrong").await.status, 401);
    let nobodys = token("").await.json()["token"].as_str().expect("a token").to_owned();
    assert_eq!(with(&tag("open"), &format!("Bearer {nobodys}")).await.status, 200);
    assert_eq!(with(&tag("bobs"), &format!("Bearer {nobodys}")).await.status, 401);
    // What one may not pull, one does not see.
    let catalog =
        async |who: &str| get_as(who, &format!("{}/v2/_catalog", larder.url())).await.json()["repositories"].clone();
    assert_eq!(catalog("").await, serde_json::json!(["inside/team/app", "open/team/app"]));
    assert!(catalog("bob:secret").await.as_array().is_some_and(|names| names.contains(&"bobs/team/app".into())));
    assert!(catalog("eve:other").await.as_array().is_some_and(|names| !names.contains(&"bobs/team/app".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_taken_out_of_the_file_is_out_at_once() {
    let dir = users(&[("bob", "secret"), ("eve", "other")]);
    let (hub, _) = hub().await;
    let larder = Larder::start(auth(&dir) + &RepositoryConfig::new("hub").upstream(&hub).to_string()).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    assert_eq!((get_as("bob:secret", &tag).await.status, get_as("eve:other", &tag).await.status), (200, 200));
    write_users(&dir, &[("bob", "changed")]);
    eventually("eve is out", async || get_as("eve:other", &tag).await.status == 401).await;
    assert_eq!((get_as("bob:secret", &tag).await.status, get_as("bob:changed", &tag).await.status), (401, 200));
    // A file that cannot be used changes nothing.
    std::fs::write(dir.path().join("htpasswd"), "bob:plain\n").expect("written");
    eventually("it is refused", async || larder.log().contains("not hashed with bcrypt")).await;
    assert_eq!(get_as("bob:changed", &tag).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_may_not_come_in_do_not_and_forged_ones_help_nobody() {
    let (hub, _) = hub().await;
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    for (auth, headers, status) in [
        ("allow_cidrs = [\"127.0.0.0/8\"]", vec![], 200),
        ("allow_cidrs = [\"127.0.0.1\"]", vec![], 200),
        ("allow_cidrs = [\"10.0.0.0/8\"]", vec![], 403),
        ("allow_cidrs = [\"10.0.0.0/8\"]", vec![("x-forwarded-for", "10.0.0.1")], 403),
        ("allow_cidrs = [\"10.0.0.0/8\"]", vec![("forwarded", "for=10.0.0.1")], 403),
        (
            "allow_cidrs = [\"10.0.0.0/8\"]\n[server]\ntrusted_proxies = [\"127.0.0.1\"]",
            vec![("x-forwarded-for", "10.0.0.1")],
            200,
        ),
        (
            "allow_cidrs = [\"10.0.0.0/8\"]\n[server]\ntrusted_proxies = [\"127.0.0.1\"]",
            vec![("x-forwarded-for", "10.0.0.1, 192.0.2.1")],
            403,
        ),
    ] {
        let larder = Larder::start(format!("[auth]\n{auth}\n{repository}")).await;
        for url in [larder.manifest_url("hub/team/app", "1"), format!("{}/v2/", larder.url())] {
            let asked = headers.iter().fold(request("GET", &url), |asked, (name, value)| asked.header(name, value));
            let answer = asked.send().await;
            assert_eq!(answer.status, status, "{auth} {headers:?}: {}", answer.text());
            assert!(status == 200 || answer.error_code() == "DENIED");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_log_in_with_a_password() {
    let dir = users(&[("bob", "secret")]);
    let (hub, _) = hub().await;
    let only = RepositoryConfig::new("hub").upstream(&hub).to_string();
    let mixed = only.clone() + &RepositoryConfig::new("open").set("allow = [\"anonymous\"]").upstream(&hub).to_string();
    for config in [only, mixed] {
        let larder = Larder::start(auth(&dir) + &config).await;
        let address = larder.url().trim_start_matches("http://").to_owned();
        let reference = format!("{address}/hub/team/app:1");
        assert!(skopeo_copies_as(&reference, Some("bob:secret")).await.is_ok());
        for who in [Some("bob:wrong"), None] {
            assert!(skopeo_copies_as(&reference, who).await.is_err(), "{who:?}");
            let refused = format!("{:?}", podman_pulls_as(&reference, who).await.expect_err("podman pulled it"));
            assert!(
                ["unauthorized", "authentication", "denied"].iter().any(|word| refused.contains(word)),
                "{refused}"
            );
        }
        if config.contains("anonymous") {
            assert!(skopeo_copies_as(&format!("{address}/open/team/app:1"), None).await.is_ok());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_door_is_for_whom_the_configuration_names() {
    let dir = users(&[("bob", "secret"), ("eve", "other")]);
    let (hub, _) = hub().await;
    let repository = RepositoryConfig::new("hub").set("allow = [\"anonymous\"]").upstream(&hub).to_string();
    for (allow, nobody, bob, eve) in [
        ("[\"loopback\"]", 200, 200, 200),
        ("[\"user:bob\"]", 401, 200, 403),
        ("[\"*\"]", 401, 200, 200),
        ("[\"10.0.0.0/8\"]", 401, 403, 403),
    ] {
        let larder = Larder::start(format!("[admin]\nallow = {allow}\n{}{repository}", auth(&dir))).await;
        for page in ["api/cache/stats", "metrics", "api/images"] {
            let url = format!("{}/{page}", larder.admin_url().trim_end_matches('/'));
            for (who, status) in [("", nobody), ("bob:secret", bob), ("eve:other", eve), ("bob:wrong", 401)] {
                assert_eq!(get_as(who, &url).await.status, status, "{allow} {page} as {who}");
            }
        }
        let url = format!("{}/api/cache", larder.admin_url().trim_end_matches('/'));
        let cleared =
            request("DELETE", &url).header("authorization", format!("Basic {}", BASE64_STANDARD.encode("eve:wrong")));
        assert_eq!(cleared.send().await.status, 401);
        for open in ["healthz", "readyz"] {
            assert_eq!(get(format!("{}/{open}", larder.admin_url().trim_end_matches('/'))).await.status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_places_can_do_nothing_by_way_of_a_browser_here() {
    let (hub, _) = hub().await;
    let larder = Larder::start(RepositoryConfig::new("hub").upstream(&hub)).await;
    let url = |page: &str| format!("{}/{page}", larder.admin_url().trim_end_matches('/'));
    let clear = || request("DELETE", url("api/cache"));
    assert_eq!(clear().header("origin", "https://evil.test").send().await.status, 403);
    assert_eq!(clear().header("sec-fetch-site", "cross-site").send().await.status, 403);
    // A name of theirs that leads here.
    assert_eq!(request("GET", url("api/images")).header("host", "evil.test:17081").send().await.status, 403);
    assert_eq!(clear().header("host", "evil.test").send().await.status, 403);
    let own = url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    assert_eq!(clear().header("origin", format!("http://{own}")).send().await.status, 200);
    assert_eq!(request("GET", url("api/images")).header("host", "localhost:17081").send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_passwords_is_told_to_wait() {
    let dir = users(&[("bob", "secret")]);
    let (hub, _) = hub().await;
    let larder = Larder::start(auth(&dir) + &RepositoryConfig::new("hub").upstream(&hub).to_string()).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    assert_eq!(get_as("bob:secret", &tag).await.status, 200);
    let mut guesses = 0;
    let told = loop {
        let answer = get_as(&format!("bob:guess-{guesses}"), &tag).await;
        if answer.status != 401 {
            break answer;
        }
        guesses += 1;
        assert!(guesses < 1000, "nobody stops it");
    };
    assert_eq!((told.status, told.error_code().as_str(), guesses), (429, "TOOMANYREQUESTS", 20));
    assert!((1..=60).contains(&told.header("retry-after").parse::<u64>().expect("seconds")));
    // Who logged in before goes on.
    assert_eq!(get_as("bob:secret", &tag).await.status, 200);
}

/// What a SOCKS server says to a client that logs in and wants to go somewhere (RFC 1928, RFC 1929): 0 is yes, 2 is no.
async fn socks_as(pair: (&str, &str), from: &str, proxy: SocketAddr, to: SocketAddr) -> u8 {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(from.parse().expect("an address"), 0)).expect("bound");
    let mut stream = socket.connect(proxy).await.expect("connected");
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let login = [vec![1], text(pair.0), text(pair.1)].concat();
    let connect = [&[5, 1, 0, 1, 127, 0, 0, 1][..], &to.port().to_be_bytes()].concat();
    stream.write_all(&[&[5, 1, 2][..], &login, &connect].concat()).await.expect("sent");
    let mut told = [0; 2 + 2 + 10];
    stream.read_exact(&mut told).await.expect("an answer");
    told[5]
}

#[tokio::test(flavor = "multi_thread")]
async fn many_wrong_passwords_at_once_are_no_more_guesses() {
    let dir = users(&[("bob", "secret"), ("eve", "other")]);
    let (hub, _) = hub().await;
    let rest = "[admin]\nallow = [\"*\"]\n[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n[allowlist]\ndomains = [\"127.0.0.1\"]\n";
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    let larder = Larder::start(auth(&dir) + rest + &repository).await;
    let proxy = larder.door("proxy");
    let ask = async |number: usize, pair: &str, from: &str| {
        let login = format!("Basic {}", BASE64_STANDARD.encode(pair));
        let asked = match number % 4 {
            0 => request("GET", larder.manifest_url("hub/team/app", "1")).header("authorization", login),
            1 => request("GET", format!("{}/token?service=larder", larder.url())).header("authorization", login),
            2 => request("GET", format!("{}/api/images", larder.admin_url())).header("authorization", login),
            _ => {
                let asked = request("GET", format!("{}/v2/", hub.url())).through_proxy(proxy);
                asked.header("proxy-authorization", login)
            }
        };
        asked.from(from.parse().expect("an address")).send().await.status
    };
    let guesses = join_all((0..300).map(async |number| {
        let user = ["bob", "eve", "nobody"][number % 3];
        ask(number, &format!("{user}:wrong-{number}"), "127.0.0.1").await
    }));
    // Meanwhile somebody else logs in.
    let others = join_all((0..8).map(|number| ask(number, "bob:secret", "127.0.0.2")));
    let (guesses, others) = tokio::join!(guesses, others);
    assert_eq!(others, [200; 8], "nobody else waits");
    let compared = guesses.iter().filter(|status| matches!(status, 401 | 407)).count();
    let refused = guesses.iter().filter(|status| **status == 429).count();
    assert_eq!((compared, refused), (20, 280), "{guesses:?}");
    // The right password does not help now, at none of the doors.
    for number in 0..4 {
        assert_eq!(ask(number, "eve:other", "127.0.0.1").await, 429, "{number}");
        assert_eq!(ask(number, "eve:other", "127.0.0.3").await, 200, "{number}");
    }
    let upstream = hub.url().trim_start_matches("http://").parse().expect("an address");
    assert_eq!(socks_as(("eve", "other"), "127.0.0.1", proxy, upstream).await, 2);
    assert_eq!(socks_as(("eve", "other"), "127.0.0.4", proxy, upstream).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_take_all_connections() {
    let (hub, _) = hub().await;
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    let larder = Larder::start(format!("[server]\nmax_connections_per_address = 3\n{repository}")).await;
    let base = format!("{}/v2/", larder.url());
    let mut held = Vec::new();
    for _ in 0..3 {
        let connection = Connection::http1(larder.url()).await;
        assert_eq!(request("GET", &base).send_on(&connection).await.status, 200);
        held.push(connection);
    }
    assert!(request("GET", &base).try_send().await.is_err());
    // Those that are there go on, and who leaves makes room.
    assert_eq!(request("GET", &base).send_on(&held[0]).await.status, 200);
    held.clear();
    eventually("there is room again", async || request("GET", &base).try_send().await.is_ok()).await;
}
