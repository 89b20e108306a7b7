//! The error codes of the OCI Distribution Specification, and the JSON document that carries them.

use bytes::Bytes;
use serde_json::json;

/// An error code of the specification (or `UNAVAILABLE`, `RANGE_INVALID` or `TAG_INVALID`, which registries use beside
/// them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    RangeInvalid,
    TagInvalid,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unsupported,
}

impl Code {
    /// Returns the code as clients get it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::Denied => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::TagInvalid => "TAG_INVALID",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unsupported => "UNSUPPORTED",
        }
    }
}

/// Returns the error document: `{"errors":[{"code","message","detail"}]}`.
pub fn document(code: Code, message: &str, detail: serde_json::Value) -> Bytes {
    let errors = json!({ "errors": [{ "code": code.as_str(), "message": message, "detail": detail }] });
    Bytes::from(errors.to_string())
}
