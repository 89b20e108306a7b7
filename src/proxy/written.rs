//! What a request changed at its server.

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{Method, Response};
use url::Url;

use super::door::Proxy;
use super::other::key_of;
use super::rules::ProxyRules;
use crate::body::Body;
use crate::index::TagKey;
use crate::oci::Reference;
use crate::oci::route::{Object, Route};
use crate::routing::Target;
use crate::upstream::Who;

/// Methods that change nothing (RFC 9110, section 9.2.1, and the registry of methods).
const SAFE: [&str; 8] = ["GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"];

/// Returns the pages that a request changed, by its server's answer.
pub fn changed_by(method: &Method, url: &Url, answer: &Response<Body>) -> Vec<Url> {
    let is_done = answer.status().is_success() || answer.status().is_redirection();
    if !is_done || SAFE.contains(&method.as_str()) {
        return Vec::new();
    }
    let named = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| answer.headers().get(name));
    let named = named.filter_map(|value| url.join(value.to_str().ok()?).ok());
    // What a server says about other servers is not believed.
    let named = named.filter(|named| named.origin() == url.origin() && named != url);
    std::iter::once(url.clone()).chain(named).collect()
}

impl Proxy {
    /// Notes a write to a URL, and forgets the copies and tags that it made outdated.
    pub(super) async fn forget(&self, rules: &ProxyRules, mut url: Url) {
        url.set_fragment(None);
        let url = &url;
        self.objects.written.note_url(url.as_str());
        // Copies for requests with further headers are not looked up: the time of the write rules them out.
        for is_secret in [false, true] {
            let key = key_of(url, is_secret, "");
            for entry in self.cache.urls(&key).await.unwrap_or_default().iter() {
                self.cache.drop_url(key, entry.variant).await;
            }
        }
        let Ok(Route::Object { path, object: Object::Manifest(reference) }) = Route::parse(url.path()) else {
            return;
        };
        let Ok(Some((repository, name))) = rules.registries.find(url, &path, &rules.anywhere) else {
            return;
        };
        self.objects.written.note_name(repository.prefix(), name.as_str());
        let Reference::Tag(tag) = reference else {
            return;
        };
        self.objects.written.note_tag(repository.prefix(), name.as_str(), tag.as_str());
        let shelves = repository.config.shelves();
        let target =
            Target { repository, name, who: Who::Anonymous, is_by_tag: false, may_redirect: false, client: None };
        for shelf in shelves {
            self.cache.drop_tag(TagKey { shelf, ..target.tag_key(&tag) });
        }
    }
}
