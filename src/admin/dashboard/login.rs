//! Logging in and out in a browser.
//!
//! Nobody is sent to an issuer unasked: whoever has just logged out, or is turned away, would be logged in again at
//! once.

use std::sync::Arc;

use axum::Extension;
use axum::body::to_bytes;
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use maud::html;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::{Url, form_urlencoded};

use super::super::door::{Offer, Person};
use super::super::problem::Problem;
use super::layout::{Page, notice};
use super::show::prose;
use crate::access::browser::{self, Answer, NoLogin};
use crate::access::{AskedHost, NotNow, host};
use crate::auth::{Client, Failed};
use crate::services::Services;

/// The query with which a browser is challenged to send a name and a password.
pub const BY_PASSWORD: &str = "login=password";
/// Most bytes of the form to log out.
const MAX_FORM: usize = 4096;

/// A problem, for a door where nobody logs in in a browser.
fn nothing_here() -> Response {
    Problem::new(StatusCode::NOT_FOUND, "no such page; see docs/api.md").into_response()
}

/// Reads the query of a page to log in. One that cannot be read is worth an empty one.
fn query<T: DeserializeOwned + Default>(uri: &Uri) -> T {
    Query::try_from_uri(uri).map(|Query(query)| query).unwrap_or_default()
}

/// The scheme and host by which a browser asked for this door, such as `https://larder.example.com`. The browser comes
/// back from an issuer by these.
pub struct Origin(String);

impl FromRequestParts<Arc<Services>> for Origin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Services>) -> Result<Self, Problem> {
        let asked = host(parts).and_then(|host| AskedHost::read(host.as_bytes()));
        let asked = asked.ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "the request names no host"))?;
        let scheme = if crate::auth::is_secure(parts) { "https" } else { "http" };
        Ok(Self(format!("{scheme}://{asked}")))
    }
}

/// The query of the pages to log in.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Wanted {
    /// The path of the page that the person wants to see.
    wanted: String,
    /// Not empty: the issuer asks also a person whom it knows, who may be somebody else now.
    again: String,
}

/// Returns the page that lets people log in. `why`: why they are not let in although the issuer knows them.
pub fn page(offer: &Offer, why: Option<&str>) -> Page {
    let link = |name: &str| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("wanted", &offer.wanted).extend_pairs(why.map(|_| ("again", "1")));
        format!("{}?{}", browser::begin(name), query.finish())
    };
    let content = html! {
        @if let Some(why) = why { p.why role="alert" { (prose(why)) } }
        ul.logins {
            @for name in &offer.issuers {
                li { a.button href=(link(name)) { "Log in with " (name) } }
            }
            @if offer.has_passwords {
                li { a href={ "/?" (BY_PASSWORD) } { "Log in with a name and a password" } }
            }
        }
    };
    notice(if why.is_some() { "Not logged in" } else { "Log in" }, &content)
}

/// Shows the page that lets people log in.
pub async fn show(State(services): State<Arc<Services>>, uri: Uri) -> Response {
    let Wanted { wanted, .. } = query(&uri);
    match Offer::of(&services.access.rules(), &wanted) {
        Some(offer) => page(&offer, None).into_response(),
        None => nothing_here(),
    }
}

/// Sends the browser to an issuer.
pub async fn begin(
    State(services): State<Arc<Services>>,
    Extension(client): Extension<Client>,
    Origin(origin): Origin,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let Wanted { wanted, again } = query(request.uri());
    let rules = services.access.rules();
    let Some(offer) = Offer::of(&rules, &wanted) else { return nothing_here() };
    let asked = (&client, request.headers());
    let sent = services.access.browsers.send(&rules, asked, (&name, &origin, &wanted), !again.is_empty()).await;
    match sent {
        Ok(sent) => see_other(sent.to.as_str(), sent.cookie),
        Err(why) => no_login(&offer, &why),
    }
}

/// Ends a login: an issuer has sent the browser back.
pub async fn come_back(
    State(services): State<Arc<Services>>,
    Extension(client): Extension<Client>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let rules = services.access.rules();
    let Some(offer) = Offer::of(&rules, "/") else { return nothing_here() };
    let answer: Answer = query(request.uri());
    let asked = (&client, request.headers());
    match services.access.browsers.come_back(&rules, asked, &name, &answer).await {
        Ok(done) => {
            let mut response = see_other(&done.wanted, done.cookie);
            let identity = Some(done.identity);
            response.extensions_mut().insert(Person { client, identity, session: None });
            response
        }
        Err(why) => no_login(&offer, &why),
    }
}

/// Ends a session, here and at the issuer.
pub async fn log_out(
    State(services): State<Arc<Services>>,
    Extension(client): Extension<Client>,
    Origin(origin): Origin,
    request: Request,
) -> Response {
    let rules = services.access.rules();
    if Offer::of(&rules, "/").is_none() {
        return nothing_here();
    }
    let browsers = &services.access.browsers;
    let (head, body) = request.into_parts();
    let Some(shown) = browsers.shown(&rules, &client, &head.headers) else {
        return see_other("/login", browser::forget(&client));
    };
    let form = to_bytes(body, MAX_FORM).await.unwrap_or_default();
    let token = form_urlencoded::parse(&form).find(|(key, _)| key == "csrf_token");
    if !token.is_some_and(|(_, token)| shown.has_csrf_token(&token)) {
        return Problem::new(StatusCode::FORBIDDEN, "the page is that of another login; load it again").into_response();
    }
    match browsers.end(&rules, &shown, &format!("{origin}/login")).await {
        Some(to) => logged_out(&to, browser::forget(&client)),
        None => see_other("/login", browser::forget(&client)),
    }
}

/// Sends the browser on to the issuer, to end the session there. This is a page and no redirect: Chrome and Safari
/// follow a form's redirects only to where `form-action` allows, which is here
/// (<https://github.com/w3c/webappsec-csp/issues/8>).
fn logged_out(to: &Url, cookie: HeaderValue) -> Response {
    let content = html! {
        p { "You are logged out here." }
        p { a.button href=(to) { "Log out at the issuer" } }
    };
    let mut response = notice("Logged out", &content).into_response();
    response.headers_mut().append(header::SET_COOKIE, cookie);
    if let Ok(mut refresh) = HeaderValue::try_from(format!("0; url={to}")) {
        refresh.set_sensitive(true);
        response.headers_mut().insert(HeaderName::from_static("refresh"), refresh);
    }
    response
}

/// Sends the browser to another page.
fn see_other(to: &str, cookie: HeaderValue) -> Response {
    match HeaderValue::try_from(to) {
        Ok(mut location) => {
            location.set_sensitive(true);
            (StatusCode::SEE_OTHER, [(header::LOCATION, location), (header::SET_COOKIE, cookie)]).into_response()
        }
        Err(_) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "there is no such page to go to").into_response(),
    }
}

/// Says why nobody is logged in, and offers another try.
fn no_login(offer: &Offer, why: &NoLogin) -> Response {
    let (status, after) = match why {
        NoLogin::Unknown => (StatusCode::NOT_FOUND, None),
        NoLogin::Strange => (StatusCode::BAD_REQUEST, None),
        NoLogin::Randomness(_) | NoLogin::Failed(Failed::Randomness(_)) => (StatusCode::INTERNAL_SERVER_ERROR, None),
        NoLogin::Failed(Failed::Issuer(_)) => (StatusCode::BAD_GATEWAY, None),
        NoLogin::Failed(Failed::NotNow(why)) => match why {
            NotNow::Guessing(left) => (StatusCode::TOO_MANY_REQUESTS, Some(left.as_secs() + 1)),
            NotNow::Crowded => (StatusCode::TOO_MANY_REQUESTS, Some(1)),
            NotNow::Busy => (StatusCode::SERVICE_UNAVAILABLE, Some(1)),
            NotNow::Issuer(_) => (StatusCode::BAD_GATEWAY, None),
        },
        NoLogin::Declined(_)
        | NoLogin::NotNamed(_)
        | NoLogin::Failed(Failed::MixedUp | Failed::Code | Failed::Token(_)) => (StatusCode::FORBIDDEN, None),
    };
    let mut response = (status, page(offer, Some(&why.to_string()))).into_response();
    response.headers_mut().extend(after.map(|seconds| (header::RETRY_AFTER, HeaderValue::from(seconds))));
    response
}
