//! Checks whether a document is a list as registries send it. A server that is no registry may answer with any
//! document.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::digest::Digest;
use super::media_type;

/// The tags of a name (OCI Distribution Specification, "Listing Tags"). Some registries write `null` if there are none.
#[derive(Deserialize)]
struct Tags {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "tags", deserialize_with = "Option::deserialize")]
    _tags: Option<Vec<String>>,
}

/// An image index (OCI Distribution Specification, "Listing Referrers").
#[derive(Deserialize)]
struct Referrers {
    #[serde(rename = "schemaVersion")]
    schema_version: u64,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    #[serde(rename = "manifests", deserialize_with = "Option::deserialize")]
    _manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "digest", deserialize_with = "digest")]
    _digest: IgnoredAny,
}

fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IgnoredAny, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse::<Digest>().map(|_| IgnoredAny).map_err(serde::de::Error::custom)
}

/// Returns whether a document lists the tags of a name.
pub fn is_of_tags(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Tags>(bytes).is_ok()
}

/// Returns whether a document lists referrers.
pub fn is_of_referrers(bytes: &[u8]) -> bool {
    let read = serde_json::from_slice::<Referrers>(bytes);
    read.is_ok_and(|list| {
        let is_index = list.media_type.is_none_or(|media_type| media_type == media_type::OCI_INDEX);
        list.schema_version == 2 && is_index
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_looks_like_one() {
        for (text, is_tags, is_referrers) in [
            (r#"{"name":"a","tags":["1","2"]}"#, true, false),
            (r#"{"tags":[],"name":"a","next":null}"#, true, false),
            (r#"{"name":"a","tags":null}"#, true, false),
            (r#"{"name":"a"}"#, false, false),
            (r#"{"tags":["1"]}"#, false, false),
            (r#"{"name":"a","tags":["1",2]}"#, false, false),
            (r#"{"schemaVersion":2,"manifests":[]}"#, false, true),
            (
                r#"{"schemaVersion":2,"manifests":null,"mediaType":"application/vnd.oci.image.index.v1+json"}"#,
                false,
                true,
            ),
            (r#"{"schemaVersion":2}"#, false, false),
            (r#"{"schemaVersion":1,"manifests":[]}"#, false, false),
            (r#"{"schemaVersion":2,"manifests":[{"digest":"x"}]}"#, false, false),
            (r#"{"schemaVersion":2,"manifests":[],"mediaType":"text/plain"}"#, false, false),
            ("{}", false, false),
            ("[]", false, false),
            ("", false, false),
        ] {
            assert_eq!(
                (is_of_tags(text.as_bytes()), is_of_referrers(text.as_bytes())),
                (is_tags, is_referrers),
                "{text}"
            );
        }
        let digest = format!("sha256:{}", "ab".repeat(32));
        let text =
            format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":-1,"artifactType":null}}]}}"#);
        assert!(is_of_referrers(text.as_bytes()));
    }
}
