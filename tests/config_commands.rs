//! What `larder config` says of a configuration is what `larder serve` does with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Larder, repository_config};

const MISTAKE: &str = "[server]\n\nlissen = \"127.0.0.1:5000\"\n";

/// A simple-registry manifest.
fn manifest(name: &str) -> String {
    format!(
        "apiVersion: simple-registry.jlsalvador.online/v1beta1\nkind: PullThroughCache\nmetadata:\n  name: {name}\nspec:\n  upstream:\n    url: https://{name}.example\n    username: me\n    password: geheim\n  scopes:\n  - \"^{name}-team/.+$\"\n"
    )
}

/// A directory with a configuration, and nothing running.
fn home(config: &str) -> Larder {
    Larder::builder().config(config).prepare()
}

#[tokio::test]
async fn check_says_in_one_line_that_a_configuration_is_fine() {
    let larder = home(&repository_config("ghcr.io", &[]));
    let ran = larder.run(&["config", "check"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.ends_with("larder.toml: fine (1 repository, 1 upstream)\n"), "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1);
    let json = larder.run(&["config", "check", "--json"]).await.json();
    assert_eq!((&json["ok"], &json["repositories"]), (&true.into(), &1.into()), "{json}");
    assert!(!larder.dir().exists(), "it makes no cache directory");
}

#[tokio::test]
async fn check_says_of_a_mistake_what_serve_says_of_it() {
    let larder = home(MISTAKE);
    let (served, checked) = (larder.run(&["serve"]).await, larder.run(&["config", "check"]).await);
    assert!(served.stderr.contains("larder.toml:3: unknown key `server.lissen`"), "{served:?}");
    assert_eq!((served.code, &served.stderr), (Some(2), &checked.stderr));
    assert_eq!((checked.code, checked.stdout.as_str()), (Some(2), ""));
    let ran = larder.run(&["config", "check", "--json"]).await;
    let json = ran.json();
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(2), ""));
    assert_eq!(json["ok"], false);
    assert_eq!(served.stderr, format!("larder: {}\n", json["error"].as_str().expect("a text")));
}

#[tokio::test]
async fn show_prints_a_configuration_with_the_origin_of_each_value() {
    let larder =
        Larder::builder().config("[cache]\nmax_size = \"1GiB\"").env("LARDER_LOGGING__ACCESS", "false").prepare();
    let ran = larder.run(&["config", "show"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let origin = |key: &str| {
        let line = ran.stdout.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key}: {ran:?}"));
        line.split_once("# ").expect("a comment").1.to_owned()
    };
    assert!(origin("max_size").ends_with("larder.toml:2"), "{ran:?}");
    assert_eq!(origin("access"), "environment variable LARDER_LOGGING__ACCESS");
    assert_eq!(origin("ttl"), "default");
    let json = larder.run(&["config", "show", "--json"]).await.json();
    assert_eq!(json["cache"]["max_size"]["value"], "1GiB");
    assert_eq!(json["cache"]["ttl"]["origin"], "default");

    // What was shown, used as a configuration, shows the same values.
    fs::write(larder.home().join("shown.toml"), &ran.stdout).expect("writable");
    let again = larder.run(&["--config", "shown.toml", "config", "show"]).await;
    let values = |text: &str| {
        let value = |line: &str| line.split('#').next().unwrap_or_default().trim_end().to_owned();
        text.lines().map(value).collect::<Vec<_>>()
    };
    assert_eq!(values(&again.stdout), values(&ran.stdout), "{again:?}");
}

#[tokio::test]
async fn a_mistake_is_shown_as_one() {
    let larder = home(MISTAKE);
    let ran = larder.run(&["config", "show"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert!(ran.stderr.contains("unknown key `server.lissen`"), "{ran:?}");
}

#[tokio::test]
async fn a_folder_of_manifests_becomes_a_configuration_that_larder_takes() {
    let larder = home("");
    let folder = larder.home().join("config");
    fs::create_dir(&folder).expect("writable");
    fs::write(folder.join("b.yml"), manifest("b")).expect("writable");
    fs::write(folder.join("a.yaml"), manifest("a")).expect("writable");
    fs::write(folder.join("notes.txt"), "none of it: [").expect("writable");
    let ran = larder.run(&["config", "convert", "config", "--output", "new.toml"]).await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""), "{ran:?}");
    let path = larder.home().join("new.toml");
    let written = fs::read_to_string(&path).expect("it was written");
    assert!(written.find("a.example") < written.find("b.example"), "in the order of the names: {written}");
    let mode = fs::metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o077, 0, "it has passwords in it");
    let checked = larder.run(&["--config", "new.toml", "config", "check"]).await;
    assert!(checked.stdout.ends_with("new.toml: fine (2 repositories, 2 upstreams)\n"), "{checked:?}");

    let again = larder.run(&["config", "convert", "config", "-o", "new.toml"]).await;
    assert_eq!(again.code, Some(2), "{again:?}");
    assert!(again.stderr.contains("new.toml exists; move it away or name another file"), "{again:?}");
    assert_eq!(fs::read_to_string(&path).expect("it is there"), written);
}

#[tokio::test]
async fn what_is_not_taken_over_is_named_on_standard_error() {
    let larder = home("");
    let text = "proxy: {remoteurl: 'https://registry-1.docker.io'}\nauth: {token: {realm: x}}\n";
    fs::write(larder.home().join("config.yml"), text).expect("writable");
    let ran = larder.run(&["config", "convert", "config.yml"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("default_repository = \"docker.io\""), "{ran:?}");
    assert!(
        ran.stderr.starts_with("larder: config.yml:2: `auth`: clients log in with [auth.htpasswd] or a certificate"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_converted_ends_with_code_2_and_says_what_to_do() {
    let larder = home("");
    fs::create_dir(larder.home().join("empty")).expect("writable");
    fs::write(larder.home().join("strange.yaml"), "a: 1").expect("writable");
    fs::write(larder.home().join("broken.yaml"), "a: [").expect("writable");
    fs::write(larder.home().join("binary.yaml"), b"\xff\xfe").expect("writable");
    for (path, message) in [
        ("missing.yaml", "larder: missing.yaml: cannot read the file: No such file or directory (os error 2)"),
        ("empty", "larder: empty: there is no .yaml or .yml file in this folder"),
        ("strange.yaml", "larder: strange.yaml: whose configuration this is cannot be told; name it with --from"),
        ("broken.yaml", "larder: broken.yaml:2: not valid YAML: "),
        ("binary.yaml", "larder: binary.yaml: cannot read the file: stream did not contain valid UTF-8"),
    ] {
        let ran = larder.run(&["config", "convert", path]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.starts_with(message), "{ran:?}");
    }
    let ran = larder.run(&["config", "convert", "strange.yaml", "--from", "nginx"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("simple-registry-yaml"), "{ran:?}");
}
