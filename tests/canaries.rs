//! Promise: the table "Where each secret goes" of docs/security.md is true. Each secret of a configuration is a text of
//! its own; all doors, methods and kinds of paths are tried at all servers, and then it is looked for everywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tempfile::TempDir;

use crate::support::{
    Auth, ForwardProxy, Hub, Image, Larder, Options, RepositoryConfig, TokenService, eventually, request,
};

const NAME: &str = "team/app";
const METHODS: [&str; 9] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"];

/// A server, the secrets that may reach it, and how.
struct Site {
    hub: Hub,
    prefix: &'static str,
    secrets: Vec<Secret>,
}

/// A secret that belongs to a server.
struct Secret {
    text: &'static str,
    /// Whether requests that clients make by the proxy door may carry it; else only those that Larder makes for them.
    is_passed_on: bool,
    /// Whether it goes to the token service and nowhere else.
    is_for_tokens: bool,
}

fn header(text: &'static str) -> Secret {
    Secret { text, is_passed_on: true, is_for_tokens: false }
}

fn login(text: &'static str, is_for_tokens: bool) -> Secret {
    Secret { text, is_passed_on: false, is_for_tokens }
}

/// All that stands in the headers and body of a request, what is encoded too.
fn said(request: &crate::support::Request) -> String {
    let mut said = String::from_utf8_lossy(&request.body).into_owned() + &request.query;
    for (_, value) in &request.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        said += &value;
        let decoded = value.strip_prefix("Basic ").and_then(|encoded| BASE64_STANDARD.decode(encoded).ok());
        said += &String::from_utf8_lossy(&decoded.unwrap_or_default());
    }
    said
}

async fn site(prefix: &'static str, options: Options, secrets: Vec<Secret>) -> Site {
    let hub = Hub::start(options).await;
    hub.push_image(NAME, "1", &Image::new(1));
    Site { hub, prefix, secrets }
}

fn with_tokens(password: &str) -> Options {
    Options { auth: Auth::Token(TokenService::default()), ..Options::default() }
        .user("me", password)
        .private(NAME, "me")
}

/// The paths that a client may ask for at a server, and whether they are reads of a registry.
fn paths(image: &Image) -> Vec<(String, bool)> {
    let (digest, layer) = (&image.manifest.digest, &image.layer_digests()[0]);
    vec![
        ("/v2/".to_owned(), true),
        (format!("/v2/{NAME}/manifests/1"), true),
        (format!("/v2/{NAME}/manifests/{digest}"), true),
        (format!("/v2/{NAME}/blobs/{layer}"), true),
        (format!("/v2/{NAME}/tags/list"), true),
        (format!("/v2/{NAME}/referrers/{digest}"), true),
        (format!("/v2/{NAME}/blobs/uploads/"), false),
        (format!("/token?scope=repository:{NAME}:pull,push"), false),
        (format!("/v2/token?scope=repository:{NAME}:push"), false),
        ("/api/keys".to_owned(), false),
        (format!("/V2/{NAME}/manifests/1"), false),
    ]
}

/// What a file says, and all files below a folder.
fn all_files(dir: &Path, each: &mut impl FnMut(&Path, Vec<u8>)) {
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all_files(&path, each);
        } else {
            each(&path, fs::read(&path).unwrap_or_default());
        }
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

struct Scene {
    sites: Vec<Site>,
    chained: ForwardProxy,
    larder: Larder,
    _dir: TempDir,
}

async fn scene() -> Scene {
    let dir = TempDir::new().expect("a directory");
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::write(&file, text).expect("written");
        file.display().to_string()
    };
    let sites = vec![
        site("password", Options::with_basic("me", "canary-password"), vec![login("canary-password", false)]).await,
        site("file", with_tokens("canary-file"), vec![login("canary-file", true)]).await,
        site("helper", Options::with_basic("me", "canary-helper"), vec![login("canary-helper", false)]).await,
        site("docker", with_tokens("canary-docker"), vec![login("canary-docker", true)]).await,
        site("headers", Options::default(), vec![header("canary-header")]).await,
        site("host", Options::default(), vec![header("canary-set"), header("canary-append")]).await,
        site("through", Options::default(), vec![]).await,
        site("pass", with_tokens("canary-client"), vec![login("canary-client", true)]).await,
        site("stranger", Options::default(), vec![]).await,
    ];
    let hub = |prefix: &str| &sites.iter().find(|site| site.prefix == prefix).expect("a site").hub;
    let chained = ForwardProxy::start(hub("through").address()).await;
    let helper = write(
        "docker-credential-test",
        "#!/bin/sh\nread server\necho '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"canary-helper\"}'\n",
    );
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("executable");
    let docker =
        format!(r#"{{"auths":{{"{}":{{"username":"me","password":"canary-docker"}}}}}}"#, hub("docker").address());
    let hash = bcrypt::hash("right", 4).expect("a hash");
    let upstreams = [
        ("password", "username = \"me\"\npassword = \"canary-password\"".to_owned()),
        ("file", format!("username = \"me\"\npassword_file = \"{}\"", write("password", "canary-file\n"))),
        ("helper", format!("credential_helper = \"{helper}\"")),
        ("docker", format!("docker_config = \"{}\"", write("config.json", &docker))),
        ("headers", "headers = { X-Api-Key = \"canary-header\" }".to_owned()),
        ("host", String::new()),
        ("through", format!("http_proxy = \"http://me:canary-proxy@{}\"", chained.address())),
    ];
    let mut config: String = upstreams
        .iter()
        .map(|(prefix, keys)| RepositoryConfig::new(prefix).upstream_with(hub(prefix), keys).to_string() + "\n")
        .collect();
    config += &RepositoryConfig::new("pass").set("client_credentials = \"pass\"").upstream(hub("pass")).to_string();
    let (host, stranger) = (hub("host").address(), hub("stranger").address());
    config += &format!(
        "\n[headers.\"{host}\".set]\nX-JFrog-Art-Api = \"canary-set\"\n[headers.\"{host}\".append]\nX-More = \"canary-append\"\n\
         [auth.htpasswd]\npath = \"{}\"\n[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\nclient_credentials = \"ignore\"\n\
         [allowlist]\ndomains = [\"{stranger}\"]\n",
        write("htpasswd", &format!("canary-user:{hash}\n"))
    );
    let larder = Larder::start(config).await;
    Scene { sites, chained, larder, _dir: dir }
}

impl Scene {
    /// Tries everything at one server; what came back, as a text.
    async fn drive(&self, site: &Site) -> String {
        let mut came = String::new();
        let (proxy, login) = (self.larder.door("proxy"), basic("canary-user:right"));
        for (path, _) in paths(&Image::new(1)) {
            for method in METHODS {
                let direct = format!("{}{path}", site.hub.url());
                let own =
                    format!("{}{}", self.larder.url(), path.replacen("/v2/", &format!("/v2/{}/", site.prefix), 1));
                let asked = request(method, &direct).through_proxy(proxy).header("proxy-authorization", &login);
                let own = request(method, &own);
                let own = if site.prefix == "pass" {
                    own.header("authorization", basic("me:canary-client"))
                } else {
                    own.header("authorization", &login)
                };
                for asked in [asked, own.clone(), own.http2()] {
                    if let Ok(answer) = asked.try_send().await {
                        came += &format!("{:?} {}\n", answer.headers, answer.text());
                    }
                }
            }
        }
        came
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_secret_goes_where_the_table_says_and_is_nowhere_else() {
    let mut scene = scene().await;
    let mut came = String::new();
    let all = [
        "canary-password",
        "canary-file",
        "canary-helper",
        "canary-docker",
        "canary-header",
        "canary-set",
        "canary-append",
        "canary-proxy",
        "canary-client",
    ];
    let image = Image::new(1);
    for site in &scene.sites {
        came += &scene.drive(site).await;
        let asked = site.hub.take_requests();
        for request in &asked {
            let said = said(request);
            let target = format!("{}?{}", request.path, request.query);
            let is_read = ["GET", "HEAD", "OPTIONS"].contains(&request.method.as_str())
                && paths(&image).iter().any(|(path, is_read)| *is_read && request.path == *path);
            let is_token = request.path == "/token";
            for text in all {
                let secret = site.secrets.iter().find(|secret| secret.text == text);
                let may = match secret {
                    None => false,
                    Some(Secret { is_for_tokens: true, .. }) => is_token && target.ends_with("%3Apull"),
                    Some(_) => is_read,
                };
                let is_larder = request.header("via").is_none();
                let must_not = secret.is_some_and(|secret| !secret.is_passed_on) && !is_larder;
                assert!(!said.contains(text) || (may && !must_not), "{text} at {}: {request:?}", site.prefix);
                if secret.is_some_and(|secret| secret.is_passed_on) && may {
                    assert!(said.contains(text), "{text} does not go with {request:?}");
                }
            }
        }
        for secret in &site.secrets {
            assert!(asked.iter().any(|request| said(request).contains(secret.text)), "{} is of no use", secret.text);
        }
    }
    let heads = scene.chained.heads();
    let login = basic("me:canary-proxy");
    assert!(!heads.is_empty() && heads.iter().all(|head| head.contains(&login)), "the proxy alone gets its login");

    let larder = &mut scene.larder;
    for page in ["/metrics", "/api/upstreams", "/api/images", "/api/pins", "/api/cache/stats", "/readyz", "/nowhere"] {
        came += &request("GET", format!("{}{page}", larder.admin_url())).send().await.text();
    }
    for command in [&["config", "show"][..], &["config", "check"], &["ls"], &["config", "show", "--json"]] {
        let ran = larder.run(command).await;
        came += &format!("{}{}", ran.stdout, ran.stderr);
    }
    let key = fs::read_to_string(larder.home().join("ca/ca.key")).expect("a key");
    let key = key.lines().nth(1).expect("a line of the key").to_owned();
    eventually("it stops", async || true).await;
    let exit = larder.stop().await;
    came += &exit.log;
    came += &larder.log();
    let encoded: Vec<_> = ["password", "file", "helper", "docker", "proxy", "client"]
        .map(|name| BASE64_STANDARD.encode(format!("me:canary-{name}")))
        .into();
    let hidden: Vec<&str> =
        all.into_iter().chain(encoded.iter().map(String::as_str)).chain([&*key, "$2b$04$"]).collect();
    for text in &hidden {
        let at = came.find(text).map(|at| came[at.saturating_sub(200)..].chars().take(400).collect::<String>());
        assert_eq!(at, None, "{text} is shown");
    }
    all_files(larder.home(), &mut |path, bytes| {
        let is_given = path.ends_with("larder.toml") || path.ends_with("ca/ca.key");
        for text in &hidden {
            assert!(is_given || !contains(&bytes, text), "{text} is in {}", path.display());
        }
    });
    let mode = fs::metadata(larder.home().join("ca/ca.key")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o077, 0, "for its owner alone");
}
