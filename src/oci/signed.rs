//! Signed manifests of Docker's first format (schema 1, `application/vnd.docker.distribution.manifest.v1+prettyjws`).
//!
//! Their digest is that of the payload: the document without its signatures. Each signature says in its protected header how
//! many bytes of the document come before them (`formatLength`) and what ends the payload (`formatTail`)
//! (distribution, "Image Manifest Version 2, Schema 1", "Signed Manifests"; docker/libtrust `jsonsign.go`).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::Digest;

#[derive(Deserialize)]
struct Document {
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    protected: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protected {
    format_length: usize,
    format_tail: String,
}

/// Whether `bytes` is a signed manifest whose payload has this digest.
pub fn is_named(bytes: &[u8], digest: &Digest) -> bool {
    payload(bytes).is_some_and(|payload| Digest::of(digest.algorithm(), &payload) == *digest)
}

fn payload(bytes: &[u8]) -> Option<Vec<u8>> {
    let document: Document = serde_json::from_slice(bytes).ok()?;
    let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
    let protected: Protected = serde_json::from_slice(&decode(&document.signatures.first()?.protected)?).ok()?;
    let head = bytes.get(..protected.format_length)?;
    Some([head, &decode(&protected.format_tail)?].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_signed_manifest_is_named_by_its_payload() {
        let payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"a\"\n}";
        let (head, tail) = payload.split_at(payload.len() - 2);
        let protected = format!(
            r#"{{"formatLength":{},"formatTail":"{}","time":"2020-01-01T00:00:00Z"}}"#,
            head.len(),
            BASE64_URL_SAFE_NO_PAD.encode(tail)
        );
        let protected = BASE64_URL_SAFE_NO_PAD.encode(protected);
        let signed = format!("{head},\n   \"signatures\": [{{\"protected\": \"{protected}\"}}]\n}}");
        let digest = Digest::of(Algorithm::Sha256, payload.as_bytes());
        assert!(is_named(signed.as_bytes(), &digest));
        assert!(!is_named(signed.replace("\"a\"", "\"b\"").as_bytes(), &digest));
        for other in ["", "{}", r#"{"signatures":[]}"#, r#"{"signatures":[{"protected":"e30"}]}"#, "[1"] {
            assert!(!is_named(other.as_bytes(), &digest), "{other}");
        }
        let far = BASE64_URL_SAFE_NO_PAD.encode(r#"{"formatLength":99999999,"formatTail":""}"#);
        assert!(!is_named(format!(r#"{{"signatures":[{{"protected":"{far}"}}]}}"#).as_bytes(), &digest));
    }
}
