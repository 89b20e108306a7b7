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

#[test]
fn a_login_that_lets_nobody_in_is_warned_of() {
    let login = "[auth.oidc.ci]\nissuer = \"https://ci.example\"\naudience = \"larder\"\n[auth.oidc.ci.login]\nclient_id = \"x\"\n";
    let said = "larder.toml:4: `auth.oidc.ci.login`: neither admin.allow nor admin.read names its people, so each is turned away; write there for example \"oidc:ci:CLAIM=VALUE\"";
    assert_eq!(warned(login), [said]);
    for admin in ["allow = [\"oidc:ci:groups=ops\"]", "read = [\"oidc:ci\"]", "allow = [\"*\"]"] {
        assert_eq!(warned(&format!("{login}[admin]\n{admin}")), [""; 0], "{admin}");
    }
}

#[test]
fn a_line_that_is_no_toml() {
    let quotes = "these are typographic quotes; write straight ones, as in key = \"value\"";
    let colon = "there is no `=`; write key = value, with `=` and not `:`";
    for (line, said) in [
        ("public_url = \"https://mirror.example", "a text has no closing quote on its line"),
        ("public_url = 'https://mirror.example", "a text has no closing quote on its line"),
        ("public_url = “https://mirror.example”", quotes),
        ("public_url = ‘https://mirror.example’", quotes),
        ("public_url: \"mirror\"", colon),
        ("public_url \"mirror\"", "there is no `=`; a line is key = value, or a heading such as [server]"),
        ("// of the team", "a comment begins with #"),
        ("; of the team", "a comment begins with #"),
        ("hosts = \"a.example\", \"b.example\"", "more than one value is a list: key = [\"one\", \"two\"]"),
        ("[cache] dir = \"x\"", "a heading such as [server] stands alone on its line"),
        ("proxy_protocol = True", "this is no value; write true or false, in lower case and without quotes"),
        ("proxy_protocol = yes", "this is no value; write true or false, in lower case and without quotes"),
    ] {
        let said_of_it = parse(&format!("[server]\n{line}\n")).map(|_| ()).expect_err(line);
        assert_eq!(said_of_it, format!("larder.toml:2: not valid TOML: {said}"), "{line}");
    }
}

#[test]
fn keys_of_other_tables_and_of_other_programs() {
    refused([
        (
            "listen = \"0.0.0.0:5000\"".to_owned(),
            "1: unknown key `listen`; it belongs below [admin] or [proxy] or [server]",
        ),
        ("max_size = \"1GiB\"".to_owned(), "1: unknown key `max_size`; it belongs below [cache]"),
        (
            "[repository.\"docker.io\"]\nurl = \"https://x\"".to_owned(),
            "2: unknown key `repository.\"docker.io\".url`; it belongs below [[repository.\"docker.io\".upstream]]",
        ),
        (
            upstream("immutable_tags = true"),
            "3: unknown key `repository.x.upstream[0].immutable_tags`; it belongs below [repository.x]",
        ),
        ("[upstream]".to_owned(), "1: unknown key `upstream`; it belongs below [repository.\"NAME\"]"),
        ("[proxy]\nport = 17080".to_owned(), "2: unknown key `proxy.port`; did you mean `proxy.listen`?"),
        ("[cache]\npath = \"x\"".to_owned(), "2: unknown key `cache.path`; did you mean `cache.dir`?"),
        ("[cache]\nsize = \"1G\"".to_owned(), "2: unknown key `cache.size`; did you mean `cache.max_size`?"),
        ("[storage]\nfilesystem = \"x\"".to_owned(), "2: unknown key `storage.filesystem`; there are `s3`"),
        ("[http]\naddr = \":5000\"".to_owned(), "1: unknown key `http`; did you mean `server`?"),
    ]);
}

#[test]
fn a_heading_or_brackets_that_are_missing() {
    let own = "each repository has a heading of its own, such as [repository.\"docker.io\"]";
    for (text, key, said) in [
        ("[repository]\nname = \"docker.io\"", "2: `repository.name`", own),
        ("[[repository]]\nname = \"docker.io\"", "1: `repository`", own),
        (
            "[auth]\nhtpasswd = \"/etc/htpasswd\"",
            "2: `auth.htpasswd`",
            "write [auth.htpasswd], and its keys on the lines below",
        ),
        ("[server]\ntls = true", "2: `server.tls`", "write [server.tls], and its keys on the lines below"),
        (
            "[repository.\"docker.io\".upstream]\nusername = \"me\"",
            "1: `repository.\"docker.io\".upstream`",
            "write [[repository.\"docker.io\".upstream]], with two brackets",
        ),
        ("[server]\ntrusted_proxies = \"10.0.0.1\"", "2: `server.trusted_proxies`", "write trusted_proxies = [\"…\"]"),
    ] {
        let said_of_it = parse(text).map(|_| ()).expect_err(text);
        assert!(said_of_it.starts_with(&format!("larder.toml:{key}: ")), "{said_of_it}");
        assert!(said_of_it.ends_with(&format!("; {said}")), "{said_of_it}");
    }
}

#[test]
fn what_is_no_address() {
    let ways =
        "write \"127.0.0.1:5000\" for this machine alone, \"0.0.0.0:5000\" for all of IPv4, \"[::]:5000\" for IPv6 too";
    for (value, said) in [
        ("localhost:5000", format!("`localhost:5000` begins with a name, and an address is needed; {ways}")),
        ("http://0.0.0.0:5000", format!("`http://0.0.0.0:5000` is no address with a port; {ways}")),
        ("::1:x:5000", format!("`::1:x:5000` is no address with a port; {ways}")),
        ("0.0.0.0", "`0.0.0.0` has no port; write for example \"0.0.0.0:5000\"".to_owned()),
        ("0.0.0.0:70000", "`0.0.0.0:70000` has no valid port; the highest is 65535".to_owned()),
    ] {
        let said_of_it = parse(&format!("[server]\nlisten = \"{value}\"")).map(|_| ()).expect_err(value);
        assert_eq!(said_of_it, format!("larder.toml:2: `server.listen`: {said}"), "{value}");
    }
}

#[test]
fn a_registry_that_is_one_letter_away_is_warned_of() {
    let repository = |name: &str, rest: &str| warned(&format!("[repository.\"{name}\"]\nmax_age = \"5m\"\n{rest}"));
    assert_eq!(
        repository("quay.oi", ""),
        ["larder.toml:1: `repository.\"quay.oi\"`: did you mean [repository.\"quay.io\"]?"]
    );
    assert_eq!(repository("quay.io", "").len() + repository("registry.example", "").len(), 0);
    let other = "[[repository.\"quay.oi\".upstream]]\nurl = \"https://registry.example\"";
    assert_eq!(repository("quay.oi", other), [""; 0], "it is meant");
}

#[test]
fn a_size_without_a_unit_is_warned_of() {
    let said = ["larder.toml:2: `cache.max_size`: 200 bytes hold no image; with a unit it is for example \"200GiB\""];
    assert_eq!(warned("[cache]\nmax_size = 200"), said);
    assert_eq!(warned("[cache]\nmax_size = 20000000000").len(), 0);
}

#[test]
fn what_is_not_toml() {
    refused([
        ("[server\n".to_owned(), "1: not valid TOML: unclosed table, expected `]`"),
        (
            "[server]\nlisten = 127.0.0.1:5000".to_owned(),
            "2: not valid TOML: this is no value; a text needs quotes, as in key = \"value\"",
        ),
        (
            "[logging]\nlevel = info".to_owned(),
            "2: not valid TOML: this is no value; a text needs quotes, as in key = \"value\"",
        ),
        (
            "[cache]\nttl = 30d".to_owned(),
            "2: not valid TOML: this is no value; a text needs quotes, as in key = \"value\"",
        ),
        (
            upstream("password = geheim"),
            "3: not valid TOML: this is no value; a text needs quotes, as in key = \"value\"",
        ),
        ("[cache]\nttl = \"1s\"\nttl = \"2s\"".to_owned(), "3: not valid TOML: duplicate key"),
        ("[cache]\n[server]\n[cache]".to_owned(), "3: not valid TOML: duplicate key"),
        (upstream("password = \"geheim"), "3: not valid TOML: a text has no closing quote on its line"),
    ]);
}
