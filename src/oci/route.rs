//! What a request's path asks for: a pure function from the path to [`Route`].

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::digest::{Digest, InvalidDigest};
use super::reference::{InvalidReference, Reference};

/// What a path asks for. Names are still as the client wrote them: the routing decides which part is the prefix of a
/// local repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: is this a registry?
    Base {
        prefix: String,
    },
    /// `/v2/_catalog`
    Catalog,
    /// `/token`: logging in where the upstream checks the credentials.
    Token,
    /// `/healthz`: is the process there?
    Health,
    Object {
        path: String,
        object: Object,
    },
}

/// What a path asks of one repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `/v2/<name>/manifests/<reference>`
    Manifest(Reference),
    /// `/v2/<name>/blobs/<digest>`
    Blob(Digest),
    /// `/v2/<name>/tags/list`
    Tags,
    /// `/v2/<name>/referrers/<digest>`
    Referrers(Digest),
    /// `/v2/<name>/blobs/uploads/…`: always a write.
    Upload,
}

/// Why a path asks for nothing that there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoute {
    #[error("no such page; the registry is under /v2/")]
    NotFound,
    #[error("the path is not valid percent-encoded UTF-8, or has an encoded slash")]
    Encoding,
    #[error("the path has a control character")]
    ControlCharacter,
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl Route {
    /// Reads the path of a request's URI.
    ///
    /// Both `/v2/<prefix>/<name>/…` and `/<prefix>/v2/<name>/…` are understood; in either case
    /// `path` is `<prefix>/<name>`.
    pub fn parse(path: &str) -> Result<Self, InvalidRoute> {
        let segments = decode(path)?;
        if segments == ["token"] {
            return Ok(Self::Token);
        }
        if segments == ["healthz"] {
            return Ok(Self::Health);
        }
        let at = segments.iter().position(|segment| segment == "v2");
        let (prefix, rest) = match at {
            Some(at) => (&segments[..at], &segments[at + 1..]),
            None => return Err(InvalidRoute::NotFound),
        };
        let name = |last: usize| [prefix, &rest[..rest.len() - last]].concat().join("/");
        let tail = |count: usize| rest.len().checked_sub(count).map(|from| &rest[from..]);

        if rest.iter().all(|segment| segment.is_empty()) && rest.len() <= 1 {
            return Ok(Self::Base { prefix: prefix.join("/") });
        }
        if rest == ["_catalog"] && prefix.is_empty() {
            return Ok(Self::Catalog);
        }
        let is_upload = rest.windows(2).position(|pair| pair == ["blobs", "uploads"]);
        if let Some(at) = is_upload.filter(|&at| at > 0 && rest.len() - at <= 4) {
            return Ok(Self::Object { path: name(rest.len() - at), object: Object::Upload });
        }
        let [kind, last] = tail(2).unwrap_or_default() else {
            return Err(InvalidRoute::NotFound);
        };
        if rest.len() == 2 && prefix.is_empty() {
            return Err(InvalidRoute::NotFound);
        }
        let object = match (&**kind, &**last) {
            ("manifests", reference) => Object::Manifest(reference.parse()?),
            ("blobs", digest) => Object::Blob(digest.parse()?),
            ("tags", "list") => Object::Tags,
            ("referrers", digest) => Object::Referrers(digest.parse()?),
            _ => return Err(InvalidRoute::NotFound),
        };
        Ok(Self::Object { path: name(2), object })
    }
}

/// Splits a path into segments, then decodes each. A segment with an encoded slash is refused, so that it never becomes
/// two segments.
fn decode(path: &str) -> Result<Vec<Cow<'_, str>>, InvalidRoute> {
    let is_encoded = path.contains('%');
    if !is_encoded && path.chars().any(char::is_control) {
        return Err(InvalidRoute::ControlCharacter);
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    // Most paths have six segments.
    let mut segments = Vec::with_capacity(8);
    for segment in path.split('/') {
        segments.push(if is_encoded { decode_segment(segment)? } else { Cow::Borrowed(segment) });
    }
    Ok(segments)
}

fn decode_segment(segment: &str) -> Result<Cow<'_, str>, InvalidRoute> {
    let text = percent_decode_str(segment).decode_utf8().map_err(|_| InvalidRoute::Encoding)?;
    if text.contains('/') {
        return Err(InvalidRoute::Encoding);
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidRoute::ControlCharacter);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn object(path: &str) -> (String, Object) {
        match Route::parse(path) {
            Ok(Route::Object { path, object }) => (path, object),
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn the_prefix_may_stand_before_or_behind_v2() {
        for path in ["/v2/docker.io/library/alpine/manifests/3", "/docker.io/v2/library/alpine/manifests/3"] {
            let (name, object) = object(path);
            assert_eq!(name, "docker.io/library/alpine");
            assert!(matches!(object, Object::Manifest(Reference::Tag(_))));
        }
    }

    #[test]
    fn each_page_of_the_specification_is_known() {
        assert!(matches!(object(&format!("/v2/a/blobs/{DIGEST}")), (_, Object::Blob(_))));
        assert!(matches!(object(&format!("/v2/a/blobs/{}", DIGEST.replace(':', "%3A"))), (_, Object::Blob(_))));
        assert!(matches!(object(&format!("/v2/a/referrers/{DIGEST}")), (_, Object::Referrers(_))));
        assert_eq!(object("/v2/a/b/tags/list"), ("a/b".to_owned(), Object::Tags));
        for upload in ["/v2/a/b/blobs/uploads/", "/v2/a/b/blobs/uploads", "/v2/a/b/blobs/uploads/some-id"] {
            assert_eq!(object(upload), ("a/b".to_owned(), Object::Upload));
        }
        assert_eq!(Route::parse("/v2/_catalog"), Ok(Route::Catalog));
        for base in ["/v2", "/v2/"] {
            assert_eq!(Route::parse(base), Ok(Route::Base { prefix: String::new() }));
        }
        assert_eq!(Route::parse("/ghcr.io/v2/"), Ok(Route::Base { prefix: "ghcr.io".to_owned() }));
    }

    #[test]
    fn names_may_hold_the_words_of_the_api() {
        assert_eq!(object("/v2/blobs/manifests/tags/list").0, "blobs/manifests");
        assert_eq!(object("/v2/v2/manifests/manifests/v2").0, "v2/manifests");
    }

    #[test]
    fn what_leads_nowhere_says_why() {
        for path in ["", "/", "/v1/x", "/v2/a", "/v2/manifests/latest", "/v2//", "/v2/a/tags/other", "/v2/_catalog/x"] {
            assert_eq!(Route::parse(path), Err(InvalidRoute::NotFound), "{path}");
        }
        assert!(matches!(Route::parse("/v2/a/blobs/sha256:1"), Err(InvalidRoute::Digest(_))));
        assert!(matches!(Route::parse("/v2/a/blobs/x"), Err(InvalidRoute::Digest(_))));
        assert!(matches!(Route::parse("/v2/a/manifests/-x"), Err(InvalidRoute::Reference(_))));
        assert_eq!(Route::parse("/v2/a%00/manifests/x"), Err(InvalidRoute::ControlCharacter));
        assert_eq!(Route::parse("/v2/a%2fb/manifests/x"), Err(InvalidRoute::Encoding));
        assert_eq!(Route::parse("/v2/%ff/manifests/x"), Err(InvalidRoute::Encoding));
    }
}
