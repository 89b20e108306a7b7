//! Signed manifests of Docker's first format (schema 1, `application/vnd.docker.distribution.manifest.v1+prettyjws`).
//!
//! Their digest is that of the payload: the document without its signatures. The protected header of each signature
//! states how many bytes of the document come before the signatures (`formatLength`) and which text ends the payload
//! (`formatTail`) (distribution, "Image Manifest Version 2, Schema 1", "Signed Manifests"; docker/libtrust
//! `jsonsign.go`).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Digest;

/// The part of a signature that is read.
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

/// The parts of the payload that show its format.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    schema_version: u64,
    #[serde(rename = "fsLayers")]
    _fs_layers: Vec<IgnoredAny>,
}

/// Returns whether `bytes` is a signed manifest whose payload has this digest.
pub fn is_named(bytes: &[u8], digest: &Digest) -> bool {
    payload(bytes).is_some_and(|payload| Digest::of(digest.algorithm(), &payload) == *digest)
}

/// Returns the payload, if the document is nothing but the payload with signatures in it: anybody who could add to the
/// document would have other content served under the digest of the payload.
fn payload(bytes: &[u8]) -> Option<Vec<u8>> {
    let (at, signatures) = signatures(bytes)?;
    let protected: Protected = serde_json::from_slice(&decode(&signatures.first()?.protected)?).ok()?;
    let tail = decode(&protected.format_tail)?;
    // The tail may only close the object.
    let closes = std::str::from_utf8(&tail).ok()?.trim() == "}";
    let payload =
        [bytes.get(..protected.format_length).filter(|_| closes && protected.format_length == at)?, &tail].concat();
    let parsed: Payload = serde_json::from_slice(&payload).ok()?;
    (parsed.schema_version == 1).then_some(payload)
}

/// Returns the signatures of a document that ends with them, and the position at which the part before them ends.
fn signatures(bytes: &[u8]) -> Option<(usize, Vec<Signature>)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let name = text.rfind("\"signatures\"")?;
    let before = text[..name].trim_end().strip_suffix(',')?.len();
    let array = text[name + "\"signatures\"".len()..].trim_start().strip_prefix(':')?;
    let mut values = serde_json::Deserializer::from_str(array).into_iter::<Vec<Signature>>();
    let signatures = values.next()?.ok()?;
    (array[values.byte_offset()..].trim() == "}").then_some((before, signatures))
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_signed_manifest_is_named_by_its_payload() {
        let payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"a\",\n   \"fsLayers\": []\n}";
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

    #[test]
    fn nothing_can_be_put_under_the_digest_of_something_else() {
        let real = "{\n   \"schemaVersion\": 1,\n   \"fsLayers\": []\n}";
        let newer = "{\"schemaVersion\": 2,\"layers\": []}";
        let sign = |length: usize, tail: &str| {
            let protected =
                format!(r#"{{"formatLength":{length},"formatTail":"{}"}}"#, BASE64_URL_SAFE_NO_PAD.encode(tail));
            format!(r#""signatures":[{{"protected":"{}"}}]"#, BASE64_URL_SAFE_NO_PAD.encode(protected))
        };
        let front = real.len() - 2;
        for (payload, evil) in [
            // The whole payload is in the tail.
            (real, format!(r#"{{"name":"evil",{}}}"#, sign(0, real))),
            (newer, format!(r#"{{"name":"evil",{}}}"#, sign(0, newer))),
            ("hello", format!(r#"{{"name":"evil",{}}}"#, sign(0, "hello"))),
            // Something is between the signed part and the signatures, or after them.
            (real, format!(r#"{},"name":"evil",{}}}"#, &real[..front], sign(front, "\n}"))),
            (real, format!(r#"{},{},"name":"evil"}}"#, &real[..front], sign(front, "\n}"))),
            (real, format!(r#"{},{}}} {{}}"#, &real[..front], sign(front, "\n}"))),
            // The payload has another format.
            (newer, format!(r#"{},{}}}"#, &newer[..newer.len() - 1], sign(newer.len() - 1, "}"))),
        ] {
            assert!(!is_named(evil.as_bytes(), &Digest::of(Algorithm::Sha256, payload.as_bytes())), "{evil}");
        }
        let good = format!("{},{}\n}}", &real[..front], sign(front, "\n}"));
        assert!(is_named(good.as_bytes(), &Digest::of(Algorithm::Sha256, real.as_bytes())), "{good}");
    }
}
