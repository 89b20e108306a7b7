//! `[repository."…"]` and its upstreams, checked.

use std::collections::HashMap;
use std::time::Duration;

use super::auth::{self, Allow};
use super::built_in::{BUILT_IN, DOCKER_HUB};
use super::check::Check;
use super::error::ConfigError;
use super::host::plain_host;
use super::raw::{self, ClientCredentials, OnUpstream404, OneOrMany, Pattern};
use super::units::Limit;
use super::upstream::{self, Around, Upstream};

/// A local repository: a prefix of names, how requests find it and where its content comes from.
#[derive(Clone, Debug)]
pub struct Repository {
    /// The table's key, which is also the local path prefix.
    pub prefix: String,
    /// Values of `?ns=` that select it.
    pub namespaces: Vec<String>,
    /// Values of `Host` that select it, in lower case.
    pub hosts: Vec<String>,
    pub scopes: Vec<Pattern>,
    /// For tags that no rule matches, and for lists and digests.
    pub tags: TagPolicy,
    /// In order; the first whose pattern matches a tag applies.
    pub tag_rules: Vec<(Pattern, TagPolicy)>,
    /// Set where the client's own credentials decide, upstream, what it may read: how long the
    /// upstream's consent is remembered.
    pub client_consent: Option<Duration>,
    /// Who may pull; never empty.
    pub allow: Vec<Allow>,
    /// How long its objects are kept unused; `None`: as long as any.
    pub ttl: Option<Limit>,
    /// Regexes on `NAME:TAG` of images that are never evicted.
    pub pin: Vec<Pattern>,
    /// Whether names follow Docker Hub's custom: `alpine` means `library/alpine`.
    pub implies_library: bool,
    /// In order of preference; never empty.
    pub upstreams: Vec<Upstream>,
    /// Set where this is one upstream of several: what it says of a tag is not what all say.
    pub one_of_several: bool,
}

/// How long tags are believed.
#[derive(Clone, Debug)]
pub struct TagPolicy {
    pub immutable: bool,
    pub immutable_exclusions: Vec<Pattern>,
    pub max_age: Duration,
    /// How much longer it is served while it is checked.
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Limit,
    pub on_upstream_404: OnUpstream404,
    /// How long a confirmed 404 is remembered.
    pub negative_max_age: Duration,
}

/// The shelf of what clients' own credentials show, of all upstreams in order.
const BY_CLIENTS: &str = " by clients";

impl Repository {
    /// One that the configuration does not have.
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
            pin: Vec::new(),
            implies_library: false,
            upstreams: vec![upstream],
            one_of_several: false,
        };
        made.forget_absences();
        made
    }

    /// From now on what does not exist is looked for each time: who asks may be just about to push it.
    pub fn forget_absences(&mut self) {
        self.tags.negative_max_age = Duration::ZERO;
        self.tag_rules.iter_mut().for_each(|(_, policy)| policy.negative_max_age = Duration::ZERO);
    }

    /// What tells apart what is known of tags and lists here from what others know of the same repository: whose
    /// credentials asked, and which upstream alone. Empty for Larder's own and all upstreams in order.
    pub fn shelf(&self) -> String {
        self.shelf_by(if self.client_consent.is_some() { BY_CLIENTS } else { "" })
    }

    /// The shelf of the same upstreams, by the other credentials: Larder's own or those of clients.
    pub fn other_shelf(&self) -> String {
        self.shelf_by(if self.client_consent.is_some() { "" } else { BY_CLIENTS })
    }

    /// All shelves that a tag of these upstreams may be on.
    pub fn shelves(&self) -> [String; 4] {
        [self.shelf(), self.other_shelf(), String::new(), BY_CLIENTS.to_owned()]
    }

    fn shelf_by(&self, by: &str) -> String {
        match self.upstreams.first().filter(|_| self.one_of_several) {
            Some(Upstream { url, .. }) => format!("{by} at {}{}", url.origin, url.namespace),
            None => by.to_owned(),
        }
    }

    /// Under what name it is remembered what is asked for here.
    pub fn asked_as(&self) -> String {
        format!("{}{}", self.prefix, self.shelf())
    }

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

    /// Whether `tag` is never checked again once it is cached.
    pub fn is_immutable(&self, tag: &str) -> bool {
        self.immutable && !self.immutable_exclusions.iter().any(|pattern| pattern.is_match(tag))
    }
}

/// Adds what a file need not say: the built-in repositories where it names none, the upstream and the
/// namespace of one whose key is a host.
pub fn fill_in(repositories: &mut raw::Repositories) {
    if repositories.0.is_empty() {
        repositories.0 = BUILT_IN.map(|(prefix, ..)| (prefix.to_owned(), raw::Repository::default())).into();
    }
    for (prefix, repository) in &mut repositories.0 {
        let built_in = BUILT_IN.iter().find(|(name, ..)| name == prefix);
        if repository.upstream.is_empty() {
            let url = match built_in {
                Some((_, url, _)) => Some((*url).to_owned()),
                None => is_host(prefix).then(|| format!("https://{prefix}")),
            };
            repository.upstream.extend(url.map(|url| raw::Upstream { url, ..raw::Upstream::default() }));
        }
        let namespaces = || match built_in {
            Some((.., list)) => list.iter().map(|&name| name.to_owned()).collect(),
            None if is_host(prefix) => vec![prefix.clone()],
            None => Vec::new(),
        };
        repository.namespace.get_or_insert_with(|| OneOrMany(namespaces()));
    }
}

/// Checks all repositories, each by itself and against each other.
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
        let message = "a repository's key is the first part of image names, such as docker.io or team/images";
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
            // Who says of just these tags that they are immutable means it.
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

/// A prefix is one or more path segments as they may stand in an image name, the first of them
/// perhaps a host with a port.
pub fn is_prefix(text: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-:".contains(&byte);
    text.split('/').all(|segment| !segment.is_empty() && segment != "v2" && segment.bytes().all(is_character))
}

fn is_host(prefix: &str) -> bool {
    !prefix.contains('/') && (prefix.contains(['.', ':']) || prefix == "localhost")
}
