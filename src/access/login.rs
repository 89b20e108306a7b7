//! Authenticates clients and decides what they may read: logins, tokens, `allow` of each repository.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::authorization::{bearer, credentials};
use super::browser::{Browsers, Shown};
use super::caller::{Caller, basic};
use super::failed_logins::FailedLogins;
use super::host::AskedHost;
use super::refusal::{Challenge, Refusal, Wanted};
use super::rules::{Rules, by_name};
use super::sealer::Sealer;
use crate::auth::{Client, ClientAddress, Credential, Identity, Known, Logins, NotNow, is_secure};
use crate::config::Login;
use crate::failure::{Failure, FailureKind};
use crate::random::NoRandomness;
use crate::routing::Repository;
use crate::upstream::Who;

/// After this time a client may come back if too many of its logins are being checked.
const MOMENT: Duration = Duration::from_secs(1);
/// The name of Larder's token service.
const SERVICE: &str = "larder";

/// Decides which clients may read which repositories, by the rules in force.
pub struct Access {
    rules: ArcSwap<Rules>,
    sealer: Sealer,
    failed: Arc<FailedLogins>,
    /// Logins in a browser, and sessions.
    pub browsers: Browsers,
}

/// The result of checking a client of the admin door against `admin.allow` and `admin.read`.
#[derive(Clone)]
pub enum Manager {
    /// Its login is named.
    Known(Identity),
    /// The person of its session is named.
    Session(Arc<Shown>),
    /// Only its address is named.
    ByAddress,
    /// It is not named, but could log in; with the challenge.
    Unknown(HeaderValue),
    Refused,
    /// Its login cannot be checked now; with the reason.
    NotNow(NotNow),
}

/// Why a login failed.
pub enum LoginError {
    Invalid,
    NotNow(NotNow),
}

impl Access {
    /// Creates an `Access` with these rules and a new key for tokens. Fails if the system gives no random numbers.
    pub fn new(rules: Arc<Rules>) -> Result<Self, NoRandomness> {
        let failed = Arc::<FailedLogins>::default();
        let browsers = Browsers::new(failed.clone())?;
        Ok(Self { rules: ArcSwap::new(rules), sealer: Sealer::new()?, failed, browsers })
    }

    /// Returns the rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Puts other rules in force.
    pub fn apply(&self, rules: Arc<Rules>) {
        self.rules.store(rules);
    }

    /// Returns whether a request asks the admin door by one of its names.
    pub fn is_admin_host(&self, host: &AskedHost) -> bool {
        self.rules.load().is_admin_host(host)
    }

    /// Returns whether a client may look at the cache, or change it (`is_change`).
    pub async fn manager(&self, client: &Client, headers: &HeaderMap, is_change: bool) -> Manager {
        let rules = self.rules();
        let named = if is_change { &rules.managers } else { &rules.readers };
        let stranger = Identity { address: client.address, known: None, certificate: None };
        let has_logins = rules.logins.is_some();
        let challenge = || rules.logins.as_deref().and_then(basic).map_or(Manager::Refused, Manager::Unknown);
        if let (Some(logins), true) = (&rules.logins, headers.contains_key(AUTHORIZATION)) {
            // A token of this cache is only for pulling.
            let is_token = headers.get(AUTHORIZATION).is_some_and(|value| bearer(value).is_some());
            if is_token && matches!(self.credentials(headers), Ok(Who::Login(_))) {
                return challenge();
            }
            let known = match self.login(logins, stranger.address, headers).await {
                Ok(known) => known,
                Err(LoginError::Invalid) => return challenge(),
                Err(LoginError::NotNow(why)) => return Manager::NotNow(why),
            };
            let is_known = known.is_some();
            let identity = Identity { known, ..stranger.clone() };
            if is_known && identity.may_pull(&by_name(named), has_logins) {
                return Manager::Known(identity);
            }
            if is_known && !stranger.may_pull(named, has_logins) {
                return Manager::Refused;
            }
        } else if let Some(shown) = self.browsers.shown(&rules, client, headers) {
            if shown.identity.may_pull(&by_name(named), has_logins) {
                return Manager::Session(Arc::new(shown));
            }
            if !stranger.may_pull(named, has_logins) {
                return Manager::Refused;
            }
        }
        match stranger.may_pull(named, has_logins) {
            true => Manager::ByAddress,
            false => challenge(),
        }
    }

    /// Returns the credentials of a request.
    pub fn credentials(&self, headers: &HeaderMap) -> Result<Who, Challenge> {
        credentials(headers, &self.sealer)
    }

    /// Returns a token that stands for a login at an upstream, or for no login; `None` if the library fails.
    pub fn seal(&self, login: Option<&Login>, now: SystemTime) -> Option<String> {
        self.sealer.seal(login, now)
    }

    /// Authenticates a client. Wrong credentials are refused.
    pub async fn identify(&self, request: &Parts, caller: &Caller, path: Option<&str>) -> Result<Identity, Refusal> {
        let stranger = caller.stranger();
        let Some(logins) = caller.rules.logins.as_ref().filter(|_| request.headers.contains_key(AUTHORIZATION)) else {
            return Ok(stranger);
        };
        match self.login(logins, stranger.address, &request.headers).await {
            Ok(known) => Ok(Identity { known, ..stranger }),
            Err(LoginError::Invalid) => Err(challenge(request, caller, Challenge::Invalid, path)),
            Err(LoginError::NotNow(why)) => Err(not_now(why)),
        }
    }

    /// Returns the credentials to ask an upstream with, where the client's own credentials decide. A token of a
    /// configured issuer is for Larder: an upstream that received it could use it here.
    pub fn upstream_sees(&self, request: &Parts, caller: &Caller) -> Result<Who, Challenge> {
        let who = self.credentials(&request.headers)?;
        Ok(if caller.is_own_token(&who) { Who::Anonymous } else { who })
    }

    /// Returns whether a client's credentials are of the kind that Larder and no upstream checks: a token of a
    /// configured issuer, or the name of a user.
    pub fn seem_ours(&self, request: &Parts, caller: &Caller) -> bool {
        let (Some(logins), Ok(who)) = (&caller.rules.logins, self.credentials(&request.headers)) else {
            return false;
        };
        caller.is_own_token(&who) || matches!(&who, Who::Login(login) if logins.has_user(&login.username))
    }

    /// Returns whether Larder and no upstream checks a client's credentials: a token of a configured issuer, or the
    /// name and password of a user.
    pub async fn is_ours(&self, request: &Parts, caller: &Caller) -> bool {
        let (Some(logins), Ok(who)) = (&caller.rules.logins, self.credentials(&request.headers)) else {
            return false;
        };
        match &who {
            who if caller.is_own_token(who) => true,
            // A login that cannot be checked now may be right.
            Who::Login(login) if logins.has_user(&login.username) => {
                let known = check(logins, caller.stranger().address, &who).await;
                !matches!(known, Err(LoginError::Invalid))
            }
            _ => false,
        }
    }

    /// Authenticates a client by its `Authorization`. `None`: the header is missing or empty.
    pub async fn login(
        &self,
        logins: &Logins,
        address: ClientAddress,
        headers: &HeaderMap,
    ) -> Result<Option<Known>, LoginError> {
        let who = self.credentials(headers).map_err(|_| LoginError::Invalid)?;
        let known = check(logins, address, &who).await;
        if matches!(known, Err(LoginError::Invalid)) {
            self.tell_failed(address, &who);
        }
        known
    }

    /// Notes in the log that a login failed.
    pub fn tell_failed(&self, address: ClientAddress, who: &Who) {
        match who {
            Who::Login(login) => self.failed.tell(address, Some(&login.username)),
            Who::Header(_) => self.failed.tell(address, None),
            Who::Anonymous | Who::Larder => {}
        }
    }

    /// Checks that a client may read a repository, and returns its identity. Fails with what is missing.
    pub async fn admit(
        &self,
        request: &Parts,
        caller: &Caller,
        repository: &Repository,
        path: &str,
    ) -> Result<Identity, Refusal> {
        let has_logins = caller.has_logins();
        // Where clients log in at the upstream, Larder does not check the login.
        let stranger = caller.stranger();
        if repository.config.client_consent.is_some() {
            let may_pull = stranger.may_pull(&repository.config.allow, false);
            return may_pull.then_some(stranger).ok_or(Refusal::Forbidden);
        }
        // A client that needs no login is not asked for one, whatever credentials it sends: some clients send their
        // credentials for Docker Hub to each of its mirrors.
        if stranger.may_pull(&repository.config.allow, has_logins) {
            return Ok(stranger);
        }
        let identity = self.identify(request, caller, Some(path)).await?;
        if identity.may_pull(&repository.config.allow, has_logins) {
            return Ok(identity);
        }
        match identity.known.is_none() && has_logins {
            true => Err(challenge(request, caller, Challenge::Missing, Some(path))),
            false => Err(Refusal::Forbidden),
        }
    }
}

async fn check(logins: &Logins, address: ClientAddress, who: &Who) -> Result<Option<Known>, LoginError> {
    let shown = match who {
        Who::Anonymous | Who::Larder => return Ok(None),
        Who::Login(login) => Credential::Password { user: &login.username, password: login.password.reveal() },
        Who::Header(value) => Credential::Token(bearer(value).ok_or(LoginError::Invalid)?),
    };
    let known = logins.known(address, shown).await.map_err(LoginError::NotNow)?;
    known.map(Some).ok_or(LoginError::Invalid)
}

/// Returns the host that the client of a request asked, with or without a port. A trusted proxy may state it; HTTP/2 has
/// it in the URI, HTTP/1.1 in a header.
pub fn host(request: &Parts) -> Option<&str> {
    if let Some(host) = request.extensions.get::<Client>().and_then(|client| client.asked_host.as_deref()) {
        return Some(host);
    }
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| request.headers.get(HOST)?.to_str().ok())
}

/// Returns a 401 that tells where to get a token. `path` is the name that was asked for, as the client wrote it.
pub fn challenge(request: &Parts, caller: &Caller, why: Challenge, path: Option<&str>) -> Refusal {
    if let Some(basic) = caller.basic() {
        return Refusal::Unauthenticated { why, challenge: Some(basic), tried: None };
    }
    let header = match public_url(request, caller) {
        Some(url) => {
            let scope = path.map_or_else(String::new, |path| format!(",scope=\"repository:{path}:pull\""));
            // As in RFC 6750, section 3.1. Without an error code, containerd asks again and again.
            let error = match why {
                Challenge::Missing => "",
                Challenge::Invalid => ",error=\"invalid_token\"",
                Challenge::Insufficient => ",error=\"insufficient_scope\"",
            };
            format!("Bearer realm=\"{url}/token\",service=\"{SERVICE}\"{scope}{error}")
        }
        None => format!("Basic realm=\"{SERVICE}\""),
    };
    Refusal::Unauthenticated { why, challenge: HeaderValue::try_from(header).ok(), tried: None }
}

/// Returns the URL by which a client reaches this door, without a slash at the end; `None` if it cannot be known.
fn public_url(request: &Parts, caller: &Caller) -> Option<String> {
    if let Some(url) = &caller.rules.public_url {
        return Some(url.clone());
    }
    let is_plain = |host: &&str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
    let host = host(request).filter(is_plain)?;
    let scheme = if is_secure(request) { "https" } else { "http" };
    Some(format!("{scheme}://{host}"))
}

/// Returns the refusal for a client whose login cannot be checked now.
pub fn not_now(why: NotNow) -> Refusal {
    let failure = match why {
        NotNow::Busy => Failure::new(FailureKind::Busy, why),
        NotNow::Crowded => Failure::new(FailureKind::RateLimited, why).with_retry_after(Some(MOMENT)),
        NotNow::Guessing(left) => Failure::new(FailureKind::RateLimited, why).with_retry_after(Some(left)),
        NotNow::Issuer(_) => Failure::new(FailureKind::Unavailable, why),
    };
    Refusal::of(Wanted::Name)(failure)
}
