//! Which clients may use the admin door, and for what.

use std::fmt;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::access::{AskedHost, Manager, NotNow};
use crate::auth::{Client, Identity};
use crate::services::Services;

/// Who asks: for the log.
#[derive(Clone)]
pub struct Person {
    pub client: Client,
    /// The identity that the client logged in with; `None`: its address decided.
    pub identity: Option<Identity>,
}

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.identity.as_ref().and_then(Identity::name) {
            Some(name) => write!(f, "{name} at {}", self.client),
            None => self.client.fmt(f),
        }
    }
}

/// Returns whether a request changes nothing.
fn is_look(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

/// Returns whether a page is for everybody: whether the process is well.
pub fn is_probe(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

/// Lets in clients that `admin.allow` names, and those that `admin.read` names to look. Anybody may ask whether the
/// process is well. The response tells by its extension [`Person`] who was let in.
pub async fn guard(
    State(services): State<Arc<Services>>,
    Extension(client): Extension<Client>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.method() == Method::CONNECT {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this is no proxy");
        return ([(header::ALLOW, "GET, HEAD, PUT, POST, DELETE")], problem).into_response();
    }
    let host = match AskedHost::of(request.version(), request.uri(), request.headers()) {
        Ok(host) => host,
        Err(why) => return Problem::new(StatusCode::BAD_REQUEST, why).into_response(),
    };
    if is_probe(request.uri().path()) {
        return next.run(request).await;
    }
    if let Err(problem) = refuse_foreign_pages(&request, host.as_ref()) {
        return problem.into_response();
    }
    // An export is content, which a right to look at figures does not include.
    let is_change = !is_look(&request) || request.uri().path() == "/api/export";
    let identity = match services.access.manager(&client, request.headers(), is_change).await {
        Manager::Known(identity) => Some(identity),
        Manager::ByAddress => {
            // A web page from anywhere can have its own name resolve to this machine: only Larder's own names are
            // believed.
            if let Some(problem) = strange_name(host.as_ref(), &services) {
                return problem.into_response();
            }
            None
        }
        refused => return refusal(refused, is_change),
    };
    let person = Person { client, identity };
    request.extensions_mut().insert(person.clone());
    let mut response = next.run(request).await;
    response.extensions_mut().insert(person);
    response
}

/// Returns the error for a request that asks by a name that is not Larder's.
fn strange_name(host: Option<&AskedHost>, services: &Services) -> Option<Problem> {
    if host.is_some_and(|host| services.access.is_admin_host(host)) {
        return None;
    }
    let named = host.map_or_else(|| "no name".to_owned(), |host| format!("`{host}`"));
    let message = format!(
        "this door was asked as {named}: add the name to admin.hosts, log in, or ask by address, such as 127.0.0.1:17081, or as localhost; a proxy in front sets Host to one of these"
    );
    Some(Problem::new(StatusCode::FORBIDDEN, message))
}

/// Returns the answer for a client that is not let in.
fn refusal(refused: Manager, is_change: bool) -> Response {
    match refused {
        Manager::Unknown(challenge) => {
            let message = match is_change {
                true => "log in as a user that admin.allow names",
                false => "log in as a user that admin.allow or admin.read names",
            };
            ([(header::WWW_AUTHENTICATE, challenge)], Problem::new(StatusCode::UNAUTHORIZED, message)).into_response()
        }
        Manager::NotNow(why) => {
            let (status, after) = match why {
                NotNow::Guessing(left) => {
                    (StatusCode::TOO_MANY_REQUESTS, Some(left.as_secs() + u64::from(left.subsec_nanos() > 0)))
                }
                NotNow::Crowded => (StatusCode::TOO_MANY_REQUESTS, Some(1)),
                NotNow::Busy => (StatusCode::SERVICE_UNAVAILABLE, Some(1)),
                NotNow::Issuer(_) => (StatusCode::BAD_GATEWAY, None),
            };
            let mut response = Problem::new(status, why).into_response();
            response.headers_mut().extend(after.map(|seconds| (header::RETRY_AFTER, seconds.into())));
            response
        }
        // The first two are let in and do not come here.
        Manager::Known(_) | Manager::ByAddress | Manager::Refused => {
            let message = match is_change {
                true => "admin.allow does not name this client; admin.read lets clients look, not change anything",
                false => "neither admin.allow nor admin.read names this client",
            };
            Problem::new(StatusCode::FORBIDDEN, message).into_response()
        }
    }
}

/// Refuses a request that changes something, if it comes from a web page of another site in a browser on this machine.
fn refuse_foreign_pages(request: &Request, host: Option<&AskedHost>) -> Result<(), Problem> {
    if is_look(request) {
        return Ok(());
    }
    let is_foreign = |name: &str, is_own: &dyn Fn(&str) -> bool| {
        let mut values = request.headers().get_all(name).iter();
        values.any(|value| !value.to_str().is_ok_and(is_own))
    };
    let is_foreign_site = is_foreign("sec-fetch-site", &|site| matches!(site, "same-origin" | "none"));
    let is_foreign_origin = is_foreign("origin", &|origin| host.is_some_and(|host| host.is_origin(origin)));
    if is_foreign_site || is_foreign_origin {
        return Err(Problem::new(StatusCode::FORBIDDEN, "a page of another place may not ask for this"));
    }
    Ok(())
}
