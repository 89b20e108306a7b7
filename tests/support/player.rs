//! Plays what real clients ask, and in which order, from scripts that were written after recordings of them
//! (`tests/traces/`).
//!
//! ```text
//! # a comment
//! path prefix                 how the registry door is asked: prefix, ns, before or none
//! http2 · login · no-referrers · online
//! always NAME: VALUE          a header of each request
//! GET blobs/{layer0}          a request within the name; `base` is /v2/
//!   NAME: VALUE               a header of this one; a name may come several times
//!   answers: 200 or 404       if not 200, or 206 where a range of a blob is asked for
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tempfile::TempDir;

use super::client::{Answer, Connection, request};
use super::content::{Image, Index, Manifest, OCI_INDEX};
use super::eventually;
use super::hub::{Auth, Hub, Kind, Options, Request, TokenService};
use super::larder::{Larder, RepositoryConfig};
use super::proxied::Browser;
use super::tls::{Authority, TlsFront};

const NAME: &str = "team/app";
const LOGIN: (&str, &str) = ("bob", "secret");

/// The door that a client comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Registry,
    Proxy,
}

/// What a client does in one pull.
#[derive(Debug, Default)]
pub struct Script {
    path: String,
    http2: bool,
    login: bool,
    no_referrers: bool,
    /// Nothing of it is played without the upstream.
    online: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Default)]
struct Step {
    method: String,
    /// Within the name, with placeholders.
    path: String,
    headers: Vec<(String, String)>,
    answers: Vec<u16>,
}

impl Script {
    /// Panics where a line makes no sense.
    pub fn read(text: &str) -> Self {
        let mut script = Self::default();
        let mut always = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let header = |text: &str| {
                let (name, value) = text.split_once(": ").unwrap_or_else(|| panic!("no header: {line}"));
                (name.trim().to_owned(), value.to_owned())
            };
            match line.split_once(' ').unwrap_or((line, "")) {
                ("", _) => {
                    let step = script.steps.last_mut().unwrap_or_else(|| panic!("a header of nothing: {line}"));
                    match header(line) {
                        (name, value) if name == "answers" => {
                            let statuses = value.split(" or ").map(|status| status.parse().expect("a status"));
                            step.answers = statuses.collect();
                        }
                        header => step.headers.push(header),
                    }
                }
                ("path", form) => script.path = form.to_owned(),
                ("http2", "") => script.http2 = true,
                ("login", "") => script.login = true,
                ("no-referrers", "") => script.no_referrers = true,
                ("online", "") => script.online = true,
                ("always", text) => always.push(header(text)),
                (method @ ("GET" | "HEAD"), path) => script.steps.push(Step {
                    method: method.to_owned(),
                    path: path.to_owned(),
                    headers: always.clone(),
                    answers: Vec::new(),
                }),
                _ => panic!("a script has no such line: {line}"),
            }
        }
        assert!(!script.steps.is_empty(), "a script asks for something");
        script
    }
}

/// What the upstream has, by the placeholders of scripts.
struct Shelf {
    /// Placeholder to digest and bytes.
    objects: BTreeMap<&'static str, (String, Bytes)>,
    /// Placeholder to tag and what it is of.
    tags: BTreeMap<&'static str, (String, &'static str)>,
}

impl Shelf {
    async fn fill(script: &Script) -> (Hub, Self) {
        let options = Options { auth: Auth::Token(TokenService::default()), ..Options::with_redirects() };
        let hub = Hub::start(Options { referrers: !script.no_referrers, ..options }).await;
        let (image, index) = (Image::with_layers(1, &[300_000, 3_000]), Index::new(2, &["linux/amd64", "linux/arm64"]));
        let signature = Image::referrer(&image.manifest, "application/vnd.cncf.notary.signature", 3);
        hub.push_image(NAME, "1", &image);
        hub.push_index(NAME, "multi", &index);
        hub.push_untagged(NAME, &signature);
        let as_tag = image.manifest.digest.replace(':', "-");
        let entry = serde_json::json!({
            "mediaType": signature.manifest.media_type, "digest": signature.manifest.digest,
            "size": signature.manifest.bytes.len(), "artifactType": "application/vnd.cncf.notary.signature",
        });
        let fallback = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
        let fallback = Manifest::new(fallback.to_string(), OCI_INDEX);
        if script.no_referrers {
            hub.push_manifest(NAME, Some(&as_tag), &fallback);
        }
        let arm = &index.images[1];
        let manifests = [
            ("image", &image.manifest),
            ("index", &index.manifest),
            ("arm", &arm.manifest),
            ("signature", &signature.manifest),
            ("fallback", &fallback),
        ];
        let blobs = [
            ("config", &image.config),
            ("layer0", &image.layers[0]),
            ("layer1", &image.layers[1]),
            ("arm-config", &arm.config),
            ("arm-layer0", &arm.layers[0]),
            ("arm-layer1", &arm.layers[1]),
            ("signature-layer", &signature.layers[0]),
        ];
        let manifests = manifests.map(|(name, manifest)| (name, (manifest.digest.clone(), manifest.bytes.clone())));
        let blobs = blobs.map(|(name, bytes)| (name, (super::content::sha256(bytes), bytes.clone())));
        let tags = [
            ("tag", ("1".to_owned(), "image")),
            ("multi", ("multi".to_owned(), "index")),
            ("image-as-tag", (as_tag, "fallback")),
        ];
        (hub, Self { objects: manifests.into_iter().chain(blobs).collect(), tags: tags.into() })
    }

    fn resolve(&self, path: &str) -> String {
        let digests = self.objects.iter().map(|(name, (digest, _))| (name, digest));
        let tags = self.tags.iter().map(|(name, (tag, _))| (name, tag));
        digests.chain(tags).fold(path.to_owned(), |path, (name, value)| path.replace(&format!("{{{name}}}"), value))
    }

    /// The bytes that a path stands for, where it is one object.
    fn bytes(&self, path: &str) -> Option<&Bytes> {
        let name = path.split_once("/{")?.1.strip_suffix('}')?;
        let of = self.tags.get(name).map_or(name, |(_, of)| of);
        let is_object = path.starts_with("manifests/") || path.starts_with("blobs/");
        self.objects.get(of).filter(|_| is_object).map(|(_, bytes)| bytes)
    }
}

/// A client, and all that it needs.
pub struct Player {
    script: Script,
    at: At,
    hub: Hub,
    front: TlsFront,
    shelf: Shelf,
    larder: Larder,
    _dir: TempDir,
}

impl Player {
    pub async fn new(script: &str, at: At) -> Self {
        let script = Script::read(script);
        let (hub, shelf) = Shelf::fill(&script).await;
        let dir = TempDir::new().expect("a directory");
        let authority = Authority::new(dir.path(), "upstream");
        let front = TlsFront::start(&hub, &authority.issue("127.0.0.1"), None).await;
        let bundle = format!("server_ca_bundle = \"{}\"\nconnect_timeout = \"2s\"", authority.file().display());
        let repository = RepositoryConfig::new("hub").set("namespace = [\"hub.test\"]");
        let mut config = repository.upstream_url(&front.url(), &bundle).to_string();
        config += "[server]\ndefault_repository = \"hub\"\n";
        match at {
            At::Registry if script.login => {
                let file = dir.path().join("htpasswd");
                let hash = bcrypt::hash(LOGIN.1, 4).expect("hashed");
                std::fs::write(&file, format!("{}:{hash}\n", LOGIN.0)).expect("written");
                config += &format!("[auth.htpasswd]\npath = \"{}\"\n", file.display());
            }
            At::Registry => {}
            At::Proxy => config += "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n",
        }
        let larder = Larder::start(config).await;
        Self { script, at, hub, front, shelf, larder, _dir: dir }
    }

    /// The first pull: nothing of an object is fetched twice.
    pub async fn cold(&self) {
        self.play("cold").await;
        for (name, (digest, bytes)) in &self.shelf.objects {
            let sent = self.hub.bytes_sent(digest);
            assert!(sent <= bytes.len() as u64, "cold: {sent} bytes of {name}\n{}", self.hub.summary());
        }
        for tag in self.tags() {
            let heads = self.asked().iter().filter(|request| request.reference == tag).count();
            let most = if self.at == At::Registry { 1 } else { 2 };
            assert!(heads <= most, "cold: {heads} requests for the tag {tag}\n{}", self.hub.summary());
        }
    }

    /// The second pull: one HEAD of each tag, and one GET of each list.
    pub async fn warm(&self) {
        let is_quiet = async || self.stored();
        eventually("what was asked for is stored", is_quiet).await;
        let is_as_expected = async || {
            self.hub.take_requests();
            self.play("warm").await;
            let asked = self.asked();
            let mut questions: Vec<_> =
                asked.iter().map(|request| format!("{} {}", request.method, request.reference)).collect();
            questions.sort();
            questions == self.expected()
        };
        // What is for everybody is found out, and of whom an object is noted, behind the client's back.
        eventually("a warm pull asks for tags and lists alone", is_as_expected).await;
    }

    /// The pull with the upstream gone.
    pub async fn offline(&mut self) {
        self.hub.stop().await;
        if !self.script.online {
            self.play("offline").await;
        }
    }

    /// Whether all blobs that were asked for as a whole are stored.
    fn stored(&self) -> bool {
        let mut paths = self.script.steps.iter().map(|step| step.path.as_str());
        paths.all(|path| !path.starts_with("blobs/") || self.larder.object(&self.shelf.resolve(path)[6..]).exists())
    }

    /// The tags that the script asks for, and that there are.
    fn tags(&self) -> BTreeSet<String> {
        let steps = self.script.steps.iter().filter(|step| !step.answers.contains(&404) && !step.path.contains(".sig"));
        let mut tags: BTreeSet<String> = steps
            .map(|step| self.shelf.resolve(&step.path))
            .filter_map(|path| path.strip_prefix("manifests/").filter(|tag| !tag.contains(':')).map(str::to_owned))
            .collect();
        if self.script.no_referrers && self.at == At::Registry {
            tags.insert(self.shelf.tags["image-as-tag"].0.clone());
        }
        tags
    }

    /// What of the upstream a warm pull asks for: methods and references, in order.
    fn expected(&self) -> Vec<String> {
        let heads = self.tags().into_iter().map(|tag| format!("HEAD {tag}"));
        let lists: BTreeSet<_> = self.script.steps.iter().map(|step| self.shelf.resolve(&step.path)).collect();
        let lists = lists.into_iter().filter_map(|path| {
            if path == "tags/list" {
                return Some("GET ".to_owned());
            }
            let subject = path.strip_prefix("referrers/")?.split('?').next()?.to_owned();
            // That there is no such list is remembered.
            (!self.script.no_referrers).then(|| format!("GET {subject}"))
        });
        let mut expected: Vec<_> = heads.chain(lists).collect();
        expected.sort();
        expected
    }

    /// What the upstream was asked, but for first requests without a token, tokens, `/v2/`, and what there is not.
    fn asked(&self) -> Vec<Request> {
        let counts = |request: &Request| {
            matches!(request.kind, Kind::Manifest | Kind::Blob | Kind::Tags | Kind::Referrers)
                && request.header("authorization").is_some()
                && !request.reference.ends_with(".sig")
                && !(self.at == At::Proxy && self.script.no_referrers && request.kind == Kind::Referrers)
        };
        self.hub.requests().into_iter().filter(counts).collect()
    }

    async fn play(&self, when: &str) {
        let mut client = Client::new(self).await;
        for step in &self.script.steps {
            let answer = client.send(step).await;
            let is_part = step.path.starts_with("blobs/") && step.headers.iter().any(|(name, _)| name == "range");
            let usual = [if is_part { 206 } else { 200 }];
            let expected = if step.answers.is_empty() { &usual[..] } else { &step.answers };
            let what = format!("{when}, {:?}: {} {}", self.at, step.method, step.path);
            assert!(expected.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
            assert!(answer.complete(), "{what}: {:?}", answer.error);
            let Some(bytes) = self.shelf.bytes(&step.path).filter(|_| answer.status < 300) else {
                continue;
            };
            match (step.method.as_str(), is_part) {
                ("HEAD", _) => assert_eq!(answer.header("content-length"), bytes.len().to_string(), "{what}"),
                (_, false) => assert!(answer.body == *bytes, "{what}: other bytes"),
                (_, true) => {
                    let range = step.headers.iter().find(|(name, _)| name == "range").expect("a range");
                    for part in parts(&range.1, bytes) {
                        let is_there =
                            answer.body == part || answer.body.windows(part.len()).any(|window| window == part);
                        assert!(is_there, "{what}: other bytes");
                    }
                }
            }
        }
    }
}

fn parts<'a>(range: &str, bytes: &'a Bytes) -> Vec<&'a [u8]> {
    let ranges = range.strip_prefix("bytes=").expect("bytes").split(',');
    let part = |range: &str| {
        let (first, last) = range.split_once('-').expect("a range");
        let last = last.parse::<usize>().map_or(bytes.len(), |last| last + 1);
        &bytes[first.parse().expect("a number")..last]
    };
    ranges.map(part).collect()
}

/// One pull of a client, which logs in when it is asked to.
struct Client<'a> {
    player: &'a Player,
    connection: Option<Connection>,
    browser: Option<Browser>,
    authorization: Option<String>,
}

impl<'a> Client<'a> {
    async fn new(player: &'a Player) -> Self {
        let (larder, http2) = (&player.larder, player.script.http2);
        let (connection, browser) = match (player.at, http2) {
            (At::Registry, false) => (Some(Connection::http1(larder.url()).await), None),
            (At::Registry, true) => (Some(Connection::http2(larder.url()).await), None),
            (At::Proxy, false) => (None, Some(Browser::new(larder, None))),
            (At::Proxy, true) => (None, Some(Browser::http2(larder))),
        };
        Self { player, connection, browser, authorization: None }
    }

    fn url(&self, step: &Step) -> String {
        let player = self.player;
        let path = player.shelf.resolve(&step.path);
        if path == "base" {
            let server = if player.at == At::Proxy { player.front.url() } else { player.larder.url() };
            return format!("{server}/v2/");
        }
        let server = player.larder.url();
        match (player.at, player.script.path.as_str()) {
            (At::Proxy, _) => format!("{}/v2/{NAME}/{path}", player.front.url()),
            (_, "prefix") => format!("{server}/v2/hub/{NAME}/{path}"),
            (_, "before") => format!("{server}/hub/v2/{NAME}/{path}"),
            (_, "none") => format!("{server}/v2/{NAME}/{path}"),
            (_, "ns") => format!("{server}/v2/{NAME}/{path}{}ns=hub.test", if path.contains('?') { '&' } else { '?' }),
            (_, other) => panic!("no form of a path: {other}"),
        }
    }

    async fn send(&mut self, step: &Step) -> Answer {
        let answer = self.send_once(step).await;
        if answer.status != 401 {
            return answer;
        }
        let challenge = answer.header("www-authenticate").to_owned();
        self.authorization = Some(self.log_in(&challenge).await);
        self.send_once(step).await
    }

    async fn send_once(&self, step: &Step) -> Answer {
        let url = self.url(step);
        let login = self.authorization.iter().map(|value| ("authorization", value.as_str()));
        let headers = step.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(login);
        match (&self.connection, &self.browser) {
            (Some(connection), _) => {
                let asked = headers.fold(request(&step.method, url), |asked, (name, value)| asked.header(name, value));
                asked.send_on(connection).await
            }
            (None, Some(browser)) => browser.send(&step.method, url, &headers.collect::<Vec<_>>(), "").await,
            (None, None) => panic!("a client has a connection"),
        }
    }

    async fn log_in(&self, challenge: &str) -> String {
        use base64::Engine;
        if challenge.starts_with("Basic") {
            assert!(self.player.script.login, "a login is asked for: {challenge}");
            let pair = format!("{}:{}", LOGIN.0, LOGIN.1);
            return format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair));
        }
        let part = |name: &str| {
            let (_, rest) = challenge.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("{challenge}"));
            rest.split('"').next().unwrap_or_default().to_owned()
        };
        let scope = if challenge.contains("scope=") { part("scope") } else { format!("repository:{NAME}:pull") };
        let url = format!("{}?service={}&scope={scope}", part("realm"), part("service"));
        let given = request("GET", url).send().await;
        format!("Bearer {}", given.json()["token"].as_str().expect("a token"))
    }
}
