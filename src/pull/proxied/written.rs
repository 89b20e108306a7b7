//! What was written through the door is not served as it was before (RFC 9111, section 4.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{Method, Response};
use quick_cache::sync::Cache;
use url::Url;

use super::Proxying;
use super::other::key_of;
use crate::index::{TagKey, Timestamp};
use crate::oci::Reference;
use crate::oci::route::{Object, Route};
use crate::pull::Pull;
use crate::pull::body::Body;
use crate::pull::routing::Target;
use crate::upstream::Who;

/// Writes that are remembered.
const ENTRIES: usize = 8_192;
/// Methods that change nothing (RFC 9110, section 9.2.1, and the registry of methods).
const SAFE: [&str; 8] = ["GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"];

/// When something was written, by what stands for it.
pub struct Written {
    by_page: Cache<[u8; 32], SystemTime>,
    /// Whether anything was: caches are for reading, and each hit looks here.
    has_any: AtomicBool,
}

impl Default for Written {
    fn default() -> Self {
        Self { by_page: Cache::new(ENTRIES), has_any: AtomicBool::new(false) }
    }
}

impl Written {
    fn note(&self, what: &str) {
        self.by_page.insert(super::copies::digest_of(what.as_bytes()), SystemTime::now());
        self.has_any.store(true, Ordering::Release);
    }

    fn has_any(&self) -> bool {
        self.has_any.load(Ordering::Acquire)
    }

    /// Whether something was written at a time or later.
    pub fn since(&self, what: &str, time: SystemTime) -> bool {
        self.has_any()
            && self.by_page.get(&super::copies::digest_of(what.as_bytes())).is_some_and(|written| time <= written)
    }
}

/// What stands for a tag, whoever asks.
fn tag_of(repository: &str, name: &str, tag: &str) -> String {
    format!("tag of {repository} {name}:{tag}")
}

/// What stands for all lists of a name.
fn lists_of(repository: &str, name: &str) -> String {
    format!("lists of {repository} {name}")
}

/// The pages that a request changed, by its server's answer.
pub fn changed_by(method: &Method, url: &Url, answer: &Response<Body>) -> Vec<Url> {
    let is_done = answer.status().is_success() || answer.status().is_redirection();
    if !is_done || SAFE.contains(&method.as_str()) {
        return Vec::new();
    }
    let named = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| answer.headers().get(name));
    let named = named.filter_map(|value| url.join(value.to_str().ok()?).ok());
    // What a server says of others is not believed.
    let named = named.filter(|named| named.origin() == url.origin() && named != url);
    std::iter::once(url.clone()).chain(named).collect()
}

impl Pull {
    /// Whether a tag was pushed or deleted through the proxy door since it was looked at.
    pub(in crate::pull) fn was_tag_written(&self, key: &TagKey, at: Timestamp) -> bool {
        let written = &self.copies.written;
        written.has_any() && written.since(&tag_of(&key.repository, &key.name, &key.tag), at.to_system_time())
    }

    /// Whether a list of a name may be another by now, since something was pushed or deleted through the proxy door.
    pub(in crate::pull) fn was_written(&self, target: &Target, at: Timestamp) -> bool {
        let lists = lists_of(target.repository.prefix(), target.name.as_str());
        self.copies.written.since(&lists, at.to_system_time())
    }

    /// Something was written there.
    pub(super) async fn forget(self: &Arc<Self>, proxying: &Proxying, mut url: Url) {
        url.set_fragment(None);
        let url = &url;
        self.copies.written.note(url.as_str());
        // Copies for clients with headers of their own are found by their time alone.
        for is_secret in [false, true] {
            let key = key_of(url, is_secret, "");
            for entry in self.cache().urls(&key).await.unwrap_or_default().iter() {
                self.cache().drop_url(key, entry.variant).await;
            }
        }
        let Ok(Route::Object { path, object: Object::Manifest(reference) }) = Route::parse(url.path()) else {
            return;
        };
        let Ok(Some((repository, name))) = proxying.registries.find(url, &path, &proxying.anywhere) else {
            return;
        };
        self.copies.written.note(&lists_of(repository.prefix(), name.as_str()));
        let Reference::Tag(tag) = reference else {
            return;
        };
        self.copies.written.note(&tag_of(repository.prefix(), name.as_str(), tag.as_str()));
        let shelves = repository.config.shelves();
        let target = Target { repository, name, who: Who::Anonymous, is_by_tag: false, client: None };
        for shelf in shelves {
            self.cache().drop_tag(TagKey { shelf, ..target.tag_key(&tag) });
        }
    }
}
