//! Headers of forwarded messages: those for the next hop only, and those that no request may have.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, COOKIE, HOST, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, MAX_FORWARDS, PRAGMA, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT, VIA,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};

use super::refused::Refused;
use crate::body::{self, Body};

/// Headers for one hop (RFC 9110, section 7.6.1), besides those that `Connection` names.
const OF_THE_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];
/// Headers of a client's request that all servers and caches understand in the same way. Any other header may have a
/// meaning to one server that nobody else knows of: another method, another path, another host than the request line
/// names, or text for the answer.
const PLAIN: [HeaderName; 17] = [
    ACCEPT,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    AUTHORIZATION,
    CACHE_CONTROL,
    COOKIE,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    MAX_FORWARDS,
    PRAGMA,
    RANGE,
    TE,
    USER_AGENT,
    VIA,
];
/// Headers of a client that tell how its request was made or routed. None is forwarded if the answer may be for other
/// clients: servers put such values in their answers (James Kettle, "Practical Web Cache Poisoning", 2018), and they
/// differ from request to request.
const OF_THE_WAY: [&str; 30] = [
    "b3",
    "baggage",
    "cf-connecting-ip",
    "client-ip",
    "dnt",
    "fastly-client-ip",
    "forwarded",
    "from",
    "front-end-https",
    "max-forwards",
    "origin",
    "priority",
    "referer",
    "save-data",
    "traceparent",
    "tracestate",
    "true-client-ip",
    "uber-trace-id",
    "user-agent",
    "x-amzn-trace-id",
    "x-client-ip",
    "x-cloud-trace-context",
    "x-cluster-client-ip",
    "x-correlation-id",
    "x-host",
    "x-http-host-override",
    "x-real-ip",
    "x-request-id",
    "x-scheme",
    "x-url-scheme",
];
/// Prefixes of further such headers.
const OF_THE_WAY_TOO: [&str; 9] =
    ["npm-", "pacote-", "sec-", "x-b3-", "x-forwarded", "x-http-method", "x-method", "x-original", "x-rewrite"];
/// Larder's name in `Via`.
const ME: &str = "larder";
/// The `User-Agent` for a server, where the client's own is not forwarded.
const USER: HeaderValue = HeaderValue::from_static(concat!("larder/", env!("CARGO_PKG_VERSION")));
/// Most servers and proxies that a request may have passed through.
const MAX_VIA: usize = 16;
/// Most times that a request may have passed through a Larder.
const MAX_MINE: usize = 3;

/// Keeps only the plain headers and those in `also`: for a request that carries the configuration's credentials.
pub fn keep_plain(headers: &mut HeaderMap, also: &[HeaderName]) {
    let others: Vec<HeaderName> =
        headers.keys().filter(|name| !PLAIN.contains(name) && !also.contains(name)).cloned().collect();
    others.iter().for_each(|name| drop(headers.remove(name)));
}

/// Removes the headers on which an answer for other clients must not depend. Returns the remaining headers that are not
/// plain, as a sorted text: the answer is only for clients that send the same ones.
pub fn make_shared(headers: &mut HeaderMap) -> String {
    let is_of_the_way = |name: &HeaderName| {
        let name = name.as_str();
        OF_THE_WAY.contains(&name) || OF_THE_WAY_TOO.iter().any(|begin| name.starts_with(begin))
    };
    let out: Vec<HeaderName> = headers.keys().filter(|name| is_of_the_way(name)).cloned().collect();
    out.iter().for_each(|name| drop(headers.remove(name)));
    // How often the request passed through Larder still counts; the other hops are not forwarded.
    let mine = hops(headers).filter(|hop| is_mine(hop)).count();
    headers.remove(VIA);
    headers.extend(HeaderValue::try_from(vec![format!("1.1 {ME}"); mine].join(", ")).ok().map(|via| (VIA, via)));
    headers.insert(USER_AGENT, USER);
    let further = headers.iter().filter(|(name, _)| !PLAIN.contains(name));
    let mut further: Vec<_> = further.map(|(name, value)| format!("\n{name}: {:?}", value.as_bytes())).collect();
    further.sort();
    further.concat()
}

/// Counts down `Max-Forwards` of a TRACE or OPTIONS (RFC 9110, section 7.6.2). Returns whether Larder has to answer the
/// request itself.
pub fn count_down(request: &mut Parts) -> bool {
    if request.method != Method::TRACE && request.method != Method::OPTIONS {
        return false;
    }
    let left = request.headers.get(MAX_FORWARDS).and_then(|left| left.to_str().ok()?.trim().parse::<u64>().ok());
    if let Some(less) = left.and_then(|left| left.checked_sub(1)) {
        request.headers.insert(MAX_FORWARDS, HeaderValue::from(less));
    }
    left == Some(0)
}

/// Returns the answer to a request for which Larder is the last hop.
pub fn last_hop() -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn hops(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(VIA).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','))
}

fn is_mine(hop: &str) -> bool {
    hop.split_whitespace().nth(1) == Some(ME)
}

/// Refuses a request that could be read in two ways, or that goes in a circle.
pub fn check(request: &Parts) -> Result<(), Refused> {
    let headers = &request.headers;
    if headers.get_all(HOST).iter().count() > 1 {
        return Err(Refused::Malformed("there has to be one Host"));
    }
    let (mine, others): (Vec<_>, Vec<_>) = hops(headers).partition(|hop| is_mine(hop));
    // Several Larders may stand one behind another.
    if mine.len() > MAX_MINE || mine.len() + others.len() > MAX_VIA {
        return Err(Refused::Circle);
    }
    Ok(())
}

/// Returns the protocol that a request asks to change to, if it does.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let is_asked = options.any(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("upgrade")));
    headers.get(UPGRADE).filter(|_| is_asked).cloned()
}

/// Removes the headers for this hop, and adds Larder to `Via`.
pub fn pass_on(headers: &mut HeaderMap, version: Version) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    let takes_trailers = headers.get_all(TE).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in named.iter().chain(&OF_THE_HOP) {
        headers.remove(name);
    }
    // HTTP/2 may split it into several lines (RFC 9113, section 8.2.3).
    let cookies: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]));
        headers.remove(COOKIE);
        headers.extend(joined.ok().map(|joined| (COOKIE, joined)));
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let version = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    headers.extend(HeaderValue::try_from(format!("{version} {ME}")).ok().map(|value| (VIA, value)));
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn what_is_for_the_hop_goes_no_further() {
        let mut all = headers(&[
            ("connection", "keep-alive, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic eDp5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        pass_on(&mut all, Version::HTTP_11);
        assert_eq!(all, headers(&[("accept", "*/*"), ("te", "trailers"), ("via", "1.1 larder")]));
    }

    #[test]
    fn what_goes_in_a_circle_is_stopped() {
        let check = |via: &'static str| {
            let (mut parts, ()) = Request::new(()).into_parts();
            parts.headers = headers(&[("via", via)]);
            check(&parts)
        };
        assert!(check("1.1 larder, 1.1 squid, 1.1 larder").is_ok());
        assert!(matches!(check("1.1 larder, 1.1 a, 1.1 larder, 1.1 larder, 1.1 larder"), Err(Refused::Circle)));
        let long =
            "1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a,1.1 a";
        assert!(matches!(check(long), Err(Refused::Circle)));
    }

    #[test]
    fn another_protocol_is_asked_for_with_both_headers() {
        assert!(upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&headers(&[("connection", "upgrade")])).is_none());
    }
}
