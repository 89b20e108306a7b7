//! Promise: what is delivered runs where it is meant to: the unit under systemd with few rights, the static binary in an
//! empty container as a user without rights and with a root that cannot be written to.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::clients::{Dockerd, program};
use crate::support::dns::NameServer;
use crate::support::{Hub, Image, Options, RepositoryConfig, eventually, get};

pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs `systemd-analyze` over the unit with the binary of this build. Returns whether it is content, and what it says.
fn analyze(arguments: &[&str]) -> (bool, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let unit = std::fs::read_to_string(file("deploy/systemd/larder.service")).expect("the unit");
    let path = dir.path().join("larder.service");
    std::fs::write(&path, unit.replace("/usr/bin/larder", env!("CARGO_BIN_EXE_larder"))).expect("written");
    let output = Command::new("systemd-analyze").args(arguments).arg(&path).output();
    let output = output.expect("the package systemd is installed");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn the_unit_is_valid_and_has_few_rights() {
    let (is_valid, said) = analyze(&["verify", "--man=no"]);
    assert!(is_valid && said.is_empty(), "{said}");
    // Exposure in tenths: up to 2.0 of 10.
    let (is_safe, said) = analyze(&["security", "--offline=yes", "--threshold=20", "--no-pager"]);
    assert!(is_safe, "{said}");
}

/// The static binary, which `./test` builds.
pub fn static_binary() -> PathBuf {
    let folders = std::fs::read_dir(file("target/static")).into_iter().flatten().flatten();
    let mut binaries = folders.map(|folder| folder.path().join("debug/larder"));
    binaries.find(|binary| binary.is_file()).expect("./test builds target/static")
}

/// Where the name server is: an address of this machine that nothing else uses.
const NAMES: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

#[tokio::test(flavor = "multi_thread")]
async fn the_image_serves_from_an_empty_root_that_it_cannot_write_to_as_nobody() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[100_000]);
    hub.push_image("team/app", "1", &image);
    let _names = NameServer::start(NAMES).await;
    let etc = tempfile::tempdir().expect("a directory");
    std::fs::write(etc.path().join("resolv.conf"), format!("nameserver {NAMES}\n")).expect("written");
    let url = format!("http://registry.test:{}", hub.address().port());
    let config = std::fs::read_to_string(file("deploy/container/larder.toml")).expect("there");
    let config = config.replace("0.0.0.0:5000", "127.0.0.1:0")
        + "[admin]\nlisten = \"127.0.0.1:0\"\n[logging]\nformat = \"json\"\n"
        + &RepositoryConfig::new("hub").upstream_url(&url, "").to_string();
    std::fs::write(etc.path().join("larder.toml"), config).expect("written");

    let dockerd = Dockerd::start(&[]).await;
    let binary = static_binary().display().to_string();
    let release = file("deploy/release").display().to_string();
    dockerd.run_beside(&release, &["container"], &[("LARDER_BINARY", &binary)]).await.expect("built");
    let mount = |name: &str, place: &str| format!("{}:{place}:ro", etc.path().join(name).display());
    let (resolv, toml) = (mount("resolv.conf", "/etc/resolv.conf"), mount("larder.toml", "/etc/larder/larder.toml"));
    let options = ["--read-only", "--cap-drop", "ALL", "--network", "host", "--volume", &resolv, "--volume", &toml];
    let container = dockerd.start_container("larder", &options).await.expect("started");
    let address = |door: &str| dockerd.logs(&container).lines().find_map(|line| door_of(line, door));
    eventually("it listens", async || address("registry").is_some() && address("admin").is_some()).await;
    let [door, admin] = ["registry", "admin"].map(|door| address(door).expect("it listens"));
    let manifest = get(format!("http://{door}/v2/hub/team/app/manifests/1")).await;
    assert_eq!((manifest.status, &manifest.body[..]), (200, &image.manifest.bytes[..]), "{}", manifest.text());
    let layer = format!("http://{door}/v2/hub/team/app/blobs/{}", image.layer_digests()[0]);
    eventually("it is stored", async || get(&layer).await.header("x-cache") == "HIT").await;
    // The image's own health check, at the port that this container has.
    let healthcheck = ["/usr/bin/larder", "healthcheck", "--ready", "--admin", &format!("http://{admin}")];
    dockerd.exec(&container, &healthcheck).await.expect("healthy");
    dockerd.stop_container(&container).await.expect("stopped");
    compose_keeps_what_it_says(&dockerd, &format!("http://{}", hub.address())).await;
}

/// Runs the compose file beside a dockerd that has the image. Its containers have no network of their own here, so they
/// share that of the machine, with ports that are free.
async fn compose_keeps_what_it_says(dockerd: &Dockerd, upstream: &str) {
    let compose = program("docker-compose", "docker-compose").display().to_string();
    let written = file("deploy/container/compose.yaml");
    let check = ["--file", &written.display().to_string(), "config", "--quiet"];
    dockerd.run_beside(&compose, &check, &[]).await.expect("valid");
    let replicas = file("deploy/container/replicas.yaml").display().to_string();
    dockerd.run_beside(&compose, &["--file", &replicas, "config", "--quiet"], &[]).await.expect("valid");
    let with_bucket = file("deploy/container/replicas-s3.yaml").display().to_string();
    let both = ["--file", &replicas, "--file", &with_bucket, "config", "--quiet"];
    dockerd.run_beside(&compose, &both, &[("S3_SECRET_KEY", "x")]).await.expect("valid");

    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let text = std::fs::read_to_string(written).expect("there");
    let ports = "    ports:\n      - \"127.0.0.1:5000:5000\"\n";
    assert!(text.contains(ports), "{text}");
    let instead = format!(
        "    network_mode: host\n    environment:\n      LARDER_SERVER__LISTEN: \"127.0.0.1:0\"\n      LARDER_ADMIN__LISTEN: \"{free}\"\n      \
         LARDER_LOGGING__FORMAT: json\n      LARDER_REPOSITORY__HUB__UPSTREAM__0__URL: \"{upstream}\"\n"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("compose.yaml");
    std::fs::write(&path, text.replace(ports, &instead)).expect("written");
    let path = path.display().to_string();
    let project = ["--file", &path, "--project-name", "larder"];
    let run = async |arguments: &[&str]| dockerd.run_beside(&compose, &[&project, arguments].concat(), &[]).await;
    run(&["up", "--detach"]).await.expect("started");
    let container = run(&["ps", "--quiet"]).await.expect("listed");
    let door = || dockerd.logs(&container).lines().find_map(|line| door_of(line, "registry"));
    eventually("it listens", async || door().is_some()).await;
    let manifest = get(format!("http://{}/v2/hub/team/app/manifests/1", door().expect("it listens"))).await;
    assert_eq!(manifest.status, 200, "{}", manifest.text());
    // Also that the volume belongs to the image's user, who has no rights.
    let healthcheck = ["/usr/bin/larder", "healthcheck", "--ready"];
    dockerd.exec(&container, &healthcheck).await.expect("content can be stored");
    let list = ["/usr/bin/larder", "ls"];
    eventually("it is listed", async || {
        dockerd.exec(&container, &list).await.is_ok_and(|said| said.contains("team/app:1"))
    })
    .await;
    dockerd.stop_container(&container).await.expect("stopped");
    run(&["down", "--volumes"]).await.expect("removed");
}

/// The address of a door, if the line of the log says that it is listening.
pub fn door_of(line: &str, door: &str) -> Option<String> {
    let record: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = &record["fields"];
    let is_it = fields["message"] == "listening" && fields["door"] == door;
    is_it.then(|| fields["address"].as_str().map(str::to_owned)).flatten()
}
