//! Promise: whoever is not let in any more does not stay in: not by a tunnel, a changed protocol, or a connection that
//! was kept open.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{
    Browser, Connection, DEADLINE, Hub, Image, Larder, Options, Origin, RepositoryConfig, eventually, request,
};

const DOOR: &str = "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n";

/// A server that repeats what it hears.
async fn echo() -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = listener.local_addr().expect("an address").to_string();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (address, serving)
}

fn line(user: &str, password: &str) -> String {
    format!("{user}:{}\n", bcrypt::hash(password, 4).expect("a hash"))
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).expect("written");
}

/// How a connection through the door comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Carried,
    Socks,
    /// Opened to be read, but what comes is no HTTP.
    NoHttp,
    Upgraded,
    UpgradedInside,
}

const WAYS: [Way; 5] = [Way::Carried, Way::Socks, Way::NoHttp, Way::Upgraded, Way::UpgradedInside];

struct Scene {
    larder: Larder,
    htpasswd: PathBuf,
    alice: String,
    /// Of servers: one that is carried to, one whose tunnels are opened, one that changes its protocol.
    echo: String,
    opened: String,
    origin: Origin,
    _rest: (TempDir, Vec<tokio::task::JoinHandle<()>>),
}

impl Scene {
    async fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let htpasswd = dir.path().join("htpasswd");
        let (alice, bob) = (line("alice", "right"), line("bob", "right"));
        write(&htpasswd, &format!("{alice}{bob}"));
        let ((echo, one), (opened, two)) = (echo().await, echo().await);
        let origin = Origin::http().await;
        let scene = |larder| Self { larder, htpasswd, alice, echo, opened, origin, _rest: (dir, vec![one, two]) };
        let mut scene = scene(Larder::builder().config("").prepare());
        let config = scene.config("", "", true);
        scene.larder = Larder::start(config).await;
        scene
    }

    /// With more in `[proxy]` and `[auth]`; `has_places`: the door leads to the servers.
    fn config(&self, proxy: &str, auth: &str, has_places: bool) -> String {
        let places = match has_places {
            true => vec![self.echo.clone(), self.opened.clone(), self.origin.address().to_string()],
            false => vec!["elsewhere.example:1".to_owned()],
        };
        format!(
            "{DOOR}intercept = [\"{}\"]\n{proxy}\n[allowlist]\ndomains = {places:?}\n[auth]\n{auth}\n[auth.htpasswd]\npath = \"{}\"\n",
            self.opened,
            self.htpasswd.display()
        )
    }

    /// A connection as `user` to a server that answers with what it hears.
    async fn connect(&self, way: Way, user: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.larder.door("proxy")).await.expect("a connection");
        let login = BASE64_STANDARD.encode(format!("{user}:right"));
        let origin = self.origin.address();
        let upgrade = "connection: upgrade\r\nupgrade: loud\r\n";
        let head = |line: &str, more: &str| {
            format!("{line} HTTP/1.1\r\nhost: x\r\nproxy-authorization: Basic {login}\r\n{more}\r\n")
        };
        match way {
            Way::Socks => {
                let host = self.echo.split(':').next_back().expect("a port").parse::<u16>().expect("a number");
                let name = [&[1, user.len() as u8], user.as_bytes(), &[5], b"right"].concat();
                stream.write_all(&[5, 1, 2]).await.expect("sent");
                stream.write_all(&name).await.expect("sent");
                stream.write_all(&[&[5, 1, 0, 1, 127, 0, 0, 1], &host.to_be_bytes()[..]].concat()).await.expect("sent");
                let mut told = [0; 14];
                stream.read_exact(&mut told).await.expect("heard");
                assert_eq!(told[5], 0, "{told:?}");
            }
            Way::Carried | Way::NoHttp => {
                let place = if way == Way::Carried { &self.echo } else { &self.opened };
                said(&mut stream, &head(&format!("CONNECT {place}"), ""), "200").await;
            }
            Way::Upgraded => {
                said(&mut stream, &head(&format!("GET http://{origin}/"), upgrade), "101").await;
            }
            Way::UpgradedInside => {
                said(&mut stream, &head(&format!("CONNECT {origin}"), ""), "200").await;
                said(&mut stream, &format!("GET / HTTP/1.1\r\nhost: {origin}\r\n{upgrade}\r\n"), "101").await;
            }
        }
        assert!(answers(&mut stream).await, "{way:?}");
        stream
    }
}

/// Sends a head and reads the one that comes back.
async fn said(stream: &mut TcpStream, head: &str, status: &str) {
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(stream.read_u8().await.expect("an answer"));
    }
    let heard = String::from_utf8_lossy(&heard).into_owned();
    assert!(heard.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {heard}");
}

/// Whether the server at the other end still answers.
async fn answers(stream: &mut TcpStream) -> bool {
    let mut heard = [0; 5];
    let asked = async {
        stream.write_all(b"\x01more").await?;
        stream.read_exact(&mut heard).await
    };
    tokio::time::timeout(DEADLINE, asked).await.expect("in time").is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_in_any_more_has_no_tunnel_either() {
    let mut scene = Scene::start().await;
    let (alice, bob) = (scene.alice.clone(), line("bob", "right"));
    let as_before = (format!("{alice}{bob}"), scene.config("", "", true));
    for (what, users, config, is_alices_too) in [
        ("taken out", alice.clone(), as_before.1.clone(), false),
        ("another password", format!("{alice}{}", line("bob", "other")), as_before.1.clone(), false),
        ("proxy.allow", as_before.0.clone(), scene.config("allow = [\"user:alice\"]", "", true), false),
        ("allow_cidrs", as_before.0.clone(), scene.config("", "allow_cidrs = [\"10.0.0.0/8\"]", true), true),
        ("the destination", as_before.0.clone(), scene.config("", "", false), true),
    ] {
        let mut connections = Vec::new();
        for way in WAYS {
            let (bobs, alices) = (scene.connect(way, "bob").await, scene.connect(way, "alice").await);
            connections.push((way, bobs, alices));
        }
        // As they were, after a change of something else.
        scene.larder.write_config(as_before.1.clone() + "[logging]\naccess = true\n");
        let reloads = || scene.larder.log().matches("the configuration was read again").count();
        let before = reloads();
        eventually("it is read", async || reloads() > before).await;
        for (way, bobs, alices) in &mut connections {
            assert!(answers(bobs).await && answers(alices).await, "{what}: {way:?} ends for nothing");
        }
        write(&scene.htpasswd, &users);
        scene.larder.write_config(&config);
        for (way, mut bobs, mut alices) in connections {
            // Also one that is never silent.
            let ends = async {
                while answers(&mut bobs).await {
                    tokio::task::yield_now().await;
                }
            };
            assert!(tokio::time::timeout(DEADLINE, ends).await.is_ok(), "{what}: {way:?} goes on");
            if is_alices_too {
                let ends = async { while answers(&mut alices).await {} };
                assert!(tokio::time::timeout(DEADLINE, ends).await.is_ok(), "{what}: {way:?} goes on");
            } else {
                assert!(answers(&mut alices).await, "{what}: {way:?} of another ends");
            }
        }
        write(&scene.htpasswd, &as_before.0);
        scene.larder.write_config(&as_before.1);
        let is_as_before = async || {
            let login = format!("Basic {}", BASE64_STANDARD.encode("bob:right"));
            let asked = request("GET", scene.origin.url("/")).through_proxy(scene.larder.door("proxy"));
            asked.header("proxy-authorization", login).send().await.status == 200
        };
        eventually("bob is let in again", is_as_before).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_opened_tunnel_each_request_is_judged_by_the_rules_of_now() {
    let dir = TempDir::new().expect("a directory");
    let authority = crate::support::Authority::new(dir.path(), "upstream");
    let origin = Origin::https(&authority.issue("127.0.0.1")).await;
    let htpasswd = dir.path().join("htpasswd");
    let (alice, bob) = (line("alice", "right"), line("bob", "right"));
    write(&htpasswd, &format!("{alice}{bob}"));
    let place = origin.address().to_string();
    let config = format!(
        "{DOOR}upstream_ca_bundle = \"{}\"\nintercept = [\"{place}\"]\n[allowlist]\ndomains = [\"{place}\"]\n[auth.htpasswd]\npath = \"{}\"\n",
        authority.file().display(),
        htpasswd.display()
    );
    let larder = Larder::start(config).await;
    let (bobs, alices) =
        (Browser::new(&larder, Some(("bob", "right"))), Browser::new(&larder, Some(("alice", "right"))));
    for browser in [&bobs, &alices] {
        assert_eq!(browser.get(origin.url("/")).await.status, 200);
    }
    let connects =
        || larder.log().lines().filter(|line| line.contains("\"CONNECT\"") && line.contains("user:alice")).count();
    assert_eq!(connects(), 1);
    write(&htpasswd, &alice);
    let is_refused = async || match bobs.try_send("GET", origin.url("/"), &[], "").await {
        Ok(answer) => answer.status != 200,
        // It tries to make another tunnel.
        Err(_) => true,
    };
    eventually("bob is refused", is_refused).await;
    for _ in 0..3 {
        assert!(is_refused().await);
    }
    assert_eq!(alices.get(origin.url("/")).await.status, 200);
    assert_eq!(connects(), 1, "alice goes on by the tunnel that she has");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_kept_open_are_judged_request_by_request() {
    let dir = TempDir::new().expect("a directory");
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let htpasswd = dir.path().join("htpasswd");
    let (alice, bob) = (line("alice", "right"), line("bob", "right"));
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    let config = |cidrs: &str| {
        format!(
            "[auth]\nallow_cidrs = [\"{cidrs}\"]\n[auth.htpasswd]\npath = \"{}\"\n{repository}\n{DOOR}",
            htpasswd.display()
        )
    };
    let login = format!("Basic {}", BASE64_STANDARD.encode("bob:right"));
    for (users, cidrs, at_registry, at_proxy) in
        [(alice.clone(), "127.0.0.0/8", 401, 407), (format!("{alice}{bob}"), "10.0.0.0/8", 403, 403)]
    {
        write(&htpasswd, &format!("{alice}{bob}"));
        let mut larder = Larder::start(config("127.0.0.0/8")).await;
        let own = larder.manifest_url("hub/team/app", "1");
        let direct = format!("{}/v2/team/app/manifests/1", hub.url());
        let (h1, h2) = (Connection::http1(&own).await, Connection::http2(&own).await);
        let proxy = Connection::http1(format!("http://{}/", larder.door("proxy"))).await;
        let ask = async |connection: &Connection, is_proxy: bool| {
            let (url, name) = if is_proxy { (&direct, "proxy-authorization") } else { (&own, "authorization") };
            let asked = request("GET", url).header(name, &login);
            let asked = if is_proxy { asked.through_proxy(larder.door("proxy")) } else { asked };
            asked.send_on(connection).await.status
        };
        for (connection, is_proxy) in [(&h1, false), (&h2, false), (&proxy, true)] {
            assert_eq!(ask(connection, is_proxy).await, 200);
        }
        write(&htpasswd, &users);
        std::fs::write(larder.home().join("larder.toml"), config(cidrs)).expect("written");
        eventually("it is refused", async || ask(&h1, false).await == at_registry).await;
        assert_eq!((ask(&h2, false).await, ask(&proxy, true).await), (at_registry, at_proxy));
        larder.kill9();
    }
}
