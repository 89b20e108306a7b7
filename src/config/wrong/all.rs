//! All mistakes are told at once, and nothing beside them.

use crate::config::tests::{parse, parse_with};

fn said(text: &str) -> Vec<String> {
    let said = parse(text).map(|_| ()).expect_err(text);
    said.lines().map(|line| line.trim_start_matches("larder.toml:").to_owned()).collect()
}

#[test]
fn every_mistake_has_its_line() {
    let text = r#"
[server]
lissen = "127.0.0.1:5000"
default_repository = "dokcer.io"
max_connections = "many"

[cache]
ttl = "1 year"
dir = ""

[repository."ghcr.io"]
max_age = 60
scopes = ["(", "ok", ")"]
hosts = ["https://mirror"]

[[repository."x.example".upstream]]
url = "ftp://x.example"
paralel = 4
username = "me"
"#;
    let keys: Vec<_> = said(text)
        .iter()
        .map(|line| {
            let (number, rest) = line.split_once(": ").expect("a line");
            format!("{number} {}", rest.split('`').nth(1).expect("a key"))
        })
        .collect();
    assert_eq!(
        keys,
        [
            "3 server.lissen",
            "5 server.max_connections",
            "8 cache.ttl",
            "12 repository.\"ghcr.io\".max_age",
            "13 repository.\"ghcr.io\".scopes[0]",
            "13 repository.\"ghcr.io\".scopes[2]",
            "18 repository.\"x.example\".upstream[0].paralel",
            "14 repository.\"ghcr.io\".hosts",
            "4 server.default_repository",
            "9 cache.dir",
        ]
    );
}

#[test]
fn what_follows_from_a_mistake_is_none() {
    for (text, key) in [
        ("[server]\ndefault_repository = \"x\"\n[[repository.x.upstream]]\nurl = 5", "repository.x.upstream[0].url"),
        (
            "[[repository.x.upstream]]\nurl = \"https://x.example\"\nusername = \"me\"\npassword = 5",
            "repository.x.upstream[0].password",
        ),
        (
            "[[repository.x.upstream]]\nurl = \"https://x.example\"\nusername = \"me\"\npasword = \"a\"",
            "repository.x.upstream[0].pasword",
        ),
        ("[auth.htpasswd]\npath = 5\n[repository.\"docker.io\"]\nallow = [\"user:bob\"]", "auth.htpasswd.path"),
        ("[auth]\nhtpasswd = 5\n[repository.\"docker.io\"]\nallow = [\"user:bob\"]", "auth.htpasswd"),
        ("[admin]\nlisten = \"0.0.0.0:1\"\nallow = [5]", "admin.allow[0]"),
        ("[server]\nlisten = 5\n[admin]\nlisten = \"127.0.0.1:5000\"", "server.listen"),
        ("[cache]\npatterns = [\"a\"]\n[proxy]\nlisten = 5", "proxy.listen"),
        ("[proxxy]\nlisten = \"127.0.0.1:1\"", "proxxy"),
        ("server = 5", "server"),
        ("repository = 5", "repository"),
    ] {
        let lines = said(text);
        assert_eq!(lines.len(), 1, "{text}\n{lines:?}");
        assert!(lines[0].contains(&format!("`{key}`")), "{lines:?}");
    }
}

#[test]
fn a_mistake_is_not_told_of_the_wrong_upstream() {
    let upstreams = |first: &str| {
        format!(
            "[repository.x]\nupstream = [\n{first},\n{{ url = \"https://b.example\" }},\n{{ url = \"ftp://c.example\" }}\n]"
        )
    };
    let lines = said(&upstreams("{ url = \"https://a.example\", parallel = 0 }"));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("3: `repository.x.upstream[0].parallel`"), "{lines:?}");
    assert!(lines[1].starts_with("5: `repository.x.upstream[2].url`"), "{lines:?}");
    for first in ["{ parallel = 2 }", "5"] {
        let lines = said(&upstreams(first));
        assert!(lines.len() == 1 && lines[0].starts_with("3: `repository.x.upstream[0]"), "{lines:?}");
    }
}

#[test]
fn the_number_of_mistakes_is_bounded() {
    let keys: String = (0..1_000).map(|number| format!("key{number} = 1\n")).collect();
    let count = said(&format!("[server]\n{keys}")).len();
    assert_eq!(count, 50);
}

#[test]
fn mistakes_of_the_environment_and_of_the_file_are_told_together() {
    let environment = [("LARDER_CACHE__TTL", "\"30d\""), ("LARDER_LOGGING__FORMAT", "xml")];
    let said = parse_with("[server]\nlissen = 1", &environment).map(|_| ()).expect_err("wrong");
    let starts = [
        "environment variable LARDER_CACHE__TTL: `cache.ttl`: ",
        "larder.toml:2: unknown key",
        "environment variable LARDER_LOGGING__FORMAT: `logging.format`: ",
    ];
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{said}");
}
