//! The likeliest slips, and the hint for each.

use super::{refused, repository, upstream};
use crate::config::tests::{parse, warned};

#[test]
fn names_with_dots_and_without_quotes() {
    refused([
        (
            "[repository.docker.io]\nmax_age = \"5m\"".to_owned(),
            "1: unknown key `repository.docker.io`; a name with dots needs quotes: write [repository.\"docker.io\"]",
        ),
        (
            "[[repository.registry.k8s.io.upstream]]\nurl = \"https://registry.k8s.io\"".to_owned(),
            "1: unknown key `repository.registry.k8s`; a name with dots needs quotes: write [repository.\"registry.k8s.io\"]",
        ),
        (
            "[headers.ghcr.io.set]\nX-Key = \"geheim\"".to_owned(),
            "1: unknown key `headers.ghcr.io`; a name with dots needs quotes: write [headers.\"ghcr.io\"]",
        ),
    ]);
}

#[test]
fn texts_that_are_no_toml() {
    refused([
        (
            repository("pin = [\"^alpine:3\\.20$\"]"),
            "2: not valid TOML: in \"double quotes\" a backslash begins an escape; write a regular expression in 'single quotes'",
        ),
        (
            "# of the registry\nversion: 0.1\nproxy:\n  remoteurl: https://registry-1.docker.io\n".to_owned(),
            "2: not valid TOML: this is YAML, and Larder reads TOML; `larder config convert FILE` makes a larder.toml of another program's configuration",
        ),
        (
            "{\n \"server\": {}\n}".to_owned(),
            "1: not valid TOML: this is JSON, and Larder reads TOML; `larder config convert FILE` makes a larder.toml of another program's configuration",
        ),
    ]);
}

#[test]
fn a_port_without_an_address() {
    let ways =
        "write \"127.0.0.1:5000\" for this machine alone, \"0.0.0.0:5000\" for all of IPv4, \"[::]:5000\" for IPv6 too";
    for (value, wrong) in [
        ("5000", "a port needs an address before it"),
        ("\"5000\"", "`5000` is a port without an address"),
        ("\":5000\"", "`:5000` is a port without an address"),
        ("[\"*:5000\"]", "`*:5000` is a port without an address"),
    ] {
        let said = parse(&format!("[server]\nlisten = {value}")).map(|_| ()).expect_err(value);
        assert_eq!(said, format!("larder.toml:2: `server.listen`: {wrong}; {ways}"), "{value}");
    }
}

#[test]
fn a_cache_that_could_hold_nothing() {
    for value in ["0", "\"0\"", "\"0%\"", "\"0GiB\""] {
        let said = parse(&format!("[cache]\nmax_size = {value}")).map(|_| ()).expect_err(value);
        assert_eq!(
            said,
            "larder.toml:2: `cache.max_size`: nothing could be stored; write \"none\" for no limit, or for example \"20GiB\" or \"50%\"",
            "{value}"
        );
    }
}

#[test]
fn an_upstream_that_is_larder_itself_is_warned_of() {
    for (listen, url, is_ours) in [
        ("127.0.0.1:5000", "http://127.0.0.1:5000", true),
        ("127.0.0.1:5000", "http://localhost:5000/v2/team", true),
        ("0.0.0.0:5000", "http://127.0.0.1:5000", true),
        ("[::]:443", "https://[::1]", true),
        ("127.0.0.1:5000", "http://127.0.0.1:5001", false),
        ("0.0.0.0:5000", "http://192.0.2.1:5000", false),
        ("127.0.0.1:5000", "http://registry.example:5000", false),
    ] {
        let text = format!("[server]\nlisten = \"{listen}\"\n[[repository.x.upstream]]\nurl = \"{url}\"");
        let warnings = warned(&text);
        assert_eq!(warnings.len(), usize::from(is_ours), "{text}\n{warnings:?}");
        let start = "larder.toml:4: `repository.x.upstream[0].url`: http";
        assert!(warnings.iter().all(|warning| warning.starts_with(start) && warning.contains("is this Larder itself")));
    }
}

#[test]
fn a_user_that_nobody_is_is_warned_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("htpasswd");
    let hash = "$2y$05$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";
    std::fs::write(&file, format!("alice:{hash}\n")).expect("written");
    let text = format!(
        "[auth.htpasswd]\npath = \"{}\"\n[admin]\nallow = [\"user:alcie\"]\n{}",
        file.display(),
        upstream("")
            .replace("[[repository.x", "[repository.x]\nallow = [\"user:alice\", \"user:zoe\"]\n[[repository.x"),
    );
    assert_eq!(
        warned(&text),
        [
            "larder.toml:6: `repository.x.allow`: `user:zoe`: the file of auth.htpasswd has no such user; add one with `htpasswd -B`",
            "larder.toml:4: `admin.allow`: `user:alcie`: the file of auth.htpasswd has no such user; did you mean `user:alice`?",
        ]
    );
}
