//! Who we are to an upstream: Basic credentials and Bearer tokens.
//!
//! Tokens are kept per service and scope, fetched once however many wait for one, and renewed before
//! they expire (Docker Registry v2 token authentication).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use serde::Deserialize;
use url::Url;

use crate::config::Login;
use crate::failure::{Failure, FailureKind};
use crate::oci::challenge::Challenge;

/// What the token endpoint is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    pub realm: Url,
    pub service: Option<String>,
    pub scope: String,
    /// Sent only where the realm may see it.
    pub with_credentials: bool,
}

/// Fetches a token; the client's HTTP side, kept apart so that this module decides and does not dial.
pub trait FetchToken {
    async fn fetch_token(&self, request: &TokenRequest) -> Result<TokenAnswer, Failure>;
}

/// A token endpoint's answer. Registries differ in the field's name and in the type of its life.
#[derive(Deserialize)]
pub struct TokenAnswer {
    access_token: Option<String>,
    token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// The life of a token whose answer does not state it.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Tokens kept per upstream; one is needed for each repository name pulled.
const MAX_TOKENS: usize = 4096;

/// An `Authorization` header and, for a token, what it was asked with.
#[derive(Clone)]
pub struct Authorization {
    pub header: HeaderValue,
    token: Option<TokenRequest>,
}

/// The credentials for one upstream and the tokens obtained with them.
pub struct Auth {
    upstream: Arc<str>,
    host: String,
    credentials: Option<Login>,
    trusted_realms: Vec<String>,
    /// The challenge last met; requests for further names need not be refused first.
    scheme: Mutex<Scheme>,
    tokens: Mutex<HashMap<TokenRequest, Arc<Slot>>>,
}

type Slot = tokio::sync::Mutex<Kept>;

/// What came of the last request for one token.
#[derive(Default)]
struct Kept {
    token: Option<Token>,
    failed: Option<(Instant, Failure)>,
}

struct Token {
    header: HeaderValue,
    renew_at: Instant,
}

#[derive(Clone)]
enum Scheme {
    Unknown,
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

impl Auth {
    pub fn new(upstream: Arc<str>, origin: &Url, credentials: Option<Login>, trusted_realms: Vec<String>) -> Self {
        Self {
            upstream,
            host: origin.host_str().unwrap_or_default().to_ascii_lowercase(),
            credentials,
            trusted_realms,
            scheme: Mutex::new(Scheme::Unknown),
            tokens: Mutex::default(),
        }
    }

    /// What to send with a first request for `scope`.
    pub async fn prepare(&self, scope: &str, fetch: &impl FetchToken) -> Result<Option<Authorization>, Failure> {
        let scheme = self.scheme.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match scheme {
            Scheme::Unknown => Ok(None),
            Scheme::Basic => self.basic().map(Some),
            Scheme::Bearer { realm, service } => {
                let request = self.token_request(realm, service, scope);
                self.token(request, fetch).await.map(Some)
            }
        }
    }

    /// What to send again after a 401 with these challenges; an error when there is nothing to add.
    pub async fn answer(
        &self,
        challenges: &[Challenge],
        scope: &str,
        refused: Option<&Authorization>,
        fetch: &impl FetchToken,
    ) -> Result<Authorization, Failure> {
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            let realm = bearer.parameter("realm").and_then(|realm| Url::parse(realm).ok());
            let realm = realm.filter(|realm| matches!(realm.scheme(), "http" | "https"));
            let realm = realm.ok_or_else(|| self.denied("asks for a token without a usable realm"))?;
            let service = bearer.parameter("service").map(str::to_owned);
            let asked = bearer.parameter("scope").unwrap_or(scope);
            if asked == scope {
                self.remember(Scheme::Bearer { realm: realm.clone(), service: service.clone() });
            }
            let request = self.token_request(realm, service, asked);
            if refused.and_then(|refused| refused.token.as_ref()) == Some(&request) {
                self.forget(&request);
            }
            return self.token(request, fetch).await;
        }
        if challenges.iter().any(|challenge| challenge.scheme == "basic") {
            if refused.is_some_and(|refused| refused.token.is_none()) {
                return Err(self.denied("refuses the configured user name and password"));
            }
            self.remember(Scheme::Basic);
            return self.basic();
        }
        Err(self.denied("answered 401 with no challenge that Larder can meet (Basic or Bearer)"))
    }

    fn denied(&self, what: &str) -> Failure {
        Failure::new(FailureKind::Denied, format!("{}: {what}", self.upstream))
    }

    fn remember(&self, scheme: Scheme) {
        *self.scheme.lock().unwrap_or_else(PoisonError::into_inner) = scheme;
    }

    fn basic(&self) -> Result<Authorization, Failure> {
        let credentials = self.credentials.as_ref();
        let credentials = credentials.ok_or_else(|| self.denied("asks for a user name and password"))?;
        Ok(Authorization { header: basic_header(credentials), token: None })
    }

    /// The Basic header for the token endpoint.
    pub fn realm_header(&self, request: &TokenRequest) -> Option<HeaderValue> {
        let credentials = self.credentials.as_ref().filter(|_| request.with_credentials)?;
        Some(basic_header(credentials))
    }

    fn token_request(&self, realm: Url, service: Option<String>, scope: &str) -> TokenRequest {
        let with_credentials = self.credentials.is_some() && self.trusts(&realm);
        if self.credentials.is_some() && !with_credentials {
            tracing::warn!(
                upstream = %self.upstream,
                realm = realm.host_str().unwrap_or_default(),
                "the token realm is on a foreign domain and does not get the credentials; add its host to token_realms if it should"
            );
        }
        TokenRequest { realm, service, scope: scope.to_owned(), with_credentials }
    }

    /// Credentials go to the upstream's own host, to its registrable domain (Public Suffix List; not
    /// for addresses) and to the hosts that the configuration names. They never leave TLS for less.
    fn trusts(&self, realm: &Url) -> bool {
        let Some(host) = realm.host_str().map(str::to_ascii_lowercase) else {
            return false;
        };
        if host == self.host || self.trusted_realms.contains(&host) {
            return true;
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

    async fn token(&self, request: TokenRequest, fetch: &impl FetchToken) -> Result<Authorization, Failure> {
        let slot = self.slot(&request);
        // Whoever comes second waits here and finds what the first was given, token or failure, so the
        // wait of all is bounded by the deadline of one fetch.
        let asked_at = Instant::now();
        let mut kept = slot.lock().await;
        if let Some(token) = kept.token.as_ref().filter(|token| Instant::now() < token.renew_at) {
            return Ok(Authorization { header: token.header.clone(), token: Some(request) });
        }
        if let Some((_, failure)) = kept.failed.as_ref().filter(|(at, _)| *at >= asked_at) {
            return Err(failure.clone());
        }
        let answer = fetch.fetch_token(&request).await;
        let answer = answer.inspect_err(|failure| kept.failed = Some((Instant::now(), failure.clone())))?;
        let fetched =
            answer.into_token(Instant::now()).ok_or_else(|| self.denied("its token endpoint gave no usable token"))?;
        let header = fetched.header.clone();
        *kept = Kept { token: Some(fetched), failed: None };
        Ok(Authorization { header, token: Some(request) })
    }

    fn slot(&self, request: &TokenRequest) -> Arc<Slot> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            let now = Instant::now();
            let is_alive = |slot: &Arc<Slot>| match slot.try_lock() {
                Ok(kept) => kept.token.as_ref().is_some_and(|token| now < token.renew_at),
                Err(_) => true,
            };
            tokens.retain(|_, slot| is_alive(slot));
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        tokens.entry(request.clone()).or_default().clone()
    }

    fn forget(&self, request: &TokenRequest) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(request);
    }
}

impl TokenAnswer {
    fn into_token(self, now: Instant) -> Option<Token> {
        let text = self.access_token.or(self.token).filter(|token| !token.is_empty())?;
        let mut header = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
        header.set_sensitive(true);
        let life = life(self.expires_in.as_ref());
        // Renewed a little early, so that no request travels with a token that dies on the way.
        let early = (life / 10).min(Duration::from_secs(10));
        Some(Token { header, renew_at: now + (life - early) })
    }
}

/// `expires_in` as a number or as text; what makes no sense counts as not stated.
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

fn basic_header(credentials: &Login) -> HeaderValue {
    let pair = format!("{}:{}", credentials.username, credentials.password.reveal());
    let text = format!("Basic {}", BASE64_STANDARD.encode(pair));
    let mut header = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::config::Secret;

    fn auth(origin: &str, realms: &[&str]) -> Auth {
        let credentials = Login::new("u", Secret::new("p"));
        let origin = Url::parse(origin).expect("a URL");
        let realms = realms.iter().map(|&host| host.to_owned()).collect();
        Auth::new("upstream".into(), &origin, Some(credentials), realms)
    }

    #[test]
    fn credentials_go_to_no_foreign_realm() {
        let hub = auth("https://registry-1.docker.io", &["other.example"]);
        let trusts = |auth: &Auth, realm: &str| auth.trusts(&Url::parse(realm).expect("a URL"));
        assert!(trusts(&hub, "https://auth.docker.io/token"));
        assert!(trusts(&hub, "https://registry-1.docker.io/token"));
        assert!(trusts(&hub, "https://other.example/token"));
        for foreign in [
            "https://evil.example/token",
            "https://docker.io.evil.example/",
            "https://io/",
            "http://auth.docker.io/token",
            "https://127.0.0.1/",
        ] {
            assert!(!trusts(&hub, foreign), "{foreign}");
        }
        let address = auth("http://127.0.0.1:5000", &[]);
        assert!(trusts(&address, "http://127.0.0.1:9/token"));
        assert!(!trusts(&address, "http://127.0.0.2/token"));
        let pages = auth("https://a.github.io", &[]);
        assert!(!trusts(&pages, "https://b.github.io/token"), "github.io is a public suffix");
    }

    #[test]
    fn a_life_that_makes_no_sense_counts_as_not_stated() {
        let read = |text: &str| life(Some(&serde_json::from_str(text).expect("JSON")));
        assert_eq!(life(None), DEFAULT_LIFE);
        assert_eq!(read("300"), Duration::from_secs(300));
        assert_eq!(read("\"300\""), Duration::from_secs(300));
        assert_eq!(read("-5"), DEFAULT_LIFE);
        assert_eq!(read("{}"), DEFAULT_LIFE);
        assert_eq!(read("1e300"), MAX_LIFE);
    }

    struct Endpoint(AtomicUsize);

    impl FetchToken for Endpoint {
        async fn fetch_token(&self, _: &TokenRequest) -> Result<TokenAnswer, Failure> {
            self.0.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(TokenAnswer { access_token: None, token: Some("t".to_owned()), expires_in: Some(300.into()) })
        }
    }

    #[tokio::test]
    async fn many_waiters_cost_one_token_request() {
        let auth = auth("https://r.example", &[]);
        let endpoint = Endpoint(AtomicUsize::new(0));
        let challenges = crate::oci::challenge::parse(r#"Bearer realm="https://r.example/token",service="s""#);
        let ask = || auth.answer(&challenges, "repository:x:pull", None, &endpoint);
        let (one, two, three) = tokio::join!(ask(), ask(), ask());
        assert!(one.is_ok() && two.is_ok() && three.is_ok());
        assert_eq!(endpoint.0.load(Ordering::SeqCst), 1);
        assert!(auth.prepare("repository:x:pull", &endpoint).await.expect("a token").is_some());
        assert_eq!(endpoint.0.load(Ordering::SeqCst), 1);
    }
}
