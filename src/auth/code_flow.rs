//! Logins by OpenID Connect's authorization code flow (OpenID Connect Core 1.0, section 3.1), with PKCE (RFC 7636) and
//! as RFC 9700 recommends.
//!
//! The browser goes to the issuer and comes back with a code, which Larder exchanges for an ID token at the issuer.
//! What that token claims is all that Larder learns: it asks for no further data, and keeps no access token.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::guesses::Guesses;
use super::issuer::{Issuer, Refused};
use super::{Claims, ClientAddress, NotNow, document};
use crate::clock::Instant;
use crate::config::{BrowserLogin, Secret};
use crate::random::{self, NoRandomness};
use crate::web::{WebClient, WebError};

/// How long the endpoints are used before the issuer is asked for them again.
const FRESH: Duration = Duration::from_secs(3600);
/// Pause after the issuer could not be asked for them, however many people want to log in.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest ID token that is taken, in bytes: Entra's are the largest that are usual, with 200 groups of 36 characters.
const MAX_TOKEN: usize = 32 << 10;
/// Longest ID token that is kept to be shown when its person logs out, in bytes: it goes into a URL.
const MAX_HINT: usize = 4 << 10;

/// Logs people in by one issuer.
pub struct CodeFlow {
    issuer: Arc<Issuer>,
    login: BrowserLogin,
    client: WebClient,
    guesses: Arc<Guesses>,
    known: Arc<Mutex<Option<Known>>>,
    /// The endpoints that the issuer named last, also while it cannot be asked.
    named: std::sync::Mutex<Option<Arc<Endpoints>>>,
}

/// What the issuer's document said when it was last asked for.
struct Known {
    asked: Instant,
    told: Result<Arc<Endpoints>, String>,
}

/// The endpoints of an issuer.
struct Endpoints {
    authorization: Url,
    token: Url,
    end_session: Option<Url>,
    /// Whether the client's secret belongs into the body, not into `Authorization`.
    secret_in_body: bool,
    /// Whether each answer names the issuer (RFC 9207).
    names_itself: bool,
}

/// The document of an issuer (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    end_session_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// A login on its way. It has to be kept where only the browser that began it has it, or can point to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The issuer by its name in the configuration.
    pub login: String,
    redirect_uri: String,
    nonce: String,
    /// The secret of PKCE.
    verifier: String,
}

/// Why nobody is logged in.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("the issuer cannot be asked, or answers otherwise than it should; the log of the cache says more")]
    Issuer(String),
    #[error("the answer does not name the issuer that was asked")]
    MixedUp,
    #[error("the issuer did not take the code: it may be used once, and soon; log in again")]
    Code,
    #[error("the issuer's ID token is not taken: {0}")]
    Token(String),
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl CodeFlow {
    /// Makes the logins by an issuer, which is not asked yet.
    pub(super) fn new(issuer: Arc<Issuer>, login: BrowserLogin, guesses: Arc<Guesses>) -> Result<Self, WebError> {
        let client = WebClient::new(&login.access)?;
        Ok(Self { issuer, login, client, guesses, known: Arc::default(), named: std::sync::Mutex::default() })
    }

    /// Returns whether these are the logins by this issuer. An issuer whose configuration changed is another.
    pub(super) fn is_of(&self, issuer: &Arc<Issuer>) -> bool {
        Arc::ptr_eq(&self.issuer, issuer)
    }

    /// Returns the issuer's name in the configuration.
    pub fn name(&self) -> &str {
        self.issuer.name()
    }

    /// Returns how long a login lasts.
    pub fn session_max_age(&self) -> Duration {
        self.login.session_max_age
    }

    /// Returns whether a person who logged in with these claims would still be let in with them.
    pub fn still_takes(&self, claims: &Claims) -> bool {
        self.issuer.still_takes(claims) && names(claims, "aud", &self.login.client_id)
    }

    /// Checks that the issuer can be asked, and can log people in.
    pub async fn check(self: &Arc<Self>) -> Result<(), String> {
        self.endpoints().await.map(|_| ())
    }

    /// Begins a login. `redirect_uri`: where the browser comes back to.
    pub fn begin(&self, redirect_uri: String) -> Result<Begun, NoRandomness> {
        Ok(Begun { login: self.name().to_owned(), redirect_uri, nonce: random::text()?, verifier: random::text()? })
    }

    /// Returns the URL at the issuer that the browser has to go to. `state`: what it brings back. `again`: whether a
    /// person whom the issuer knows has to log in again, maybe as somebody else.
    pub async fn url(self: &Arc<Self>, begun: &Begun, state: &str, again: bool) -> Result<Url, Failed> {
        let mut url = self.endpoints().await.map_err(Failed::Issuer)?.authorization.clone();
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, begun.verifier.as_bytes()));
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.login.client_id)
            .append_pair("redirect_uri", &begun.redirect_uri)
            .append_pair("scope", &self.login.scopes)
            .append_pair("state", state)
            .append_pair("nonce", &begun.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .extend_pairs(again.then_some(("prompt", "login")));
        Ok(url)
    }

    /// Checks that an answer is this issuer's. `named`: the issuer that it names (RFC 9207). The address that the
    /// browser comes back to tells issuers apart, too (RFC 9700, section 4.4.2).
    pub async fn is_answer(self: &Arc<Self>, named: Option<&str>) -> Result<(), Failed> {
        let is_right = match named {
            Some(named) => self.issuer.is(named),
            None => !self.endpoints().await.map_err(Failed::Issuer)?.names_itself,
        };
        is_right.then_some(()).ok_or(Failed::MixedUp)
    }

    /// Exchanges a code for the claims of its person, and the ID token if it is short enough to be kept. A wrong code
    /// counts as a wrong login of the client's address.
    pub async fn finish(
        self: &Arc<Self>,
        address: ClientAddress,
        begun: &Begun,
        code: &str,
    ) -> Result<(Arc<Claims>, Option<Secret>), Failed> {
        let endpoints = self.endpoints().await.map_err(Failed::Issuer)?;
        let place = self.guesses.reserve(address)?;
        let (flow, asked, sent, code) = (self.clone(), endpoints.clone(), begun.clone(), code.to_owned());
        // Not in the request's own task: it counts as well when the browser hangs up.
        let exchanged = tokio::spawn(async move {
            let told = flow.exchange(&asked, &sent, &code).await;
            if matches!(told, Err(Failed::Code)) {
                place.was_wrong();
            }
            told
        });
        let token = exchanged.await.map_err(|error| Failed::Issuer(error.to_string()))??;
        let claims = self.claims(&token, &begun.nonce).await?;
        let hint = (token.len() <= MAX_HINT && endpoints.end_session.is_some()).then(|| Secret::new(token));
        Ok((Arc::new(claims), hint))
    }

    /// Returns the URL at the issuer that ends the person's session there, if it is known to have one (OpenID Connect
    /// RP-Initiated Logout 1.0, section 2). `back`: where the browser comes back to.
    pub async fn end_session(self: &Arc<Self>, id_token: Option<&Secret>, back: &str) -> Option<Url> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let endpoints = match named {
            Some(endpoints) => endpoints,
            None => self.endpoints().await.ok()?,
        };
        let mut url = endpoints.end_session.clone()?;
        url.query_pairs_mut()
            .extend_pairs(id_token.map(|token| ("id_token_hint", token.reveal())))
            .append_pair("client_id", &self.login.client_id)
            .append_pair("post_logout_redirect_uri", back);
        Some(url)
    }

    /// Asks the token endpoint (OpenID Connect Core 1.0, section 3.1.3), and returns the ID token.
    async fn exchange(&self, endpoints: &Endpoints, begun: &Begun, code: &str) -> Result<String, Failed> {
        #[derive(Deserialize)]
        struct Tokens {
            id_token: Option<String>,
        }
        let answer = self.client.send(self.request(endpoints, begun, code)?).await;
        let answer = answer.map_err(|error| Failed::Issuer(format!("{}: {error}", endpoints.token)))?;
        if !answer.status().is_success() {
            return Err(self.refused(&endpoints.token, answer.status(), answer.body()));
        }
        let tokens: Tokens = serde_json::from_slice(answer.body()).map_err(|error| {
            // The library's message may quote a token.
            let place = format!("line {}, column {}", error.line(), error.column());
            Failed::Issuer(format!("{}: its answer is not the JSON of a token endpoint ({place})", endpoints.token))
        })?;
        let token = tokens.id_token.ok_or_else(|| {
            Failed::Issuer(format!(
                "{}: its answer has no `id_token`; is it an issuer of OpenID Connect?",
                endpoints.token
            ))
        })?;
        match token.len() <= MAX_TOKEN {
            true => Ok(token),
            false => Err(Failed::Token(format!("it has more than {MAX_TOKEN} bytes; have it list fewer groups"))),
        }
    }

    fn request(&self, endpoints: &Endpoints, begun: &Begun, code: &str) -> Result<Request<Bytes>, Failed> {
        let unusable = |error: http::Error| Failed::Issuer(error.to_string());
        let id = &self.login.client_id;
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", &begun.redirect_uri)
            .append_pair("code_verifier", &begun.verifier);
        let request = Request::post(endpoints.token.as_str())
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let request = match &self.login.client_secret {
            Some(secret) if !endpoints.secret_in_body => {
                // Both are encoded as in a form, before they are joined (RFC 6749, section 2.3.1).
                let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                let pair = BASE64_STANDARD.encode(format!("{}:{}", encoded(id), encoded(secret.reveal())));
                let mut value =
                    HeaderValue::try_from(format!("Basic {pair}")).map_err(|error| unusable(error.into()))?;
                value.set_sensitive(true);
                request.header(AUTHORIZATION, value)
            }
            Some(secret) => {
                form.append_pair("client_id", id).append_pair("client_secret", secret.reveal());
                request
            }
            None => {
                form.append_pair("client_id", id);
                request
            }
        };
        request.body(Bytes::from(form.finish())).map_err(unusable)
    }

    /// Reads the refusal of a token endpoint (RFC 6749, section 5.2). Its description is not told: it may repeat the
    /// code.
    fn refused(&self, at: &Url, status: StatusCode, body: &[u8]) -> Failed {
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        let refusal = serde_json::from_slice::<Refusal>(body).ok();
        match refusal.and_then(|refusal| error_code(&refusal.error).map(str::to_owned)).as_deref() {
            Some("invalid_grant") => Failed::Code,
            Some(error @ ("invalid_client" | "unauthorized_client")) => {
                let name = self.name();
                let message = format!(
                    "{at}: answered {status}, {error}; check `client_id` and the secret in [auth.oidc.\"{name}\".login]"
                );
                Failed::Issuer(message)
            }
            Some(error) => Failed::Issuer(format!("{at}: answered {status}, {error}")),
            None => Failed::Issuer(format!("{at}: answered {status}")),
        }
    }

    /// Verifies an ID token (OpenID Connect Core 1.0, section 3.1.3.7).
    async fn claims(&self, token: &str, nonce: &str) -> Result<Claims, Failed> {
        let wrong = |why: &str| Failed::Token(why.to_owned());
        let refused = |refused| match refused {
            Refused::NotNow(why) => Failed::NotNow(why),
            why => Failed::Token(why.to_string()),
        };
        let id = &self.login.client_id;
        let ready = self.issuer.ready(token).await.map_err(refused)?;
        let claims = self.issuer.claims_for(&ready, std::slice::from_ref(id)).await.map_err(refused)?;
        if claims.values.get("nonce").and_then(Value::as_str) != Some(nonce) {
            return Err(wrong("it is that of another login"));
        }
        let is_for_several = matches!(claims.values.get("aud"), Some(Value::Array(all)) if all.len() > 1);
        match claims.values.get("azp") {
            None if !is_for_several => {}
            Some(Value::String(party)) if party == id => {}
            _ => return Err(wrong("it was given to another client (`azp`)")),
        }
        if claims.subject().is_empty() {
            return Err(wrong("it has no `sub`"));
        }
        Ok(claims)
    }

    /// Returns the issuer's endpoints. While one caller asks for them, the others wait.
    async fn endpoints(self: &Arc<Self>) -> Result<Arc<Endpoints>, String> {
        let mut known = self.known.clone().lock_owned().await;
        if let Some(Known { asked, told }) = &*known {
            let age = asked.elapsed();
            if age < PAUSE || (told.is_ok() && age < FRESH) {
                return told.clone();
            }
        }
        let flow = self.clone();
        // Not in the request's own task: a browser that hangs up would have the next one ask again, too.
        let asked = tokio::spawn(async move {
            let told = flow.ask().await.map(Arc::new);
            *known = Some(Known { asked: Instant::now(), told: told.clone() });
            if let Ok(endpoints) = &told {
                *flow.named.lock().unwrap_or_else(PoisonError::into_inner) = Some(endpoints.clone());
            }
            told
        });
        asked.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn ask(&self) -> Result<Endpoints, String> {
        let at = &self.login.document;
        let found: Discovery = document::get(&self.client, at).await?;
        if !self.issuer.is(&found.issuer) {
            return Err(document::of_another(at));
        }
        let end_session = found.end_session_endpoint.as_deref();
        let methods = found.token_endpoint_auth_methods_supported;
        let takes = |method: &str| methods.as_ref().is_some_and(|all| all.iter().any(|one| one == method));
        Ok(Endpoints {
            authorization: document::endpoint(at, "authorization_endpoint", &found.authorization_endpoint)?,
            token: document::endpoint(at, "token_endpoint", &found.token_endpoint)?,
            end_session: end_session.map(|url| document::endpoint(at, "end_session_endpoint", url)).transpose()?,
            secret_in_body: takes("client_secret_post") && !takes("client_secret_basic"),
            names_itself: found.authorization_response_iss_parameter_supported,
        })
    }
}

/// Returns whether a claim is this text, or a list with it.
fn names(claims: &Claims, claim: &str, text: &str) -> bool {
    match claims.values.get(claim) {
        Some(Value::String(one)) => one == text,
        Some(Value::Array(all)) => all.iter().any(|one| one == text),
        _ => false,
    }
}

/// Returns an error of OAuth 2.0 if it has the form of one: others may be anything.
pub fn error_code(text: &str) -> Option<&str> {
    const LONGEST: usize = 40;
    let is_code = !text.is_empty() && text.len() <= LONGEST;
    (is_code && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_the_form_of_an_error_is_told() {
        assert_eq!(error_code("access_denied"), Some("access_denied"));
        let long = "a".repeat(41);
        for text in ["", "Access", "the code abc123", "a\nb", "<script>", &long] {
            assert_eq!(error_code(text), None, "{text}");
        }
    }
}
