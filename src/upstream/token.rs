//! Requests to a token service.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use url::Url;

use super::transport::{TokenCall, Transport};
use super::who::Who;
use crate::config::Login;
use crate::failure::Failure;
use crate::fingerprint;

/// Most bytes of a token service's answer.
const MAX_ANSWER: usize = 256 << 10;
/// The name by which Larder asks, for the token service's own records.
const CLIENT_ID: &str = "larder";

/// A request to a token service for a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    /// URL of the token service.
    pub realm: Url,
    pub service: Option<String>,
    pub scope: String,
    /// The login, which is set only where the realm may get it; `None`: the request is anonymous.
    pub login: Option<Arc<Login>>,
    /// Whether the realm may get the upstream's credentials.
    pub is_trusted: bool,
}

impl TokenRequest {
    /// Returns a digest that stands for this request in the cache of tokens.
    pub fn id(&self) -> [u8; 32] {
        let who = self.login.clone().map_or(Who::Anonymous, Who::Login).id();
        let service = self.service.as_deref().unwrap_or_default();
        fingerprint::of(&[who.as_bytes(), self.realm.as_str().as_bytes(), service.as_bytes(), self.scope.as_bytes()])
    }
}

/// A token service's answer. Registries differ in the name of the token's field and in the type of `expires_in`.
#[derive(Deserialize)]
pub struct TokenAnswer {
    pub access_token: Option<String>,
    pub token: Option<String>,
    pub expires_in: Option<serde_json::Value>,
}

/// Fetches a token: with GET and Basic, as the Docker Registry v2 token specification says, or with POST (OAuth 2) for
/// an identity token. A service that does not know the one way is asked the other way.
pub async fn fetch(transport: &Transport, request: &TokenRequest, who: &Who) -> Result<TokenAnswer, Failure> {
    let login = request.login.as_deref();
    let is_identity_token = login.is_some_and(|login| login.is_identity_token);
    let by_get = !is_identity_token;
    let is_trusted = request.is_trusted;
    let response = transport.ask_for_token(call(request, by_get).borrowed(), who, is_trusted).await?;
    let may_try_other = match response.status() {
        // Some services have no GET, some (GCR, Artifactory, ACR) no POST.
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => login.is_some(),
        StatusCode::UNAUTHORIZED => is_identity_token && login.is_some_and(has_name),
        _ => false,
    };
    let response = if may_try_other {
        let first = transport.successful(response).await;
        match transport.ask_for_token(call(request, !by_get).borrowed(), who, is_trusted).await {
            Ok(second) if second.status().is_success() => second,
            // The answer to the first way, which the service ought to know, tells more.
            Ok(_) => first?,
            Err(failure) => return Err(failure),
        }
    } else {
        transport.successful(response).await?
    };
    let bytes = transport.read(response, MAX_ANSWER).await?;
    serde_json::from_slice(&bytes).map_err(|_| transport.wrong("its token service did not answer with JSON".to_owned()))
}

fn has_name(login: &Login) -> bool {
    !login.username.is_empty() && login.username != "<token>"
}

struct Call {
    url: url::Url,
    form: Option<String>,
    authorization: Option<HeaderValue>,
}

impl Call {
    fn borrowed(&self) -> TokenCall<'_> {
        TokenCall { url: self.url.clone(), form: self.form.as_deref(), authorization: self.authorization.clone() }
    }
}

fn call(request: &TokenRequest, by_get: bool) -> Call {
    let login = request.login.as_deref();
    let scopes = || request.scope.split(' ').filter(|scope| !scope.is_empty());
    let service = || request.service.iter().map(|service| ("service", service.as_str()));
    if by_get {
        let mut url = request.realm.clone();
        url.query_pairs_mut().extend_pairs(service()).extend_pairs(scopes().map(|scope| ("scope", scope)));
        return Call { url, form: None, authorization: login.map(basic_header) };
    }
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(service()).append_pair("client_id", CLIENT_ID);
    if !request.scope.is_empty() {
        form.append_pair("scope", &request.scope);
    }
    if let Some(login) = login {
        if login.is_identity_token {
            form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", login.password.reveal());
        } else {
            form.append_pair("grant_type", "password").append_pair("username", &login.username);
            form.append_pair("password", login.password.reveal());
        }
    }
    Call { url: request.realm.clone(), form: Some(form.finish()), authorization: None }
}

/// Returns the header `Authorization: Basic …` for a login.
pub fn basic_header(login: &Login) -> HeaderValue {
    let pair = format!("{}:{}", login.username, login.password.reveal());
    let text = format!("Basic {}", BASE64_STANDARD.encode(pair));
    let mut header = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
    header.set_sensitive(true);
    header
}
