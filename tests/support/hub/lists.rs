//! Lists of tags and referrers, page by page.

use serde_json::{Value, json};

use super::registry::Content;
use super::wire::{Request, Response};
use super::{LinkForm, Options, PageToken};
use crate::support::content::{Manifest, OCI_INDEX};

impl Content {
    /// `origin`: of the registry, for links and tokens of its own.
    pub fn tags(&self, request: &Request, options: &Options, origin: &str) -> Response {
        let Some(repository) = self.get(&request.name) else {
            return Response::error(404, "NAME_UNKNOWN", "repository name not known to registry");
        };
        let tags = repository.tags.keys().map(|tag| (tag.clone(), Value::from(tag.as_str()))).collect();
        let mut list = json!({"name": request.name});
        if options.details_of_tags {
            let details = repository.tags.iter().map(|(tag, digest)| (digest.clone(), json!({"tag": [tag]})));
            list["manifest"] = Value::Object(details.collect());
            list["child"] = json!([]);
        }
        page(request, tags, options, origin, |tags| {
            list["tags"] = tags.into();
            Response::json(200, &list)
        })
    }

    /// `origin`: of the registry, for links and tokens of its own.
    pub fn referrers(&self, request: &Request, options: &Options, origin: &str) -> Response {
        if !options.referrers {
            return Response::new(404).body("text/plain", "404 page not found\n");
        }
        if !is_digest(&request.reference) {
            return Response::error(400, "DIGEST_INVALID", "the digest is none");
        }
        let mut wanted = request.query_values("artifactType");
        wanted.retain(|_| options.filters_referrers);
        let manifests = self.get(&request.name).map(|repository| &repository.manifests);
        let is_wanted =
            |entry: &Value| wanted.is_empty() || wanted.iter().any(|wanted| entry["artifactType"] == **wanted);
        let referrers = manifests
            .into_iter()
            .flatten()
            .filter_map(|(digest, manifest)| Some((digest.clone(), referrer(manifest, &request.reference)?)))
            .filter(|(_, entry)| is_wanted(entry))
            .collect();
        let response = page(request, referrers, options, origin, |manifests| {
            let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
            Response::new(200).body(OCI_INDEX, index.to_string())
        });
        if wanted.is_empty() { response } else { response.header("oci-filters-applied", "artifactType") }
    }
}

/// The entry for a manifest in the referrers of `subject`, if it is one.
fn referrer(manifest: &Manifest, subject: &str) -> Option<Value> {
    let document: Value = serde_json::from_slice(&manifest.bytes).ok()?;
    if document["subject"]["digest"] != subject {
        return None;
    }
    let artifact_type = match &document["artifactType"] {
        Value::Null => &document["config"]["mediaType"],
        artifact_type => artifact_type,
    };
    let mut entry = json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.bytes.len(),
    });
    for (key, value) in [("artifactType", artifact_type), ("annotations", &document["annotations"])] {
        if !value.is_null() {
            entry[key] = value.clone();
        }
    }
    Some(entry)
}

/// Whether it has the form of a digest (OCI Image Specification, "Digests") of an algorithm that is registered.
fn is_digest(text: &str) -> bool {
    let is_hex = |hex: &str| hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let length = |algorithm: &str| [("sha256", 64), ("sha512", 128)].into_iter().find(|(name, _)| *name == algorithm);
    text.split_once(':')
        .is_some_and(|(algorithm, hex)| is_hex(hex) && length(algorithm).is_some_and(|(_, length)| length == hex.len()))
}

/// One page of sorted entries, and the `Link` to the next one.
fn page(
    request: &Request,
    entries: Vec<(String, Value)>,
    options: &Options,
    origin: &str,
    respond: impl FnOnce(Vec<Value>) -> Response,
) -> Response {
    let paging = &options.paging;
    let size = request.query_value(paging.size).and_then(|size| size.parse().ok()).unwrap_or(options.page_size);
    let asked = request.query_value(paging.next).filter(|asked| !asked.is_empty());
    let begin = match (paging.token, &asked) {
        (_, None) => 0,
        (PageToken::LastEntry, Some(last)) => entries.iter().take_while(|(key, _)| key <= last).count(),
        (PageToken::Number, Some(number)) => {
            number.parse::<usize>().map_or(0, |number| number.saturating_sub(1)).saturating_mul(size)
        }
        (PageToken::Opaque, Some(token)) => {
            // What is encoded twice, or not any more, is another token.
            let begin = token.strip_prefix(&format!("{origin}/+=%:")).and_then(|begin| begin.parse().ok());
            match begin {
                Some(begin) => begin,
                None => return Response::error(400, "PAGINATION_TOKEN_INVALID", "this is no token of ours"),
            }
        }
    };
    let end = begin.saturating_add(size).min(entries.len());
    let rest: Vec<_> = entries.get(begin.min(end)..end).unwrap_or_default().to_vec();
    let next = match (paging.token, rest.last()) {
        (_, None) => None,
        (_, Some(_)) if end == entries.len() => None,
        (PageToken::LastEntry, Some((key, _))) => Some(key.clone()),
        (PageToken::Number, _) => Some((end / size + 1).to_string()),
        (PageToken::Opaque, _) => Some(format!("{origin}/+=%:{end}")),
    };
    let response = respond(rest.into_iter().map(|(_, entry)| entry).collect());
    let Some(next) = next else {
        return response;
    };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair(paging.next, &next).append_pair(paging.size, &size.to_string());
    for filter in request.query_values("artifactType") {
        query.append_pair("artifactType", &filter);
    }
    let query = query.finish();
    match paging.link {
        LinkForm::Path => response.header("link", format!("<{}?{query}>; rel=\"next\"", request.path)),
        LinkForm::Absolute => response.header("link", format!("<{origin}{}?{query}>; rel=\"next\"", request.path)),
        LinkForm::Odd => response
            .header("link", "<?n=1>; rel=\"first\"; title=\"rel=next, <?n=2>\", </other>;rel=prev")
            .header("link", format!("<?{query}> ; title=\"a; b, c\";Rel=\"last Next\"")),
    }
}
