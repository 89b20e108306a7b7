//! Who may come in by the admin door.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Problem;
use crate::pull::{Manager, NotNow, Pull};

/// Lets in who `admin.allow` names. Whether the process is well may be asked by anybody.
pub async fn guard(
    State(pull): State<Arc<Pull>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return next.run(request).await;
    }
    if let Err(problem) = refuse_foreign_pages(request.method(), request.headers()) {
        return problem.into_response();
    }
    match pull.manager(peer, request.headers()).await {
        Manager::Known => next.run(request).await,
        // A page of anywhere can have its own name lead here: only names that cannot are believed.
        Manager::ByAddress if is_address(request.headers()) => next.run(request).await,
        Manager::ByAddress => Problem::new(
            StatusCode::FORBIDDEN,
            "this door is asked by address, such as 127.0.0.1:17081, or with a login; a proxy has to set Host so",
        )
        .into_response(),
        Manager::Unknown(challenge) => {
            let problem = Problem::new(StatusCode::UNAUTHORIZED, "log in as a user that admin.allow names");
            ([(header::WWW_AUTHENTICATE, challenge)], problem).into_response()
        }
        Manager::NotNow(why) => {
            let status = match why {
                NotNow::Guessing(_) | NotNow::Crowded => StatusCode::TOO_MANY_REQUESTS,
                NotNow::Busy => StatusCode::SERVICE_UNAVAILABLE,
                NotNow::Issuer(_) => StatusCode::BAD_GATEWAY,
            };
            Problem::new(status, why.to_string()).into_response()
        }
        Manager::Refused => {
            Problem::new(StatusCode::FORBIDDEN, "admin.allow does not name this client").into_response()
        }
    }
}

/// What changes something is not for pages of other places that a browser here has open.
fn refuse_foreign_pages(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_foreign_site = text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let origin = text("origin").map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
    if is_foreign_site || origin.is_some_and(|origin| Some(origin) != text("host")) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "a page of another place may not ask for this"));
    }
    Ok(())
}

fn is_address(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let is_v6 = name.starts_with('[') && name.ends_with(']');
    name.eq_ignore_ascii_case("localhost") || is_v6 || name.parse::<std::net::Ipv4Addr>().is_ok()
}
