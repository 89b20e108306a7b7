//! Names of repositories: hosts by which clients know a registry, besides the host of its upstream. Docker Hub has
//! four.

use std::collections::{HashMap, HashSet};

use url::Url;

use crate::config::Config;
use crate::upstream::Server;

/// The upstream behind each name.
#[derive(Default)]
pub struct Names(HashMap<Server, Behind>);

/// The first upstream of a repository.
struct Behind {
    server: Server,
    origin: Url,
    namespace: String,
}

/// The ports of a name that has none.
const USUAL: [u16; 2] = [443, 80];

impl Names {
    /// Collects the names. Names that are no hosts, or that are hosts of upstreams, are left out: they stand for
    /// themselves.
    pub fn new(config: &Config) -> Self {
        let upstreams = config.repositories.iter().flat_map(|repository| &repository.upstreams);
        let taken: HashSet<_> = upstreams.filter_map(|upstream| place_of(&upstream.url.origin)).collect();
        let mut names = HashMap::new();
        for repository in &config.repositories {
            let Some(upstream) = repository.upstreams.first() else {
                continue;
            };
            for server in repository.namespaces.iter().flat_map(|name| places(name)) {
                let (url, behind) = (&upstream.url, place_of(&upstream.url.origin));
                if let Some(behind) = behind.filter(|_| !taken.contains(&server)) {
                    let (origin, namespace) = (url.origin.clone(), url.namespace.clone());
                    names.entry(server).or_insert(Behind { server: behind, origin, namespace });
                }
            }
        }
        Self(names)
    }

    /// Returns the upstream's server behind a name.
    pub fn behind(&self, server: &Server) -> Option<&Server> {
        self.0.get(server).map(|behind| &behind.server)
    }

    /// Returns the upstream's page for a registry's page that is asked for by a name. Other pages of such a host, such
    /// as a search or pages for people, are its own.
    pub fn page(&self, server: &Server, url: &Url) -> Option<(Server, Url)> {
        let behind = self.0.get(server)?;
        let rest = match url.path() {
            "/v2" => None,
            path => Some(path.strip_prefix("/v2/")?),
        };
        let mut page = behind.origin.clone();
        page.set_query(url.query());
        match rest {
            None => page.set_path("/v2"),
            Some(rest) => {
                let is_of_all = rest.is_empty() || rest == "_catalog" || behind.namespace.is_empty();
                // After a link or redirect of the upstream itself, the path has the namespace already.
                let is_inside = rest.strip_prefix(&behind.namespace).is_some_and(|rest| rest.starts_with('/'));
                match is_of_all || is_inside {
                    true => page.set_path(&format!("/v2/{rest}")),
                    false => page.set_path(&format!("/v2/{}/{rest}", behind.namespace)),
                }
            }
        }
        Some((behind.server.clone(), page))
    }
}

fn place_of(origin: &Url) -> Option<Server> {
    Server::new(origin.host_str()?, origin.port_or_known_default()?).ok()
}

fn places(name: &str) -> Vec<Server> {
    let is_host = name.contains(['.', ':']) || name == "localhost";
    let places = USUAL.map(|port| Server::parse(name, Some(port)).ok().filter(|_| is_host));
    places.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const CONFIG: &str = r#"
        [repository."docker.io"]
        namespace = ["docker.io", "Index.Docker.io:443", "registry-1.docker.io", "hub"]
        [repository.library]
        namespace = ["library.example:5000", "ghcr.io"]
        [[repository.library.upstream]]
        url = "https://registry.example/v2/library/deep"
        [repository."ghcr.io"]
        namespace = []
    "#;

    #[test]
    fn a_name_leads_to_the_first_upstream_and_an_upstream_to_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("larder.toml");
        std::fs::write(&file, CONFIG).expect("written");
        let names = Names::new(&Config::load(&[file], std::iter::empty()).expect("valid"));
        for (asked, expected) in [
            ("https://docker.io/v2/", Some("https://registry-1.docker.io/v2/")),
            ("https://index.docker.io/v2", Some("https://registry-1.docker.io/v2")),
            ("http://index.docker.io/v2/a/b/tags/list?n=1", Some("https://registry-1.docker.io/v2/a/b/tags/list?n=1")),
            ("https://registry-1.docker.io/v2/", None),
            ("https://docker.io/", None),
            ("https://index.docker.io/v1/search?q=x", None),
            ("https://index.docker.io/v2x/", None),
            ("https://index.docker.io:5000/v2/", None),
            ("https://hub/v2/", None),
            ("https://ghcr.io/v2/", None),
            ("https://library.example:5000/v2/", Some("https://registry.example/v2/")),
            (
                "https://library.example:5000/v2/a/tags/list",
                Some("https://registry.example/v2/library/deep/a/tags/list"),
            ),
            (
                "https://library.example:5000/v2/library/deep/a/tags/list",
                Some("https://registry.example/v2/library/deep/a/tags/list"),
            ),
            ("https://library.example/v2/", None),
        ] {
            let url = Url::parse(asked).expect("a URL");
            let server = place_of(&url).expect("a server");
            let page = names.page(&server, &url).map(|(_, page)| page.to_string());
            assert_eq!(page.as_deref(), expected, "{asked}");
        }
    }
}
