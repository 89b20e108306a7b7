//! Where the clients' own credentials decide: reading them, and asking for them in a way that every
//! client can meet.
//!
//! Clients are sent to a token service of our own (Docker Registry v2 token authentication), so that
//! they need no way to the upstream's. It gives out what the client came with, sealed with a key that
//! only this process has; what those credentials are worth the upstream says, with each pull.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::admission::Door;
use super::body::{self, Body};
use super::error::{Challenge, Refusal};
use super::routing::{Asked, Repository};
use super::token_form::{Form, WrongForm};
use super::{Pull, host, is_secure};
use crate::config::{Login, Secret};
use crate::failure::{Failure, FailureKind};
use crate::oci::route::InvalidRoute;
use crate::upstream::Who;

/// How long a token is good; clients come back for another.
const LIFE: Duration = Duration::from_secs(300);
/// Tells our tokens from those of upstreams.
const PREFIX: &str = "larder.";
/// Longest token or password that is read.
const MAX_LENGTH: usize = 16 * 1024;
const SERVICE: &str = "larder";

/// Seals credentials into tokens.
pub struct Sealer(RandomizedNonceKey);

/// What a token holds.
#[derive(Serialize, Deserialize)]
struct Content {
    /// Seconds since 1970.
    expires: u64,
    login: Option<(String, String)>,
}

/// Why no sealer could be made: the system gives no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers for a key")]
pub struct NoRandomness;

impl Sealer {
    pub fn new() -> Result<Self, NoRandomness> {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| NoRandomness)?;
        RandomizedNonceKey::new(&AES_256_GCM, &key).map(Self).map_err(|_| NoRandomness)
    }

    fn seal(&self, login: Option<&Login>, now: SystemTime) -> Option<String> {
        let login = login.map(|login| (login.username.clone(), login.password.reveal().to_owned()));
        let content = Content { expires: seconds(now + LIFE), login };
        let mut bytes = serde_json::to_vec(&content).ok()?;
        let nonce = self.0.seal_in_place_append_tag(Aad::empty(), &mut bytes).ok()?;
        let sealed = [nonce.as_ref().as_slice(), &bytes].concat();
        Some(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(sealed)))
    }

    /// Who came with the token; `None` if it is not one of ours, or too old.
    fn open(&self, token: &str, now: SystemTime) -> Option<Who> {
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok()?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let bytes = self.0.open_in_place(nonce, Aad::empty(), &mut sealed).ok()?;
        let content: Content = serde_json::from_slice(bytes).ok()?;
        if content.expires < seconds(now) {
            return None;
        }
        Some(content.login.map_or(Who::Anonymous, |(name, password)| login(name, password)))
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn login(name: String, password: String) -> Who {
    Who::Login(Arc::new(Login::new(name, Secret::new(password))))
}

impl Pull {
    /// Whose credentials a request comes with.
    pub(super) fn client(&self, headers: &HeaderMap) -> Result<Who, Challenge> {
        let Some(value) = headers.get(AUTHORIZATION) else {
            return Ok(Who::Anonymous);
        };
        if value.len() > MAX_LENGTH {
            tracing::info!(bytes = value.len(), most = MAX_LENGTH, "an Authorization is too long to be looked at");
            return Err(Challenge::Invalid);
        }
        let (scheme, rest) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Challenge::Invalid)?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            let decoded = BASE64_STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            return match pair {
                Some(("", "")) => Ok(Who::Anonymous),
                Some((name, password)) => Ok(login(name.to_owned(), password.to_owned())),
                None => Err(Challenge::Invalid),
            };
        }
        if scheme.eq_ignore_ascii_case("bearer") && rest.starts_with(PREFIX) {
            return self.sealer.open(rest, SystemTime::now()).ok_or(Challenge::Invalid);
        }
        // A token that the client had from the upstream's own service, for instance.
        let mut value = value.clone();
        value.set_sensitive(true);
        Ok(Who::Header(value))
    }

    /// `/v2/`: whether this is a registry, and for who logs in, whether the credentials are taken.
    pub(super) async fn base(
        &self,
        request: &Parts,
        door: &Door,
        namespace: Option<&str>,
        prefix: &str,
    ) -> Result<Response<Body>, Refusal> {
        let routing = &door.live.routing;
        let asked = Asked { namespace, host: host(request), path: prefix, tag: None };
        let passes = |repository: &Arc<Repository>| repository.config.client_consent.is_some();
        let needs_login = |repository: &Arc<Repository>| {
            passes(repository) || !door.stranger().may_pull(&repository.config.allow, door.has_logins())
        };
        let selected = routing.selected(asked);
        // Some clients only log in if they are asked to right here.
        let asks = selected.map_or_else(|| routing.repositories().iter().any(needs_login), needs_login);
        if !request.headers.contains_key(AUTHORIZATION) {
            let can_log_in = door.has_logins() || routing.repositories().iter().any(passes);
            return match asks && can_log_in {
                true => Err(self.challenge(request, door, Challenge::Missing, None)),
                false => Ok(super::base()),
            };
        }
        match selected.or(routing.default()).filter(|repository| passes(repository)) {
            // Who is one of ours is no business of the upstream's, to which not everybody who logs in belongs.
            Some(repository) => match self.is_ours(request, door).await {
                true => drop(self.identify(request, door, None).await?),
                false => self.greet(request, door, repository).await?,
            },
            // Whose login it is cannot be told where some are of upstreams.
            None if routing.repositories().iter().any(passes) => {}
            None => drop(self.identify(request, door, None).await?),
        }
        Ok(super::base())
    }

    /// Asks the upstream whether it takes the client's credentials.
    async fn greet(&self, request: &Parts, door: &Door, repository: &Repository) -> Result<(), Refusal> {
        let who = self.client(&request.headers).map_err(|why| self.challenge(request, door, why, None))?;
        if !matches!(who, Who::Login(_) | Who::Header(_)) {
            return Ok(());
        }
        let greet = async |at: usize| repository.upstreams[at].greet(&who).await;
        // An upstream that cannot say is no reason to turn anybody away: each pull asks again.
        let is_denied = |failure: Failure| failure.kind == FailureKind::Denied;
        match repository.upstreams.first(None, greet).await.is_err_and(is_denied) {
            true => Err(self.challenge(request, door, Challenge::Invalid, None)),
            false => Ok(()),
        }
    }

    /// What a client is told that gets no content. Who sends no credentials is asked for them, whatever keeps the
    /// upstream from answering it: with them it may be another, or what is stored is for who has them. Many clients send
    /// what they have only when they are asked. Who sent some is told the truth.
    pub(super) fn ask_who_it_is(
        &self,
        refusal: Refusal,
        request: &Parts,
        door: &Door,
        who: &Who,
        path: &str,
    ) -> Refusal {
        let Refusal::Failure { failure, .. } = &refusal else {
            return refusal;
        };
        let is_of_upstream = !matches!(failure.kind, FailureKind::Busy | FailureKind::NoRoom | FailureKind::Storage);
        let has_sent = request.headers.contains_key(AUTHORIZATION);
        let why = match who {
            Who::Anonymous if !has_sent && is_of_upstream => Challenge::Missing,
            // It has a token of ours for nobody: asking for one again would change nothing, and it is to know that.
            Who::Anonymous if failure.kind == FailureKind::Denied => Challenge::Insufficient,
            Who::Header(_) if failure.kind == FailureKind::Denied => Challenge::Invalid,
            _ => return refusal,
        };
        match self.challenge(request, door, why, Some(path)) {
            Refusal::Unauthenticated { why, challenge, .. } => {
                let tried = (failure.kind != FailureKind::Denied).then(|| failure.clone());
                Refusal::Unauthenticated { why, challenge, tried }
            }
            other => other,
        }
    }

    /// `/token`: a token for what the client comes with, by GET or by a form. Of an upstream's account the upstream
    /// says what it is worth, when the token is used. There are no refresh tokens: they would end with this process.
    pub(super) async fn give_token(&self, request: &Parts, door: &Door) -> Result<Response<Body>, Refusal> {
        let mut repositories = door.live.routing.repositories().iter();
        let passes = repositories.any(|repository| repository.config.client_consent.is_some());
        if !passes && !door.has_logins() {
            return Err(InvalidRoute::NotFound.into());
        }
        let form = request.extensions.get::<Result<Form, WrongForm>>().cloned().transpose()?;
        if !passes {
            self.identify(request, door, None).await?;
        }
        let login = match self.client(&request.headers) {
            Ok(Who::Login(login)) => Some(login),
            Ok(Who::Anonymous) => None,
            _ => return Err(self.challenge(request, door, Challenge::Invalid, None)),
        };
        let sealed = self.sealer.seal(login.as_deref(), SystemTime::now());
        let token = sealed.ok_or_else(|| self.challenge(request, door, Challenge::Invalid, None))?;
        let issued_at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut document = json!({
            "token": token, "access_token": token, "expires_in": LIFE.as_secs(), "issued_at": issued_at
        });
        if let Some(scope) = form.and_then(|form| form.scope) {
            document["scope"] = scope.into();
        }
        let mut response = Response::new(body::full(document.to_string().into()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// A 401 that says where tokens are to be had; `path` is the name that was asked for, as the client
    /// wrote it.
    pub(super) fn challenge(&self, request: &Parts, door: &Door, why: Challenge, path: Option<&str>) -> Refusal {
        if let Some(basic) = door.basic() {
            return Refusal::Unauthenticated { why, challenge: Some(basic), tried: None };
        }
        let is_plain = |host: &&str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
        let header = match host(request).filter(is_plain) {
            Some(host) => {
                let scope = path.map_or_else(String::new, |path| format!(",scope=\"repository:{path}:pull\""));
                // As RFC 6750, section 3.1, has it. containerd asks again and again where it finds none.
                let error = match why {
                    Challenge::Missing => "",
                    Challenge::Invalid => ",error=\"invalid_token\"",
                    Challenge::Insufficient => ",error=\"insufficient_scope\"",
                };
                let scheme = if is_secure(request) { "https" } else { "http" };
                format!("Bearer realm=\"{scheme}://{host}/token\",service=\"{SERVICE}\"{scope}{error}")
            }
            None => format!("Basic realm=\"{SERVICE}\""),
        };
        Refusal::Unauthenticated { why, challenge: HeaderValue::try_from(header).ok(), tried: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_what_it_was_made_of_and_not_for_ever() {
        let sealer = Sealer::new().expect("a key");
        let now = SystemTime::now();
        let login = Login::new("me", Secret::new("pass:word"));
        let token = sealer.seal(Some(&login), now).expect("sealed");
        assert_eq!(sealer.open(&token, now), Some(Who::Login(Arc::new(login.clone()))));
        assert_eq!(sealer.open(&token, now + 2 * LIFE), None);
        let anonymous = sealer.seal(None, now).expect("sealed");
        assert_eq!(sealer.open(&anonymous, now), Some(Who::Anonymous));
        assert_ne!(sealer.seal(Some(&login), now), sealer.seal(Some(&login), now));
    }

    #[test]
    fn a_token_of_another_key_or_a_changed_one_is_worth_nothing() {
        let (sealer, other) = (Sealer::new().expect("a key"), Sealer::new().expect("a key"));
        let now = SystemTime::now();
        let token = sealer.seal(None, now).expect("sealed");
        assert_eq!(other.open(&token, now), None);
        let changed = format!("{}{}", &token[..token.len() - 1], if token.ends_with('A') { "Q" } else { "A" });
        assert_eq!(sealer.open(&changed, now), None);
        for nonsense in ["", "larder.", "larder.AAAA", "larder.!!", "hub-token"] {
            assert_eq!(sealer.open(nonsense, now), None, "{nonsense}");
        }
    }
}
