//! Promise: clients that log in by a form (OAuth 2) get their token, and a body that nobody wants does no harm to the
//! request behind it.

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    Answer, Auth, DEADLINE, Hub, Image, Larder, Options, RepositoryConfig, TokenService, eventually, get, request,
};

const PRIVATE: &str = "team/private";

async fn scene() -> (Hub, Larder, Image) {
    let service = TokenService { refuses_post: None, ..TokenService::default() };
    let options = Options { auth: Auth::Token(service), ..Options::default() };
    let options = options.user("me", "mine").user("you", "yours").private(PRIVATE, "me");
    let hub = Hub::start(options).await;
    hub.configure(|options| options.identity_tokens.push(("geheim-identity".to_owned(), "me".to_owned())));
    let image = Image::new(1);
    hub.push_image(PRIVATE, "1", &image);
    let config = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream(&hub);
    (hub, Larder::start(config).await, image)
}

fn form(pairs: &[(&str, &str)]) -> String {
    let usual = [
        ("service", "larder"),
        ("scope", "repository:hub/team/private:pull"),
        ("client_id", "containerd-client"),
        ("access_type", "offline"),
    ];
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(usual).extend_pairs(pairs).finish()
}

async fn post(larder: &Larder, pairs: &[(&str, &str)]) -> Answer {
    let asked = request("POST", format!("{}/token", larder.url()));
    let asked = asked.header("content-type", "application/x-www-form-urlencoded; charset=utf-8");
    asked.body(form(pairs)).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_had_by_a_form_as_by_a_header() {
    let (_hub, larder, image) = scene().await;
    let tag = larder.manifest_url("hub/team/private", "1");
    for (pairs, status) in [
        (vec![("grant_type", "password"), ("username", "me"), ("password", "mine")], 200),
        (vec![("grant_type", "refresh_token"), ("refresh_token", "geheim-identity")], 200),
        (vec![("grant_type", "password"), ("username", "you"), ("password", "yours")], 403),
        (vec![("grant_type", "refresh_token"), ("refresh_token", "geheim-other")], 403),
    ] {
        let given = post(&larder, &pairs).await;
        assert_eq!(given.status, 200, "{pairs:?}: {}", given.text());
        let json = given.json();
        // What containerd, Docker and ORAS read of it.
        assert!(json["expires_in"].as_u64().is_some_and(|seconds| seconds >= 60), "{json}");
        assert!(json["issued_at"].as_str().is_some_and(|at| humantime::parse_rfc3339(at).is_ok()), "{json}");
        assert_eq!(json["scope"], "repository:hub/team/private:pull");
        assert!(json.get("refresh_token").is_none(), "a login is not to depend on this process: {json}");
        assert_eq!(given.header("cache-control"), "no-store");
        let token = json["access_token"].as_str().expect("a token");
        let pulled = request("GET", &tag).header("authorization", format!("Bearer {token}")).send().await;
        assert_eq!(pulled.status, status, "{pairs:?}: {}", pulled.text());
        assert!(status != 200 || pulled.body == image.manifest.bytes);
    }
    assert!(!larder.log().contains("geheim"), "no secret of a form is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_make_no_sense_are_refused_as_oauth_says() {
    let (_hub, larder, _) = scene().await;
    for (pairs, error) in [
        (vec![("grant_type", "client_credentials")], "unsupported_grant_type"),
        (vec![], "invalid_request"),
        (vec![("grant_type", "password"), ("username", "me")], "invalid_request"),
        (vec![("grant_type", "refresh_token")], "invalid_request"),
        (vec![("grant_type", "password"), ("username", "a:b"), ("password", "x")], "invalid_request"),
    ] {
        let refused = post(&larder, &pairs).await;
        assert_eq!((refused.status, refused.json()["error"].as_str()), (400, Some(error)), "{pairs:?}");
    }
    let long = "x".repeat(100_000);
    let refused = post(&larder, &[("grant_type", "password"), ("username", "me"), ("password", &long)]).await;
    assert_eq!((refused.status, refused.json()["error"].as_str()), (400, Some("invalid_request")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_this_cache_logs_in_by_a_form_too() {
    let dir = TempDir::new().expect("a directory");
    let hash = bcrypt::hash("secret", 4).expect("hashed");
    std::fs::write(dir.path().join("htpasswd"), format!("bob:{hash}\n")).expect("written");
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let auth = format!("[auth.htpasswd]\npath = \"{}\"\n", dir.path().join("htpasswd").display());
    let larder = Larder::start(auth + &RepositoryConfig::new("hub").upstream(&hub).to_string()).await;
    let given = post(&larder, &[("grant_type", "password"), ("username", "bob"), ("password", "secret")]).await;
    let token = given.json()["access_token"].as_str().expect("a token").to_owned();
    let pulled = request("GET", larder.manifest_url("hub/team/app", "1"));
    assert_eq!(pulled.header("authorization", format!("Bearer {token}")).send().await.body, image.manifest.bytes);
    let wrong = post(&larder, &[("grant_type", "password"), ("username", "bob"), ("password", "wrong")]).await;
    assert_eq!((wrong.status, wrong.error_code().as_str()), (401, "UNAUTHORIZED"));
}

/// Reads one answer; its status and whether the connection ends with it.
async fn answer(stream: &mut TcpStream) -> (u16, bool, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(DEADLINE, stream.read_u8()).await.expect("in time");
        head.push(byte.unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&head))));
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.expect("a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.contains("connection: close"), String::from_utf8_lossy(&body).into_owned())
}

/// Sends a head, and its body once the head has been looked at.
async fn in_two_parts(stream: &mut TcpStream, head: &str, body: &[u8]) {
    stream.write_all(head.as_bytes()).await.expect("sent");
    eventually("the head is read", async || unread(stream) == 0).await;
    stream.write_all(body).await.expect("sent");
}

/// Bytes of a connection within this machine that wait at its other end to be read, as the kernel counts them.
fn unread(stream: &TcpStream) -> u64 {
    let ends = [stream.peer_addr(), stream.local_addr()].map(|end| format!(":{:04X}", end.expect("connected").port()));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table of connections");
    let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found = columns.filter(|line| line.len() > 4 && line[1].ends_with(&ends[0]) && line[2].ends_with(&ends[1]));
    let queues = found.next().expect("the connection is there")[4].to_owned();
    let (_, unread) = queues.split_once(':').expect("two queues");
    u64::from_str_radix(unread, 16).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_after_its_head_does_not_kill_the_next_request() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string();
    let larder = Larder::start(config + "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n").await;
    let body = vec![b'x'; 300_000];
    let digest = &image.layer_digests()[0];
    let sent = format!("host: x\r\ncontent-length: {}\r\n", body.len());
    let doors = [larder.door("registry"), larder.door("admin"), larder.door("proxy")];
    for (door, line, status) in [
        (doors[0], "PUT /v2/hub/team/app/manifests/2".to_owned(), 405),
        (doors[0], "POST /v2/hub/team/app/blobs/uploads/".to_owned(), 405),
        (doors[0], "GET /v2/hub/team/app/manifests/1".to_owned(), 200),
        (doors[0], format!("GET /v2/hub/team/app/blobs/{digest}"), 200),
        (doors[0], "PUT /nothing".to_owned(), 404),
        (doors[1], "PUT /api/images".to_owned(), 405),
        (doors[2], "PUT http://127.0.0.1:1/x".to_owned(), 403),
        (doors[2], format!("GET {}/v2/team/app/manifests/1", hub.url()), 200),
    ] {
        // Addresses count as no names of anybody, so that each door answers for itself.
        let sent = sent.replace("host: x", &format!("host: {door}"));
        let mut stream = TcpStream::connect(door).await.expect("connected");
        for round in 0..2 {
            in_two_parts(&mut stream, &format!("{line} HTTP/1.1\r\n{sent}\r\n"), &body).await;
            let (answered, closes, text) = answer(&mut stream).await;
            assert_eq!((answered, closes), (status, false), "{line}, round {round}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_long_to_be_heard_is_answered_and_the_end_is_announced() {
    let hub = Hub::start(Options::default()).await;
    let larder = Larder::start(RepositoryConfig::new("hub").upstream(&hub)).await;
    let head = "PUT /v2/hub/team/app/manifests/2 HTTP/1.1\r\nhost: 127.0.0.1\r\n";
    // With what it would have sent unread, a socket that is closed takes the answer back.
    let mut stream = TcpStream::connect(larder.door("registry")).await.expect("connected");
    let body = vec![b'x'; 8 << 20];
    let (mut from, mut to) = stream.split();
    let sending = async {
        let head = format!("{head}content-length: {}\r\n\r\n", body.len());
        to.write_all(head.as_bytes()).await.expect("sent");
        to.write_all(&body).await.expect("all of it is taken");
        to.shutdown().await.expect("said");
    };
    let mut said = Vec::new();
    let (read, ()) = tokio::join!(tokio::time::timeout(DEADLINE, from.read_to_end(&mut said)), sending);
    read.expect("in time").expect("the answer comes to its end");
    let said = String::from_utf8_lossy(&said).to_ascii_lowercase();
    assert!(said.starts_with("http/1.1 405") && said.contains("connection: close"), "{said}");

    // Who waits to be told to send its body is told the answer at once.
    let mut stream = TcpStream::connect(larder.door("registry")).await.expect("connected");
    let head = format!("{head}content-length: 5000000\r\nexpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let (status, closes, _) = answer(&mut stream).await;
    assert_eq!((status, closes), (405, true));
    assert_eq!(get(format!("{}/v2/", larder.url())).await.status, 200);
}
