//! Headers on the way through: what is for the next hop only, and what no request may have.

use http::header::{
    CONNECTION, COOKIE, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use super::refused::Refused;

/// Between two hops (RFC 9110, section 7.6.1), beside what `Connection` names.
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
const ME: &str = "larder";
/// Servers and proxies that a request may come through.
const MAX_VIA: usize = 16;
const MAX_MINE: usize = 3;

/// Refuses what could be read in two ways, or goes in a circle.
pub fn check(request: &Parts) -> Result<(), Refused> {
    let headers = &request.headers;
    if headers.get_all(HOST).iter().count() > 1 {
        return Err(Refused::Malformed("there has to be one Host"));
    }
    let via = headers.get_all(VIA).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let (mine, others): (Vec<_>, Vec<_>) = via.partition(|hop| hop.split_whitespace().nth(1) == Some(ME));
    // Larders may stand one behind another.
    if mine.len() > MAX_MINE || mine.len() + others.len() > MAX_VIA {
        return Err(Refused::Circle);
    }
    Ok(())
}

/// The protocol that a request asks to change to, where it does.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let is_asked = options.any(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("upgrade")));
    headers.get(UPGRADE).filter(|_| is_asked).cloned()
}

/// Takes out what was for this hop, and says that it came by here.
pub fn pass_on(headers: &mut HeaderMap, version: Version) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    let takes_trailers = headers.get_all(TE).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in named.iter().chain(&OF_THE_HOP) {
        headers.remove(name);
    }
    // HTTP/2 may have it in pieces (RFC 9113, section 8.2.3).
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
