//! Promise: a cache can be moved to another place with everything in it, at any time broken off and begun again, and nothing
//! of the old one is lost.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rusqlite::OpenFlags;
use serde_json::Value;

use crate::support::bucket::{Op, S3, S3Fault};
use crate::support::postgres::Postgres;
use crate::support::{Hub, Image, Index, Larder, Manifest, Options, RepositoryConfig, blob, eventually, get, request};

const MIB: usize = 1 << 20;
const NAME: &str = "hub/team/app";
const PRIVATE: &str = "team/private";
const ME: &str = "me:mine";

/// Writes a Larder's configuration with its directory in it, as `--from` reads it.
fn old_config(larder: &Larder, config: &str) -> String {
    let file = larder.home().join("old.toml");
    fs::write(&file, format!("{config}\n[cache]\ndir = {:?}\n", larder.dir())).expect("written");
    file.display().to_string()
}

/// Moves a stopped Larder to one that was prepared.
async fn migrate(old: &str, new: &Larder, more: &[&str]) -> crate::support::Ran {
    new.run(&[&["migrate", "--from", old, "--json"], more].concat()).await
}

/// What the old cache knew and the new one has to know.
struct Scene {
    hub: Hub,
    image: Image,
    index: Index,
    mine: Image,
    lists: Vec<String>,
    config: String,
}

impl Scene {
    async fn start() -> Self {
        let hub =
            Hub::start(Options::with_tokens().user("me", "mine").user("you", "yours").private(PRIVATE, "me")).await;
        let (image, mine) = (Image::with_layers(1, &[2 * MIB, 70_000, 0]), Image::new(2));
        let index = Index::new(3, &["linux/amd64", "linux/arm64"]);
        hub.push_image("team/app", "1", &image);
        hub.push_index("team/app", "multi", &index);
        hub.push_image(PRIVATE, "1", &mine);
        let signature: Manifest = Image::referrer(&image.manifest, "application/vnd.example", 4).manifest;
        hub.push_manifest("team/app", None, &signature);
        let own = RepositoryConfig::new("hub").upstream_with(&hub, "username = \"me\"\npassword = \"mine\"");
        let pass = RepositoryConfig::new("pass").set("client_credentials = \"pass\"").upstream(&hub);
        let other = RepositoryConfig::new("other").upstream(&hub);
        let lists = ["tags/list".to_owned(), format!("referrers/{}", image.manifest.digest)].to_vec();
        Self { config: format!("{own}{pass}{other}"), hub, image, index, mine, lists }
    }

    /// Everything that clients of `hub` may have, by its path, with its content.
    fn public(&self) -> Vec<(String, bytes::Bytes)> {
        let images = [&self.image].into_iter().chain(&self.index.images);
        let manifests = images.clone().map(|image| &image.manifest).chain([&self.index.manifest]);
        let mut all: Vec<_> =
            manifests.map(|manifest| (format!("manifests/{}", manifest.digest), manifest.bytes.clone())).collect();
        for image in images {
            all.extend(
                image.blobs().into_iter().map(|blob| (format!("blobs/{}", crate::support::sha256(&blob)), blob)),
            );
        }
        all.push(("manifests/1".to_owned(), self.image.manifest.bytes.clone()));
        all.push(("manifests/multi".to_owned(), self.index.manifest.bytes.clone()));
        all
    }

    /// Pulls everything, so that it is stored.
    async fn fill(&self, larder: &Larder) {
        for (path, content) in self.public() {
            let answer = get(format!("{}/v2/{NAME}/{path}", larder.url())).await;
            assert!(answer.complete() && answer.body == content, "{path}: {} {}", answer.status, answer.text());
        }
        for list in &self.lists {
            assert_eq!(get(format!("{}/v2/{NAME}/{list}", larder.url())).await.status, 200);
        }
        for path in self.private() {
            let url = format!("{}/v2/pass/{PRIVATE}/{path}", larder.url());
            assert_eq!(get_as(ME, &url).await.status, 200, "{url}");
        }
        assert_eq!(larder.run(&["pin", "hub/team/app:1"]).await.code, Some(0));
        let digest = |(path, _): &(String, bytes::Bytes)| path.split_once('/').map(|(_, name)| name.to_owned());
        let all: Vec<_> = self.public().iter().filter_map(digest).filter(|name| name.contains(':')).collect();
        eventually("all is stored", async || larder.has_stored(&all).await).await;
    }

    fn private(&self) -> Vec<String> {
        let blobs = self.mine.blobs().into_iter().map(|blob| format!("blobs/{}", crate::support::sha256(&blob)));
        blobs.chain(["manifests/1".to_owned()]).collect()
    }

    /// With the upstream stopped, everything is served to whoever it was served to, and to nobody else.
    async fn is_served(&self, larder: &Larder) {
        for (path, content) in self.public() {
            let answer = get(format!("{}/v2/{NAME}/{path}", larder.url())).await;
            assert!(answer.complete() && answer.body == content, "{path}: {} {}", answer.status, answer.text());
            let elsewhere = get(format!("{}/v2/other/team/app/{path}", larder.url())).await;
            assert!(elsewhere.status >= 400, "{path} was never seen in that repository: {}", elsewhere.status);
        }
        for list in &self.lists {
            assert_eq!(get(format!("{}/v2/{NAME}/{list}", larder.url())).await.status, 200, "{list}");
        }
        for path in self.private() {
            for repository in ["pass", "hub", "other"] {
                let answer = get(format!("{}/v2/{repository}/{PRIVATE}/{path}", larder.url())).await;
                assert!(answer.status >= 400, "{repository} {path}: {}", answer.status);
            }
        }
    }

    /// With the upstream back, what is private is served from the cache to its owner, and to nobody else.
    async fn is_private(&self, larder: &Larder) {
        let tag = format!("{}/v2/pass/{PRIVATE}/manifests/1", larder.url());
        eventually("the upstream is asked again", async || get_as(ME, &tag).await.status == 200).await;
        let before = self.hub.requests().len();
        for path in self.private() {
            let url = format!("{}/v2/pass/{PRIVATE}/{path}", larder.url());
            assert_eq!(get_as(ME, &url).await.status, 200, "{url}");
            for who in ["you:yours", ""] {
                let answer = get_as(who, &url).await;
                assert!(matches!(answer.status, 401 | 403), "{who} {url}: {}", answer.status);
            }
        }
        // Whether a client may read it is asked for one byte.
        let is_content = |seen: &&crate::support::hub::Request| {
            seen.method == "GET" && seen.path.contains("/blobs/") && !seen.headers.contains_key("range")
        };
        let blobs = self.hub.requests()[before..].iter().filter(is_content).count();
        assert_eq!(blobs, 0, "the content is in the cache");
    }
}

async fn get_as(pair: &str, url: &str) -> crate::support::Answer {
    let asked = request("GET", url);
    match pair {
        "" => asked.send().await,
        pair => asked.header("authorization", format!("Basic {}", BASE64_STANDARD.encode(pair))).send().await,
    }
}

/// All images, with when each was last used and checked, and whether it is pinned.
async fn images(larder: &Larder) -> Value {
    let listed = larder.run(&["ls", "--json"]).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    listed.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_moves_to_a_bucket_and_postgresql_and_back_and_serves_what_it_served() {
    let mut scene = Scene::start().await;
    let (postgres, s3) = (Postgres::start(), S3::start().await);
    postgres.create("larder");
    let server = format!("[index]\nurl = \"{}\"\n", postgres.bouncer_url("larder"));
    let shared = format!("{server}{}{}", s3.config(""), scene.config);
    let mut old = Larder::start(&scene.config).await;
    scene.fill(&old).await;
    old.stop().await;
    let known = images(&old).await;
    assert!(known.as_array().is_some_and(|images| images.len() >= 3), "{known}");
    scene.hub.stop().await;

    let new = Larder::builder().config(&shared).prepare();
    let from = old_config(&old, &scene.config);
    let moved = migrate(&from, &new, &[]).await;
    assert_eq!(moved.code, Some(0), "{moved:?}");
    let objects = moved.json()["objects"].as_u64().expect("a number");
    assert_eq!((moved.json()["moved"].as_u64(), moved.json()["is_complete"].as_bool()), (Some(objects), Some(true)));
    assert_eq!(s3.keys().len() as u64, objects);
    // Once more: nothing is sent again.
    let (sent, again) = (s3.count(Op::Put), migrate(&from, &new, &[]).await);
    assert_eq!(
        (again.json()["moved"].as_u64(), again.json()["present"].as_u64()),
        (Some(0), Some(objects)),
        "{again:?}"
    );
    assert_eq!(s3.count(Op::Put), sent);
    assert_eq!(images(&new).await, known);

    let mut new = new.started().await;
    scene.is_served(&new).await;
    assert!(!s3.keys().is_empty());
    new.stop().await;
    let known = images(&new).await;

    let back = Larder::builder().config(&scene.config).prepare();
    let moved = migrate(&old_config(&new, &shared), &back, &[]).await;
    assert_eq!(moved.code, Some(0), "{moved:?}");
    assert_eq!(images(&back).await, known);
    s3.fault(Op::Get, S3Fault::Refuse(403, "AccessDenied"));
    let back = back.started().await;
    scene.is_served(&back).await;
    scene.hub.restart().await;
    scene.is_private(&back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_stay_where_the_directory_stays_and_the_old_configuration_still_works() {
    let mut scene = Scene::start().await;
    let (postgres, s3) = (Postgres::start(), S3::start().await);
    postgres.create("larder");
    let server = format!("[index]\nurl = \"{}\"\n", postgres.url("larder"));
    let shared = format!("{server}{}{}", s3.config(""), scene.config);
    let mut old = Larder::start(&scene.config).await;
    scene.fill(&old).await;
    let from = old_config(&old, &scene.config);
    let new = Larder::builder().config(&shared).env("LARDER_CACHE__DIR", &old.dir().display().to_string()).prepare();
    let early = migrate(&from, &new, &[]).await;
    assert_eq!(early.code, Some(1), "{early:?}");
    assert!(early.stdout.contains("in use by a running Larder; stop it first"), "{early:?}");
    old.stop().await;
    scene.hub.stop().await;
    let same = old.run(&["migrate", "--from", &from]).await;
    assert_eq!(same.code, Some(2), "{same:?}");
    assert!(same.stderr.contains("the same cache"), "{same:?}");

    let planned = migrate(&from, &new, &["--check"]).await;
    let objects = planned.json()["objects"].as_u64().expect("a number");
    assert_eq!((planned.json()["present"].as_u64(), s3.keys().len()), (Some(0), 0), "{planned:?}");
    assert_eq!(migrate(&from, &new, &[]).await.code, Some(0));
    assert_eq!(s3.keys().len() as u64, objects);
    let compared = new.run(&["migrate", "--from", &from, "--check"]).await;
    assert!(compared.stdout.contains("the new cache has all of them"), "{compared:?}");
    let layer = &scene.image.layer_digests()[0];
    assert!(old.object(layer).exists());
    // The bucket has lost an object: it is sent again.
    s3.delete(&s3.key_of(layer).expect("its key"));
    assert_eq!(migrate(&from, &new, &["--check"]).await.json()["present"].as_u64(), Some(objects - 1));
    assert_eq!(migrate(&from, &new, &[]).await.json()["moved"].as_u64(), Some(1));

    let mut new = new.started().await;
    scene.is_served(&new).await;
    assert_eq!(s3.count(Op::Get), 0, "all have their files");
    new.stop().await;
    old.restart().await;
    scene.is_served(&old).await;
}

/// A stopped Larder that has these blobs and a manifest with the tag `2`, and the one to which it is to move, with a bucket.
/// The manifest is the last of the objects.
async fn stored(sizes: &[usize]) -> (S3, String, Larder, Larder, Vec<String>) {
    let (hub, s3) = (Hub::start(Options::default()).await, S3::start().await);
    let config = RepositoryConfig::new("hub").upstream_with(&hub, "parallel = 1").to_string();
    let mut old = Larder::start(&config).await;
    let mut digests = Vec::new();
    for (seed, size) in (0..).zip(sizes) {
        let digest = hub.push_blob("team/app", blob(seed, *size));
        assert!(get(old.blob_url(NAME, &digest)).await.complete());
        digests.push(digest);
    }
    let image = Image::new(77);
    digests.push(hub.push_image("team/app", "2", &image));
    assert_eq!(get(old.manifest_url(NAME, "2")).await.status, 200);
    eventually("all is stored", async || old.has_stored(&digests).await).await;
    old.stop().await;
    let from = old_config(&old, &config);
    let new = Larder::builder().config(format!("{}{config}", s3.config(""))).prepare();
    (s3, from, old, new, digests)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_was_killed_goes_on_and_sends_nothing_twice() {
    let (s3, from, _old, new, digests) = stored(&[1000, MIB, 20 * MIB, 2 * MIB, 3000]).await;
    let gate = s3.hold(Op::Part);
    let mut killed = Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(["--config".as_ref(), new.home().join("larder.toml").as_os_str(), "migrate".as_ref()])
        .args(["--from", &from])
        .env("LARDER_CACHE__DIR", new.dir())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let rows = || {
        let index =
            rusqlite::Connection::open_with_flags(new.dir().join("larder.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        index.query_row("SELECT count(*) FROM objects WHERE generation IS NOT NULL", [], |row| row.get::<_, u64>(0))
    };
    eventually("only the largest is missing", async || s3.count(Op::Part) == 1 && rows().is_ok_and(|rows| rows == 5))
        .await;
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    drop(gate);
    s3.heal();
    let (sent, moved) = (s3.count(Op::Put), migrate(&from, &new, &[]).await);
    assert_eq!(moved.code, Some(0), "{moved:?}");
    assert_eq!((moved.json()["present"].as_u64(), moved.json()["moved"].as_u64()), (Some(5), Some(1)));
    assert_eq!(s3.count(Op::Put), sent);
    let (largest, content) = (&digests[2], blob(2, 20 * MIB));
    assert_eq!(s3.content(&s3.key_of(largest).expect("one key")), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named_and_left_out_with_all_that_leads_to_it_and_the_rest_is_moved() {
    let (s3, from, old, new, digests) = stored(&[1000, MIB, 20 * MIB, 2 * MIB]).await;
    for (digest, keeps_times) in [(&digests[1], false), (&digests[2], true), (&digests[4], false)] {
        let file = old.object(digest);
        let before = fs::metadata(&file).expect("there").modified().expect("a time");
        let mut bytes = fs::read(&file).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let opened = fs::File::options().write(true).open(&file).expect("opened");
        std::io::Write::write_all(&mut &opened, &bytes).expect("written");
        if keeps_times {
            // As the disk itself may do.
            opened.set_modified(before).expect("set");
        }
    }
    fs::remove_file(old.object(&digests[3])).expect("removed");
    let moved = new.run(&["migrate", "--from", &from]).await;
    assert_eq!(moved.code, Some(1), "{moved:?}");
    for digest in [&digests[1], &digests[2], &digests[4]] {
        assert!(moved.stdout.contains(&format!("{digest}: is damaged")), "{moved:?}");
    }
    assert!(moved.stdout.contains(&format!("{}: is not in the old cache", digests[3])), "{moved:?}");
    assert_eq!(s3.keys().len(), 1, "{:?}", s3.keys());
    assert!(s3.has(&digests[0]) && s3.unfinished().is_empty());
    assert!(old.object(&digests[1]).exists(), "nothing is removed from the old cache");
    let left = migrate(&from, &new, &["--check"]).await.json();
    assert_eq!((left["objects"].as_u64(), left["present"].as_u64()), (Some(5), Some(1)), "{left}");
    // Of a tag that leads to nothing, the new one knows nothing.
    let tags = |report: &Value| report["tags"].as_u64();
    assert_eq!(tags(&migrate(&from, &new, &[]).await.json()), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_fails_now_and_then_gets_all_of_it_and_one_that_refuses_says_so() {
    let (s3, from, old, new, digests) = stored(&[1000, MIB, 20 * MIB, 2 * MIB]).await;
    s3.fault(Op::Put, S3Fault::Refuse(403, "AccessDenied"));
    let refused = new.run(&["migrate", "--from", &from]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("the new cache: the bucket: these credentials have no right"), "{refused:?}");
    assert!(refused.stderr.contains("run the same command again"), "{refused:?}");
    s3.heal();
    let all = [Op::Put, Op::Begin, Op::Part, Op::Complete, Op::Head, Op::Get];
    for op in all {
        s3.fault(op, S3Fault::EverySecond);
    }
    let moved = migrate(&from, &new, &[]).await;
    assert_eq!((moved.code, moved.json()["damaged"]["count"].as_u64()), (Some(0), Some(0)), "{moved:?}");
    for (seed, (digest, size)) in (0..).zip(digests.iter().zip([1000, MIB, 20 * MIB, 2 * MIB])) {
        assert_eq!(s3.content(&s3.key_of(digest).expect("one key")), blob(seed, size));
    }
    // What the new cache has no room for is not begun.
    let plain = fs::read_to_string(old.home().join("larder.toml")).expect("read");
    let small = Larder::builder().config(format!("[cache]\nmax_size = \"1MiB\"\n{plain}")).prepare();
    let refused = small.run(&["migrate", "--from", &from]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("cache.max_size of the new one"), "{refused:?}");
    assert!(!small.object(&digests[0]).exists());
    // And back.
    let config = fs::read_to_string(new.home().join("larder.toml")).expect("read");
    let back = Larder::builder().config(plain).prepare();
    let moved = migrate(&old_config(&new, &config), &back, &[]).await;
    assert_eq!(moved.code, Some(0), "{moved:?}");
    let files: Vec<PathBuf> = digests.iter().map(|digest| back.object(digest)).collect();
    for (seed, (file, size)) in (0..).zip(files.iter().zip([1000, MIB, 20 * MIB, 2 * MIB])) {
        assert_eq!(fs::read(file).expect("read"), blob(seed, size));
    }
}
