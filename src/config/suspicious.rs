//! Warnings about what is allowed and hardly meant.

use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::auth::Allow;
use super::built_in::BUILT_IN;
use super::check::Check;
use super::error::nearest;
use super::{Amount, Config, Htpasswd};

/// Warns of everything in a configuration that is hardly meant.
pub fn warn(check: &Check<'_>, config: &Config) {
    warn_of_ourselves(check, config);
    warn_of_misspelt_registries(check, config);
    warn_of_a_cache_without_room(check, config);
    warn_of_logins_for_nobody(check, config);
    let Some(htpasswd) = &config.auth.htpasswd else {
        return;
    };
    for repository in &config.repositories {
        warn_of_strangers(check, &["repository", &repository.prefix, "allow"], &repository.allow, htpasswd);
    }
    warn_of_strangers(check, &["admin", "allow"], &config.admin.allow, htpasswd);
    if let Some(door) = &config.proxy {
        warn_of_strangers(check, &["proxy", "allow"], &door.allow, htpasswd);
    }
}

/// Warns of users in `allow` that the htpasswd file does not have.
fn warn_of_strangers(check: &Check<'_>, key: &[&str], allow: &[Allow], htpasswd: &Htpasswd) {
    for entry in allow {
        let Allow::User(name) = entry else { continue };
        if htpasswd.users.contains_key(name) {
            continue;
        }
        let hint = match nearest(name, htpasswd.users.keys().map(String::as_str)) {
            Some(known) => format!("did you mean `user:{known}`?"),
            None => "add one with `htpasswd -B`".to_owned(),
        };
        check.warn(key, format!("`user:{name}`: the file of auth.htpasswd has no such user; {hint}"));
    }
}

/// Warns of a repository that is one letter away from a registry which Larder knows, and asks the host of its own name.
fn warn_of_misspelt_registries(check: &Check<'_>, config: &Config) {
    for repository in &config.repositories {
        let prefix = repository.prefix.as_str();
        let asks_itself = repository.upstreams.iter().all(|upstream| upstream.url.origin.host_str() == Some(prefix));
        let known = || BUILT_IN.iter().map(|(known, ..)| *known);
        if !asks_itself || known().any(|known| known == prefix) {
            continue;
        }
        if let Some(meant) = known().find(|known| strsim::osa_distance(known, prefix) == 1) {
            check.warn(&["repository", prefix], format!("did you mean [repository.\"{meant}\"]?"));
        }
    }
}

/// A number without a unit is a number of bytes, and was more likely meant as gigabytes.
fn warn_of_a_cache_without_room(check: &Check<'_>, config: &Config) {
    if let Amount::Bytes(bytes @ ..1024) = config.cache.max_size {
        let message = format!("{bytes} bytes hold no image; with a unit it is for example \"{bytes}GiB\"");
        check.warn(&["cache", "max_size"], message);
    }
}

/// Warns of logins to the dashboard that let nobody in.
fn warn_of_logins_for_nobody(check: &Check<'_>, config: &Config) {
    for issuer in config.auth.issuers.iter().filter(|issuer| issuer.login.is_some()) {
        let names = |entry: &Allow| match entry {
            Allow::Anyone => true,
            Allow::Token { issuer: name, .. } => *name == issuer.name,
            _ => false,
        };
        if !config.admin.allow.iter().chain(&config.admin.read).any(names) {
            let name = &issuer.name;
            let message = format!(
                "neither admin.allow nor admin.read names its people, so each is turned away; write there for example \"oidc:{name}:CLAIM=VALUE\""
            );
            check.warn(&["auth", "oidc", name, "login"], message);
        }
    }
}

/// Warns of upstreams that are this Larder itself.
fn warn_of_ourselves(check: &Check<'_>, config: &Config) {
    for repository in &config.repositories {
        for (at, upstream) in repository.upstreams.iter().enumerate() {
            let origin = &upstream.url.origin;
            if config.server.listen.iter().any(|address| is_at(origin, *address)) {
                let key = ["repository", &repository.prefix, "upstream", &at.to_string(), "url"];
                let message =
                    format!("{origin} is this Larder itself (server.listen); write the registry that it caches");
                check.warn(&key, message);
            }
        }
    }
}

/// Returns whether a URL of this machine leads to a listening address.
fn is_at(url: &Url, address: SocketAddr) -> bool {
    if url.port_or_known_default() != Some(address.port()) {
        return false;
    }
    let is_ours = |ip: IpAddr| ip == address.ip() || (address.ip().is_unspecified() && ip.is_loopback());
    match url.host() {
        Some(Host::Ipv4(ip)) => is_ours(ip.into()),
        Some(Host::Ipv6(ip)) => is_ours(ip.into()),
        Some(Host::Domain("localhost")) => address.ip().is_unspecified() || address.ip().is_loopback(),
        Some(Host::Domain(_)) | None => false,
    }
}
