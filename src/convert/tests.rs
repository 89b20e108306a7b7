use super::*;

/// simple-registry's documentation of its manifests.
const MANIFESTS: &str = include_str!("../../tests/documents/simple-registry.yaml");

/// The blocks of simple-registry's documentation of its TOML.
const SIMPLE_TOML: [&str; 5] = [
    include_str!("../../tests/documents/simple-registry-basic.toml"),
    include_str!("../../tests/documents/simple-registry-fallback.toml"),
    include_str!("../../tests/documents/simple-registry-immutable.toml"),
    include_str!("../../tests/documents/simple-registry-private.toml"),
    include_str!("../../tests/documents/simple-registry-mtls.toml"),
];

/// The example deployment of discobot's documentation, and its example of headers.
const DISCOBOT: &str = r#"proxy:
  port: 17080
  api_port: 17081

tls:
  cert_dir: ./certs

cache:
  enabled: true
  dir: /var/cache/discobot-proxy
  max_size: 107374182400  # 100GB

headers:
  "registry.example.com":
    set:
      "Authorization": "Bearer YOUR_TOKEN_HERE"
  "ghcr.io":
    set:
      "Authorization": "Bearer ghp_YOUR_GITHUB_TOKEN"

allowlist:
  enabled: true
  domains:
    - "*.docker.io"
    - "registry-1.docker.io"
    - "ghcr.io"
    - "*.gcr.io"

logging:
  level: info
  format: json
  file: /var/log/discobot-proxy.log
"#;

const DISTRIBUTION: &str = r#"version: 0.1
log:
  level: warn
  formatter: text
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: /var/lib/registry
    maxthreads: 100
  delete:
    enabled: true
http:
  addr: :5000
  draintimeout: 1m30s
  secret: asecret
  tls:
    certificate: /certs/x.crt
    key: /certs/x.key
  debug:
    addr: localhost:5001
auth:
  htpasswd:
    realm: basic-realm
    path: /auth/htpasswd
proxy:
  remoteurl: https://registry-1.docker.io
  username: me
  password: "0123"
  ttl: 168h
"#;

fn convert_text(name: &str, text: &str) -> Result<Converted, String> {
    convert_texts(&[(PathBuf::from(name), text.to_owned())], None).map_err(|error| error.to_string())
}

fn converted(name: &str, text: &str) -> (toml::Table, Vec<String>) {
    let Converted { toml, warnings } = convert_text(name, text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for warning in &warnings {
        assert!(toml.contains(&format!("# - {warning}\n")), "a warning is in the file too: {warning}\n{toml}");
    }
    (toml.parse().expect("TOML"), warnings)
}

fn table(text: &str) -> toml::Table {
    text.parse().expect("TOML")
}

#[test]
fn the_documented_manifests_become_repositories_with_scopes() {
    let (toml, warnings) = converted("proxies.yaml", MANIFESTS);
    let expected = r#"
        [server]
        builtin_repositories = false
        default_repository = ""
        [repository.docker-io]
        scopes = ["^library/.+$", "^miniflux/miniflux(:.+)?$"]
        ttl = "30d"
        [[repository.docker-io.upstream]]
        url = "https://registry-1.docker.io"
        timeout = "60s"
        [repository.ghcr-io]
        scopes = ["^my-github-user/.+$"]
        ttl = "30d"
        [[repository.ghcr-io.upstream]]
        url = "https://ghcr.io/"
        timeout = "60s"
        username = "your-github-user"
        password = "your-plain-github-password"
    "#;
    assert_eq!(toml, table(expected));
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn what_is_commented_out_in_the_documented_manifests_works_too() {
    let text = MANIFESTS
        .replace("    # username", "    username")
        .replace("    # password: ", "    password: ")
        .replace("    # passwordFile", "    passwordFile");
    let (toml, warnings) = converted("proxies.yaml", &text);
    let upstream = &toml["repository"]["docker-io"]["upstream"][0];
    assert_eq!(upstream["username"].as_str(), Some("your-docker-username"));
    assert_eq!(upstream["password_file"].as_str(), Some("/run/secrets/dockerhub-password"));
    assert_eq!(upstream.get("password"), None);
    assert_eq!(warnings, ["proxies.yaml:15: `spec.upstream.password`: the password's file goes before it"]);
}

#[test]
fn simple_registrys_server_is_taken_as_far_as_there_is_one() {
    let text = format!(
        "{MANIFESTS}---\napiVersion: x\nkind: Configuration\nspec:\n  dataDir: ./data/\n  web:\n    addr: 0.0.0.0:5000\n    certfile: x\n    ui: true\n---\napiVersion: x\nkind: User\n"
    );
    let (toml, warnings) = converted("all.yaml", &text);
    assert_eq!(toml["server"]["listen"].as_str(), Some("0.0.0.0:5000"));
    assert_eq!(toml["cache"]["dir"].as_str(), Some("./data/larder"), "not among simple-registry's own files");
    assert_eq!(
        warnings,
        [
            "all.yaml:43: a certificate and its key go together: there is no TLS",
            "all.yaml:44: `spec.web.ui`: there is no page for browsers; see `larder ls`",
            "all.yaml:47: `User`: make an htpasswd file of the users for [auth.htpasswd], and say who may pull in `allow`",
        ]
    );
}

#[test]
fn a_key_is_never_taken_off_a_name_that_a_scope_is_for() {
    for (name, scope, expected) in [
        ("library", "^library/.+$", "library-cache"),
        ("team", r"^te\w+/x", "team-cache"),
        ("team", ".*", "team"),
        ("team", "^other/team/.+$", "team-cache"),
        ("Docker Hub", "^library/", "docker-hub"),
        ("v2", "^library/", "upstream"),
    ] {
        let text = format!(
            "apiVersion: a\nkind: PullThroughCache\nmetadata: {{name: {name}}}\nspec:\n  upstream: {{url: 'https://x.example'}}\n  scopes: ['{scope}']\n"
        );
        let (toml, warnings) = converted("x.yaml", &text);
        let keys: Vec<_> = toml["repository"].as_table().expect("a table").keys().collect();
        assert_eq!(keys, [expected], "{name} {scope}");
        assert_eq!(warnings.len(), usize::from(expected != name), "{warnings:?}");
    }
}

#[test]
fn the_documented_toml_is_larders_own() {
    for text in SIMPLE_TOML {
        Config::check_text(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let (mut toml, warnings) = converted("config.toml", text);
        let server = toml.remove("server").expect("a server");
        assert_eq!(server["default_repository"].as_str(), Some(""));
        assert_eq!(toml, table(text));
        assert_eq!(warnings, [""; 0]);
    }
}

#[test]
fn the_rest_of_simple_registrys_toml_is_translated_or_named() {
    let text = r#"
[server]
bind_address = "0.0.0.0"
port = 5000
query_timeout = 3600
[server.tls]
server_certificate_bundle = "x"
[global]
immutable_tags = true
immutable_tags_exclusions = ["^latest$"]
shutdown_drain_secs = 20
max_concurrent_requests = 4
[blob_store.fs]
root_dir = "./data"
[repository.plain]
[repository."docker.io"]
namespace = "docker.io"
immutable_tags = false
[repository."docker.io".access_policy]
default_allow = true
[[repository."docker.io".upstream]]
url = "https://registry-1.docker.io"
connect_timeout_secs = 30
read_timeout_secs = 300
max_redirect = 3
username = "alone"
[[repository.team.upstream]]
url = "https://x.example"
"#;
    let (toml, warnings) = converted("config.toml", text);
    let expected = r#"
        [server]
        builtin_repositories = false
        default_repository = ""
        listen = "0.0.0.0:5000"
        shutdown_grace = "20s"
        [cache]
        dir = "./data/larder"
        [repository."docker.io"]
        immutable_tags = false
        namespace = "docker.io"
        [[repository."docker.io".upstream]]
        url = "https://registry-1.docker.io"
        connect_timeout = "30s"
        timeout = "300s"
        max_redirect = 3
        [repository.team]
        immutable_tags = true
        immutable_tags_exclusions = ["^latest$"]
        [[repository.team.upstream]]
        url = "https://x.example"
    "#;
    assert_eq!(toml, table(expected));
    let keys: Vec<_> = warnings.iter().filter_map(|warning| warning.split('`').nth(1)).collect();
    let named = ["repository.plain", "repository.\"docker.io\".access_policy"];
    let left = ["server.query_timeout", "server.tls", "global.max_concurrent_requests"];
    assert_eq!(keys, [named.as_slice(), &left].concat(), "{warnings:?}");
    assert!(warnings.iter().any(|warning| warning.contains("a user name without a password")), "{warnings:?}");
}

#[test]
fn dockers_registry_becomes_the_default_repository() {
    let (toml, warnings) = converted("config.yml", DISTRIBUTION);
    let expected = r#"
        [server]
        listen = "0.0.0.0:5000"
        builtin_repositories = false
        default_repository = "docker.io"
        shutdown_grace = "90s"
        [server.tls]
        certificate = "/certs/x.crt"
        private_key = "/certs/x.key"
        [auth.htpasswd]
        path = "/auth/htpasswd"
        realm = "basic-realm"
        [cache]
        dir = "/var/lib/registry/larder"
        [repository."docker.io"]
        ttl = "7d"
        [[repository."docker.io".upstream]]
        url = "https://registry-1.docker.io"
        username = "me"
        password = "0123"
        [admin]
        listen = "127.0.0.1:5001"
        [logging]
        level = "warn"
        format = "text"
        access = false
    "#;
    assert_eq!(toml, table(expected));
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn dockers_registry_may_have_certificates_from_lets_encrypt() {
    let text =
        |keys: &str| format!("proxy: {{remoteurl: 'https://r.example'}}\nhttp: {{tls: {{letsencrypt: {{{keys}}}}}}}\n");
    let all = "cachefile: /certs/cachefile, email: me@example.com, hosts: [my.cool.mirror.horse]";
    let (toml, warnings) = converted("config.yml", &text(all));
    let expected = "domains = [\"my.cool.mirror.horse\"]\nemail = \"me@example.com\"";
    assert_eq!(toml["server"]["tls"]["acme"].as_table(), Some(&table(expected)));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let (toml, warnings) = converted("config.yml", &text("email: me@example.com"));
    assert!(toml["server"].get("tls").is_none() && warnings[0].contains("write the `domains`"), "{warnings:?}");
}

#[test]
fn dockers_registry_may_name_a_helper_and_never_expire() {
    for (proxy, upstream, warnings) in [
        ("exec: {command: docker-credential-ecr-login, lifetime: 1h}", "credential_helper = \"ecr-login\"", 1),
        ("exec: {command: /bin/helper}", "credential_helper = \"/bin/helper\"", 0),
        ("exec: {command: helper}", "", 1),
        ("username: alone", "", 1),
    ] {
        let text = format!("proxy:\n  remoteurl: https://r.example:5443\n  ttl: 0\n  {proxy}\n");
        let (toml, said) = converted("config.yml", &text);
        let repository = &toml["repository"]["r.example:5443"];
        assert_eq!(repository["ttl"].as_str(), Some("forever"));
        let expected = format!("url = \"https://r.example:5443\"\n{upstream}");
        assert_eq!(repository["upstream"][0].as_table(), Some(&table(&expected)), "{proxy}");
        assert_eq!(said.len(), warnings, "{said:?}");
    }
}

#[test]
fn discobots_cache_headers_and_log_are_taken_over() {
    let (toml, warnings) = converted("config.yaml", DISCOBOT);
    let expected = r#"
        [cache]
        dir = "/var/cache/discobot-proxy/larder"
        max_size = "100GiB"
        [headers."registry.example.com".set]
        Authorization = "Bearer YOUR_TOKEN_HERE"
        [headers."ghcr.io".set]
        Authorization = "Bearer ghp_YOUR_GITHUB_TOKEN"
        [proxy]
        listen = "0.0.0.0:17080"
        ca_dir = "./certs"
        intercept = ["*"]
        [allowlist]
        enabled = true
        domains = ["*.docker.io", "registry-1.docker.io", "ghcr.io", "*.gcr.io"]
        [admin]
        listen = "127.0.0.1:17081"
        [logging]
        level = "info"
        format = "json"
        file = "/var/log/discobot-proxy.log"
    "#;
    assert_eq!(toml, table(expected));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn headers_that_larder_cannot_set_as_discobot_does_are_not_set() {
    let text = r#"
cache: {enabled: false, patterns: ["^/artifacts/.*\\.(tar\\.gz|zip|jar)$"]}
allowlist: {enabled: false, domains: ["x.example"]}
headers:
  "x.*": {set: {A: geheim}}
  "*.y": {set: {A: "geheim"}, append: {B: geheim}}
  "z": {conditions: [{header: C, equals: d}], set: {A: geheim}}
"#;
    let (toml, warnings) = converted("config.yaml", text);
    assert_eq!(
        toml["headers"].as_table(),
        Some(&table("[\"*.y\"]\nset = { A = \"geheim\" }\nappend = { B = \"geheim\" }"))
    );
    assert_eq!(toml["cache"]["patterns"][0].as_str(), Some("^/artifacts/.*\\.(tar\\.gz|zip|jar)$"));
    assert_eq!(toml.get("allowlist"), None, "it had no effect");
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(!format!("{warnings:?}").contains("geheim"), "secrets are in no message: {warnings:?}");
}

#[test]
fn a_file_without_a_telling_name_is_told_by_its_content() {
    for (text, kind) in [
        (MANIFESTS, Kind::Manifests),
        (SIMPLE_TOML[1], Kind::SimpleToml),
        (DISTRIBUTION, Kind::Distribution),
        (DISCOBOT, Kind::Discobot),
    ] {
        for text in [text.to_owned(), text.replace('\n', "\r\n"), format!("\u{feff}{text}")] {
            let Converted { toml, .. } =
                convert_text("config", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert!(toml.starts_with(&format!("# A configuration of Larder, converted from one of {}.", kind.name())));
        }
    }
}

#[test]
fn texts_are_quoted_whatever_is_in_them() {
    let password = "a\"b\\c'd #e\u{1}ü\nf";
    let quoted = serde_json::to_string(password).expect("JSON, which is YAML");
    let text = format!("proxy: {{remoteurl: 'https://x.example', username: '\"#', password: {quoted}}}");
    let (toml, _) = converted("config.yml", &text);
    let upstream = &toml["repository"]["x.example"]["upstream"][0];
    assert_eq!(upstream["username"].as_str(), Some("\"#"));
    assert_eq!(upstream["password"].as_str(), Some(password));
}

#[test]
fn what_cannot_be_converted_says_why() {
    let manifest = |upstream: &str, scope: &str| {
        format!(
            "apiVersion: a\nkind: PullThroughCache\nspec:\n  upstream: {{{upstream}}}\n  scopes:\n  - \"ok\"\n  - \"{scope}\"\n"
        )
    };
    for (name, text, message) in [
        ("x.yaml", String::new(), "there is nothing in it to convert"),
        (
            "x.yaml",
            "a: 1".to_owned(),
            "x.yaml: whose configuration this is cannot be told; name it with --from (simple-registry-yaml, simple-registry-toml, distribution, discobot)",
        ),
        ("x.yaml", "- a".to_owned(), "x.yaml:1: this is no table of keys and values"),
        (
            "x.toml",
            include_str!("../../larder.example.toml").to_owned(),
            "x.toml: this is a configuration of Larder already",
        ),
        ("x.toml", "[server\n".to_owned(), "x.toml:1: not valid TOML: unclosed table, expected `]`"),
        (
            "x.yaml",
            "apiVersion: a\nkind: User".to_owned(),
            "there is no PullThroughCache in it, so there is nothing to convert",
        ),
        ("x.yaml", manifest("", "x"), "x.yaml:1: `spec.upstream.url` is missing; write for example https://ghcr.io"),
        ("x.yaml", manifest("url: 'https://x'", "("), "x.yaml:7: `(` is no valid regular expression: unclosed group"),
        (
            "x.yaml",
            manifest("url: 'https://x', timeout: soon", "x"),
            "x.yaml:4: `spec.upstream.timeout`: `soon` is no length of time; write for example 60s or 30d",
        ),
        (
            "x.yaml",
            manifest("url: 'ftp://x'", "x"),
            "x.yaml: what it says cannot be a configuration of Larder. The result would be wrong at larder.toml:12: `repository.upstream.upstream[0].url`: `ftp://x` does not begin with https:// or http:// and a host; write for example \"https://registry-1.docker.io\"",
        ),
        ("x.toml", "[repository.x]".to_owned(), "no repository in it has an upstream, so there is nothing to convert"),
        (
            "x.yml",
            "version: 0.1\nstorage: {filesystem: {rootdirectory: /x}}".to_owned(),
            "x.yml:1: `proxy.remoteurl` is missing, so it is no cache and there is nothing to convert",
        ),
        (
            "x.yml",
            "proxy: {remoteurl: 'https://me:geheim@x'}".to_owned(),
            "x.yml:1: `proxy.remoteurl`: this is no URL as https://registry-1.docker.io",
        ),
        (
            "x.yaml",
            format!("{DISCOBOT}---\n{DISTRIBUTION}"),
            "x.yaml:34: this is distribution, what came before is discobot; convert them one after the other",
        ),
        ("x.yaml", format!("{DISCOBOT}---\n{DISCOBOT}"), "x.yaml:34: a second configuration; give one at a time"),
    ] {
        assert_eq!(convert_text(name, &text).expect_err(&text), message, "{text}");
    }
}
