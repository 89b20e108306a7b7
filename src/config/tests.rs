use std::path::Path;

use super::*;

/// Reads a configuration from text; an error is its message.
pub fn parse(text: &str) -> Result<Config, String> {
    parse_with(text, &[])
}

/// Reads a configuration from text and environment variables.
pub fn parse_with(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let tree = Node::parse(Path::new("larder.toml"), text).map_err(|error| error.to_string())?;
    check(tree, environment).map(|(config, _)| config)
}

/// Returns the warnings about a configuration.
pub fn warned(text: &str) -> Vec<String> {
    check(Node::parse(Path::new("larder.toml"), text).expect("TOML"), &[]).expect("valid").1
}

fn check(mut tree: Node, environment: &[(&str, &str)]) -> Result<(Config, Vec<String>), String> {
    let variables: Vec<_> = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let wrong = environment::lay_over(&mut tree, &variables);
    let notes = Notes::default();
    let config = Config::of(tree, wrong, &variables, &notes).map_err(|errors| errors.to_string())?;
    Ok((config, notes.warnings.into_inner()))
}

fn repository<'a>(config: &'a Config, prefix: &str) -> &'a Repository {
    let found = config.repositories.iter().find(|repository| repository.prefix == prefix);
    found.expect("the repository exists")
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = parse("").expect("valid");
    assert_eq!(config.server.listen, ["127.0.0.1:5000".parse().expect("an address")]);
    assert_eq!(config.server.default_repository.as_deref(), Some("docker.io"));
    assert_eq!(config.admin.listen, ["127.0.0.1:17081".parse().expect("an address")]);
    assert_eq!(config.repositories.len(), 10);
    let hub = repository(&config, "docker.io");
    assert!(hub.implies_library);
    assert_eq!(hub.namespaces, ["docker.io", "index.docker.io", "registry-1.docker.io"]);
    assert_eq!(hub.upstreams[0].url.origin.as_str(), "https://registry-1.docker.io/");
    assert!(!repository(&config, "ghcr.io").implies_library);
}

#[test]
fn the_built_in_repositories_stay_beside_those_of_the_file() {
    let text = r#"
        [repository."docker.io"]
        max_age = "5m"
        [repository.hub]
        namespace = "GHCR.io:443"
        [[repository.hub.upstream]]
        url = "https://hub.example"
    "#;
    let config = parse(text).expect("valid");
    assert_eq!(config.repositories.len(), 11);
    let hub = repository(&config, "docker.io");
    assert_eq!((hub.tags.max_age, hub.upstreams.len(), hub.namespaces.len()), (Duration::from_secs(300), 1, 3));
    assert_eq!(hub.upstreams[0].url.origin.as_str(), "https://registry-1.docker.io/");
    let ghcr = repository(&config, "ghcr.io");
    assert!(ghcr.namespaces.is_empty(), "its namespace is the other repository's");
    assert_eq!(repository(&config, "quay.io").namespaces, ["quay.io"]);
    assert_eq!(config.server.default_repository.as_deref(), Some("docker.io"));

    let alone = "[repository.hub]\n[[repository.hub.upstream]]\nurl = \"https://hub.example\"";
    let config = parse(&format!("[server]\nbuiltin_repositories = false\n{alone}")).expect("valid");
    assert_eq!(config.repositories.len(), 1);
    assert_eq!(config.server.default_repository, None);
    let none = parse("[server]\nbuiltin_repositories = false").expect("valid");
    assert!(none.repositories.is_empty());
}

#[test]
fn paths_are_relative_to_the_file_that_they_are_written_in() {
    let text = r#"
        [cache]
        dir = "data"
        [logging]
        file = "/var/log/larder.log"
        [repository.x]
        [[repository.x.upstream]]
        url = "https://x.example"
        username = "me"
        password_file = "secrets/x"
        credential_helper = ""
    "#;
    let variables = [("LARDER_PROXY__CA_DIR".to_owned(), "ca".to_owned())];
    let mut tree = Node::parse(Path::new("/etc/larder/larder.toml"), text).expect("TOML");
    assert!(environment::lay_over(&mut tree, &variables).is_empty());
    let file: raw::File = de::from_tree(&tree, &variables).expect("valid");
    assert_eq!(file.cache.dir, Path::new("/etc/larder/data"));
    assert_eq!(file.logging.file, Path::new("/var/log/larder.log"));
    let upstream = &file.repository.0[0].1.upstream[0];
    assert_eq!(upstream.password_file.as_deref(), Some(Path::new("/etc/larder/secrets/x")));
    assert_eq!(upstream.credential_helper, "");
    assert_eq!(file.proxy.expect("a door").ca_dir, Path::new("ca"), "a variable has no file");

    let text = r#"
        [server.tls]
        certificate = ["a.pem", "/b.pem"]
        private_key = "a.key"
        [server.tls.acme]
        dns_hook = ["./hook", "./argument"]
        [[repository.x.upstream]]
        credential_helper = "./helper"
        [[repository.x.upstream]]
        credential_helper = "ecr-login"
    "#;
    let tree = Node::parse(Path::new("conf/larder.toml"), text).expect("TOML");
    let file: raw::File = de::from_tree(&tree, &[]).expect("valid");
    let tls = file.server.tls.expect("TLS");
    assert_eq!(tls.certificate.0, ["conf/a.pem", "/b.pem"]);
    assert_eq!(tls.private_key.0, ["conf/a.key"]);
    assert_eq!(tls.acme.expect("ACME").dns_hook, ["conf/./hook", "./argument"]);
    let helpers: Vec<_> = file.repository.0[0].1.upstream.iter().map(|upstream| &upstream.credential_helper).collect();
    assert_eq!(helpers, ["conf/./helper", "ecr-login"]);
}

#[test]
fn the_environment_overrides_the_file() {
    let config = parse_with(
        "[server]\nlisten = \"127.0.0.1:1\"",
        &[
            ("LARDER_SERVER__LISTEN", "127.0.0.1:2,[::1]:3"),
            ("LARDER_ADMIN__LISTEN", "[::1]:4"),
            ("LARDER_SERVER__MAX_CONNECTIONS", "7"),
            ("LARDER_LOGGING__ACCESS", "false"),
            ("LARDER_PORT", "tcp://10.0.0.1:5000"),
        ],
    )
    .expect("valid");
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.admin.listen, ["[::1]:4".parse().expect("an address")]);
    assert_eq!(config.server.max_connections, Some(7));
    assert!(!config.logging.access);
}

#[test]
fn later_files_win_and_tables_merge() {
    let mut tree =
        Node::parse(Path::new("a.toml"), "[server]\nmax_connections = 1\nshutdown_grace = \"1s\"").expect("valid");
    tree.merge(Node::parse(Path::new("b.toml"), "[server]\nmax_connections = 2").expect("valid"));
    let (config, _) = check(tree, &[]).expect("valid");
    assert_eq!(config.server.max_connections, Some(2));
    assert_eq!(config.server.shutdown_grace, Duration::from_secs(1));
}

#[test]
fn an_upstream_path_is_its_namespace_with_or_without_v2() {
    for (url, namespace) in [
        ("https://r.example", ""),
        ("https://r.example/v2/", ""),
        ("https://r.example/v2/library", "library"),
        ("https://r.example/team/images/", "team/images"),
        ("https://r.example/v2x", "v2x"),
    ] {
        let config = parse(&format!("[[repository.x.upstream]]\nurl = \"{url}\"")).expect(url);
        assert_eq!(repository(&config, "x").upstreams[0].url.namespace, namespace, "{url}");
    }
}

#[test]
fn a_password_is_never_printed() {
    let text = "[[repository.x.upstream]]\nurl = \"https://x\"\nusername = \"u\"\npassword = \"geheim\"\nheaders = { X-Key = \"geheim\" }";
    let config = parse(text).expect("valid");
    assert!(!format!("{config:?}").contains("geheim"));
}

/// Every kind of value, each in a form that is not the default; no secrets.
const RICH: &str = r##"
[server]
listen = ["127.0.0.1:1", "[::1]:2"]
default_repository = "team/images"
builtin_repositories = false
forwarded_header = "forwarded"
hosts = ["mirror.lan", "*.corp.example:5000"]
shutdown_grace = "1500ms"
max_connections = 12

[cache]
dir = "/var/lib/larder"
max_size = "20GiB"
min_free = 1000000007
ttl = "30d"
partial_ttl = "90s"

[storage.s3]
bucket = "images"
endpoint = "https://s3.example:9000"
region = "eu-central-1"
prefix = "caches/larder"
redirect = true
tier_size = "40%"

[repository."team/images"]
namespace = ["a.example", "b.example"]
hosts = ["mirror.example"]
scopes = ['^x\d+/"[#]+$', "^ä/.+$"]
immutable_tags = true
immutable_tags_exclusions = ["^latest$"]
max_age = "5m"
stale_while_revalidate = "1m"
stale_if_error = "7d"
on_upstream_404 = "drop"
negative_max_age = "0s"
ttl = "none"
prefetch = "layers"
pin = ["^app:1$"]

[[repository."team/images".tag]]
match = "^v"
max_age = "12h"
[[repository."team/images".tag]]
match = "^latest$"
immutable_tags = false

[[repository."team/images".upstream]]
url = "https://r.example/v2/images"
max_redirect = 0
connect_timeout = "1s"
timeout = "2h"
parallel = 1
max_connections = 1
token_realms = ["auth.example"]
http_proxy = "http://proxy.example:3128"
insecure_skip_verify = true
[[repository."team/images".upstream]]
url = "http://127.0.0.1:5001"
http_proxy = "none"

[repository."ghcr.io"]
ttl = "1d"
client_credentials = "pass"
consent_max_age = "5m"

[[warm]]
images = ["team/images/app:3.*", 'ghcr.io/a/b:/^v\d+$/', "ghcr.io/a/c:>=16, <18"]
platforms = ["linux/amd64", "linux/arm/v7"]
every = "90m"
[[warm]]
images = ["ghcr.io/a/d:1"]

[auth.oidc.company]
issuer = "https://login.example/realm"
audience = ["larder", "other"]
required_claims = { hd = "corp.example" }
[auth.oidc.company.login]
client_id = "dashboard"
scopes = ["openid", "groups"]
session_max_age = "8h"

[admin]
listen = "127.0.0.1:3"
allow = ["oidc:company:groups=ops"]

[logging]
level = "larder=debug,info"
format = "json"
file = "/var/log/larder.log"
access = false

[telemetry]
otlp_endpoint = "https://otlp.example/otlp"
sampling = 0.25
"##;

fn shown(text: &str, environment: &[(&str, &str)]) -> Effective {
    let mut tree = Node::parse(Path::new("larder.toml"), text).expect("TOML");
    let variables: Vec<_> = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert!(environment::lay_over(&mut tree, &variables).is_empty());
    Effective::of_tree(&tree, &variables).expect("valid")
}

#[test]
fn what_is_shown_can_be_used_as_the_configuration() {
    for text in [RICH, "", include_str!("../../larder.example.toml")] {
        let with_ttl = |mut config: Config| {
            // What is shown names the directory.
            config.cache.is_dir_named = true;
            for repository in &mut config.repositories {
                // A repository without a `ttl` has that of `cache.ttl`, and that value is shown.
                repository.ttl.get_or_insert(config.cache.ttl);
            }
            format!("{config:#?}")
        };
        let written = shown(text, &[]).to_toml();
        let again = parse(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
        assert_eq!(with_ttl(parse(text).expect("valid")), with_ttl(again), "{written}");
    }
}

#[test]
fn every_value_is_shown_with_its_origin() {
    let environment =
        [("LARDER_LOGGING__ACCESS", "false"), ("LARDER_REPOSITORY__B__UPSTREAM", "[{ url = \"https://b.example\" }]")];
    let shown = shown("[server]\n\nlisten = \"127.0.0.1:1\"\n[repository.\"ghcr.io\"]", &environment);
    let json = serde_json::to_value(&shown).expect("JSON");
    for (pointer, value, origin) in [
        ("/server/listen", serde_json::json!(["127.0.0.1:1"]), "larder.toml:3"),
        ("/server/max_connections", 0.into(), "default"),
        ("/server/default_repository", "docker.io".into(), "default"),
        ("/server/builtin_repositories", true.into(), "default"),
        ("/cache/max_size", "none".into(), "default"),
        ("/repository/ghcr.io/upstream/0/url", "https://ghcr.io".into(), "default"),
        ("/repository/ghcr.io/ttl", "forever".into(), "default: as cache.ttl"),
        (
            "/repository/b/upstream/0/url",
            "https://b.example".into(),
            "environment variable LARDER_REPOSITORY__B__UPSTREAM",
        ),
        ("/repository/b/upstream/0/timeout", "20s".into(), "default"),
        ("/logging/access", false.into(), "environment variable LARDER_LOGGING__ACCESS"),
    ] {
        let expected = serde_json::json!({ "value": value, "origin": origin });
        // A pointer writes `/` within a key as `~1`; no key here has one.
        assert_eq!(json.pointer(pointer), Some(&expected), "{pointer}");
    }
    let toml = shown.to_toml();
    for (value, origin) in [
        ("listen = [\"127.0.0.1:1\"]", "larder.toml:3"),
        ("access = false", "environment variable LARDER_LOGGING__ACCESS"),
    ] {
        let line = format!("{value:<42}# {origin}");
        assert!(toml.lines().any(|written| written == line), "{line}\n{toml}");
    }
}

#[test]
fn secrets_are_shown_as_hidden() {
    let text = r#"
        [[repository.x.upstream]]
        url = "https://x"
        username = "me"
        password = "geheim"
        http_proxy = "http://me:geheim@proxy.example:1"
        headers = { X-Key = "geheim" }
        [[repository.x.upstream]]
        url = "https://x"
        http_proxy = "http://proxy.example:1"
        [headers."x".set]
        Authorization = "Bearer geheim"
        [auth.oidc.x]
        issuer = "https://x"
        audience = "larder"
        required_claims = { a = "b" }
        login = { client_id = "larder", client_secret = "geheim" }
    "#;
    let shown = shown(text, &[]);
    let (toml, json) = (shown.to_toml(), serde_json::to_string(&shown).expect("JSON"));
    assert!(!toml.contains("geheim") && !json.contains("geheim"), "{toml}{json}");
    assert_eq!(toml.matches("= \"[hidden]\"").count(), 5, "{toml}");
    assert!(toml.contains("\"http://proxy.example:1\"") && toml.contains("username = \"me\""), "{toml}");
    let error = parse(&toml).expect_err("what is hidden is not sent");
    assert!(error.contains("write the secret itself"), "{error}");
}
