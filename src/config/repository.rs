//! `[repository."…"]` and its upstreams, checked.

use std::collections::HashMap;
use std::time::Duration;

use super::auth::{self, Allow};
use super::built_in::{BUILT_IN, DOCKER_HUB};
use super::check::Check;
use super::error::ConfigError;
use super::host::plain_host;
use super::raw::{self, ClientCredentials, OnUpstream404, OneOrMany, Pattern, Prefetch};
use super::units::Limit;
use super::upstream::{self, Around, Upstream};

/// A local repository: a prefix of names, how requests select it, and where its content comes from.
#[derive(Clone, Debug)]
pub struct Repository {
    /// The key of its table, which is also the local path prefix.
    pub prefix: String,
    /// Values of `?ns=` that select it.
    pub namespaces: Vec<String>,
    /// Values of `Host` that select it, in lower case.
    pub hosts: Vec<String>,
    pub scopes: Vec<Pattern>,
    /// The policy for tags that no rule matches, and for lists and digests.
    pub tags: TagPolicy,
    /// Rules in order; the first whose pattern matches a tag applies.
    pub tag_rules: Vec<(Pattern, TagPolicy)>,
    /// How long the upstream's consent is remembered. Set if the upstream decides by the client's own credentials what
    /// the client may read.
    pub client_consent: Option<Duration>,
    /// Clients that may pull; never empty.
    pub allow: Vec<Allow>,
    /// How long its objects are kept unused; `None`: as `cache.ttl` says.
    pub ttl: Option<Limit>,
    /// When the rest of an image is brought in behind a pull.
    pub prefetch: Prefetch,
    /// Regexes on `NAME:TAG` of images that are never evicted.
    pub pin: Vec<Pattern>,
    /// Whether names follow the custom of Docker Hub: `alpine` means `library/alpine`.
    pub implies_library: bool,
    /// In order of preference; never empty.
    pub upstreams: Vec<Upstream>,
    /// Whether this is one upstream of several: its answer about a tag is not the answer of all of them.
    pub one_of_several: bool,
}

/// How cached tags are kept and revalidated.
#[derive(Clone, Debug)]
pub struct TagPolicy {
    pub immutable: bool,
    pub immutable_exclusions: Vec<Pattern>,
    pub max_age: Duration,
    /// How much longer than `max_age` a tag is served while it is revalidated.
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Limit,
    pub on_upstream_404: OnUpstream404,
    /// How long a confirmed 404 is remembered.
    pub negative_max_age: Duration,
}

/// The shelf of what clients' own credentials learnt of all upstreams in order.
const BY_CLIENTS: &str = " by clients";

impl Repository {
    /// Creates a repository that the configuration does not have, with an upstream that a client names.
    pub fn named_by_client(prefix: String, upstream: Upstream, client_consent: Option<Duration>) -> Self {
        let mut made = Self {
            prefix,
            namespaces: Vec::new(),
            hosts: Vec::new(),
            scopes: Vec::new(),
            tags: TagPolicy::of(&mut raw::Repository::default()),
            tag_rules: Vec::new(),
            client_consent,
            allow: vec![Allow::Anyone],
            ttl: None,
            // Nobody has said that anything may be fetched there that no client asks for.
            prefetch: Prefetch::Off,
            pin: Vec::new(),
            implies_library: false,
            upstreams: vec![upstream],
            one_of_several: false,
        };
        made.forget_absences();
        made
    }

    /// Stops the caching of absences: each request for an absent object asks the upstream, since the client may be just
    /// about to push that object.
    pub fn forget_absences(&mut self) {
        self.tags.negative_max_age = Duration::ZERO;
        self.tag_rules.iter_mut().for_each(|(_, policy)| policy.negative_max_age = Duration::ZERO);
    }

    /// Returns the shelf of what this repository knows about tags and lists. It depends on whose credentials asked, and
    /// names the upstream if this is one of several. Empty for Larder's own credentials and all upstreams in order.
    pub fn shelf(&self) -> String {
        self.shelf_by(if self.client_consent.is_some() { BY_CLIENTS } else { "" })
    }

    /// Returns the shelf of the same upstreams for the other credentials: Larder's own or those of clients.
    pub fn other_shelf(&self) -> String {
        self.shelf_by(if self.client_consent.is_some() { "" } else { BY_CLIENTS })
    }

    /// Returns all shelves on which a tag of these upstreams may be.
    pub fn shelves(&self) -> [String; 4] {
        [self.shelf(), self.other_shelf(), String::new(), BY_CLIENTS.to_owned()]
    }

    fn shelf_by(&self, by: &str) -> String {
        match self.upstreams.first().filter(|_| self.one_of_several) {
            Some(Upstream { url, .. }) => format!("{by} at {}{}", url.origin, url.namespace),
            None => by.to_owned(),
        }
    }

    /// Returns the name of this repository in the keys under which Larder remembers requests and their results: its
    /// prefix with its shelf.
    pub fn asked_as(&self) -> String {
        [self.prefix.as_str(), &self.shelf()].concat()
    }

    /// Returns the policy for `tag`: that of the first rule that matches, otherwise the repository's.
    pub fn policy_of(&self, tag: &str) -> &TagPolicy {
        let rule = self.tag_rules.iter().find(|(pattern, _)| pattern.is_match(tag));
        rule.map_or(&self.tags, |(_, policy)| policy)
    }
}

impl TagPolicy {
    fn of(written: &mut raw::Repository) -> Self {
        Self {
            immutable: written.immutable_tags,
            immutable_exclusions: std::mem::take(&mut written.immutable_tags_exclusions),
            max_age: written.max_age.0,
            stale_while_revalidate: written.stale_while_revalidate.0,
            stale_if_error: written.stale_if_error,
            on_upstream_404: written.on_upstream_404,
            negative_max_age: written.negative_max_age.0,
        }
    }

    /// Returns whether `tag` is never revalidated once it is cached.
    pub fn is_immutable(&self, tag: &str) -> bool {
        self.immutable && !self.immutable_exclusions.iter().any(|pattern| pattern.is_match(tag))
    }
}

/// Adds what a file may leave out: the built-in repositories (`with_built_in`), and the upstream and namespace of a
/// repository that is built in or whose key is a host.
pub fn fill_in(repositories: &mut raw::Repositories, with_built_in: bool) {
    let missing = if with_built_in { missing_built_in(repositories) } else { Vec::new() };
    repositories.0.extend(missing);
    for (prefix, repository) in &mut repositories.0 {
        let built_in = BUILT_IN.iter().find(|(name, ..)| name == prefix);
        let usual = match built_in {
            Some((_, url, _)) => Some((*url).to_owned()),
            None => is_host(prefix).then(|| format!("https://{prefix}")),
        };
        match (&mut repository.upstream[..], usual) {
            ([], usual) => {
                repository.upstream.extend(usual.map(|url| raw::Upstream { url, ..raw::Upstream::default() }));
            }
            // The only upstream is the usual one, perhaps with a login. Of several, each has to have its URL.
            ([only], Some(url)) if only.url.is_empty() => only.url = url,
            _ => {}
        }
        let namespaces = || match built_in {
            Some((.., list)) => list.iter().map(|&name| name.to_owned()).collect(),
            None if is_host(prefix) => vec![prefix.clone()],
            None => Vec::new(),
        };
        repository.namespace.get_or_insert_with(|| OneOrMany(namespaces()));
    }
}

/// Returns the built-in repositories that the file does not name. A namespace that a repository of the file has stays
/// with that repository.
fn missing_built_in(written: &raw::Repositories) -> Vec<(String, raw::Repository)> {
    let named: Vec<_> = written.0.iter().filter_map(|(_, repository)| repository.namespace.as_ref()).collect();
    let is_taken = |namespace: &&str| named.iter().flat_map(|list| &list.0).any(|name| plain_host(name) == **namespace);
    let built_in = BUILT_IN.iter().filter(|(prefix, ..)| written.0.iter().all(|(name, _)| name != prefix));
    let repository = |(prefix, _, namespaces): &(&str, &str, &[&str])| {
        let free = namespaces.iter().copied().filter(|namespace| !is_taken(namespace)).map(str::to_owned);
        let namespace = Some(OneOrMany(free.collect()));
        ((*prefix).to_owned(), raw::Repository { namespace, ..raw::Repository::default() })
    };
    built_in.map(repository).collect()
}

/// Checks all repositories, each by itself and against the others.
pub fn check_all(
    check: &Check<'_>,
    written: raw::Repositories,
    around: &Around,
) -> Result<Vec<Repository>, ConfigError> {
    let repositories = written
        .0
        .into_iter()
        .map(|(prefix, repository)| check_one(check, prefix, repository, around))
        .collect::<Result<Vec<_>, _>>()?;

    refuse_duplicates(check, &repositories, "namespace", |repository| &repository.namespaces)?;
    refuse_duplicates(check, &repositories, "hosts", |repository| &repository.hosts)?;
    Ok(repositories)
}

fn refuse_duplicates(
    check: &Check<'_>,
    repositories: &[Repository],
    key: &str,
    values: impl Fn(&Repository) -> &[String],
) -> Result<(), ConfigError> {
    let mut owners: HashMap<&str, &str> = HashMap::new();
    for repository in repositories {
        for value in values(repository) {
            if let Some(other) = owners.insert(value, &repository.prefix) {
                let message =
                    format!("`{value}` already selects [repository.\"{other}\"]; a request can go to one only");
                return Err(check.invalid(&["repository", &repository.prefix, key], message));
            }
        }
    }
    Ok(())
}

fn check_one(
    check: &Check<'_>,
    prefix: String,
    mut written: raw::Repository,
    around: &Around,
) -> Result<Repository, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["repository", &prefix, key], message);
    if !is_prefix(&prefix) {
        let message = "a repository's key is the first part of image names, such as docker.io or team/images, in lower case and without https://";
        return Err(check.invalid(&["repository", &prefix], message));
    }
    if written.upstream.is_empty() {
        let message = format!("it has no upstream; add [[repository.\"{prefix}\".upstream]] with a `url`");
        return Err(check.invalid(&["repository", &prefix], message));
    }
    let passes = written.client_credentials == ClientCredentials::Pass;
    let upstreams = std::mem::take(&mut written.upstream)
        .into_iter()
        .enumerate()
        .map(|(at, upstream)| upstream::check(check, &prefix, at, upstream, passes, around))
        .collect::<Result<Vec<_>, _>>()?;
    let OneOrMany(namespaces) = written.namespace.take().unwrap_or(OneOrMany(Vec::new()));
    let mut namespaces: Vec<String> = namespaces.iter().map(|name| plain_host(name)).collect();
    namespaces.sort();
    namespaces.dedup();
    if namespaces.iter().any(String::is_empty) {
        return Err(invalid("namespace", "it is empty; write namespace = [] for none".to_owned()));
    }
    if let Some(host) = written.hosts.iter().find(|host| host.is_empty() || host.contains(['/', ' ', '*'])) {
        let message = format!("`{host}` is no host; write for example hosts = [\"mirror.example.com\"]");
        return Err(invalid("hosts", message));
    }
    if !written.immutable_tags_exclusions.is_empty() && !written.immutable_tags {
        let message = "it has no effect without `immutable_tags = true`".to_owned();
        return Err(invalid("immutable_tags_exclusions", message));
    }
    let is_hub = |host: &str| DOCKER_HUB.contains(&host);
    let implies_library = upstreams.iter().all(|upstream| upstream.url.namespace.is_empty())
        && (is_hub(&prefix)
            || namespaces.iter().any(|name| is_hub(name))
            || upstreams.iter().any(|upstream| upstream.url.origin.host_str().is_some_and(is_hub)));

    let tags = TagPolicy::of(&mut written);
    Ok(Repository {
        namespaces,
        hosts: written.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
        scopes: written.scopes,
        tag_rules: check_rules(check, &prefix, written.tag, &tags)?,
        tags,
        client_consent: passes.then_some(written.consent_max_age.0),
        allow: auth::check_allow(&written.allow, &around.auth, around.has_certificates, passes)
            .map_err(|message| invalid("allow", message))?,
        ttl: written.ttl,
        prefetch: written.prefetch,
        pin: written.pin,
        implies_library,
        upstreams,
        one_of_several: false,
        prefix,
    })
}

fn check_rules(
    check: &Check<'_>,
    prefix: &str,
    written: Vec<raw::TagRule>,
    usual: &TagPolicy,
) -> Result<Vec<(Pattern, TagPolicy)>, ConfigError> {
    let rule = |(at, rule): (usize, raw::TagRule)| {
        let pattern = rule.r#match.ok_or_else(|| {
            let message = "it is missing; write the regex of the tags it is for, such as match = \"^v[0-9]\"";
            check.invalid(&["repository", prefix, "tag", &at.to_string(), "match"], message)
        })?;
        let policy = TagPolicy {
            immutable: rule.immutable_tags.unwrap_or(usual.immutable),
            // A rule that makes its own tags immutable means all of them.
            immutable_exclusions: match rule.immutable_tags {
                Some(_) => Vec::new(),
                None => usual.immutable_exclusions.clone(),
            },
            max_age: rule.max_age.map_or(usual.max_age, |span| span.0),
            stale_while_revalidate: rule.stale_while_revalidate.map_or(usual.stale_while_revalidate, |span| span.0),
            stale_if_error: rule.stale_if_error.unwrap_or(usual.stale_if_error),
            on_upstream_404: rule.on_upstream_404.unwrap_or(usual.on_upstream_404),
            negative_max_age: rule.negative_max_age.map_or(usual.negative_max_age, |span| span.0),
        };
        Ok((pattern, policy))
    };
    written.into_iter().enumerate().map(rule).collect()
}

/// Returns whether a text can be a prefix: one or more path segments that are valid in an image name, the first of them
/// perhaps a host with a port.
pub fn is_prefix(text: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-:".contains(&byte);
    text.split('/').all(|segment| !segment.is_empty() && segment != "v2" && segment.bytes().all(is_character))
}

fn is_host(prefix: &str) -> bool {
    !prefix.contains('/') && (prefix.contains(['.', ':']) || prefix == "localhost")
}
