//! Who may read what: challenges, Basic, the token service.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::Options;
use super::wire::{OTHER_REALM, Request, Response};

/// The `service` of challenges and token requests.
pub const SERVICE: &str = "registry.hub.test";

/// How the registry wants clients to authenticate.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Not at all.
    None,
    /// Basic, by one of `Options::users`, on every request.
    Basic,
    /// Basic, by passwords that end: a wrong one is this status, without a challenge.
    BasicThatEnds(u16),
    /// A Bearer token of the token service, which gives one to anonymous clients too (see `Options::private`).
    Token(TokenService),
}

/// How the token service behaves.
#[derive(Clone, Debug)]
pub struct TokenService {
    pub place: TokenPlace,
    /// Where on its host the service is.
    pub path: &'static str,
    pub field: TokenField,
    /// What challenges say of the scope, and what tokens have to be asked for.
    pub told_scope: ToldScope,
    /// How a token is refused whose time is over.
    pub ended: EndedToken,
    /// Seconds; `None` leaves the field out, which means 60.
    pub expires_in: Option<u64>,
    /// The `WWW-Authenticate` headers; `{realm}`, `{service}` and `{scope}` are filled in.
    pub challenges: Vec<String>,
    /// The status with which GET is refused, if it is.
    pub refuses_get: Option<u16>,
    /// The status with which POST (OAuth 2) is refused, if it is.
    pub refuses_post: Option<u16>,
    /// What the answers say of the token's life instead of `expires_in`.
    pub odd_life: Option<serde_json::Value>,
}

impl Default for TokenService {
    fn default() -> Self {
        Self {
            place: TokenPlace::Address(Ipv4Addr::LOCALHOST),
            path: "/token",
            field: TokenField::Both,
            told_scope: ToldScope::Pull,
            ended: EndedToken::Challenge,
            expires_in: Some(300),
            challenges: vec![r#"Bearer realm="{realm}",service="{service}",scope="{scope}""#.to_owned()],
            refuses_get: None,
            refuses_post: Some(405),
            odd_life: None,
        }
    }
}

/// Where the token service listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// `/token` on the registry's own host and port.
    Registry,
    /// A port of its own on this loopback address; 127.0.0.1 is the registry's host, any other is a stranger.
    Address(Ipv4Addr),
}

/// The fields of the answer that hold the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenField {
    Token,
    AccessToken,
    Both,
    /// `token`, beside an empty `access_token`.
    TokenAndEmpty,
}

/// The scope that challenges name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToldScope {
    /// `repository:NAME:pull`
    Pull,
    /// `repository:NAME:ACTIONS`
    Actions(&'static str),
    /// The same for all names.
    Fixed(&'static str),
    /// `repository:NAME:pull`, without the first part of the name.
    WithoutFirst,
}

impl ToldScope {
    fn of(self, name: &str) -> String {
        match self {
            _ if name.is_empty() => String::new(),
            Self::Pull => format!("repository:{name}:pull"),
            Self::Actions(actions) => format!("repository:{name}:{actions}"),
            Self::Fixed(scope) => scope.to_owned(),
            Self::WithoutFirst => format!("repository:{}:pull", self.told_name(name)),
        }
    }

    /// A name as scopes have it.
    fn told_name(self, name: &str) -> &str {
        match self {
            Self::WithoutFirst => name.split_once('/').map_or(name, |(_, rest)| rest),
            _ => name,
        }
    }

    /// The name that a token for a scope is good for, as scopes have it; `*` for all.
    fn name_in(self, scope: &str) -> Option<&str> {
        let (name, actions) = match self {
            Self::Fixed(told) => return (scope == told).then_some("*"),
            _ => scope.strip_prefix("repository:")?.rsplit_once(':')?,
        };
        actions.split(',').any(|action| action == "pull").then_some(name)
    }
}

/// How a token is refused whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedToken {
    /// 401 with the same challenge as without a token, and an `error`.
    Challenge,
    /// 401 with a challenge that leads to another service, which gives nothing to anonymous clients.
    OtherRealm,
    /// Another status, and no challenge.
    Status(u16),
}

/// The tokens that were handed out.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    pub issued: usize,
    valid: HashMap<String, Grant>,
    /// Those whose time is over.
    ended: HashSet<String>,
}

#[derive(Debug)]
struct Grant {
    user: String,
    repositories: HashSet<String>,
    until: Instant,
}

impl Tokens {
    /// The time of all is over.
    pub fn end_all(&mut self) {
        self.ended.extend(self.valid.drain().map(|(token, _)| token));
    }

    /// All are taken back before their time.
    pub fn revoke_all(&mut self) {
        self.valid.clear();
    }

    /// The token service's answer.
    pub fn answer(&mut self, request: &Request, options: &Options) -> Response {
        let Auth::Token(service) = &options.auth else {
            return Response::error(404, "UNSUPPORTED", "no token service");
        };
        let refused = if request.method == "POST" { service.refuses_post } else { service.refuses_get };
        if let Some(status) = refused {
            return Response::error(status, "UNSUPPORTED", "tokens are not had in this way");
        }
        let user = if request.method == "POST" { user_of_form(request, options) } else { user_of(request, options) };
        let user = match user {
            Ok(user) => user,
            Err(()) => return Response::json(401, &json!({"details": "incorrect username or password"})),
        };
        if request.path == OTHER_REALM && user.is_empty() {
            return Response::json(401, &json!({"details": "anonymous clients get no token here"}));
        }
        let scopes =
            if request.method == "POST" { form_values(request, "scope") } else { request.query_values("scope") };
        let repositories: HashSet<String> = scopes
            .iter()
            .flat_map(|scopes| scopes.split(' '))
            .filter_map(|scope| service.told_scope.name_in(scope))
            .filter(|told| {
                let mut private = options.private.iter().map(|(name, _)| name.as_str());
                let is_refused =
                    |name: &str| service.told_scope.told_name(name) == *told && !may_read(options, &user, name);
                !private.any(is_refused)
            })
            .map(str::to_owned)
            .collect();
        self.issued += 1;
        let token = format!("hub-token-{}", self.issued);
        let until = Instant::now() + Duration::from_secs(service.expires_in.unwrap_or(60));
        self.valid.insert(token.clone(), Grant { user, repositories, until });

        let mut body = json!({});
        if service.field != TokenField::AccessToken {
            body["token"] = token.clone().into();
        }
        match service.field {
            TokenField::Token => {}
            TokenField::TokenAndEmpty => body["access_token"] = "".into(),
            TokenField::AccessToken | TokenField::Both => body["access_token"] = token.into(),
        }
        if let Some(odd) = &service.odd_life {
            body["expires_in"] = odd.clone();
        } else if let Some(seconds) = service.expires_in {
            body["expires_in"] = seconds.into();
        }
        Response::json(200, &body)
    }

    /// Whose request it is; empty for everybody else.
    pub fn user(&self, request: &Request, options: &Options) -> String {
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        match token.and_then(|token| self.valid.get(token)) {
            Some(grant) => grant.user.clone(),
            None => user_of(request, options).unwrap_or_default(),
        }
    }

    /// `None` if the request may go on, else the refusal.
    pub fn check(&self, request: &Request, options: &Options, realm: &Realm) -> Option<Response> {
        match &options.auth {
            Auth::None => None,
            Auth::Basic => match user_of(request, options) {
                Ok(user) if !user.is_empty() && may_read(options, &user, &request.name) => None,
                _ => Some(challenge(request, options, realm, "")),
            },
            Auth::BasicThatEnds(status) => match user_of(request, options) {
                Ok(user) if !user.is_empty() => None,
                Ok(_) => Some(challenge(request, options, realm, "")),
                Err(()) => {
                    let words = "Your authorization token has expired. Reauthenticate and try again.";
                    Some(Response::error(*status, "DENIED", words))
                }
            },
            Auth::Token(service) => {
                let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
                let known = token.and_then(|token| self.valid.get(token));
                let grant = known.filter(|grant| Instant::now() < grant.until);
                let is_ended =
                    grant.is_none() && (known.is_some() || token.is_some_and(|token| self.ended.contains(token)));
                let error = match (token, grant) {
                    (_, Some(grant)) if grant.is_for(service.told_scope.told_name(&request.name)) => return None,
                    (None, _) => "",
                    (Some(_), None) => r#",error="invalid_token""#,
                    (Some(_), Some(_)) => r#",error="insufficient_scope""#,
                };
                Some(match service.ended {
                    EndedToken::Status(status) if is_ended => {
                        Response::error(status, "DENIED", "Your Authorization Token is invalid.")
                    }
                    EndedToken::OtherRealm if is_ended => {
                        let scope = service.told_scope.of(&request.name);
                        let told = format!(
                            r#"Bearer realm="{}",service="registry",scope="{scope}",error="invalid_token""#,
                            realm.other
                        );
                        denied().header("www-authenticate", told)
                    }
                    _ => challenge(request, options, realm, error),
                })
            }
        }
    }
}

impl Grant {
    fn is_for(&self, name: &str) -> bool {
        name.is_empty() || self.repositories.contains(name) || self.repositories.contains("*")
    }
}

/// Where challenges lead.
pub(super) struct Realm {
    pub usual: String,
    /// For tokens whose time is over, at some.
    pub other: String,
}

impl Realm {
    /// At a registry and a token service with these origins.
    pub fn of(options: &Options, registry: &str, token: &str) -> Self {
        let other = format!("{registry}{OTHER_REALM}");
        let usual = match &options.auth {
            Auth::Token(TokenService { place: TokenPlace::Registry, path, .. }) => format!("{registry}{path}"),
            Auth::Token(TokenService { path, .. }) => format!("{token}{path}"),
            _ => format!("{token}/token"),
        };
        Self { usual, other }
    }
}

fn denied() -> Response {
    Response::error(401, "UNAUTHORIZED", "authentication required")
}

/// The 401 that asks who it is.
pub(super) fn challenge(request: &Request, options: &Options, realm: &Realm, error: &str) -> Response {
    let service = match &options.auth {
        Auth::None => return denied(),
        Auth::Basic | Auth::BasicThatEnds(_) => return denied().header("www-authenticate", r#"Basic realm="hub""#),
        Auth::Token(service) => service,
    };
    let scope = service.told_scope.of(&request.name);
    let challenges = service.challenges.iter().map(|template| {
        let filled = template.replace("{realm}", &realm.usual).replace("{service}", SERVICE);
        match scope.as_str() {
            "" => filled.replace(r#",scope="{scope}""#, ""),
            scope => filled.replace("{scope}", scope),
        }
    });
    challenges.fold(denied(), |response, challenge| {
        let error = if challenge.starts_with("Bearer") { error } else { "" };
        response.header("www-authenticate", format!("{challenge}{error}"))
    })
}

/// The user of the Basic credentials, empty without any; `Err` if they are wrong.
pub(super) fn user_of(request: &Request, options: &Options) -> Result<String, ()> {
    let Some(encoded) = request.header("authorization").and_then(|value| value.strip_prefix("Basic ")) else {
        return Ok(String::new());
    };
    let decoded = BASE64_STANDARD.decode(encoded).map_err(drop)?;
    let decoded = String::from_utf8(decoded).map_err(drop)?;
    let (user, password) = decoded.split_once(':').ok_or(())?;
    let known = options.users.iter().any(|(name, secret)| name == user && secret == password);
    if known { Ok(user.to_owned()) } else { Err(()) }
}

fn form_values(request: &Request, key: &str) -> Vec<String> {
    let pairs = url::form_urlencoded::parse(&request.body).filter(|(name, _)| name == key);
    pairs.map(|(_, value)| value.into_owned()).collect()
}

/// The user of an OAuth 2 form: by password, or by identity token (`Options::identity_tokens`).
fn user_of_form(request: &Request, options: &Options) -> Result<String, ()> {
    let value = |key: &str| form_values(request, key).into_iter().next().unwrap_or_default();
    match value("grant_type").as_str() {
        "password" => {
            let (user, password) = (value("username"), value("password"));
            let is_known = options.users.contains(&(user.clone(), password));
            if is_known { Ok(user) } else { Err(()) }
        }
        "refresh_token" => {
            let token = value("refresh_token");
            let found = options.identity_tokens.iter().find(|(known, _)| *known == token);
            found.map(|(_, user)| user.clone()).ok_or(())
        }
        _ => Err(()),
    }
}

fn may_read(options: &Options, user: &str, name: &str) -> bool {
    let mut owners = options.private.iter().filter(|(private, _)| private == name).peekable();
    owners.peek().is_none() || owners.any(|(_, owner)| owner == user)
}
