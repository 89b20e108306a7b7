//! Which clients may use the admin door, and for what.

use std::fmt;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::access::browser::{Shown, forget, local, shows_session};
use crate::access::{AskedHost, Manager, NotNow, Rules};
use crate::auth::{Client, Identity};
use crate::services::Services;

/// The header with a page's proof that a request comes from it.
const CSRF_TOKEN: &str = "x-csrf-token";

/// Who asks: for the log.
#[derive(Clone)]
pub struct Person {
    pub client: Client,
    /// The identity that the client logged in with; `None`: its address decided.
    pub identity: Option<Identity>,
    /// The session that let the client in.
    pub session: Option<Arc<Shown>>,
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

/// Returns whether a page is for everybody where people log in in a browser: it lets them do so.
fn is_for_strangers(path: &str) -> bool {
    matches!(path, "/login" | "/logout") || path.starts_with("/login/") || path.starts_with("/assets/")
}

/// What a browser is shown that asks for a page without being let in. It comes with the refusal.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The issuers to log in by.
    pub issuers: Vec<String>,
    /// Whether there are users with passwords.
    pub has_passwords: bool,
    /// The path of the page that was asked for.
    pub wanted: String,
}

impl Offer {
    /// Returns what these rules offer; `None`: nobody logs in in a browser.
    pub fn of(rules: &Rules, wanted: &str) -> Option<Self> {
        let issuers: Vec<_> = rules.browser_logins().into_iter().map(str::to_owned).collect();
        let has_passwords = rules.logins.as_ref().is_some_and(|logins| logins.has_passwords());
        (!issuers.is_empty()).then(|| Self { issuers, has_passwords, wanted: local(wanted).to_owned() })
    }
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
    if let Err(problem) = refuse_foreign_pages(&request, host.as_ref(), &client) {
        return problem.into_response();
    }
    let rules = services.access.rules();
    let offer = Offer::of(&rules, request.uri().path_and_query().map_or("/", |path| path.as_str()));
    if offer.is_some() && is_for_strangers(request.uri().path()) {
        return next.run(request).await;
    }
    // An export is content, which a right to look at figures does not include.
    let is_change = !is_look(&request) || request.uri().path() == "/api/export";
    let (identity, session) = match services.access.manager(&client, request.headers(), is_change).await {
        Manager::Known(identity) => (Some(identity), None),
        Manager::Session(shown) => {
            if let Err(problem) = needs_csrf_token(&request, &shown) {
                return problem.into_response();
            }
            (Some(shown.identity.clone()), Some(shown))
        }
        Manager::ByAddress => {
            // A web page from anywhere can have its own name resolve to this machine: only Larder's own names are
            // believed.
            if let Some(problem) = strange_name(host.as_ref(), &services) {
                return offering(problem.into_response(), offer);
            }
            (None, None)
        }
        refused if offer.is_some() && has_ended(&refused, &client, &request) => {
            return offering(ended(&client), offer);
        }
        refused => return offering(refusal(refused, is_change), offer),
    };
    let person = Person { client, identity, session };
    request.extensions_mut().insert(person.clone());
    let mut response = next.run(request).await;
    response.extensions_mut().insert(person);
    response
}

/// Adds to a refusal what a browser is shown.
fn offering(mut response: Response, offer: Option<Offer>) -> Response {
    if let Some(offer) = offer {
        response.extensions_mut().insert(offer);
    }
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

/// Returns whether a client is not let in because its session is over.
fn has_ended(refused: &Manager, client: &Client, request: &Request) -> bool {
    let has_credentials = request.headers().contains_key(header::AUTHORIZATION);
    matches!(refused, Manager::Unknown(_)) && !has_credentials && shows_session(client, request.headers())
}

/// Returns the answer for a browser whose session is over. It has no challenge to `Basic`: the browser would ask for a
/// password, also where a script made the request.
fn ended(client: &Client) -> Response {
    let message = "the login in this browser has ended; load the page again to log in";
    let headers =
        [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")), (header::SET_COOKIE, forget(client))];
    (headers, Problem::new(StatusCode::UNAUTHORIZED, message)).into_response()
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
        // The first three are let in and do not come here.
        Manager::Known(_) | Manager::Session(_) | Manager::ByAddress | Manager::Refused => {
            let message = match is_change {
                true => "admin.allow does not name this client; admin.read lets clients look, not change anything",
                false => "neither admin.allow nor admin.read names this client",
            };
            Problem::new(StatusCode::FORBIDDEN, message).into_response()
        }
    }
}

/// Refuses a request that changes something, if it comes from a web page of another site: the browser may be on this
/// machine, or send along a password or a session.
fn refuse_foreign_pages(request: &Request, host: Option<&AskedHost>, client: &Client) -> Result<(), Problem> {
    if is_look(request) {
        return Ok(());
    }
    let is_foreign = |name: &str, is_own: &dyn Fn(&str) -> bool| {
        let mut values = request.headers().get_all(name).iter();
        values.any(|value| !value.to_str().is_ok_and(is_own))
    };
    let is_foreign_site = is_foreign("sec-fetch-site", &|site| matches!(site, "same-origin" | "none"));
    // A trusted proxy in front may state the host that the browser asked, and set `Host` to another one.
    let asked = client.asked_host.as_deref().and_then(|host| AskedHost::read(host.as_bytes()));
    let hosts = [host, asked.as_ref()];
    let is_foreign_origin = is_foreign("origin", &|origin| hosts.iter().flatten().any(|host| host.is_origin(origin)));
    if is_foreign_site || is_foreign_origin {
        return Err(Problem::new(StatusCode::FORBIDDEN, "a page of another place may not ask for this"));
    }
    Ok(())
}

/// Refuses a request that changes something by the right of a session, unless it comes from a page of that session. (A
/// browser sends a cookie along by itself. The rule above needs a browser that states where a request comes from; this
/// one does not.)
fn needs_csrf_token(request: &Request, shown: &Shown) -> Result<(), Problem> {
    let token = request.headers().get(CSRF_TOKEN).and_then(|value| value.to_str().ok());
    match is_look(request) || token.is_some_and(|token| shown.has_csrf_token(token)) {
        true => Ok(()),
        false => Err(Problem::new(StatusCode::FORBIDDEN, "the page is that of another login; load it again")),
    }
}
