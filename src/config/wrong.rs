//! Wrong configurations and the message for each: file, line, key, and a way out.

mod all;
mod cluster;
mod doors;
mod index;
mod slips;
mod storage;
mod variables;

use super::tests::parse;

/// Makes a repository `x` with one upstream and more lines for it, from line 3 on.
fn upstream(lines: &str) -> String {
    format!("[[repository.x.upstream]]\nurl = \"https://x.example\"\n{lines}")
}

/// Makes a repository `x` with an upstream and more lines for it, from line 2 on.
fn repository(lines: &str) -> String {
    format!("[repository.x]\n{lines}\n[[repository.x.upstream]]\nurl = \"https://x.example\"")
}

/// Asserts the message for each text, without the file's name before it.
fn refused(cases: impl IntoIterator<Item = (String, &'static str)>) {
    for (text, message) in cases {
        let said = parse(&text).map(|_| ()).expect_err(&text);
        assert_eq!(said, format!("larder.toml:{message}"), "{text}");
    }
}

#[test]
fn keys_that_do_not_exist() {
    refused([
        (
            "[server]\nlisten = \"127.0.0.1:1\"\nlissen = 1".to_owned(),
            "3: unknown key `server.lissen`; did you mean `server.listen`?",
        ),
        ("[sever]".to_owned(), "1: unknown key `sever`; did you mean `server`?"),
        (
            "[frobnicate]".to_owned(),
            "1: unknown key `frobnicate`; there are `server`, `auth`, `cache`, `index`, `storage`, `cluster`, `repository`, `headers`, `warm`, `proxy`, `allowlist`, `admin`, `logging`, `telemetry`",
        ),
        (
            "[admin]\ntoken = \"geheim\"".to_owned(),
            "2: unknown key `admin.token`; there are `listen`, `allow`, `read`, `hosts`",
        ),
        ("[cache]\nmaxsize = 1".to_owned(), "2: unknown key `cache.maxsize`; did you mean `cache.max_size`?"),
        (repository("scope = []"), "2: unknown key `repository.x.scope`; did you mean `repository.x.scopes`?"),
        (
            "[repository.\"a.io\"]\nimutable_tags = true".to_owned(),
            "2: unknown key `repository.\"a.io\".imutable_tags`; did you mean `repository.\"a.io\".immutable_tags`?",
        ),
        (
            upstream("paralel = 4"),
            "3: unknown key `repository.x.upstream[0].paralel`; did you mean `repository.x.upstream[0].parallel`?",
        ),
        (
            upstream("connect_timeout_secs = 4"),
            "3: unknown key `repository.x.upstream[0].connect_timeout_secs`; did you mean `repository.x.upstream[0].connect_timeout`?",
        ),
        (
            repository("[[repository.x.tag]]\nmatch = \"a\"\nmaxage = \"1s\""),
            "4: unknown key `repository.x.tag[0].maxage`; did you mean `repository.x.tag[0].max_age`?",
        ),
        (
            "[headers.\"ghcr.io\"]\nAuthorization = \"geheim\"".to_owned(),
            "2: unknown key `headers.\"ghcr.io\".Authorization`; there are `set`, `append`",
        ),
    ]);
}

#[test]
fn values_of_a_wrong_type() {
    refused([
        (
            "server = 1".to_owned(),
            "1: `server`: a table is needed here, not a number; write [server], and its keys on the lines below",
        ),
        (
            "[server]\nmax_connections = \"many\"".to_owned(),
            "2: `server.max_connections`: a whole number is needed here, not a text",
        ),
        (
            "[server]\nmax_connections = 1.5".to_owned(),
            "2: `server.max_connections`: a whole number is needed here, not a number with a fraction",
        ),
        ("[logging]\naccess = \"yes\"".to_owned(), "2: `logging.access`: true or false is needed here, not a text"),
        ("[logging]\nlevel = 3".to_owned(), "2: `logging.level`: a text in quotes is needed here, not a number"),
        ("[cache]\ndir = [\"a\"]".to_owned(), "2: `cache.dir`: a text in quotes is needed here, not a list"),
        (
            repository("scopes = \"^a$\""),
            "2: `repository.x.scopes`: a list is needed here, not a text; write scopes = [\"…\"]",
        ),
        (repository("pin = [1]"), "2: `repository.x.pin[0]`: a text in quotes is needed here, not a number"),
        (
            "[repository.x]\nupstream = \"https://x\"".to_owned(),
            "2: `repository.x.upstream`: a list is needed here, not a text; write [[repository.x.upstream]], and its keys on the lines below",
        ),
        (
            "[repository.x.upstream]\nurl = \"https://x\"".to_owned(),
            "1: `repository.x.upstream`: a list is needed here, not a table; write [[repository.x.upstream]], with two brackets",
        ),
        (
            upstream("headers = [\"A: geheim\"]"),
            "3: `repository.x.upstream[0].headers`: a table is needed here, not a list",
        ),
        (
            upstream("password = 8472913"),
            "3: `repository.x.upstream[0].password`: a text in quotes is needed here, not a number",
        ),
        ("[cache]\nttl = 2026-11-21".to_owned(), "2: not valid TOML: no key takes a date"),
        ("[cache]\npolicy = true".to_owned(), "2: `cache.policy`: expected one of `lru`"),
    ]);
}

#[test]
fn what_is_to_be_kept_warm() {
    let warm = |lines: &str| format!("[[warm]]\nimages = [\"a:1\"]\n[[warm]]\n{lines}");
    refused([
        (warm(""), "3: `warm[1].images`: name at least one image, as in [\"docker.io/library/alpine:3.*\"]"),
        (
            warm("images = [\"a:1\",\n\"a:/(/\"]"),
            "5: `warm[1].images[1]`: `(` is no valid regular expression: unclosed group",
        ),
        (
            warm("images = [\"a:>=latest\"]"),
            "4: `warm[1].images[0]`: `>=latest` is no range: `latest` is no version such as 16 or 3.20.1",
        ),
        (
            warm("images = [\"docker.io/library/*\"]"),
            "4: `warm[1].images[0]`: `docker.io/library/*`: a pattern may stand for the tag only; write each name out",
        ),
        (
            warm("images = [\"a:1\"]\nplatforms = [\"amd64\"]"),
            "5: `warm[1].platforms[0]`: `amd64` is no platform; write it as linux/amd64 or linux/arm/v7",
        ),
        (
            warm("images = [\"a:1\"]\nevery = \"30s\""),
            "5: `warm[1].every`: every tag is asked about each time, so the least is \"1m\"; write for example \"6h\"",
        ),
        (
            "[warm]\nimages = [\"a:1\"]".to_owned(),
            "1: `warm`: a list is needed here, not a table; write [[warm]], with two brackets",
        ),
        (warm("image = [\"a:1\"]"), "4: unknown key `warm[1].image`; did you mean `warm[1].images`?"),
    ]);
}

#[test]
fn times_and_amounts() {
    refused([
        (
            repository("max_age = 60"),
            "2: `repository.x.max_age`: `60` has no unit; write for example \"60s\", \"5m\", \"12h\" or \"30d\"",
        ),
        (
            repository("max_age = \"1 year\""),
            "2: `repository.x.max_age`: `1 year` is no length of time; write for example \"60s\", \"5m\", \"12h\" or \"30d\"",
        ),
        (
            repository("stale_if_error = \"never\""),
            "2: `repository.x.stale_if_error`: `never` is no length of time; write for example \"60s\", \"5m\", \"12h\" or \"30d\"",
        ),
        (
            repository("ttl = true"),
            "2: `repository.x.ttl`: invalid type: boolean `true`, expected a length of time such as \"60s\", \"5m\", \"12h\" or \"30d\"",
        ),
        ("[cache]\nttl = \"40000d\"".to_owned(), "2: `cache.ttl`: `40000d` is longer than a hundred years"),
        (
            "[cache]\nmax_size = \"1.5GB\"".to_owned(),
            "2: `cache.max_size`: `1.5GB` is no amount of disk; write for example \"20GiB\", \"500MB\", \"10%\" or \"none\"",
        ),
        (
            "[cache]\nmin_free = \"101%\"".to_owned(),
            "2: `cache.min_free`: `101%` is no amount of disk; write for example \"20GiB\", \"500MB\", \"10%\" or \"none\"",
        ),
        ("[cache]\nmax_size = -1".to_owned(), "2: `cache.max_size`: an amount of disk is not negative"),
        (upstream("timeout = \"0s\""), "3: `repository.x.upstream[0].timeout`: it must be longer than nothing"),
        (
            upstream("connect_timeout = \"0ms\""),
            "3: `repository.x.upstream[0].connect_timeout`: it must be longer than nothing",
        ),
    ]);
}

#[test]
fn numbers_out_of_range() {
    refused([
        ("[server]\nmax_connections = -1".to_owned(), "2: `server.max_connections`: it cannot be negative"),
        (
            upstream("max_redirect = 256"),
            "3: `repository.x.upstream[0].max_redirect`: `256` is too large; the most is 255",
        ),
        (
            upstream("max_connections = 4294967296"),
            "3: `repository.x.upstream[0].max_connections`: `4294967296` is too large; the most is 4294967295",
        ),
        (upstream("max_connections = 99999999999999999999"), "3: not valid TOML: the number is too large"),
        (upstream("parallel = 0"), "3: `repository.x.upstream[0].parallel`: at least one connection is needed"),
        (
            upstream("max_connections = 0"),
            "3: `repository.x.upstream[0].max_connections`: at least one connection is needed",
        ),
    ]);
}

#[test]
fn addresses_and_hosts() {
    refused([
        (
            "[server]\n\nlisten = \"localhost\"".to_owned(),
            "3: `server.listen`: `localhost` is no address with a port; write for example \"127.0.0.1:5000\" or \"[::]:5000\"",
        ),
        (
            "[server]\nlisten = []".to_owned(),
            "2: `server.listen`: at least one address is needed, for example \"127.0.0.1:5000\"",
        ),
        (
            "[server]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]".to_owned(),
            "2: `server.listen`: 127.0.0.1:1 is there twice; remove one of them",
        ),
        (
            "[admin]\nlisten = \"127.0.0.1:5000\"".to_owned(),
            "2: `admin.listen`: 127.0.0.1:5000 is in `server.listen` too; choose another port",
        ),
        (
            "[admin]\nlisten = \"0.0.0.0:17081\"".to_owned(),
            "2: `admin.listen`: 0.0.0.0:17081 can be reached from other machines, and `allow` names none of them; listen on a loopback address such as 127.0.0.1:17081, or add allow = [\"user:NAME\"] and [auth.htpasswd]",
        ),
        (
            repository("hosts = [\"https://mirror.example/\"]"),
            "2: `repository.x.hosts`: `https://mirror.example/` is no host; write for example hosts = [\"mirror.example.com\"]",
        ),
        (
            "[repository.\"a.io\"]\nhosts = [\"m\"]\n[repository.\"b.io\"]\nhosts = [\"M\"]".to_owned(),
            "4: `repository.\"b.io\".hosts`: `m` already selects [repository.\"a.io\"]; a request can go to one only",
        ),
        (
            "[repository.\"a.io\"]\nnamespace = \"x\"\n[repository.\"b.io\"]\nnamespace = \"x\"".to_owned(),
            "4: `repository.\"b.io\".namespace`: `x` already selects [repository.\"a.io\"]; a request can go to one only",
        ),
        (repository("namespace = \"\""), "2: `repository.x.namespace`: it is empty; write namespace = [] for none"),
        (
            upstream("token_realms = [\"https://auth.example/\"]"),
            "3: `repository.x.upstream[0].token_realms`: its entry 1 is no host; write for example token_realms = [\"auth.example.com\"]",
        ),
    ]);
}

#[test]
fn repositories_and_their_upstreams() {
    refused([
        (
            "[repository.team]".to_owned(),
            "1: `repository.team`: it has no upstream; add [[repository.\"team\".upstream]] with a `url`",
        ),
        (
            "[repository.\"Team\"]\n[[repository.\"Team\".upstream]]\nurl = \"https://x\"".to_owned(),
            "1: `repository.Team`: a repository's key is the first part of image names, such as docker.io or team/images, in lower case and without https://",
        ),
        (
            "[[repository.x.upstream]]\nparallel = 1".to_owned(),
            "1: `repository.x.upstream[0].url`: it is missing; write for example url = \"https://registry-1.docker.io\"",
        ),
        (
            "[[repository.x.upstream]]\nurl = \"ftp://x\"".to_owned(),
            "2: `repository.x.upstream[0].url`: `ftp://x` does not begin with https:// or http:// and a host; write for example \"https://registry-1.docker.io\"",
        ),
        (
            "[[repository.x.upstream]]\nurl = \"x.example\"".to_owned(),
            "2: `repository.x.upstream[0].url`: `x.example` is no URL (it does not begin with https://); write for example \"https://x.example\"",
        ),
        (
            "[[repository.x.upstream]]\nurl = \"https://x.example/v2/Team\"".to_owned(),
            "2: `repository.x.upstream[0].url`: `Team` cannot be the beginning of a repository name",
        ),
        (
            "[server]\ndefault_repository = \"dokcer.io\"".to_owned(),
            "2: `server.default_repository`: there is no [repository.\"dokcer.io\"]; did you mean `docker.io`?",
        ),
        (
            "[server]\ndefault_repository = \"xyz\"".to_owned(),
            "2: `server.default_repository`: there is no [repository.\"xyz\"]; add it, or write \"\" for none",
        ),
        ("[cache]\ndir = \"\"".to_owned(), "2: `cache.dir`: it is empty; write for example dir = \"/var/lib/larder\""),
    ]);
}

#[test]
fn regexes_and_tags() {
    refused([
        (
            repository("scopes = [\n \"ok\",\n \"(\"]"),
            "4: `repository.x.scopes[1]`: `(` is no valid regular expression: unclosed group",
        ),
        (
            repository("scopes = [\"\"]"),
            "2: `repository.x.scopes[0]`: it is empty and matches everything; write \".*\" if that is meant",
        ),
        (
            repository("pin = [\"(?=x)\"]"),
            "2: `repository.x.pin[0]`: `(?=x)` is no valid regular expression: look-around, including look-ahead and look-behind, is not supported",
        ),
        (
            repository("immutable_tags_exclusions = [\"^latest$\"]"),
            "2: `repository.x.immutable_tags_exclusions`: it has no effect without `immutable_tags = true`",
        ),
        (
            repository("[[repository.x.tag]]\nmax_age = \"1s\""),
            "2: `repository.x.tag[0].match`: it is missing; write the regex of the tags it is for, such as match = \"^v[0-9]\"",
        ),
        (
            repository("on_upstream_404 = \"delete\""),
            "2: `repository.x.on_upstream_404`: `delete` is not one of `serve-stale`, `drop`",
        ),
        (
            repository("prefetch = \"pull\""),
            "2: `repository.x.prefetch`: `pull` is not one of `pulled`, `layers`, `off`",
        ),
        (
            repository("prefech = \"off\""),
            "2: unknown key `repository.x.prefech`; did you mean `repository.x.prefetch`?",
        ),
        (
            repository("client_credentials = \"forward\""),
            "2: `repository.x.client_credentials`: `forward` is not one of `ignore`, `pass`",
        ),
        ("[cache]\npolicy = \"lfu\"".to_owned(), "2: `cache.policy`: `lfu` is not one of `lru`"),
        ("[logging]\nformat = \"xml\"".to_owned(), "2: `logging.format`: `xml` is not one of `text`, `json`"),
        (
            "[telemetry]\notlp_endpoint = \"collector:4318\"".to_owned(),
            "2: `telemetry.otlp_endpoint`: a URL that begins with http:// or https:// is needed; write for example otlp_endpoint = \"http://collector:4318\"",
        ),
        (
            "[telemetry]\notlp_endpoint = \"https://me:secret@collector\"".to_owned(),
            "2: `telemetry.otlp_endpoint`: there is a user name or password in it, which is not sent; set the variable OTEL_EXPORTER_OTLP_HEADERS, for example to Authorization=Basic%20…",
        ),
        (
            "[telemetry]\notlp_endpoint = \"http://collector:4318?token=1\"".to_owned(),
            "2: `telemetry.otlp_endpoint`: there is a `?` or `#` in it; write for example otlp_endpoint = \"http://collector:4318\"",
        ),
        (
            "[telemetry]\nsampling = 10".to_owned(),
            "2: `telemetry.sampling`: `10` is no share; write a number from 0.0 to 1.0 (all)",
        ),
        ("[telemetry]\nsampling = \"10%\"".to_owned(), "2: `telemetry.sampling`: a number is needed here, not a text"),
        (
            "[logging]\nlevel = \"inof\"".to_owned(),
            "2: `logging.level`: `inof` is no level; write error, warn, info, debug, trace, or a filter such as \"larder::upstream=debug,info\"",
        ),
    ]);
}

#[test]
fn credentials() {
    refused([
        (
            upstream("username = \"me\""),
            "3: `repository.x.upstream[0].username`: a `password` or `password_file` is needed with it",
        ),
        (upstream("password = \"geheim\""), "3: `repository.x.upstream[0].password`: a `username` is needed with it"),
        (
            upstream("username = \"me:you\"\npassword = \"geheim\""),
            "3: `repository.x.upstream[0].username`: a user name with a colon cannot be sent; the password has a key of its own",
        ),
        (
            upstream("username = \"me\"\npassword = \"geheim\"\npassword_file = \"/x\""),
            "5: `repository.x.upstream[0].password_file`: `password` gives the credentials already; remove one of them",
        ),
        (
            upstream("username = \"me\"\ncredential_helper = \"ecr-login\""),
            "3: `repository.x.upstream[0].username`: `credential_helper` gives the user name too; remove one of them",
        ),
        (
            upstream("credential_helper = \"larder-test-nowhere\""),
            "3: `repository.x.upstream[0].credential_helper`: there is no program `docker-credential-larder-test-nowhere`; install it into the PATH or write its path",
        ),
        (
            upstream("credential_helper = \"/nowhere/helper\""),
            "3: `repository.x.upstream[0].credential_helper`: there is no program `/nowhere/helper`; install it into the PATH or write its path",
        ),
        (
            format!(
                "[repository.x]\nclient_credentials = \"pass\"\n{}",
                upstream("username = \"me\"\npassword = \"geheim\"")
            ),
            "6: `repository.x.upstream[0].password`: the repository has client_credentials = \"pass\", so the clients' own are used; remove one of them",
        ),
        (
            upstream("username = \"me\"\npassword = \"[hidden]\""),
            "4: `repository.x.upstream[0].password`: `[hidden]` is what is shown instead of a secret; write the secret itself",
        ),
        (
            "[[repository.x.upstream]]\nurl = \"https://me:geheim@x\"".to_owned(),
            "2: `repository.x.upstream[0].url`: a user name and password do not belong in the URL; use `username` and `password`",
        ),
        (
            "[[repository.x.upstream]]\nurl = \"https://me:geheim@x:y\"".to_owned(),
            "2: `repository.x.upstream[0].url`: this is no URL (invalid port number); write for example \"https://registry-1.docker.io\"",
        ),
        (
            "[[repository.x.upstream]]\nurl = \"me:geheim@x\"".to_owned(),
            "2: `repository.x.upstream[0].url`: this does not begin with https:// or http:// and a host; write for example \"https://registry-1.docker.io\"",
        ),
    ]);
}

#[test]
fn proxies_and_headers() {
    refused([
        (
            upstream("http_proxy = \"me:geheim@proxy.example:3128\""),
            "3: `repository.x.upstream[0].http_proxy`: this does not begin with http:// or https:// and a host; write for example \"http://proxy.example.com:3128\", or \"none\"",
        ),
        (
            upstream("http_proxy = \"http://me:geheim@proxy.example:x\""),
            "3: `repository.x.upstream[0].http_proxy`: this is no URL (invalid port number); write for example \"http://proxy.example.com:3128\", or \"none\"",
        ),
        (
            upstream("http_proxy = \"socks5://me:geheim@proxy.example\""),
            "3: `repository.x.upstream[0].http_proxy`: this does not begin with http:// or https:// and a host; write for example \"http://proxy.example.com:3128\", or \"none\"",
        ),
        (
            upstream("headers = { \"X Key\" = \"geheim\" }"),
            "3: `repository.x.upstream[0].headers`: one of its names is no header name, or its value has control characters",
        ),
        (
            upstream("headers = { X-Key = 5 }"),
            "3: `repository.x.upstream[0].headers.X-Key`: a text in quotes is needed here, not a number",
        ),
        (
            "[headers.\"https://ghcr.io\".set]\nA = \"geheim\"".to_owned(),
            "1: `headers.\"https://ghcr.io\"`: a key of [headers] is a host such as ghcr.io, ghcr.io:443, *.example.com, or *",
        ),
        (
            "[headers.\"*example.com\".set]\nA = \"geheim\"".to_owned(),
            "1: `headers.\"*example.com\"`: a key of [headers] is a host such as ghcr.io, ghcr.io:443, *.example.com, or *",
        ),
        (
            "[headers.\"ghcr.io\".set]\nA = \"geheim\\n\"".to_owned(),
            "1: `headers.\"ghcr.io\".set`: one of its names is no header name, or its value has control characters",
        ),
    ]);
}

#[test]
fn files_that_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path.display().to_string()
    };
    let missing = folder.path().join("missing").display().to_string();
    let empty = file("empty", "\n");
    let no_json = file("no.json", "{\n\"auths\": {\"x.example\": {\"auth\": geheim");
    let other = file("other.json", "{\"auths\": {\"y.example\": {\"auth\": \"bWU6Z2VoZWlt\"}}}");
    let here = folder.path().display().to_string();
    for (lines, message) in [
        (
            format!("username = \"me\"\npassword_file = \"{missing}\""),
            format!(
                "4: `repository.x.upstream[0].password_file`: cannot read {missing}: No such file or directory (os error 2)"
            ),
        ),
        (
            format!("username = \"me\"\npassword_file = \"{empty}\""),
            format!("4: `repository.x.upstream[0].password_file`: {empty} is empty; write the password into it"),
        ),
        (
            format!("username = \"me\"\npassword_file = \"{here}\""),
            format!("4: `repository.x.upstream[0].password_file`: cannot read {here}: Is a directory (os error 21)"),
        ),
        (
            format!("password_file = \"{empty}\""),
            "3: `repository.x.upstream[0].password_file`: a `username` is needed with it".to_owned(),
        ),
        (
            format!("docker_config = \"{missing}\""),
            format!(
                "3: `repository.x.upstream[0].docker_config`: cannot read {missing}: No such file or directory (os error 2)"
            ),
        ),
        (
            format!("docker_config = \"{no_json}\""),
            format!(
                "3: `repository.x.upstream[0].docker_config`: {no_json} is no Docker config.json (line 2, column 33)"
            ),
        ),
        (
            format!("docker_config = \"{other}\""),
            format!(
                "3: `repository.x.upstream[0].docker_config`: {other} has no credentials for x.example; run `docker login` for it"
            ),
        ),
        (
            format!("server_ca_bundle = \"{missing}\""),
            format!(
                "3: `repository.x.upstream[0].server_ca_bundle`: cannot read certificates from {missing}: No such file or directory (os error 2)"
            ),
        ),
        (
            format!("server_ca_bundle = \"{empty}\""),
            format!("3: `repository.x.upstream[0].server_ca_bundle`: {empty} has no certificate in PEM form"),
        ),
        (
            format!("client_certificate = \"{empty}\""),
            "3: `repository.x.upstream[0].client_certificate`: a `client_private_key` is needed with it".to_owned(),
        ),
        (
            format!("client_private_key = \"{empty}\""),
            "3: `repository.x.upstream[0].client_private_key`: a `client_certificate` is needed with it".to_owned(),
        ),
    ] {
        let said = parse(&upstream(&lines)).map(|_| ()).expect_err(&lines);
        assert_eq!(said, format!("larder.toml:{message}"));
        assert!(!said.contains("geheim"), "{said}");
    }
}

/// Tests every key that may hold a secret, and others, with each kind of wrong value.
#[test]
fn no_message_holds_a_secret() {
    let places = [
        "password",
        "http_proxy",
        "headers.X",
        "username",
        "password_file",
        "credential_helper",
        "docker_config",
        "timeout",
        "parallel",
        "token_realms",
        "insecure_skip_verify",
    ];
    let values =
        ["8472913", "84729.13", "[8472913]", "[\"8472913\"]", "{ a = 8472913 }", "\"8472913", "8472913 8472913"];
    let secret = ["password", "http_proxy", "headers.X"];
    for place in places {
        for value in values {
            let text = upstream(&format!("{place} = {value}"));
            let Err(said) = parse(&text) else { continue };
            assert!(!secret.contains(&place) || !said.contains("84729"), "{text}\n{said}");
        }
    }
    for place in secret {
        for value in ["[hidden]\u{1}geheim", "geheim\n", "geheim é", "http://geheim:geheim@:x"] {
            let quoted = toml::Value::String(value.to_owned());
            let Err(said) = parse(&upstream(&format!("{place} = {quoted}"))) else { continue };
            assert!(!said.contains("geheim"), "{said}");
        }
    }
}

#[test]
fn the_clients_own_credentials_and_larders() {
    let pass = |repository: &str, upstream: &str, more: &str| {
        format!(
            "[repository.x]\nclient_credentials = \"pass\"\n{repository}\n[[repository.x.upstream]]\nurl = \"https://x.example\"\n{upstream}\n{more}"
        )
    };
    refused([
        (
            pass("", "headers = { authorization = \"Bearer geheim\" }", ""),
            "6: `repository.x.upstream[0].headers`: the repository has client_credentials = \"pass\", and Authorization or Cookie of the configuration would let everybody in; remove one of them",
        ),
        (
            pass("", "", "[headers.\"*.example\".set]\nCookie = \"geheim\""),
            "5: `repository.x.upstream[0].url`: the repository has client_credentials = \"pass\", and Authorization or Cookie of [headers] for this host would let everybody in; remove one of them",
        ),
        (
            pass("", "client_certificate = \"c.pem\"\nclient_private_key = \"k.pem\"", ""),
            "6: `repository.x.upstream[0].client_certificate`: the repository has client_credentials = \"pass\", and a certificate of Larder's own would let everybody in; remove one of them",
        ),
    ]);
}
