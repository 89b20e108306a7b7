//! Harbor.
//!
//! - Its token service, `/service/token`, answers `{"token":"…","access_token":"","expires_in":1800}`
//!   (bazel-contrib/rules_oci#856).
//! - Some set-ups send blobs chunked, without a length (dragonflyoss/dragonfly#4573).
//! - An image that a policy holds back is 412 with words (goharbor/harbor, `src/server/middleware/vulnerable`).

use super::{Denial, Profile};
use crate::support::hub::{Auth, Options, TokenField, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/service/token",
        field: TokenField::TokenAndEmpty,
        expires_in: Some(1800),
        ..TokenService::default()
    };
    let options = Options { auth: Auth::Token(service), sends_lengths: false, ..Options::default() };
    Profile {
        denial: Denial {
            status: 412,
            body: r#"{"errors":[{"code":"PROJECTPOLICYVIOLATION","message":"current image with 3 vulnerabilities cannot be pulled due to configured policy"}]}"#,
            words: "cannot be pulled due to configured policy",
        },
        ..Profile::new("project/app", options)
    }
}
