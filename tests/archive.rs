//! Promise: a user of any Linux can check the archive by its sums, unpack it and run what is in it; it brings the licences of
//! all that is built in, and a list of its parts that other programs can read.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use tempfile::TempDir;

use crate::clients::Daemon;
use crate::delivery::{door_of, file, static_binary};
use crate::support::{eventually, get};

/// What `deploy/release archive` has made of the static binary, as a user downloads it, and the archive unpacked there.
static DELIVERED: LazyLock<TempDir> = LazyLock::new(|| {
    let output = Command::new(file("deploy/release")).arg("archive").env("LARDER_BINARY", static_binary()).output();
    succeeded(&output.expect("deploy/release starts"));
    let dir = tempfile::tempdir().expect("a directory");
    for name in [format!("{}.tar.gz", name()), sbom(), "SHA256SUMS".to_owned()] {
        std::fs::copy(file("target/delivered").join(&name), dir.path().join(&name)).expect("made");
    }
    succeeded(&run(dir.path(), "tar", &["-xzf", &format!("{}.tar.gz", name())]));
    dir
});

/// The archive's name without its ending.
fn name() -> String {
    let target = static_binary();
    let target = target.ancestors().nth(2).and_then(Path::file_name).expect("it is in the target's folder");
    format!("larder-{}-{}", env!("CARGO_PKG_VERSION"), target.display())
}

/// The name of the list of parts.
fn sbom() -> String {
    format!("larder-{}.cdx.json", env!("CARGO_PKG_VERSION"))
}

fn unpacked(path: &str) -> PathBuf {
    DELIVERED.path().join(name()).join(path)
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Returns what a program has printed; panics if it failed.
fn succeeded(output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

#[test]
fn the_sums_are_those_of_the_files() {
    let check = ["--check", "--strict", "--ignore-missing", "SHA256SUMS"];
    let said = succeeded(&run(DELIVERED.path(), "sha256sum", &check));
    assert_eq!(said.lines().filter(|line| line.ends_with(": OK")).count(), 2, "{said}");
    let copy = tempfile::tempdir().expect("a directory");
    std::fs::copy(DELIVERED.path().join("SHA256SUMS"), copy.path().join("SHA256SUMS")).expect("copied");
    std::fs::write(copy.path().join(sbom()), "{}").expect("written");
    assert!(!run(copy.path(), "sha256sum", &check).status.success(), "another file is found out");
}

#[test]
fn what_is_in_the_archive_can_be_used() {
    let larder = unpacked("larder");
    let larder = larder.to_str().expect("temporary paths are UTF-8");
    let here = unpacked("");
    assert_eq!(succeeded(&run(&here, larder, &["--version"])).trim(), concat!("larder ", env!("CARGO_PKG_VERSION")));
    for config in ["larder.toml", "larder.example.toml"] {
        let text = std::fs::read_to_string(unpacked(config)).expect(config);
        assert!(!text.is_empty(), "{config}");
    }
    succeeded(&run(&here, larder, &["config", "check", "larder.toml"]));
    succeeded(&run(&here, "bash", &["-n", "completions/larder"]));
    for path in [
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "CHANGELOG.md",
        "docs/install.md",
        "completions/_larder",
        "completions/larder.fish",
        "systemd/larder.service",
        "systemd/larder-registry.socket",
    ] {
        assert!(unpacked(path).is_file(), "{path}");
    }
    for command in ["", "-serve", "-purge", "-config-init"] {
        let page = std::fs::read_to_string(unpacked(&format!("man/larder{command}.1"))).expect(command);
        assert!(page.contains(".TH larder"), "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_in_the_archive_serves() {
    let (larder, folder) =
        tokio::task::spawn_blocking(|| (unpacked("larder"), tempfile::tempdir())).await.expect("made");
    let folder = folder.expect("a directory");
    let dir = folder.path().join("cache").display().to_string();
    let environment = [
        ("LARDER_SERVER__LISTEN", "127.0.0.1:0"),
        ("LARDER_ADMIN__LISTEN", "127.0.0.1:0"),
        ("LARDER_LOGGING__FORMAT", "json"),
        ("LARDER_CACHE__DIR", &dir),
    ];
    let log = folder.path().join("log");
    let _daemon = Daemon::spawn(&larder, ["serve"], &environment, &log).expect("started");
    let door = || {
        let lines = std::fs::read_to_string(&log).unwrap_or_default();
        lines.lines().find_map(|line| door_of(line, "registry"))
    };
    eventually("it listens", async || door().is_some()).await;
    let health = get(format!("http://{}/healthz", door().expect("it listens"))).await;
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("ok")), "{}", health.text());
}

/// CycloneDX's own library checks a list of parts against the schema (cyclonedx-python-lib, `cyclonedx.validation`).
const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())
sys.exit(repr(wrong) if wrong else 0)
";

#[test]
fn the_list_of_parts_is_valid_cyclonedx_and_names_them() {
    let python = file("target/clients/python/bin/python3");
    let python = python.to_str().expect("UTF-8");
    succeeded(&run(DELIVERED.path(), python, &["-c", VALIDATE, &sbom()]));
    let text = std::fs::read_to_string(DELIVERED.path().join(sbom())).expect("there");
    let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let main = &list["metadata"]["component"];
    assert_eq!((&main["name"], &main["version"]), (&"larder".into(), &env!("CARGO_PKG_VERSION").into()));
    let parts: Vec<_> = list["components"].as_array().expect("a list").iter().collect();
    for name in ["rustls", "hyper", "rusqlite"] {
        let part = parts.iter().find(|part| part["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        let purl = part["purl"].as_str().unwrap_or_default();
        assert!(purl.starts_with(&format!("pkg:cargo/{name}@")) && part["licenses"].is_array(), "{part}");
    }
    for name in ["winapi", "windows-sys", "jni", "proptest"] {
        assert!(parts.iter().all(|part| part["name"] != name), "{name} is not built in");
    }
    std::fs::write(DELIVERED.path().join("wrong.json"), text.replace("\"components\"", "\"parts\"")).expect("written");
    assert!(!run(DELIVERED.path(), python, &["-c", VALIDATE, "wrong.json"]).status.success(), "it is really read");
}

/// The MIT and BSD licences ask for their text and the copyright line with each copy, Apache-2.0 and the LGPL for their text.
#[test]
fn the_terms_of_all_that_is_built_in_are_there() {
    let read = |name: &str| std::fs::read_to_string(unpacked("licences").join(name)).expect(name);
    let libraries = read("THIRD-PARTY.yaml");
    assert!(!libraries.contains("NOT FOUND"));
    // It must be YAML, too.
    saphyr_parser::Parser::new_from_str(&libraries).for_each(|event| drop(event.expect("YAML")));
    let has = |name: &str| libraries.lines().any(|line| line == format!("- package_name: {name}"));
    for name in ["aws-lc-sys", "quick_cache", "rusqlite", "rustls", "tokio"] {
        assert!(has(name), "{name}");
    }
    // Of other systems, of the tests, and what runs at build time only.
    for name in ["winapi", "windows-sys", "jni", "proptest", "cc", "syn"] {
        assert!(!has(name), "{name}");
    }
    // This one spells its file LICENCE.
    assert!(libraries.contains("Arthur Silva"), "the copyright line of quick_cache");
    assert!(read("LGPL-2.1.txt").contains("GNU LESSER GENERAL PUBLIC LICENSE"));
    assert!(read("glibc.txt").contains("GNU C Library"));
    assert!(read("rust-library.html").contains("<html"));
    assert!(read("LICENSE-MIT").contains("Larder") && read("LICENSE-APACHE").contains("Apache License"));
}
