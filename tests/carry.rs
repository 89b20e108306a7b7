//! Images carried to a place without a network: `larder export`, `larder import`, and the API pages behind them.
//!
//! What other programs write and read is in `src/ops/layout/mod.rs`; skopeo is asked itself here.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::clients::skopeo_carries;
use crate::support::{
    Hub, Image, Index, Larder, Options, Ran, RepositoryConfig, eventually, get, raw, repository_config, request,
};

const KIB: usize = 1 << 10;

/// A Larder whose upstream cannot be reached.
async fn far_away() -> Larder {
    let mut hub = Hub::start(Options::default()).await;
    let config = repository_config("hub", &[&hub]);
    hub.stop().await;
    Larder::start(config).await
}

async fn pull(larder: &Larder, name: &str, tag: &str, image: &Image) {
    assert_eq!(get(larder.manifest_url(name, tag)).await.status, 200);
    assert_eq!(get(larder.manifest_url(name, &image.manifest.digest)).await.status, 200);
    for digest in image.layer_digests().iter().chain([&image.config_digest()]) {
        assert!(get(larder.blob_url(name, digest)).await.complete());
    }
    let blobs: Vec<_> = image.layer_digests().into_iter().chain([image.config_digest()]).collect();
    eventually("all of it is stored", async || larder.has_stored(&blobs).await).await;
}

/// One image, pulled, and a folder for archives.
struct Scene {
    hub: Hub,
    larder: Larder,
    image: Image,
    folder: tempfile::TempDir,
}

async fn scene() -> Scene {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[2_500 * KIB, 10 * KIB]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    pull(&larder, "hub/team/app", "1", &image).await;
    Scene { hub, larder, image, folder: tempfile::tempdir().expect("a folder") }
}

impl Scene {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    async fn export(&self, arguments: &[&str]) -> Value {
        done(&self.larder, &[&["export", "--json"], arguments].concat()).await
    }
}

async fn done(larder: &Larder, arguments: &[&str]) -> Value {
    let ran = larder.run(arguments).await;
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", larder.log());
    ran.json()
}

/// Asserts that it fails, with these words.
async fn refused(larder: &Larder, arguments: &[&str], code: i32, words: &str) {
    let ran = larder.run(arguments).await;
    assert!(ran.code == Some(code) && format!("{}{}", ran.stdout, ran.stderr).contains(words), "{words}: {ran:?}");
}

async fn listed(larder: &Larder) -> Vec<String> {
    let listed = larder.run(&["ls", "--json"]).await.json();
    listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|image| image["reference"].as_str().expect("text").to_owned())
        .collect()
}

/// Asserts that nothing of an image is served or listed.
async fn nothing_of(larder: &Larder, name: &str, image: &Image) {
    assert_eq!(listed(larder).await, Vec::<String>::new());
    for digest in image.layer_digests().iter().chain([&image.config_digest()]) {
        assert_ne!(get(larder.blob_url(name, digest)).await.status, 200);
    }
    assert_ne!(get(larder.manifest_url(name, &image.manifest.digest)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_image_is_pulled_where_no_upstream_can_be_reached() {
    let mut scene = scene().await;
    // From a running instance and from the directory of a stopped one; as a file and as a folder; into both, too.
    for (at, output) in ["a.tar", "b", "c.tar", "d"].into_iter().enumerate() {
        if at == 2 {
            scene.larder.stop().await;
        }
        let path = scene.path(output);
        let exported = scene.export(&["hub/team/app:1", "-o", &path]).await;
        assert_eq!((&exported["images"], &exported["objects"]), (&1.into(), &4.into()));
        let checked = done(&scene.larder, &["import", "--check", "--json", &path]).await;
        assert_eq!((&checked["images"], &checked["blobs"]), (&1.into(), &4.into()));

        let mut far = far_away().await;
        if at % 2 == 1 {
            far.stop().await;
        }
        let imported = done(&far, &["import", "--json", &path]).await;
        assert_eq!((&imported["images"], &imported["objects"]), (&1.into(), &4.into()), "{imported}");
        if at % 2 == 1 {
            far.restart().await;
        }
        assert_eq!(listed(&far).await, ["hub/team/app:1"]);
        let reference = format!("docker://{}/hub/team/app:1", far.door("registry"));
        let copy = format!("dir:{}", scene.path(&format!("copy{at}")));
        skopeo_carries(&reference, &copy).await.expect("pulled through the far cache");
        let answer = get(far.manifest_url("hub/team/app", "1")).await;
        assert!(answer.header("cache-status").contains("stale") || answer.status == 200, "{answer:?}");
        // A second time, nothing is new.
        let again = done(&far, &["import", "--json", &path]).await;
        assert_eq!((&again["objects"], &again["present"]), (&0.into(), &4.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_tag_is_as_its_upstream_says_once_it_can_be_reached() {
    let scene = scene().await;
    let path = scene.path("a.tar");
    scene.export(&["--all", "-o", &path]).await;
    let config = RepositoryConfig::new("hub").set("max_age = \"1h\"").upstream(&scene.hub);
    let far = Larder::start(config).await;
    done(&far, &["import", "--json", &path]).await;
    let newer = Image::new(2);
    scene.hub.push_image("team/app", "1", &newer);
    let answer = get(far.manifest_url("hub/team/app", "1")).await;
    assert_eq!(answer.header("docker-content-digest"), newer.manifest.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_that_were_not_pulled_are_left_out_and_named() {
    let scene = scene().await;
    let index = Index::new(5, &["linux/amd64", "linux/arm64"]);
    scene.hub.push_index("team/multi", "1", &index);
    assert_eq!(get(scene.larder.manifest_url("hub/team/multi", "1")).await.status, 200);
    pull(&scene.larder, "hub/team/multi", &index.images[0].manifest.digest, &index.images[0]).await;

    let path = scene.path("multi");
    let exported = scene.export(&["hub/team/multi:1", "-o", &path]).await;
    assert_eq!(exported["incomplete"], serde_json::json!([{"reference": "hub/team/multi:1", "missing": 1}]));
    let text = scene.larder.run(&["export", "hub/team/multi:1", "-o", &scene.path("text.tar")]).await;
    assert!(text.stdout.contains("hub/team/multi:1: 1 object of it not cached"), "{text:?}");
    // The index is unchanged, and skopeo takes the platform of this machine out of it.
    let written = fs::read(Path::new(&path).join("blobs/sha256").join(&index.manifest.digest[7..])).expect("there");
    assert_eq!(written, index.manifest.bytes);
    for from in [format!("oci:{path}:hub/team/multi:1"), format!("oci-archive:{}", scene.path("text.tar"))] {
        let to = format!("dir:{}", scene.path(&format!("out{}", from.len())));
        crate::clients::skopeo_takes_one(&from, &to).await.expect("skopeo reads it");
    }
    let far = far_away().await;
    let imported = done(&far, &["import", "--json", &path]).await;
    assert_eq!(imported["incomplete"][0]["missing"], 1);
    pull(&far, "hub/team/multi", "1", &index.images[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_skopeo_wrote_is_imported_under_the_name_that_is_given() {
    let scene = scene().await;
    let reference = format!("docker://{}/hub/team/app:1", scene.larder.door("registry"));
    let (named, unnamed, archive) = (scene.path("named"), scene.path("unnamed"), scene.path("archive.tar"));
    for to in [format!("oci:{named}:1"), format!("oci:{unnamed}"), format!("oci-archive:{archive}:hub/team/app:2")] {
        skopeo_carries(&reference, &to).await.expect("copied");
    }
    let far = far_away().await;
    refused(&far, &["import", &named], 2, "--as NAME").await;
    refused(&far, &["import", &unnamed], 2, "--as NAME:TAG").await;
    done(&far, &["import", "--json", &named, "--as", "hub/team/app"]).await;
    done(&far, &["import", "--json", &unnamed, "--as", "hub/other:3"]).await;
    done(&far, &["import", "--json", &archive]).await;
    assert_eq!(listed(&far).await, ["hub/other:3", "hub/team/app:1", "hub/team/app:2"]);
    pull(&far, "hub/other", "3", &scene.image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_increment_has_only_what_came_since_and_needs_what_came_before() {
    let scene = scene().await;
    let (first, second) = (scene.path("first.tar"), scene.path("second.tar"));
    let exported = scene.export(&["--all", "-o", &first]).await;
    let since = exported["begun_at"].as_str().expect("a time").to_owned();
    // The time in the archive has whole seconds: what came within the second is in both.
    eventually("the next second has begun", async || {
        humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string() > since
    })
    .await;
    let next = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let newer = Image::with_layers(2, &[30 * KIB]);
    scene.hub.push_image("team/app", "2", &newer);
    pull(&scene.larder, "hub/team/app", "2", &newer).await;
    let exported = scene.export(&["--all", "--since", &next, "-o", &second]).await;
    assert_eq!((&exported["images"], &exported["objects"], &exported["earlier"]), (&2.into(), &3.into(), &4.into()));

    let far = far_away().await;
    let alone = far.run(&["import", &second]).await;
    assert!(alone.code == Some(1) && alone.stdout.contains("import the archive before this one first"), "{alone:?}");
    done(&far, &["import", "--json", &first]).await;
    done(&far, &["import", "--json", &second]).await;
    pull(&far, "hub/team/app", "1", &scene.image).await;
    pull(&far, "hub/team/app", "2", &newer).await;
    refused(&scene.larder, &["export", "--all", "--since", "yesterday", "-o", "x.tar"], 2, "2026-11-01").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_joined_in_any_order_and_a_missing_one_is_named() {
    let scene = scene().await;
    let path = scene.path("a.tar");
    let exported = scene.export(&["--all", "--chunk-size", "1MiB", "-o", &path]).await;
    let parts: Vec<_> = exported["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|file| file.as_str().expect("text").to_owned())
        .collect();
    assert_eq!(parts.len(), 3, "{parts:?}");
    assert!(parts.iter().all(|part| fs::metadata(part).expect("there").len() <= 1 << 20));
    let far = far_away().await;
    done(&far, &["import", "--json", &parts[2], &parts[0], &parts[1]]).await;
    pull(&far, "hub/team/app", "1", &scene.image).await;
    // One of parts that lie together is enough, and so is the name without a number.
    for path in [&path, &parts[1]] {
        done(&far, &["import", "--json", "--check", path]).await;
    }
    fs::rename(&parts[2], scene.path("elsewhere")).expect("moved");
    refused(&far, &["import", "--check", &path], 1, "cut off").await;
    fs::rename(scene.path("elsewhere"), &parts[2]).expect("moved");
    fs::remove_file(&parts[1]).expect("removed");
    refused(&far, &["import", "--check", &path], 1, "a.tar.001 is missing").await;
    refused(&scene.larder, &["export", "--all", "-o", &path], 2, "is there already").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_and_sboms_come_along_with_extras() {
    let scene = scene().await;
    let subject = &scene.image.manifest;
    let sbom = Image::referrer(subject, "application/spdx+json", 9);
    let digest = scene.hub.push_untagged("team/app", &sbom);
    let signature = Image::with_layers(10, &[KIB]);
    let tag = format!("{}.sig", subject.digest.replace(':', "-"));
    scene.hub.push_image("team/app", &tag, &signature);
    let list = scene.larder.url() + &format!("/v2/hub/team/app/referrers/{}", subject.digest);
    assert!(get(&list).await.text().contains(&digest));
    pull(&scene.larder, "hub/team/app", &digest, &sbom).await;
    pull(&scene.larder, "hub/team/app", &tag, &signature).await;

    let (without, with) = (scene.path("without.tar"), scene.path("with.tar"));
    assert_eq!(scene.export(&["hub/team/app:1", "-o", &without]).await["images"], 1);
    assert_eq!(scene.export(&["hub/team/app:1", "--extras", "-o", &with]).await["images"], 3);
    let far = far_away().await;
    done(&far, &["import", "--json", &with]).await;
    let list = far.url() + &format!("/v2/hub/team/app/referrers/{}", subject.digest);
    let referrers = get(&list).await.json();
    assert_eq!(referrers["manifests"][0]["digest"], digest, "{referrers}");
    assert_eq!(referrers["manifests"][0]["artifactType"], "application/spdx+json");
    pull(&far, "hub/team/app", &digest, &sbom).await;
    pull(&far, "hub/team/app", &tag, &signature).await;
}

/// Flips a byte of a file in the middle.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("readable");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("writable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_and_nothing_of_the_archive_is_served() {
    let scene = scene().await;
    let (folder, file) = (scene.path("folder"), scene.path("file.tar"));
    scene.export(&["--all", "-o", &folder]).await;
    scene.export(&["--all", "-o", &file]).await;
    let damaged = format!("blobs/sha256/{}", &scene.image.layer_digests()[0][7..]);
    flip(&PathBuf::from(&folder).join(&damaged));
    // The largest layer is in the middle of the file, too.
    flip(Path::new(&file));
    let mut far = far_away().await;
    for path in [&folder, &file] {
        refused(&far, &["import", "--check", path], 1, &damaged).await;
        for _ in 0..2 {
            refused(&far, &["import", path], 1, &damaged).await;
            if far.is_running() {
                nothing_of(&far, "hub/team/app", &scene.image).await;
                assert_eq!(far.stats().await["objects"], 0);
                far.stop().await;
            }
        }
        far.restart().await;
    }
}

/// A tar archive of these files, and a header with this path and type, as GNU tar writes it.
fn hostile(path: &str, kind: u8, size: u64, files: &[(&str, &[u8])]) -> Vec<u8> {
    let block = |path: &str, kind: u8, size: u64| {
        let mut header = [0; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar  \0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header.to_vec()
    };
    let mut archive = Vec::new();
    for (path, bytes) in files {
        archive.extend(block(path, b'0', bytes.len() as u64));
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.extend(block(path, kind, size));
    archive.resize(archive.len() + 1024, 0);
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_are_refused_and_leave_nothing() {
    let far = far_away().await;
    let image = Image::with_layers(1, &[KIB]);
    let paths: Vec<_> =
        image.blobs().iter().map(|blob| format!("blobs/sha256/{}", &crate::support::sha256(blob)[7..])).collect();
    let blobs: Vec<_> = paths.iter().map(String::as_str).zip(image.blobs()).collect();
    let files: Vec<(&str, &[u8])> = blobs.iter().map(|(path, blob)| (*path, &blob[..])).collect();
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let deep = [r#"{"schemaVersion":2,"manifests":"#.to_owned(), "[".repeat(1 << 20)].concat();
    let with = |more: &[(&'static str, &'static [u8])]| [&files[..], more].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (hostile("/etc/passwd", b'0', 0, &files), "leads out of the archive"),
        (hostile("../x", b'0', 0, &files), "leads out of the archive"),
        (hostile(&paths[0], b'2', 0, &[]), "it is a link"),
        (hostile("device", b'3', 0, &files), "neither a file nor a folder"),
        (hostile(&paths[0], b'0', 0, &files), "there twice"),
        (hostile("././@LongLink", b'L', 1 << 32, &files), "cut off"),
        (hostile("blobs/sha256/abc", b'0', 0, &files), "no digest"),
        (hostile("index.json", b'0', 1 << 32, &files), "larger than 64 MiB"),
        (hostile("other", b'0', 1 << 30, &files), "cut off"),
        (hostile("other", b'5', 0, &files), "no `oci-layout`"),
        (hostile("index.json", b'0', 0, &with(&[("oci-layout", layout)])), "`index.json` cannot be read"),
        (
            hostile("x", b'5', 0, &[&files[..], &[("oci-layout", layout), ("index.json", deep.as_bytes())]].concat()),
            "cannot be read",
        ),
        (b"PK\x03\x04 is no tar file".repeat(100), "no tar file"),
    ];
    for (archive, why) in cases {
        let answer = request("POST", far.admin_url() + "/api/import").body(archive).send().await;
        assert!(answer.status == 422 && answer.text().contains(why), "{why}: {} {}", answer.status, answer.text());
        nothing_of(&far, "hub/team/app", &image).await;
        assert_eq!(far.stats().await["objects"], 0, "{why}");
    }
    let wrong = request("POST", far.admin_url() + "/api/import?name=x").body("").send().await;
    assert_eq!(wrong.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_larger_than_the_cache_is_refused_and_what_is_cached_stays() {
    let scene = scene().await;
    let path = scene.path("a.tar");
    scene.export(&["--all", "-o", &path]).await;
    let hub = Hub::start(Options::default()).await;
    let kept = Image::with_layers(7, &[100 * KIB]);
    hub.push_image("team/kept", "1", &kept);
    let small = Larder::start(format!("[cache]\nmax_size = \"2MiB\"\n{}", repository_config("hub", &[&hub]))).await;
    pull(&small, "hub/team/kept", "1", &kept).await;
    refused(&small, &["import", &path], 1, "cache.max_size").await;
    // Also where the size is not stated.
    let archive = fs::read(&path).expect("readable");
    let address = small.door("admin");
    let head = format!(
        "POST /api/import HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        archive.len()
    );
    let sent = [head.as_bytes(), &archive, b"\r\n0\r\n\r\n"].concat();
    let answer = String::from_utf8_lossy(&raw(address, &sent, std::time::Duration::from_secs(20)).await).into_owned();
    assert!(answer.contains(" 507 ") && answer.contains("cache.max_size"), "{answer}");
    assert_eq!(listed(&small).await, ["hub/team/kept:1"]);
    assert_eq!(small.stats().await["objects"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_leaves_nothing_that_is_served() {
    let scene = scene().await;
    let path = scene.path("a.tar");
    scene.export(&["--all", "-o", &path]).await;
    let mut far = far_away().await;
    // All but the end: the import waits for the rest.
    let archive = fs::read(&path).expect("readable");
    let address = far.door("admin");
    let head = format!("POST /api/import HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n", archive.len());
    let mut sender = tokio::net::TcpStream::connect(address).await.expect("connected");
    let part = [head.as_bytes(), &archive[..archive.len() - 3000]].concat();
    tokio::io::AsyncWriteExt::write_all(&mut sender, &part).await.expect("sent");
    let layer = scene.image.layer_digests()[0].clone();
    eventually("the layer is stored", async || far.object(&layer).exists()).await;
    nothing_of(&far, "hub/team/app", &scene.image).await;
    refused(&far, &["import", &path], 1, "under way").await;
    far.kill9();
    drop(sender);
    far.restart().await;
    nothing_of(&far, "hub/team/app", &scene.image).await;
    done(&far, &["import", "--json", &path]).await;
    pull(&far, "hub/team/app", "1", &scene.image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_clients_credentials_brought_in_is_neither_exported_nor_imported() {
    let scene = scene().await;
    let path = scene.path("a.tar");
    scene.export(&["--all", "-o", &path]).await;
    let hub = Hub::start(Options::default()).await;
    let config = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream(&hub);
    let passing = Larder::start(config).await;
    refused(&passing, &["import", &path], 1, "client_credentials").await;
    let empty = done(&passing, &["export", "--json", "--all", "-o", &scene.path("b.tar")]).await;
    assert_eq!(empty["images"], 0);
    refused(&scene.larder, &["export", "hub/team/app:9", "-o", &scene.path("c.tar")], 1, "nothing of").await;
}

/// As long as the other repository's upstream does not show it there.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_in_an_archive_opens_nothing_of_another_repository() {
    let scene = scene().await;
    let other = Hub::start(Options::default()).await;
    let config = [repository_config("hub", &[&scene.hub]), repository_config("other", &[&other])].concat();
    let both = Larder::start(config).await;
    pull(&both, "hub/team/app", "1", &scene.image).await;
    // Only the manifest, under a name of the other repository.
    let path = scene.path("a");
    scene.export(&["--all", "-o", &path]).await;
    for digest in scene.image.layer_digests().iter().chain([&scene.image.config_digest()]) {
        fs::remove_file(Path::new(&path).join("blobs/sha256").join(&digest[7..])).expect("removed");
    }
    let imported = done(&both, &["import", "--json", &path, "--as", "other/stolen:1"]).await;
    assert_eq!(imported["incomplete"][0]["missing"], 3);
    for digest in scene.image.layer_digests() {
        assert_eq!(get(both.blob_url("other/stolen", &digest)).await.status, 404);
        assert_eq!(get(both.blob_url("hub/team/app", &digest)).await.status, 200);
    }
}

/// As people join the two commands in a shell.
#[tokio::test(flavor = "multi_thread")]
async fn images_go_from_one_cache_to_another_through_a_pipe() {
    let scene = scene().await;
    let there = far_away().await;
    let piped = pipe(&scene.larder, &there, "cat").await;
    assert_eq!(piped.code, Some(0), "{piped:?}");
    // Told on standard error by the one, and on standard output by the other.
    assert!(piped.stderr.contains("exported 1 image: ") && piped.stderr.contains(", to standard output"), "{piped:?}");
    assert!(piped.stdout.starts_with("imported 1 image: "), "{piped:?}");
    pull(&there, "hub/team/app", "1", &scene.image).await;

    let elsewhere = far_away().await;
    let cut = pipe(&scene.larder, &elsewhere, "head -c 1000000").await;
    assert!(cut.code == Some(1) && cut.stderr.contains("cut off"), "{cut:?}");
    assert!(cut.stderr.contains("the program that takes the archive has ended"), "{cut:?}");
    nothing_of(&elsewhere, "hub/team/app", &scene.image).await;
    // What went wrong is told, and not in the archive.
    let json = pipe_to(&scene.larder, "head -c 1000000 | wc -c", "--json", &["--version"]).await;
    assert!(json.stderr.contains("the program that takes the archive has ended"), "{json:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_goes_with_nothing_that_needs_files() {
    let scene = scene().await;
    refused(&scene.larder, &["export", "--all", "-o", "-", "--chunk-size", "4MiB"], 2, "splits a file").await;
    refused(&scene.larder, &["import", "-", "a.tar"], 2, "goes with no other file").await;
    refused(&scene.larder, &["import", "-"], 1, "cut off").await;
    let checked = pipe_to(&scene.larder, "cat", "", &["import", "--check", "-"]).await;
    assert!(checked.code == Some(0) && checked.stdout.contains("all is well"), "{checked:?}");
}

/// Exports everything, through a program, into another cache.
async fn pipe(from: &Larder, into: &Larder, through: &str) -> Ran {
    let admin = into.admin_url();
    pipe_to(from, through, "", &["import", "-", "--admin", &admin]).await
}

/// Exports everything, through a program, to another command.
async fn pipe_to(from: &Larder, through: &str, option: &str, command: &[&str]) -> Ran {
    let binary = env!("CARGO_BIN_EXE_larder");
    let export = format!("{binary} export --all -o - {option} --admin {}", from.admin_url());
    let line = format!("set -o pipefail; {export} | {through} | {binary} {}", command.join(" "));
    from.shell(&line).await
}
