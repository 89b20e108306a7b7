//! Promise: Debian's own check finds nothing wrong with the package; it is installed, serves as its unit says, and leaves
//! nothing behind but what it cached.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use tempfile::TempDir;

use crate::clients::{Daemon, Invocation, program};
use crate::delivery::{door_of, file, static_binary};
use crate::support::{Hub, Image, Options, eventually, get, repository_config};

/// The package with the static binary of this build, made once for all tests.
static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut release = Command::new(file("deploy/release"));
    release.args(["deb", "--fast"]).env("LARDER_BINARY", static_binary()).env("DEBEMAIL", "larder@example.org");
    let output = release.output().expect("deploy/release starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    // cargo-deb says where it is.
    file(said.lines().last().expect("a line"))
});

#[test]
fn debians_own_check_finds_nothing_wrong_with_the_package() {
    // https://manpages.debian.org/bookworm/lintian/lintian.1.en.html: with errors or warnings it ends with 2.
    let mut lintian = Command::new("lintian");
    let output = lintian.args(["--allow-root", "--fail-on", "error,warning"]).arg(&*PACKAGE).output();
    let output = output.expect("the package lintian is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A small Debian of its own, as a directory.
struct Debian(TempDir);

impl Debian {
    /// A copy of what `./test` has made with debootstrap, with the package in its root.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let base = file("target/clients/debian");
        assert!(base.is_dir(), "./test makes target/clients/debian");
        let (from, to) = (base.join("."), dir.path().display().to_string());
        let copy = Invocation::new(&program("cp", "coreutils"), ["--archive", &from.display().to_string(), &to]);
        copy.run().await.expect("copied");
        let package = tokio::task::spawn_blocking(|| PACKAGE.clone()).await.expect("made");
        std::fs::copy(package, dir.path().join("larder.deb")).expect("copied");
        Self(dir)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Runs a command in it.
    async fn run(&self, command: &[&str]) -> String {
        let root = self.path("").display().to_string();
        let arguments = [root.as_str()].into_iter().chain(command.iter().copied());
        let run = Invocation::new(&program("chroot", "coreutils"), arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run.run().await.unwrap_or_else(|failure| panic!("{failure}"))
    }

    async fn install(&self) {
        self.run(&["apt-get", "install", "--yes", "--no-install-recommends", "/larder.deb"]).await;
    }

    /// Makes a package of the next version out of `larder.deb`; `config` is added to its `larder.toml`. Returns its path
    /// in this Debian.
    async fn next_version(&self, version: &str, config: &str) -> String {
        let (parts, package) = (self.path("parts"), format!("/larder-{version}.deb"));
        let show = |path: &Path| path.display().to_string();
        let dpkg_deb = program("dpkg-deb", "dpkg");
        let out = Invocation::new(&dpkg_deb, ["--raw-extract", &show(&self.path("larder.deb")), &show(&parts)]);
        out.run().await.expect("taken apart");
        let control = std::fs::read_to_string(parts.join("DEBIAN/control")).expect("there");
        let of_old = control.lines().find(|line| line.starts_with("Version: ")).expect("it has a version");
        let control = control.replace(of_old, &format!("Version: {version}"));
        std::fs::write(parts.join("DEBIAN/control"), control).expect("written");
        let shipped = std::fs::read_to_string(parts.join("etc/larder/larder.toml")).expect("there");
        std::fs::write(parts.join("etc/larder/larder.toml"), shipped + config).expect("written");
        let target = show(&self.path(&package[1..]));
        let build = ["--root-owner-group", "-Zgzip", "-z1", "--build", &show(&parts), &target];
        Invocation::new(&dpkg_deb, build).run().await.expect("put together");
        std::fs::remove_dir_all(parts).expect("removed");
        package
    }

    async fn installed_version(&self) -> String {
        self.run(&["dpkg-query", "--show", "--showformat=${Version}", "larder"]).await
    }

    /// The files that were not there before.
    fn new_files(&self, before: &BTreeSet<String>) -> Vec<String> {
        self.files().difference(before).cloned().collect()
    }

    /// All files but those in which apt and dpkg note what they do.
    fn files(&self) -> BTreeSet<String> {
        let kept_by_apt =
            ["var/log", "var/cache", "var/lib/apt", "var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old"];
        let found = Command::new("find").arg(self.0.path()).args(["-mindepth", "1", "-printf", "%P\n"]).output();
        let found = String::from_utf8(found.expect("found").stdout).expect("text");
        let is_ours = |path: &&str| !kept_by_apt.iter().any(|kept| path.starts_with(kept));
        found.lines().filter(is_ours).map(str::to_owned).collect()
    }

    /// The command of the unit, as it is installed.
    fn exec_start(&self) -> Vec<String> {
        let unit = std::fs::read_to_string(self.path("usr/lib/systemd/system/larder.service")).expect("installed");
        let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("the unit starts something");
        line.split(' ').map(str::to_owned).collect()
    }

    fn is_enabled(&self, wanted_by: &str, unit: &str) -> bool {
        self.path("etc/systemd/system").join(wanted_by).join(unit).is_symlink()
    }
}

/// Starts what the unit starts, without systemd, at any free ports. Returns the address of the registry door, too.
async fn start(debian: &Debian, log: &Path) -> (Daemon, String) {
    // What StateDirectory= makes.
    std::fs::create_dir_all(debian.path("var/lib/larder")).expect("made");
    let command = debian.exec_start();
    let root = debian.path("").display().to_string();
    let arguments = [root.as_str()].into_iter().chain(command.iter().map(String::as_str));
    let environment = [
        ("LARDER_SERVER__LISTEN", "127.0.0.1:0"),
        ("LARDER_ADMIN__LISTEN", "127.0.0.1:0"),
        ("LARDER_LOGGING__FORMAT", "json"),
    ];
    let mut daemon = Daemon::spawn(&program("chroot", "coreutils"), arguments, &environment, log).expect("started");
    let door = Mutex::new(None);
    let is_ready = async || {
        let lines = std::fs::read_to_string(log).unwrap_or_default();
        *door.lock().expect("no panic while held") = lines.lines().find_map(|line| door_of(line, "registry"));
        door.lock().expect("no panic while held").is_some()
    };
    daemon.wait_until(is_ready).await.unwrap_or_else(|failure| panic!("{failure}"));
    (daemon, door.into_inner().expect("no panic while held").expect("found"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_package_is_installed_serves_and_leaves_only_what_it_cached() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[100_000]);
    hub.push_image("team/app", "1", &image);
    let debian = Debian::new().await;
    let before = debian.files();

    debian.install().await;
    assert_eq!(debian.run(&["larder", "--version"]).await, concat!("larder ", env!("CARGO_PKG_VERSION")));
    debian.run(&["larder", "config", "check"]).await;
    assert!(debian.is_enabled("multi-user.target.wants", "larder.service"));
    assert!(!debian.is_enabled("sockets.target.wants", "larder-registry.socket"));
    let config = debian.path("etc/larder/larder.toml");
    let text = std::fs::read_to_string(&config).expect("installed") + &repository_config("hub", &[&hub]);
    std::fs::write(&config, text).expect("written");

    pull(&debian, &image, "hub/team/app").await;

    debian.run(&["apt-get", "remove", "--yes", "larder"]).await;
    assert!(config.is_file() && !debian.path("usr/bin/larder").exists(), "the configuration stays, the program goes");
    debian.run(&["apt-get", "purge", "--yes", "larder"]).await;
    let is_cached = |path: &String| path == "var/lib/larder" || path.starts_with("var/lib/larder/");
    let (cached, left): (Vec<_>, Vec<_>) = debian.new_files(&before).into_iter().partition(is_cached);
    assert!(cached.len() > 1, "the cache is there: {cached:?}");
    assert_eq!(left, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_removes_directories_without_content() {
    let debian = Debian::new().await;
    std::fs::create_dir_all(debian.path("var/lib/private")).expect("made");
    let before = debian.files();
    debian.install().await;
    // As systemd makes them: https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html#DynamicUser=
    std::fs::create_dir(debian.path("var/lib/private/larder")).expect("made");
    std::os::unix::fs::symlink("private/larder", debian.path("var/lib/larder")).expect("made");
    debian.run(&["apt-get", "purge", "--yes", "larder"]).await;
    assert_eq!(debian.new_files(&before), [""; 0]);
}

/// As a user writes them, beside the file that the package brings.
const OF_THE_USER: [&str; 3] =
    ["etc/larder/htpasswd", "etc/default/larder", "etc/systemd/system/larder.service.d/override.conf"];

/// Debian Policy 10.7.3: "local changes must be preserved during a package upgrade", and 6.8: a purge removes the package's
/// configuration files. Without a terminal dpkg fails where it would have to ask.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_keeps_configuration_and_content_and_asks_nothing() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[100_000]);
    hub.push_image("team/app", "1", &image);
    let debian = Debian::new().await;
    debian.install().await;
    let config = debian.path("etc/larder/larder.toml");
    let written = std::fs::read_to_string(&config).expect("installed") + &repository_config("hub", &[&hub]);
    std::fs::write(&config, &written).expect("written");
    for path in OF_THE_USER.map(|path| debian.path(path)) {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, "# mine\n").expect("written");
    }
    // What `systemctl disable larder` does.
    std::fs::remove_file(debian.path("etc/systemd/system/multi-user.target.wants/larder.service")).expect("removed");
    pull(&debian, &image, "hub/team/app").await;
    let asked = hub.requests().len();

    let next = debian.next_version("9.0-1", "").await;
    debian.run(&["apt-get", "install", "--yes", "--no-install-recommends", &next]).await;
    assert_eq!(debian.installed_version().await, "9.0-1");
    // Both sides have changed the file: what unattended-upgrades does with it.
    let next = debian.next_version("9.1-1", "# a new hint\n").await;
    let keep = ["-o", "Dpkg::Options::=--force-confold"];
    let install = ["apt-get", "install", "--yes", "--no-install-recommends", &next];
    debian.run(&[&install[..], &keep].concat()).await;
    assert_eq!(debian.installed_version().await, "9.1-1");
    assert_eq!(std::fs::read_to_string(&config).expect("there"), written);
    debian.run(&["larder", "config", "check"]).await;
    assert!(!debian.is_enabled("multi-user.target.wants", "larder.service"), "it stays disabled");
    pull(&debian, &image, "hub/team/app").await;
    let asked_again = hub.requests().into_iter().skip(asked).filter(|request| request.method == "GET").count();
    assert_eq!(asked_again, 0, "all is in the cache");

    debian.run(&["apt-get", "purge", "--yes", "larder"]).await;
    let left: Vec<_> =
        debian.files().into_iter().filter(|path| path.starts_with("etc/") && path.contains("larder")).collect();
    let of_the_user = ["etc/larder", "etc/systemd/system/larder.service.d"].into_iter().chain(OF_THE_USER);
    assert_eq!(BTreeSet::from_iter(left.iter().map(String::as_str)), of_the_user.collect());
    assert!(debian.path("var/lib/larder/blobs").is_dir(), "the content stays");
}

/// Starts the service, pulls the image through it until its layer is stored, and ends it.
async fn pull(debian: &Debian, image: &Image, name: &str) {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let (mut daemon, door) = start(debian, log.path()).await;
    let manifest = get(format!("http://{door}/v2/{name}/manifests/1")).await;
    assert_eq!((manifest.status, &manifest.body[..]), (200, &image.manifest.bytes[..]), "{}", manifest.text());
    let layer = format!("http://{door}/v2/{name}/blobs/{}", image.layer_digests()[0]);
    eventually("it is stored", async || get(&layer).await.header("x-cache") == "HIT").await;
    daemon.kill();
}
