//! `[auth]` and `allow`, checked: which clients may connect, and which may pull from which repository.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::check::Check;
use super::error::{ConfigError, nearest};
use super::oidc::{self, ClaimRule, Issuer};
use super::proxy::Proxies;
use super::raw;
use super::secret::Secret;

/// Which clients may connect, and how they log in.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// Networks that clients may connect from; empty: all.
    pub allow_cidrs: Vec<IpNet>,
    pub htpasswd: Option<Htpasswd>,
    /// Issuers whose tokens are trusted.
    pub issuers: Vec<Issuer>,
}

impl Auth {
    /// Returns whether clients can log in.
    pub fn has_logins(&self) -> bool {
        self.htpasswd.is_some() || !self.issuers.is_empty()
    }

    /// Returns the name of an issuer whose tokens anybody can get. Looks at all issuers, or only at the one called
    /// `name`.
    fn everybodys_issuer(&self, name: Option<&str>) -> Option<&str> {
        let is_meant = |issuer: &&Issuer| name.is_none_or(|name| issuer.name == name);
        let is_open = |issuer: &&Issuer| {
            let url = issuer.issuer.trim_end_matches('/');
            issuer.required.is_empty() && PUBLIC_ISSUERS.contains(&url)
        };
        self.issuers.iter().filter(is_meant).find(is_open).map(|issuer| issuer.name.as_str())
    }
}

/// Users and the bcrypt hashes of their passwords.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Htpasswd {
    pub realm: String,
    pub users: HashMap<String, Secret>,
}

/// One entry of `allow`: clients that may pull from a repository, use the proxy door or manage the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// `*`: every client; if clients can log in, only those that logged in or showed a certificate.
    Anyone,
    /// `anonymous`: every client, also without a login.
    Anonymous,
    /// `user:NAME`: the user of that name.
    User(String),
    /// `oidc:ISSUER`, `oidc:ISSUER:CLAIM=VALUE`: clients with a token of an issuer, which has this name in the
    /// configuration.
    Token { issuer: String, rule: Option<ClaimRule> },
    /// `cert:NAME`: clients whose certificate has this common name or alternative name; may begin with `*`.
    Certificate(String),
    /// `cert:O=NAME`: clients whose certificate has this organisation.
    Organisation(String),
    /// Clients with an address in this network.
    Network(IpNet),
}

/// Issuers that give a token for any audience to everybody with an account there.
const PUBLIC_ISSUERS: [&str; 3] =
    ["https://token.actions.githubusercontent.com", "https://gitlab.com", "https://accounts.google.com"];
/// The part of an error message about such an issuer.
const EVERYBODY: &str =
    "anybody in the world can have a token of it; say which with `required_claims`, or here with a claim";

/// Largest bcrypt cost that a password may have: with a larger one, each login takes minutes.
const MAX_COST: u32 = 16;

/// Checks `[auth]` and reads the files that it names.
pub fn check(check: &Check<'_>, written: raw::Auth, proxies: &Proxies) -> Result<Auth, ConfigError> {
    let allow_cidrs = written.allow_cidrs.iter().map(|network| network.0).collect();
    let htpasswd = match written.htpasswd {
        None => None,
        Some(htpasswd) => {
            let invalid = |key: &str, message| check.invalid(&["auth", "htpasswd", key], message);
            if htpasswd.path.as_os_str().is_empty() {
                return Err(invalid(
                    "path",
                    "it is missing; make the file with `htpasswd -B -c htpasswd NAME`".to_owned(),
                ));
            }
            if htpasswd.realm.is_empty() || htpasswd.realm.contains(|c: char| c.is_control() || c == '"' || c == '\\') {
                return Err(invalid("realm", "a realm is a word or some, without quotes".to_owned()));
            }
            let users = read(check, &htpasswd.path).map_err(|message| invalid("path", message))?;
            Some(Htpasswd { realm: htpasswd.realm, users })
        }
    };
    let issuers = oidc::check_all(check, written.oidc, proxies)?;
    Ok(Auth { allow_cidrs, htpasswd, issuers })
}

fn read(check: &Check<'_>, path: &Path) -> Result<HashMap<String, Secret>, String> {
    check.depends_on(path);
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut users = HashMap::new();
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| format!("{}:{number}: {why}", path.display());
        let (user, hash) = line.split_once(':').ok_or_else(|| wrong("this is no line of the form NAME:HASH"))?;
        let hash = hash.split(':').next().unwrap_or_default();
        let cost = ["$2a$", "$2b$", "$2y$"].iter().find_map(|kind| hash.strip_prefix(kind));
        let cost = cost.and_then(|rest| rest.split('$').next()?.parse::<u32>().ok());
        let cost = cost.filter(|_| hash.len() == 60);
        match cost {
            None => return Err(wrong("the password is not hashed with bcrypt; make the line with `htpasswd -B`")),
            Some(cost) if cost > MAX_COST => {
                return Err(wrong("its bcrypt cost makes each login take minutes; make the line with `htpasswd -B`"));
            }
            Some(_) => {}
        }
        if users.insert(user.to_owned(), Secret::new(hash)).is_some() {
            return Err(wrong("the user stands twice; take one line out"));
        }
    }
    if users.is_empty() {
        return Err(format!("{} has no user; add one with `htpasswd -B`", path.display()));
    }
    Ok(users)
}

/// Reads the `allow` of a repository or door. `passes`: whether clients log in with their credentials for the upstream.
pub fn check_allow(
    written: &[String],
    auth: &Auth,
    has_certificates: bool,
    passes: bool,
) -> Result<Vec<Allow>, String> {
    if written.is_empty() {
        return Err("nobody could pull; write for example allow = [\"*\"]".to_owned());
    }
    let mut allow = Vec::new();
    for text in written {
        let entry = text.parse::<Entry>().map_err(|Unknown| {
            format!("`{text}` is not one of \"*\", \"anonymous\", \"user:NAME\", \"oidc:ISSUER:CLAIM=VALUE\", \"cert:NAME\", \"cert:O=NAME\" or a network such as \"10.0.0.0/8\"")
        })?;
        match &entry.0 {
            Allow::User(_) | Allow::Token { .. } if passes => {
                let message = "with client_credentials = \"pass\" clients log in as users of the upstream, which decides; take it out";
                return Err(format!("`{text}`: {message}"));
            }
            Allow::User(_) if auth.htpasswd.is_none() => {
                return Err(format!("`{text}`: nobody can log in; add [auth.htpasswd] with a `path`"));
            }
            Allow::Token { issuer, .. } if auth.issuers.iter().all(|known| known.name != *issuer) => {
                let known = nearest(issuer, auth.issuers.iter().map(|known| known.name.as_str()));
                let hint = match known {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => format!("add [auth.oidc.\"{issuer}\"] with its `issuer` and `audience`"),
                };
                return Err(format!("`{text}`: there is no issuer `{issuer}`; {hint}"));
            }
            Allow::Token { issuer: name, rule: None } if auth.everybodys_issuer(Some(name)).is_some() => {
                return Err(format!("`{text}`: {EVERYBODY}, as in \"oidc:{name}:sub=…\""));
            }
            Allow::Anyone if !passes && auth.everybodys_issuer(None).is_some() => {
                let name = auth.everybodys_issuer(None).unwrap_or_default();
                return Err(format!("`{text}`: with [auth.oidc.\"{name}\"] {EVERYBODY}; or write \"anonymous\""));
            }
            Allow::Certificate(_) | Allow::Organisation(_) if !has_certificates => {
                return Err(format!(
                    "`{text}`: clients are not asked for certificates; add `client_ca_bundle` to [server.tls]"
                ));
            }
            _ => {}
        }
        allow.push(entry.0);
    }
    Ok(allow)
}

/// The clients of the admin door.
pub struct Managers {
    /// Those that may change something.
    pub allow: Vec<Allow>,
    /// Those that may look, beside these.
    pub read: Vec<Allow>,
}

/// Reads `admin.allow` and `admin.read`. An error comes with the key that is wrong.
pub fn check_managers(admin: &raw::Admin, auth: &Auth) -> Result<Managers, (&'static str, String)> {
    let outside = admin.listen.0.iter().find(|address| !address.ip().is_loopback());
    let keys = [
        ("allow", &admin.allow, "anybody could clear the cache"),
        ("read", &admin.read, "anybody could read what is cached, and for whom"),
    ];
    let [mut allow, mut read] = [Vec::new(), Vec::new()];
    for ((key, written, danger), checked) in keys.into_iter().zip([&mut allow, &mut read]) {
        let others: Vec<_> = written.iter().filter(|text| *text != LOOPBACK).cloned().collect();
        if !others.is_empty() {
            *checked = check_allow(&others, auth, false, false).map_err(|message| (key, message))?;
        }
        let is_open = |entry: &Allow| match entry {
            Allow::Anyone => !auth.has_logins(),
            Allow::Anonymous => true,
            _ => false,
        };
        if let (Some(address), true) = (outside, checked.iter().any(is_open)) {
            return Err((key, format!("with {address} in `listen` {danger}; name users or networks")));
        }
    }
    if let (Some(address), true, true) = (outside, allow.is_empty(), read.is_empty()) {
        let message = format!(
            "{address} can be reached from other machines, and `allow` names none of them; listen on a loopback address such as 127.0.0.1:17081, or add allow = [\"user:NAME\"] and [auth.htpasswd]"
        );
        return Err(("listen", message));
    }
    for (written, checked) in [(&admin.allow, &mut allow), (&admin.read, &mut read)] {
        if written.iter().any(|text| text == LOOPBACK) {
            checked.extend(loopback());
        }
    }
    if allow.is_empty() {
        return Err(("allow", "nobody could come in; write for example allow = [\"loopback\"]".to_owned()));
    }
    Ok(Managers { allow, read })
}

/// The entry of `admin.allow` and `admin.read` for clients on this machine.
const LOOPBACK: &str = "loopback";

fn loopback() -> impl Iterator<Item = Allow> {
    let networks = [IpAddr::from([127, 0, 0, 0]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
    let networks = networks.into_iter().zip([8, 128]).filter_map(|(ip, length)| IpNet::new(ip, length).ok());
    networks.map(Allow::Network)
}

struct Entry(Allow);

struct Unknown;

impl std::str::FromStr for Entry {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let named = |name: &str| (!name.is_empty()).then(|| name.to_owned()).ok_or(Unknown);
        let allow = match text.split_once(':') {
            _ if text == "*" => Allow::Anyone,
            _ if text == "anonymous" => Allow::Anonymous,
            Some(("user", name)) => Allow::User(named(name)?),
            Some(("oidc", rest)) => match rest.split_once(':') {
                None => Allow::Token { issuer: named(rest)?, rule: None },
                Some((issuer, rule)) => {
                    let (claim, value) = rule.split_once('=').ok_or(Unknown)?;
                    let rule = ClaimRule { claim: named(claim)?, values: vec![named(value)?] };
                    Allow::Token { issuer: named(issuer)?, rule: Some(rule) }
                }
            },
            Some(("cert", name)) => match name.strip_prefix("O=") {
                Some(organisation) => Allow::Organisation(named(organisation)?),
                None => Allow::Certificate(named(name.strip_prefix("CN=").unwrap_or(name))?),
            },
            _ => {
                let network = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
                Allow::Network(network.map_err(|_| Unknown)?)
            }
        };
        Ok(Self(allow))
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("*"),
            Self::Anonymous => f.write_str("anonymous"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Token { issuer, rule: None } => write!(f, "oidc:{issuer}"),
            Self::Token { issuer, rule: Some(rule) } => {
                write!(f, "oidc:{issuer}:{}={}", rule.claim, rule.values.join("|"))
            }
            Self::Certificate(name) => write!(f, "cert:{name}"),
            Self::Organisation(name) => write!(f, "cert:O={name}"),
            Self::Network(network) => network.fmt(f),
        }
    }
}
