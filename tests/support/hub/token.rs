//! Who may read what: challenges, Basic, the token service.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::Options;
use super::wire::{Request, Response};

/// The `service` of challenges and token requests.
pub const SERVICE: &str = "registry.hub.test";

/// How the registry wants clients to authenticate.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Not at all.
    None,
    /// Basic, by one of `Options::users`, on every request.
    Basic,
    /// A Bearer token of the token service, which gives one to anonymous clients too (see `Options::private`).
    Token(TokenService),
}

/// How the token service behaves.
#[derive(Clone, Debug)]
pub struct TokenService {
    pub place: TokenPlace,
    pub field: TokenField,
    /// Seconds; `None` leaves the field out, which means 60.
    pub expires_in: Option<u64>,
    /// The `WWW-Authenticate` headers; `{realm}`, `{service}` and `{scope}` are filled in.
    pub challenges: Vec<String>,
}

impl Default for TokenService {
    fn default() -> Self {
        Self {
            place: TokenPlace::Address(Ipv4Addr::LOCALHOST),
            field: TokenField::Both,
            expires_in: Some(300),
            challenges: vec![r#"Bearer realm="{realm}",service="{service}",scope="{scope}""#.to_owned()],
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
}

/// The tokens that were handed out.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    issued: usize,
    valid: HashMap<String, Grant>,
}

#[derive(Debug)]
struct Grant {
    repositories: HashSet<String>,
    until: Instant,
}

impl Tokens {
    pub fn forget_all(&mut self) {
        self.valid.clear();
    }

    /// The token service's answer.
    pub fn answer(&mut self, request: &Request, options: &Options) -> Response {
        let Auth::Token(service) = &options.auth else {
            return Response::error(404, "UNSUPPORTED", "no token service");
        };
        if request.method != "GET" {
            return Response::error(405, "UNSUPPORTED", "tokens are for GET");
        }
        let user = match user_of(request, options) {
            Ok(user) => user,
            Err(()) => return Response::json(401, &json!({"details": "incorrect username or password"})),
        };
        let repositories: HashSet<String> = request
            .query_values("scope")
            .iter()
            .flat_map(|scopes| scopes.split(' '))
            .filter_map(|scope| scope.strip_prefix("repository:")?.rsplit_once(':'))
            .filter(|(name, actions)| {
                actions.split(',').any(|action| action == "pull") && may_read(options, &user, name)
            })
            .map(|(name, _)| name.to_owned())
            .collect();
        self.issued += 1;
        let token = format!("hub-token-{}", self.issued);
        let until = Instant::now() + Duration::from_secs(service.expires_in.unwrap_or(60));
        self.valid.insert(token.clone(), Grant { repositories, until });

        let mut body = json!({});
        if service.field != TokenField::AccessToken {
            body["token"] = token.clone().into();
        }
        if service.field != TokenField::Token {
            body["access_token"] = token.into();
        }
        if let Some(seconds) = service.expires_in {
            body["expires_in"] = seconds.into();
        }
        Response::json(200, &body)
    }

    /// `None` if the request may go on, else the 401.
    pub fn check(&self, request: &Request, options: &Options, realm: &str) -> Option<Response> {
        let denied = || Response::error(401, "UNAUTHORIZED", "authentication required");
        match &options.auth {
            Auth::None => None,
            Auth::Basic => match user_of(request, options) {
                Ok(user) if !user.is_empty() && may_read(options, &user, &request.name) => None,
                _ => Some(denied().header("www-authenticate", r#"Basic realm="hub""#)),
            },
            Auth::Token(service) => {
                let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
                let grant = token.and_then(|token| self.valid.get(token)).filter(|grant| Instant::now() < grant.until);
                let error = match (token, grant) {
                    (_, Some(grant)) if request.name.is_empty() || grant.repositories.contains(&request.name) => {
                        return None;
                    }
                    (None, _) => "",
                    (Some(_), None) => r#",error="invalid_token""#,
                    (Some(_), Some(_)) => r#",error="insufficient_scope""#,
                };
                let scope = match request.name.as_str() {
                    "" => String::new(),
                    name => format!("repository:{name}:pull"),
                };
                let challenges = service.challenges.iter().map(|template| {
                    let filled = template.replace("{realm}", realm).replace("{service}", SERVICE);
                    match scope.as_str() {
                        "" => filled.replace(r#",scope="{scope}""#, ""),
                        scope => filled.replace("{scope}", scope),
                    }
                });
                Some(challenges.fold(denied(), |response, challenge| {
                    let error = if challenge.starts_with("Bearer") { error } else { "" };
                    response.header("www-authenticate", format!("{challenge}{error}"))
                }))
            }
        }
    }
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

fn may_read(options: &Options, user: &str, name: &str) -> bool {
    let mut owners = options.private.iter().filter(|(private, _)| private == name).peekable();
    owners.peek().is_none() || owners.any(|(_, owner)| owner == user)
}
