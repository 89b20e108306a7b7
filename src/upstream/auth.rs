//! How Larder authenticates to an upstream: with Basic credentials and with Bearer tokens.
//!
//! Tokens are kept per credentials, service and scope. Each is fetched once, however many requests wait for it, and
//! renewed before it expires (Docker Registry v2 token authentication).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use quick_cache::sync::Cache;
use url::Url;

use super::errors::AskedAsLarder;
use super::helper::Helper;
use super::token::{TokenAnswer, TokenRequest, basic_header};
use super::who::Who;
use crate::clock::Instant;
use crate::config::{Credentials, Login};
use crate::failure::{Failure, FailureKind};
use crate::oci::challenge::Challenge;

/// Fetches a token. This is the HTTP side of the client, kept apart so that this module decides and sends nothing
/// itself.
pub trait FetchToken {
    /// Sends a request for a token and returns the answer.
    async fn fetch_token(&self, request: &TokenRequest, who: &Who) -> Result<TokenAnswer, Failure>;
}

/// The lifetime of a token whose answer does not state it.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// The longest lifetime of a token; a longer one that is stated is shortened to this.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long refused credentials are not tried again: services lock accounts that fail too often.
const REFUSED_LIFE: Duration = Duration::from_secs(10);
/// Longest service or scope accepted from a challenge, in bytes.
const MAX_TOLD: usize = 1024;
/// Longest token accepted, in bytes; real tokens have some thousand bytes.
const MAX_TOKEN: usize = 32 * 1024;
/// Most tokens kept per upstream; one is needed for each repository name pulled.
const MAX_TOKENS: usize = 4096;
/// Most tokens kept per upstream that only clients name: there may be many such upstreams, and their tokens may be of
/// any length.
const FEW_TOKENS: usize = 16;

/// A token younger than this has the current rights: a new one would give no more.
const YOUNG: Duration = Duration::from_secs(5);
/// How long no further token is fetched for a scope because of a 400 or 403: most of these refusals are not about the
/// token.
const DOUBT_LIFE: Duration = Duration::from_secs(60);

/// An `Authorization` header, and the token request or login that it was made from.
#[derive(Clone)]
pub struct Authorization {
    pub header: HeaderValue,
    token: Option<TokenRequest>,
    basic: Option<Arc<Login>>,
    /// When the token was fetched.
    since: Option<Instant>,
    /// Whether the token was fetched for this request, and not kept from an earlier one.
    is_fresh: bool,
}

/// The credentials for one upstream and the tokens obtained with them.
pub struct Auth {
    upstream: Arc<str>,
    host: String,
    is_tls: bool,
    own: Own,
    trusted_realms: Vec<String>,
    /// The scheme of the last challenge, so that requests for further names need not be refused first.
    scheme: Mutex<Scheme>,
    /// Challenges that named another scope than the one needed, by the needed one. The other scope may be `aws` (ECR
    /// Public), `*` (Gitea) or a rewritten path (Artifactory) (oras-go#650, gradle-oci#141).
    told: Cache<String, Told>,
    /// Kept tokens, by a digest of the request for the token.
    tokens: Mutex<HashMap<[u8; 32], Arc<Slot>>>,
    most_tokens: usize,
}

/// Larder's own credentials.
enum Own {
    Anonymous,
    Login(Arc<Login>),
    Helper(Box<Helper>),
}

type Slot = tokio::sync::Mutex<Kept>;

/// The result of the last request for one token.
#[derive(Default)]
struct Kept {
    token: Option<Token>,
    failed: Option<(Instant, Failure)>,
    /// When a token was last dropped because of a refusal that may have had other reasons.
    doubted: Option<Instant>,
}

struct Token {
    header: HeaderValue,
    fetched_at: Instant,
    renew_at: Instant,
}

/// The token that a challenge asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    realm: Url,
    service: Option<String>,
    scope: String,
}

impl Told {
    /// Returns the token request `before` with the realm, service and scope of this challenge.
    fn request(&self, before: &TokenRequest) -> TokenRequest {
        let Self { realm, service, scope } = self.clone();
        TokenRequest { realm, service, scope, ..before.clone() }
    }
}

#[derive(Clone)]
enum Scheme {
    Unknown,
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

impl Auth {
    /// Makes the credentials and the empty token cache of one upstream. `trusted_realms`: hosts of token services that
    /// get the credentials although they are on another domain.
    pub fn new(
        upstream: Arc<str>,
        origin: &Url,
        credentials: Option<Credentials>,
        trusted_realms: Vec<String>,
    ) -> Self {
        let own = match credentials {
            None => Own::Anonymous,
            Some(Credentials::Login(login)) => Own::Login(Arc::new(login)),
            Some(Credentials::Helper(helper)) => Own::Helper(Box::new(Helper::new(helper))),
        };
        Self {
            upstream,
            host: origin.host_str().unwrap_or_default().to_ascii_lowercase(),
            is_tls: origin.scheme() == "https",
            own,
            trusted_realms,
            scheme: Mutex::new(Scheme::Unknown),
            told: Cache::new(MAX_TOKENS),
            tokens: Mutex::default(),
            most_tokens: MAX_TOKENS,
        }
    }

    /// Keeps only a few tokens if `are_few`: for an upstream that the configuration does not name.
    pub fn keep_few_tokens(mut self, are_few: bool) -> Self {
        if are_few {
            (self.most_tokens, self.told) = (FEW_TOKENS, Cache::new(FEW_TOKENS));
        }
        self
    }

    /// Returns the authorization for the first request for `scope`; `None`: the request is sent without.
    pub async fn prepare(
        &self,
        who: &Who,
        scope: &str,
        fetch: &impl FetchToken,
    ) -> Result<Option<Authorization>, Failure> {
        if let Who::Header(header) = who {
            return Ok(Some(Authorization {
                header: header.clone(),
                token: None,
                basic: None,
                since: None,
                is_fresh: false,
            }));
        }
        if let Some(Told { realm, service, scope: told }) = self.told.get(scope) {
            let token = self.token(who, realm, service, &told, fetch).await;
            return token.inspect_err(|_| drop(self.told.remove(scope))).map(Some);
        }
        let scheme = self.scheme.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match scheme {
            Scheme::Unknown => Ok(None),
            Scheme::Basic => Ok(self.login(who).await?.map(Authorization::basic)),
            Scheme::Bearer { realm, service } => {
                let token = self.token(who, realm, service, scope, fetch).await;
                // The upstream may use another token service by now. The next request goes without a token, to get a
                // new challenge.
                token.inspect_err(|_| self.remember(Scheme::Unknown)).map(Some)
            }
        }
    }

    /// Returns what a bearer challenge asks for. Where the challenge has no scope, `scope` is taken.
    fn told_by(&self, bearer: &Challenge, scope: &str) -> Result<Told, Failure> {
        let realm = bearer.parameter("realm").and_then(|realm| Url::parse(realm).ok());
        let realm = realm.filter(|realm| matches!(realm.scheme(), "http" | "https"));
        let realm = realm.ok_or_else(|| self.denied("asks for a token without a usable realm"))?;
        let stated = |name| bearer.parameter(name).filter(|value| !value.is_empty() && value.len() <= MAX_TOLD);
        let scope = stated("scope").unwrap_or(scope).to_owned();
        Ok(Told { realm, service: stated("service").map(str::to_owned), scope })
    }

    /// Notes that a request was refused with another status than 401, perhaps because its token or login expired early.
    /// Returns whether to retry the request with a new token or login.
    pub async fn ended_early(&self, who: &Who, refused: &Authorization) -> bool {
        if refused.is_fresh {
            return false;
        }
        if let (Some(basic), Who::Larder, Own::Helper(helper)) = (&refused.basic, who, &self.own) {
            return helper.doubts(basic).await;
        }
        let Some(token) = &refused.token else {
            return false;
        };
        let slot = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&token.id()).cloned();
        let Some(slot) = slot else {
            return false;
        };
        let mut kept = slot.lock().await;
        if kept.token.as_ref().is_some_and(|token| token.header != refused.header) {
            // Another request got a new token meanwhile.
            return true;
        }
        if kept.doubted.is_some_and(|at| at.elapsed() < DOUBT_LIFE) {
            return false;
        }
        (kept.token, kept.doubted) = (None, Some(Instant::now()));
        true
    }

    /// Returns the authorization for a retry after a 401 with these challenges. `None`: retry without any, to get a new
    /// challenge. Fails when Larder has nothing else to send.
    pub async fn answer(
        &self,
        who: &Who,
        challenges: &[Challenge],
        scope: &str,
        refused: Option<&Authorization>,
        fetch: &impl FetchToken,
    ) -> Result<Option<Authorization>, Failure> {
        if matches!(who, Who::Header(_)) {
            return Err(self.denied("refuses the client's own authorization"));
        }
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            let asked = self.told_by(bearer, scope)?;
            if let Some(refused) = refused
                && let Some(token) = &refused.token
            {
                // The upstream accepts the token as valid, and the token was fetched just now: another one would give
                // no more rights.
                let is_young = refused.since.is_some_and(|since| since.elapsed() < YOUNG);
                if is_young && bearer.parameter("error") == Some("insufficient_scope") && *token == asked.request(token)
                {
                    return Err(self.denied_to(who, "says that the token gives no right to this"));
                }
                self.forget(token, &refused.header);
                // The realm for an expired token may differ from the realm for no token: nvcr.io tells the right one
                // only to requests without a token (nvidia-container-toolkit#1945).
                if token.realm != asked.realm {
                    self.told.remove(scope);
                    self.remember(Scheme::Unknown);
                    return Ok(None);
                }
            }
            let token = self.token(who, asked.realm.clone(), asked.service.clone(), &asked.scope, fetch).await?;
            if asked.scope == scope {
                self.told.remove(scope);
                self.remember(Scheme::Bearer { realm: asked.realm, service: asked.service });
            } else {
                self.told.insert(scope.to_owned(), asked);
            }
            return Ok(Some(token));
        }
        if challenges.iter().any(|challenge| challenge.scheme == "basic") {
            self.remember(Scheme::Basic);
            let refused = refused.and_then(|refused| refused.basic.as_ref());
            let login = self.login_instead_of(who, refused).await?;
            let login = login.ok_or_else(|| match refused {
                Some(_) => self.denied_to(who, "refuses the user name and password"),
                None => self.denied_to(who, "asks for a user name and password"),
            })?;
            return Ok(Some(Authorization::basic(login)));
        }
        Err(self.denied("answered 401 with no challenge that Larder can meet (Basic or Bearer)"))
    }

    /// Returns the failure, with what helps where Larder itself was denied something.
    fn denied_to(&self, who: &Who, what: &str) -> Failure {
        let as_larder = AskedAsLarder { has_login: !matches!(self.own, Own::Anonymous) };
        self.denied(what).adding(if who.is_client() { "" } else { as_larder.hint() })
    }

    fn denied(&self, what: &str) -> Failure {
        Failure::new(FailureKind::Denied, format!("{}: {what}", self.upstream))
    }

    fn remember(&self, scheme: Scheme) {
        *self.scheme.lock().unwrap_or_else(PoisonError::into_inner) = scheme;
    }

    /// Returns the user name and password to log in with, if any.
    async fn login(&self, who: &Who) -> Result<Option<Arc<Login>>, Failure> {
        match (who, &self.own) {
            (Who::Login(login), _) => Ok(Some(login.clone())),
            (Who::Larder, Own::Login(login)) => Ok(Some(login.clone())),
            (Who::Larder, Own::Helper(helper)) => helper.login().await,
            (Who::Anonymous | Who::Header(_), _) | (Who::Larder, Own::Anonymous) => Ok(None),
        }
    }

    /// Returns another login than the refused one; only a helper may have another.
    async fn login_instead_of(&self, who: &Who, refused: Option<&Arc<Login>>) -> Result<Option<Arc<Login>>, Failure> {
        if let (Some(refused), Who::Larder, Own::Helper(helper)) = (refused, who, &self.own) {
            helper.refused(refused).await;
        }
        let login = self.login(who).await?;
        Ok(login.filter(|login| refused != Some(login)))
    }

    async fn token(
        &self,
        who: &Who,
        realm: Url,
        service: Option<String>,
        scope: &str,
        fetch: &impl FetchToken,
    ) -> Result<Authorization, Failure> {
        let login = self.login(who).await?;
        let is_trusted = self.trusts(&realm);
        let trusted = login.clone().filter(|_| is_trusted);
        if login.is_some() && trusted.is_none() {
            tracing::warn!(
                upstream = %self.upstream,
                realm = realm.host_str().unwrap_or_default(),
                "the token realm is on a foreign domain and does not get the credentials; add its host to token_realms if it should"
            );
        }
        let request = TokenRequest { realm, service, scope: scope.to_owned(), login: trusted, is_trusted };
        let failure = match self.kept_token(&request, who, fetch).await {
            Ok(token) => return Ok(token),
            Err(failure) => failure,
        };
        // A helper's password may have been changed before it expired.
        match (&request.login, failure.kind) {
            (Some(refused), FailureKind::Denied) => match self.login_instead_of(who, Some(refused)).await? {
                Some(login) => self.kept_token(&TokenRequest { login: Some(login), ..request }, who, fetch).await,
                None => Err(failure),
            },
            _ => Err(failure),
        }
    }

    /// Returns whether a token service may get the credentials: on the upstream's own host, on its registrable domain
    /// (Public Suffix List; not for addresses), and on hosts that the configuration names. Credentials of an upstream
    /// with TLS are never sent without TLS.
    fn trusts(&self, realm: &Url) -> bool {
        let Some(host) = realm.host_str().map(str::to_ascii_lowercase) else {
            return false;
        };
        if host == self.host || self.trusted_realms.contains(&host) {
            return realm.scheme() == "https" || !self.is_tls;
        }
        let is_name = |host: &str| host.parse::<std::net::IpAddr>().is_err() && !host.starts_with('[');
        let domain = |host: &str| {
            let domain = psl::domain(host.as_bytes()).filter(|domain| domain.suffix().is_known());
            domain.map(|domain| domain.as_bytes().to_vec())
        };
        realm.scheme() == "https"
            && is_name(&host)
            && is_name(&self.host)
            && domain(&host).is_some()
            && domain(&host) == domain(&self.host)
    }

    async fn kept_token(
        &self,
        request: &TokenRequest,
        who: &Who,
        fetch: &impl FetchToken,
    ) -> Result<Authorization, Failure> {
        let slot = self.slot(request);
        // Later requests wait here and find the result of the first, a token or a failure. So the deadline of one fetch
        // bounds the wait of all.
        let asked_at = Instant::now();
        let mut kept = slot.lock().await;
        let authorization = |header: &HeaderValue, since: Instant| Authorization {
            header: header.clone(),
            token: Some(request.clone()),
            basic: None,
            since: Some(since),
            is_fresh: since >= asked_at,
        };
        if let Some(token) = kept.token.as_ref().filter(|token| Instant::now() < token.renew_at) {
            return Ok(authorization(&token.header, token.fetched_at));
        }
        if let Some((at, failure)) = &kept.failed {
            let is_refused = failure.kind == FailureKind::Denied && request.login.is_some();
            if *at >= asked_at || (is_refused && at.elapsed() < REFUSED_LIFE) {
                return Err(failure.clone());
            }
        }
        let answer = fetch.fetch_token(request, who).await;
        let token = answer.and_then(|answer| {
            let token = into_token(answer, Instant::now());
            token.ok_or_else(|| self.denied("its token service gave no usable token"))
        });
        let token = token.inspect_err(|failure| kept.failed = Some((Instant::now(), failure.clone())))?;
        let authorization = authorization(&token.header, token.fetched_at);
        *kept = Kept { token: Some(token), failed: None, doubted: kept.doubted };
        Ok(authorization)
    }

    fn slot(&self, request: &TokenRequest) -> Arc<Slot> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= self.most_tokens {
            let now = Instant::now();
            let is_alive = |slot: &Arc<Slot>| match slot.try_lock() {
                Ok(kept) => kept.token.as_ref().is_some_and(|token| now < token.renew_at),
                Err(_) => true,
            };
            tokens.retain(|_, slot| is_alive(slot));
            if tokens.len() >= self.most_tokens {
                tokens.clear();
            }
        }
        tokens.entry(request.id()).or_default().clone()
    }

    /// Drops a token that was refused; a token that was fetched since stays.
    fn forget(&self, request: &TokenRequest, refused: &HeaderValue) {
        let slot = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&request.id()).cloned();
        // While the lock is held, another token is being fetched.
        if let Some(mut kept) = slot.as_ref().and_then(|slot| slot.try_lock().ok())
            && kept.token.as_ref().is_some_and(|token| token.header == *refused)
        {
            kept.token = None;
        }
    }
}

impl Authorization {
    /// Returns whether the token was fetched for the request that it is sent with.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    fn basic(login: Arc<Login>) -> Self {
        Self { header: basic_header(&login), token: None, basic: Some(login), since: None, is_fresh: false }
    }
}

fn into_token(answer: TokenAnswer, now: Instant) -> Option<Token> {
    // Harbor's answers have an empty `access_token` beside the token (rules_oci#856).
    let mut fields = [answer.access_token, answer.token].into_iter().flatten();
    let text = fields.find(|token| !token.is_empty()).filter(|token| token.len() <= MAX_TOKEN)?;
    let mut header = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
    header.set_sensitive(true);
    let life = life(answer.expires_in.as_ref());
    // Renewed a little early, so that no token expires while a request is on its way.
    let early = (life / 10).min(Duration::from_secs(10));
    Some(Token { header, fetched_at: now, renew_at: now + (life - early) })
}

/// Reads `expires_in`, a number or a text. A value that makes no sense counts as not stated.
fn life(stated: Option<&serde_json::Value>) -> Duration {
    let seconds = match stated {
        Some(serde_json::Value::Number(number)) => number.as_f64(),
        Some(serde_json::Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    match seconds {
        Some(seconds) if seconds >= 0.0 => Duration::try_from_secs_f64(seconds).unwrap_or(MAX_LIFE).min(MAX_LIFE),
        _ => DEFAULT_LIFE,
    }
}

#[cfg(test)]
mod tests;
