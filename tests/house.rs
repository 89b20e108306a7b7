//! The house stays as docs/architecture.md draws it, and its examples work.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::Larder;

/// Rooms that any other may import from.
const FOR_ALL: [&str; 2] = ["clock", "random"];

/// Each room and the rooms it may import from.
const ROOMS: [(&str, &[&str]); 43] = [
    ("oci", &[]),
    ("body", &["failure"]),
    ("clock", &[]),
    ("descriptors", &[]),
    ("failure", &[]),
    ("files", &[]),
    ("fingerprint", &[]),
    ("places", &[]),
    ("program", &["text"]),
    ("random", &[]),
    ("sent", &[]),
    ("sockets", &[]),
    ("text", &[]),
    ("tunnel", &[]),
    ("x509", &[]),
    ("ca", &["files", "x509"]),
    ("web", &["config"]),
    ("acme", &["config", "files", "program", "observe", "sockets", "text", "web", "x509"]),
    ("auth", &["config", "fingerprint", "text", "web", "x509"]),
    ("config", &["oci", "text"]),
    ("convert", &["config"]),
    ("setup", &[]),
    ("observe", &["auth", "body", "config", "failure"]),
    ("telemetry", &["config", "observe", "web"]),
    ("work", &["oci"]),
    ("spool", &["files", "oci", "work"]),
    ("store", &["files", "oci", "spool", "work"]),
    ("index", &["config", "files", "oci", "web", "work"]),
    ("s3", &["config", "index", "oci", "observe", "web"]),
    ("upkeep", &["config", "failure", "index", "oci", "s3", "spool", "store", "observe", "work"]),
    (
        "cache",
        &[
            "config",
            "descriptors",
            "failure",
            "files",
            "index",
            "oci",
            "places",
            "s3",
            "spool",
            "store",
            "observe",
            "upkeep",
            "work",
        ],
    ),
    ("upstream", &["config", "failure", "fingerprint", "oci", "places", "program", "observe", "web"]),
    ("cluster", &["cache", "config", "failure", "index", "observe", "oci", "web"]),
    ("routing", &["config", "index", "observe", "oci", "upstream"]),
    (
        "access",
        &[
            "auth",
            "body",
            "cache",
            "config",
            "descriptors",
            "failure",
            "observe",
            "oci",
            "places",
            "routing",
            "sent",
            "upstream",
            "web",
        ],
    ),
    (
        "registry",
        &[
            "access", "auth", "body", "cache", "cluster", "config", "failure", "index", "observe", "oci", "routing",
            "sent", "upstream",
        ],
    ),
    (
        "proxy",
        &[
            "access",
            "auth",
            "body",
            "cache",
            "config",
            "descriptors",
            "failure",
            "index",
            "observe",
            "oci",
            "places",
            "registry",
            "routing",
            "sent",
            "tunnel",
            "upstream",
        ],
    ),
    ("warm", &["access", "config", "failure", "index", "observe", "oci", "registry", "routing", "upstream"]),
    (
        "services",
        &[
            "access", "cache", "cluster", "config", "failure", "index", "observe", "oci", "proxy", "registry",
            "routing", "setup", "upstream", "warm",
        ],
    ),
    ("ops", &["cache", "descriptors", "failure", "index", "observe", "oci", "routing", "text", "upkeep", "work"]),
    (
        "listen",
        &[
            "acme", "auth", "body", "ca", "cache", "config", "observe", "proxy", "registry", "sent", "services",
            "sockets", "tunnel",
        ],
    ),
    (
        "admin",
        &[
            "access", "auth", "body", "cache", "cluster", "config", "failure", "index", "observe", "oci", "ops",
            "registry", "routing", "sent", "services", "setup", "text", "upkeep", "upstream", "work", "warm",
        ],
    ),
    (
        "cli",
        &[
            "acme",
            "admin",
            "auth",
            "ca",
            "cache",
            "cluster",
            "config",
            "convert",
            "descriptors",
            "failure",
            "listen",
            "observe",
            "oci",
            "ops",
            "program",
            "routing",
            "s3",
            "services",
            "setup",
            "telemetry",
            "text",
            "upkeep",
            "upstream",
            "x509",
            "web",
        ],
    ),
];

fn sources(path: PathBuf) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path];
    }
    let entries = fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(sources).filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn imports_go_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (room, allowed) in ROOMS {
        let folder = src.join(room);
        let path = if folder.is_dir() { folder } else { folder.with_extension("rs") };
        for file in sources(path) {
            let text = fs::read_to_string(&file).expect("readable");
            for (at, _) in text.match_indices("crate::") {
                let rest = &text[at + "crate::".len()..];
                let import =
                    rest.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit()).next().unwrap_or_default();
                let is_own = import == room || import.is_empty();
                let is_fine = is_own || FOR_ALL.contains(&import) || allowed.contains(&import);
                assert!(is_fine, "{} imports {import}, which {room} may not", file.display());
            }
        }
    }
}

/// So that a test can hold the time, foretell chance, and see every connection.
#[test]
fn there_is_one_clock_one_source_of_chance_and_one_way_to_connect() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let kept_to = [
        ("SystemTime::now", "clock.rs"),
        ("std::time::Instant", "clock.rs"),
        ("rand::fill", "random.rs"),
        ("hash_one(0)", "random.rs"),
        ("Client::builder", "dial.rs"),
        ("HttpConnector::new", "dial.rs"),
        ("TcpStream::connect", "dial.rs"),
    ];
    let mut found = 0;
    for file in sources(src) {
        let text = fs::read_to_string(&file).expect("readable");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for (word, home) in kept_to {
            let is_of_tests = file.to_string_lossy().contains("tests");
            if code.contains(word) && !is_of_tests {
                assert!(file.ends_with(home), "{} has {word}, which is for {home}", file.display());
                found += 1;
            }
        }
        let imports_another = code.lines().any(|line| line.starts_with("use std::time::") && line.contains("Instant"));
        assert!(!imports_another, "{} imports the Instant of std", file.display());
    }
    assert!(found >= 5, "the sources were read");
}

#[tokio::test]
async fn the_example_configuration_starts() {
    let example = include_str!("../larder.example.toml");
    let mut larder = Larder::start(example).await;
    assert_eq!(larder.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_code_2_and_says_where() {
    let exit = Larder::builder().config("[server]\nlissen = \"127.0.0.1:5000\"").run_to_exit().await;
    assert_eq!(exit.code, Some(2), "{}", exit.log);
    assert!(exit.log.contains(":2: unknown key `server.lissen`; did you mean `server.listen`?"), "{}", exit.log);
}

/// The rows of the table below a heading of docs/security.md, without its own heading.
fn rows_below(heading: &str) -> Vec<&'static str> {
    let document = include_str!("../docs/security.md");
    let section = document.split("\n## ").find_map(|section| section.strip_prefix(heading)?.strip_prefix('\n'));
    let section = section.unwrap_or_else(|| panic!("docs/security.md has no section \"{heading}\""));
    section.lines().filter(|line| line.starts_with("| ")).skip(2).collect()
}

/// The last column of each row below a heading names tests, and they exist. Returns how many.
fn tests_named_below(heading: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code: String = [root.join("src"), root.join("tests")]
        .into_iter()
        .flat_map(sources)
        .map(|file| fs::read_to_string(file).expect("readable"))
        .collect();
    let mut named = 0;
    for row in rows_below(heading) {
        let tests = row.trim_matches('|').split('|').next_back().expect("a last column");
        let tests: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "nothing shows it: {row}");
        for test in tests {
            assert!(code.contains(&format!("fn {test}(")), "there is no test {test}");
            named += 1;
        }
    }
    named
}

#[test]
fn the_threat_model_names_tests_that_exist() {
    assert!(tests_named_below("What stops them") > 40);
}

#[test]
fn what_grows_has_a_bound_that_a_test_shows() {
    assert!(tests_named_below("What grows, and its bound") > 10);
}

/// Keys of the configuration and files whose values are secret.
const SECRETS: [&str; 15] = [
    "`password`",
    "`password_file`",
    "`credential_helper`",
    "`docker_config`",
    "`headers`",
    "`[headers.\"HOST\".set]`",
    "`client_private_key`",
    "`http_proxy`",
    "`[auth.htpasswd]`",
    "`[auth.oidc]`",
    "`client_secret`",
    "`secret_access_key_file`",
    "`client_secret_file`",
    "`ca.key`",
    "ACME account",
];

#[test]
fn each_secret_has_its_row_in_the_threat_model() {
    let text = include_str!("../docs/security.md");
    let (_, table) = text.split_once("## Where each secret goes").expect("the section");
    let (table, _) = table.split_once("## What is left").expect("the next section");
    let rows: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| ")).collect();
    for secret in SECRETS {
        let has_row = rows.iter().any(|row| row.split('|').next().is_some_and(|names| names.contains(secret)));
        assert!(has_row, "no row says where {secret} goes");
    }
    assert!(rows.iter().all(|row| row.split('|').count() == 5), "four columns");
}

/// So that a stranger finds a file by what it is.
#[test]
fn the_architecture_page_says_what_each_file_is() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let page = include_str!("../docs/architecture.md");
    let (_, told) = page.split_once("## Every file\n").expect("the section");
    let told: Vec<_> = told.lines().filter(|line| line.starts_with("- ")).collect();
    let wanted: Vec<_> = sources(src.clone()).iter().filter_map(|file| sentence(file, &src)).collect();
    let missing: Vec<_> = wanted.iter().filter(|line| !told.contains(&line.as_str())).collect();
    assert!(missing.is_empty(), "these lines are missing at the end of docs/architecture.md: {missing:#?}");
    let surplus: Vec<_> = told.iter().filter(|line| !wanted.iter().any(|wanted| wanted == *line)).collect();
    assert!(surplus.is_empty(), "no file is this: {surplus:#?}");
    assert!(told.len() > 300, "all files were read");
}

/// The line for a file: its name and the first sentence of its comment. Files of tests have none.
fn sentence(file: &Path, src: &Path) -> Option<String> {
    let text = fs::read_to_string(file).expect("readable");
    let comment = text.lines().map_while(|line| line.strip_prefix("//!").map(str::trim));
    let first = comment.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let end = first
        .match_indices('.')
        .map(|(at, _)| at + 1)
        .find(|&at| first[at..].is_empty() || first[at..].starts_with(' '));
    let path = file.strip_prefix(src).expect("in the folder").display();
    (!first.is_empty()).then(|| format!("- `{path}`: {}", &first[..end.unwrap_or(first.len())]))
}
