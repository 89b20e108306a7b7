//! Which clients may use the admin door.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::access::{AskedHost, Manager, NotNow};
use crate::auth::Client;
use crate::services::Services;

/// Lets in clients that `admin.allow` names. Anybody may ask whether the process is well.
pub async fn guard(
    State(services): State<Arc<Services>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
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
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return next.run(request).await;
    }
    if let Err(problem) = refuse_foreign_pages(&request, host.as_ref()) {
        return problem.into_response();
    }
    match services.access.manager(Client::connected(peer), request.headers()).await {
        Manager::Known => next.run(request).await,
        // A web page from anywhere can have its own name resolve to this machine: only Larder's own names are believed.
        Manager::ByAddress if host.is_some_and(|host| services.access.is_admin_host(&host)) => next.run(request).await,
        Manager::ByAddress => Problem::new(
            StatusCode::FORBIDDEN,
            "this door is asked by address, such as 127.0.0.1:17081, as localhost, by a name of admin.hosts, or with a login; a proxy has to set Host so",
        )
        .into_response(),
        Manager::Unknown(challenge) => {
            let problem = Problem::new(StatusCode::UNAUTHORIZED, "log in as a user that admin.allow names");
            ([(header::WWW_AUTHENTICATE, challenge)], problem).into_response()
        }
        Manager::NotNow(why) => {
            let (status, after) = match why {
                NotNow::Guessing(left) => (StatusCode::TOO_MANY_REQUESTS, Some(left.as_secs() + u64::from(left.subsec_nanos() > 0))),
                NotNow::Crowded => (StatusCode::TOO_MANY_REQUESTS, Some(1)),
                NotNow::Busy => (StatusCode::SERVICE_UNAVAILABLE, Some(1)),
                NotNow::Issuer(_) => (StatusCode::BAD_GATEWAY, None),
            };
            let mut response = Problem::new(status, why).into_response();
            response.headers_mut().extend(after.map(|seconds| (header::RETRY_AFTER, seconds.into())));
            response
        }
        Manager::Refused => {
            Problem::new(StatusCode::FORBIDDEN, "admin.allow does not name this client").into_response()
        }
    }
}

/// Refuses a request that changes something, if it comes from a web page of another site in a browser on this machine.
fn refuse_foreign_pages(request: &Request, host: Option<&AskedHost>) -> Result<(), Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
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
