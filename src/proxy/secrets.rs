//! The configuration's credentials for servers, and the requests of clients that they go with.
//!
//! Any header of the configuration may be such a secret, whatever its name. It goes with requests that only read a
//! registry, or URLs that `cache.patterns` match, and only for clients that `allow` names. Otherwise a client could
//! have the secret shown (TRACE), write with it, get a token for writing, or keep a connection that it has
//! authenticated (`Upgrade`).

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::percent_decode_str;
use url::Url;

use super::headers;
use crate::config::HostHeaders;
use crate::oci::Name;
use crate::oci::route::{Object, Route};

/// The only methods that read. It does not suffice that a method is safe: TRACE is, and shows the request's headers.
const READS: [Method; 3] = [Method::GET, Method::HEAD, Method::OPTIONS];

/// Headers of the configuration that go with a request.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub append: Vec<(HeaderName, HeaderValue)>,
}

impl Secrets {
    /// Returns whether there are no headers.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.append.is_empty()
    }

    /// Adds them to a request. Keeps only such headers of the client that every server understands in the same way, so
    /// that the request really is the read that it looks like.
    pub fn add_to(&self, request: &mut HeaderMap) {
        if self.is_empty() {
            return;
        }
        let appended: Vec<_> = self.append.iter().map(|(name, _)| name.clone()).collect();
        headers::keep_plain(request, &appended);
        for (name, value) in &self.set {
            request.insert(name, value.clone());
        }
        for (name, value) in &self.append {
            request.append(name, value.clone());
        }
    }
}

/// Returns whether `[headers]` authenticate Larder at a server, so that the configuration's credentials decide and not
/// the client's. `is_named`: the server is an upstream of the configuration.
pub fn speak_for(rules: &[HostHeaders], url: &Url, is_named: bool) -> bool {
    rules.iter().any(|rule| !(rule.set.is_empty() && rule.append.is_empty()) && rule.may_go_to(url, is_named))
}

/// What a path reads of a registry.
pub enum Read {
    Name(Name),
    /// `/v2/`, or the catalog.
    Whole,
}

impl Read {
    /// Returns what a URL reads of a registry; `None` if it reads no registry.
    pub fn of(url: &Url) -> Option<Self> {
        if !url.path().starts_with("/v2/") && url.path() != "/v2" {
            return None;
        }
        match Route::parse(url.path()).ok()? {
            Route::Base { prefix } if prefix.is_empty() => Some(Self::Whole),
            Route::Catalog => Some(Self::Whole),
            Route::Object { object: Object::Upload, .. } | Route::Base { .. } | Route::Token | Route::Health => None,
            Route::Object { path, .. } => path.parse().ok().map(Self::Name),
        }
    }
}

/// Returns whether a request only reads.
pub fn is_mere_read(request: &Parts) -> bool {
    READS.contains(&request.method) && !request.headers.contains_key(UPGRADE) && !has_body(request)
}

/// Returns whether a request has a body, by its head.
pub fn has_body(request: &Parts) -> bool {
    request.headers.contains_key(TRANSFER_ENCODING)
        || request.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// Returns whether a path contains text that servers which decode the path first take for something else: a separator,
/// or the beginning of a query. A path that a pattern matches may then hide another path.
pub fn hides_path(url: &Url) -> bool {
    let path = url.path().to_ascii_lowercase();
    ["%2f", "%5c", "%3f", "%23", "%25", "%00", "\\", "..;", ";/"].iter().any(|hidden| path.contains(hidden))
}

/// Returns whether a query has a scope, as requests to token services do. Such a request is not a read, but asks for
/// rights to read elsewhere, and perhaps to write. Servers differ in the separator between two parameters.
pub fn asks_for_token(url: &Url) -> bool {
    let parameters = url.query().unwrap_or_default().split(['&', ';']);
    parameters.map(|parameter| percent_decode_str(parameter).decode_utf8_lossy()).any(|parameter| {
        parameter.trim_start_matches('+').get(..5).is_some_and(|begin| begin.eq_ignore_ascii_case("scope"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_and_lists_of_a_registry_are_its_reads() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (path, expected) in [
            ("/v2/", Some("")),
            ("/v2", Some("")),
            ("/v2/_catalog?n=5", Some("")),
            ("/v2/team/app/manifests/1", Some("team/app")),
            (&format!("/v2/team/app/blobs/{digest}"), Some("team/app")),
            ("/v2/app/tags/list?n=2", Some("app")),
            (&format!("/v2/app/referrers/{digest}"), Some("app")),
            ("/v2/app/../other/tags/list", Some("other")),
            ("/v2/app/blobs/uploads/", None),
            ("/v2/token", None),
            ("/token", None),
            ("/V2/app/tags/list", None),
            ("//v2/app/tags/list", None),
            ("/v2//app/tags/list", None),
            ("/x/v2/app/tags/list", None),
            ("/v2/%2e%2e/token", None),
            ("/v2/..%2ftoken/tags/list", None),
            ("/v2/..;/token/tags/list", None),
            ("/v2/x%00/tags/list", None),
            ("/%76%32/app/tags/list", None),
            ("/v2\\..\\token", None),
        ] {
            let url = Url::parse(&format!("https://x.example{path}")).expect("a URL");
            let read = Read::of(&url).map(|read| match read {
                Read::Name(name) => name.to_string(),
                Read::Whole => String::new(),
            });
            assert_eq!(read.as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_path_behind_a_path_is_found() {
        for (path, expected) in [
            ("/art/x.tgz", false),
            ("/art/x%20y+z@1.tgz", false),
            ("/art/..%2fadmin", true),
            ("/art/..%2Fadmin", true),
            ("/art/..%5cadmin", true),
            ("/art/..;/admin", true),
            ("/art/x;/y", true),
            ("/admin%3fx=.tgz", true),
            ("/admin%23x.tgz", true),
            ("/art/..%252fadmin", true),
        ] {
            let url = Url::parse(&format!("https://x.example{path}")).expect("a URL");
            assert_eq!(hides_path(&url), expected, "{path}");
        }
    }

    #[test]
    fn a_scope_is_found_however_it_is_written() {
        for (query, expected) in [
            ("n=2&last=scope", false),
            ("", false),
            ("scope=x", true),
            ("a=1&SCOPE=x", true),
            ("a=1;scope=x", true),
            ("%73cope=x", true),
            ("scope[]=x", true),
            ("a=1&+scope=x", true),
        ] {
            let url = Url::parse(&format!("https://x.example/a.tgz?{query}")).expect("a URL");
            assert_eq!(asks_for_token(&url), expected, "{query}");
        }
    }
}
