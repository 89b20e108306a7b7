//! Pages of the registry door by which clients log in: `/v2/` and `/token`, and the challenge that leads there.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Response};
use serde_json::json;

use crate::access::token_form::{Form, WrongForm};
use crate::access::{Access, Caller, Challenge, Refusal, TOKEN_LIFE, challenge, host};
use crate::body::{self, Body};
use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::oci::route::InvalidRoute;
use crate::routing::{Asked, Repository};
use crate::upstream::Who;

/// Answers `/v2/`. The answer tells that this is a registry and, to a client that logs in, whether its credentials are
/// accepted.
pub async fn base(
    access: &Access,
    request: &Parts,
    caller: &Caller,
    namespace: Option<&str>,
    prefix: &str,
) -> Result<Response<Body>, Refusal> {
    let routing = &caller.rules.routing;
    let asked = Asked { namespace, host: host(request), path: prefix, tag: None };
    let passes = |repository: &Arc<Repository>| repository.config.client_consent.is_some();
    let needs_login = |repository: &Arc<Repository>| {
        passes(repository) || !caller.stranger().may_pull(&repository.config.allow, caller.has_logins())
    };
    let selected = routing.selected(asked);
    // Some clients log in only if `/v2/` itself challenges them.
    let asks = selected.map_or_else(|| routing.repositories().iter().any(needs_login), needs_login);
    if !request.headers.contains_key(AUTHORIZATION) {
        let can_log_in = caller.has_logins() || routing.repositories().iter().any(passes);
        return match asks && can_log_in {
            true => Err(challenge(request, caller, Challenge::Missing, None)),
            false => Ok(yes()),
        };
    }
    let seem_ours = access.seem_ours(request, caller);
    match selected.or(routing.default()).filter(|repository| passes(repository)) {
        // Where no repository is named, a user of Larder logs in at Larder.
        _ if selected.is_none() && seem_ours => drop(access.identify(request, caller, None).await?),
        // If the credentials are of a user of Larder, the upstream is not asked: not every user of Larder has an
        // account there.
        Some(repository) => match access.is_ours(request, caller).await {
            true => drop(access.identify(request, caller, None).await?),
            false => greet(access, request, caller, repository).await?,
        },
        // Some repositories take the accounts of upstreams, so Larder cannot tell whose account this is.
        None if routing.repositories().iter().any(passes) => {}
        None => drop(access.identify(request, caller, None).await?),
    }
    Ok(yes())
}

/// Asks the upstream whether it accepts the client's credentials.
async fn greet(access: &Access, request: &Parts, caller: &Caller, repository: &Repository) -> Result<(), Refusal> {
    let who = access.credentials(&request.headers).map_err(|why| challenge(request, caller, why, None))?;
    if !matches!(who, Who::Login(_) | Who::Header(_)) {
        return Ok(());
    }
    let greet = async |at: usize| repository.upstreams[at].greet(&who).await;
    // If the upstream cannot answer, nobody is turned away: each pull asks again.
    let is_denied = |failure: Failure| failure.kind == FailureKind::Denied;
    match repository.upstreams.first(None, greet).await.is_err_and(is_denied) {
        true => {
            access.tell_failed(caller.stranger().address, &who);
            Err(challenge(request, caller, Challenge::Invalid, None))
        }
        false => Ok(()),
    }
}

/// Returns the refusal for a client that gets no content. A client without credentials is asked for them, whatever the
/// reason of the failure: with credentials the upstream may answer, or a stored object may be visible. Many clients
/// send their credentials only when they are asked. A client that sent credentials is told the actual reason.
pub fn ask_who_it_is(refusal: Refusal, request: &Parts, caller: &Caller, who: &Who, path: &str) -> Refusal {
    let Refusal::Failure { failure, .. } = &refusal else {
        return refusal;
    };
    let is_of_upstream = !matches!(failure.kind, FailureKind::Busy | FailureKind::NoRoom | FailureKind::Storage);
    let has_sent = request.headers.contains_key(AUTHORIZATION);
    let why = match who {
        Who::Anonymous if !has_sent && is_of_upstream => Challenge::Missing,
        // The client has a token of Larder without an account. Asking for a token again would change nothing; the
        // client has to be told so.
        Who::Anonymous if failure.kind == FailureKind::Denied => Challenge::Insufficient,
        Who::Header(_) if failure.kind == FailureKind::Denied => Challenge::Invalid,
        _ => return refusal,
    };
    match challenge(request, caller, why, Some(path)) {
        Refusal::Unauthenticated { why, challenge, .. } => {
            let tried = (failure.kind != FailureKind::Denied).then(|| failure.clone());
            Refusal::Unauthenticated { why, challenge, tried }
        }
        other => other,
    }
}

/// Answers `/token`: gives a token for the credentials of the request, by GET or by a form. Whether an upstream's
/// account is valid is decided by the upstream when the token is used. There are no refresh tokens: they would become
/// invalid when this process ends.
pub async fn give_token(access: &Access, request: &Parts, caller: &Caller) -> Result<Response<Body>, Refusal> {
    let mut repositories = caller.rules.routing.repositories().iter();
    let passes = repositories.any(|repository| repository.config.client_consent.is_some());
    if !passes && !caller.has_logins() {
        return Err(InvalidRoute::NotFound.into());
    }
    let form = request.extensions.get::<Result<Form, WrongForm>>().cloned().transpose()?;
    let is_for_upstream = passes && is_for_upstream(request, caller, form.as_ref());
    if !passes || (!is_for_upstream && access.seem_ours(request, caller)) {
        access.identify(request, caller, None).await?;
    }
    let login = match access.credentials(&request.headers) {
        Ok(Who::Login(login)) => Some(login),
        Ok(Who::Anonymous) => None,
        _ => return Err(challenge(request, caller, Challenge::Invalid, None)),
    };
    let sealed = access.seal(login.as_deref(), clock::wall());
    let token = sealed.ok_or_else(|| challenge(request, caller, Challenge::Invalid, None))?;
    let issued_at = humantime::format_rfc3339_seconds(clock::wall()).to_string();
    let mut document = json!({
        "token": token, "access_token": token, "expires_in": TOKEN_LIFE.as_secs(), "issued_at": issued_at
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

/// Returns whether a token is asked for a repository where the clients' own accounts at the upstream decide.
fn is_for_upstream(request: &Parts, caller: &Caller, form: Option<&Form>) -> bool {
    let query = url::form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes());
    let scopes = query.filter(|(key, _)| key == "scope").map(|(_, scope)| scope.into_owned());
    let scopes = scopes.chain(form.and_then(|form| form.scope.clone()));
    // A scope is `repository:NAME:ACTIONS`; several are separated by spaces.
    let mut names = scopes.flat_map(|scopes| {
        let names = scopes.split(' ').filter_map(|scope| scope.strip_prefix("repository:")?.rsplit_once(':'));
        names.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    });
    let routing = &caller.rules.routing;
    names.any(|name| {
        let target = routing.route(Asked { namespace: None, host: host(request), path: &name, tag: None });
        target.is_ok_and(|target| target.repository.config.client_consent.is_some())
    })
}

/// Returns the response to `/v2/` for a client whose login is fine or not needed.
fn yes() -> Response<Body> {
    let mut response = Response::new(body::full(Bytes::from_static(b"{}")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
