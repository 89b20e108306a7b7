//! What keeps the pages safe in a browser, and errors as pages.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::super::door::{Offer, is_probe};
use super::super::problem::Told;
use super::{layout, login};

/// Nothing from another place, no script or style in a page, no page inside another one
/// (<https://www.w3.org/TR/CSP3/>).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Adds the headers that keep a page safe. Content is not kept by browsers unless the response says otherwise.
pub async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Shows an error as a page where a browser asked for one, with the same status and headers. Programs get JSON.
pub async fn errors_for_people(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_for_programs = path.starts_with("/api/") || path == "/metrics" || is_probe(path);
    let mut accepted = request.headers().get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_for_people = !is_for_programs && accepted.any(|types| types.contains("text/html"));
    let wants_password = request.uri().query() == Some(login::BY_PASSWORD);
    let is_look = request.method() == Method::GET;
    let response = next.run(request).await;
    let Some(Told(message)) = response.extensions().get::<Told>().filter(|_| is_for_people).cloned() else {
        return response;
    };
    let (mut head, _) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.remove(header::CONTENT_TYPE);
    let page = match head.extensions.get::<Offer>() {
        Some(offer) if is_look && !wants_password => {
            // A challenge to `Basic` would have the browser ask for a password before it shows the page.
            if head.headers.contains_key(header::WWW_AUTHENTICATE) {
                head.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            login::page(offer, (head.status != StatusCode::UNAUTHORIZED).then_some(message.as_str()))
        }
        _ => layout::failure(head.status, &message),
    };
    (head.status, head.headers, secure(page.into_response()).await).into_response()
}
