//! Promise: what README.md and the pages of docs/ tell people to write can be written: Larder's configurations pass
//! `larder config check`, its commands exist, configurations of clients have the keys that clients read, and each link
//! leads somewhere.
//!
//! What clients read, in their own words:
//! - containerd: https://github.com/containerd/containerd/blob/main/docs/hosts.md (`referrers` is in the code since 2.2,
//!   core/remotes/docker/config/hosts.go; a word that it does not know makes the whole file an error)
//! - Docker with the containerd image store: https://github.com/moby/moby/blob/v28.0.0/daemon/hosts.go
//! - Podman, CRI-O: containers-registries.conf(5)
//! - BuildKit: https://github.com/moby/buildkit/blob/master/util/resolver/config/config.go
//! - k3s, RKE2: https://docs.k3s.io/installation/private-registry, https://docs.rke2.io/install/private_registry

use std::fs;
use std::path::{Path, PathBuf};

use saphyr_parser::Parser;
use toml::{Table, Value};

use crate::support::Larder;
use crate::support::tls::Authority;

/// A page and its text.
struct Page {
    path: PathBuf,
    text: String,
}

/// What stands between two lines of backticks.
struct Block<'a> {
    language: &'a str,
    text: String,
    /// Page and line, for messages.
    place: String,
}

/// README.md and all pages of docs/.
fn pages() -> Vec<Page> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("docs/").map(|entry| entry.expect("an entry").path());
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let paths = docs.filter(is_page).chain([root.join("README.md")]);
    let pages: Vec<_> = paths.map(|path| Page { text: fs::read_to_string(&path).expect("readable"), path }).collect();
    assert!(pages.len() > 10, "the pages were found");
    pages
}

impl Page {
    fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(language) = line.trim_start().strip_prefix("```") else { continue };
            let inner = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
            let text = inner.collect::<Vec<_>>().join("\n");
            blocks.push(Block { language, text, place: format!("{}:{}", self.path.display(), number + 1) });
        }
        blocks
    }

    /// The lines outside blocks.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let mut is_inside = false;
        self.text.lines().filter(move |line| {
            let is_fence = line.trim_start().starts_with("```");
            is_inside ^= is_fence;
            !is_inside && !is_fence
        })
    }

    /// The anchors of its headings, as GitHub makes them: lower case, no punctuation, `-` for each space.
    fn anchors(&self) -> Vec<String> {
        let headings = self.prose().filter(|line| line.starts_with('#'));
        let title = |line: &str| line.trim_start_matches('#').trim().to_lowercase();
        let is_kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
        headings.map(|line| title(line).chars().filter(is_kept).collect::<String>().replace(' ', "-")).collect()
    }
}

fn blocks_of<'a>(pages: &'a [Page], language: &str) -> Vec<Block<'a>> {
    pages.iter().flat_map(Page::blocks).filter(|block| block.language == language).collect()
}

fn table(block: &Block<'_>) -> Table {
    block.text.parse().unwrap_or_else(|error| panic!("{}: {error}", block.place))
}

/// Whether it is the configuration of a client. All else is taken for Larder's, misspelt keys, too.
fn is_of_a_client(table: &Table) -> bool {
    table.iter().all(|(key, value)| match key.as_str() {
        "host" | "plugins" | "version" | "registry" => true,
        // containerd's is a URL, Larder's a table.
        "server" => value.is_str(),
        _ => false,
    })
}

/// Makes the files that the pages' configurations name, in a folder.
fn make_files(folder: &Path) {
    let authority = Authority::new(folder, "authority");
    let issued = authority.issue("mirror.example.com");
    fs::copy(issued.certificate, folder.join("fullchain.pem")).expect("copied");
    fs::copy(issued.key, folder.join("key.pem")).expect("copied");
    fs::copy(authority.file(), folder.join("clients.pem")).expect("copied");
    let bob = "bob:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n";
    fs::write(folder.join("htpasswd"), bob).expect("written");
    for secret in ["hub-token", "oidc.secret", "db-password"] {
        fs::write(folder.join(secret), "geheim\n").expect("written");
    }
    fs::write(folder.join("cluster-token"), format!("{}\n", "0123456789abcdef".repeat(4))).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_configuration_of_larder_in_the_pages_passes_the_check() {
    let pages = pages();
    let larder = Larder::builder().config("").prepare();
    let mut checked = 0;
    for block in blocks_of(&pages, "toml") {
        if is_of_a_client(&table(&block)) {
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        make_files(folder.path());
        fs::write(folder.path().join("larder.toml"), &block.text).expect("written");
        let ran = larder.run_in(folder.path(), &[("HUB_TOKEN", "geheim")], &["config", "check"]).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{}: {ran:?}", block.place);
        checked += 1;
    }
    assert!(checked > 10, "{checked} configurations were found");
}

/// The words of a `hosts.toml`: https://github.com/containerd/containerd/blob/main/docs/hosts.md
fn assert_hosts(hosts: &Table, place: &str) {
    for (url, host) in hosts {
        assert!(url.starts_with("http://") || url.starts_with("https://"), "{place}: {url} has no scheme");
        let words = host["capabilities"].as_array().unwrap_or_else(|| panic!("{place}: {url} has no capabilities"));
        for word in words {
            let word = word.as_str().expect("a text");
            assert!(["pull", "resolve", "referrers"].contains(&word), "{place}: a mirror does not {word}");
        }
        let known = ["capabilities", "ca", "client", "header", "override_path", "skip_verify"];
        for key in host.as_table().expect("a table").keys() {
            assert!(known.contains(&key.as_str()), "{place}: {key}");
        }
    }
}

#[test]
fn each_configuration_of_a_client_in_toml_has_the_keys_that_the_client_reads() {
    let pages = pages();
    let (mut hosts, mut containerd, mut buildkit, mut podman) = (0, 0, 0, 0);
    for block in blocks_of(&pages, "toml") {
        let table = table(&block);
        if !is_of_a_client(&table) {
            continue;
        }
        if let Some(Value::Table(table)) = table.get("host") {
            assert_hosts(table, &block.place);
            hosts += 1;
        }
        for (plugin, settings) in table.get("plugins").and_then(Value::as_table).into_iter().flatten() {
            let version = table.get("version").and_then(Value::as_integer);
            // The table of 2.x is read only in a file of version 3, that of 1.x only in one of version 2.
            let expected = match plugin.as_str() {
                "io.containerd.cri.v1.images" => 3,
                "io.containerd.grpc.v1.cri" => 2,
                _ => panic!("{}: {plugin}", block.place),
            };
            assert_eq!(version, Some(expected), "{}", block.place);
            assert!(settings["registry"]["config_path"].is_str(), "{}", block.place);
            containerd += 1;
        }
        match table.get("registry") {
            Some(Value::Table(registries)) => {
                let known = ["mirrors", "http", "insecure", "ca", "keypair"];
                for key in registries.values().filter_map(Value::as_table).flat_map(Table::keys) {
                    assert!(known.contains(&key.as_str()), "{}: {key}", block.place);
                }
                buildkit += 1;
            }
            Some(Value::Array(registries)) => {
                for registry in registries {
                    let has = |key: &str| registry.get(key).is_some_and(Value::is_str);
                    assert!(has("location") && registry["mirror"][0]["location"].is_str(), "{}", block.place);
                }
                podman += 1;
            }
            _ => {}
        }
    }
    assert!(hosts > 2 && containerd > 1 && buildkit > 0 && podman > 0, "{hosts} {containerd} {buildkit} {podman}");
}

/// The arguments of `larder` in a line of a shell, up to what is for the shell itself.
fn arguments(line: &str) -> Option<Vec<&str>> {
    let line = line.trim_start_matches("$ ").trim_start_matches("./");
    let words = line.strip_prefix("larder ")?.split_whitespace();
    Some(words.take_while(|word| !word.starts_with(['>', '|', '#', '<', ';', '&'])).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_of_larder_in_the_pages_exists_with_its_options() {
    let pages = pages();
    let larder = Larder::builder().config("").prepare();
    let mut found = 0;
    for block in ["sh", "console"].into_iter().flat_map(|language| blocks_of(&pages, language)) {
        for arguments in block.text.lines().filter_map(arguments) {
            // The parser refuses an unknown word before it comes to the help.
            let ran = larder.run(&[&arguments[..], &["--help"]].concat()).await;
            assert_eq!(ran.code, Some(0), "{}: {arguments:?}: {}", block.place, ran.stderr);
            found += 1;
        }
    }
    assert!(found > 10, "{found} commands were found");
}

#[test]
fn each_block_of_json_and_yaml_can_be_read() {
    let pages = pages();
    let json = blocks_of(&pages, "json");
    let mut of_docker = 0;
    for block in &json {
        let value: serde_json::Value =
            serde_json::from_str(&block.text).unwrap_or_else(|error| panic!("{}: {error}", block.place));
        of_docker += usize::from(value.get("registry-mirrors").is_some());
    }
    assert!(of_docker > 0, "the daemon.json was found");
    let yaml = blocks_of(&pages, "yaml");
    for block in &yaml {
        for event in Parser::new_from_str(&block.text) {
            event.unwrap_or_else(|error| panic!("{}: {error}", block.place));
        }
    }
    assert!(yaml.iter().any(|block| block.text.starts_with("mirrors:")), "the registries.yaml was found");
}

#[test]
fn each_link_leads_to_a_file_and_a_heading_that_exist() {
    let pages = pages();
    let mut followed = 0;
    for page in &pages {
        let prose = page.prose().collect::<Vec<_>>().join("\n");
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = page.path.parent().expect("a folder");
            let target = if path.is_empty() { page.path.clone() } else { folder.join(path) };
            let target = target.canonicalize().unwrap_or_else(|_| panic!("{}: {link}", page.path.display()));
            if !anchor.is_empty() {
                let target = pages.iter().find(|page| page.path.canonicalize().ok().as_ref() == Some(&target));
                let anchors = target.map(Page::anchors).unwrap_or_default();
                assert!(anchors.iter().any(|own| own == anchor), "{}: {link}", page.path.display());
            }
            followed += 1;
        }
    }
    assert!(followed > 50, "{followed} links were found");
}
