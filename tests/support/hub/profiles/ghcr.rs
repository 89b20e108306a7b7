//! GitHub's registry, ghcr.io.
//!
//! - An anonymous token is needed for public images too; the service is on its own host, at `/token`.
//! - Blobs: 307 to a storage that refuses HEAD with 403 (containerd/stargz-snapshotter#167).
//! - 429 says "retry-after: 985.86µs, allowed: 44000/minute" in its message, and nothing in a header
//!   (falcosecurity/plugins#1069, alexklibisz/terraform-provider-terrifi#50).

use super::{Again, Limit, Profile};
use crate::support::hub::{Auth, HeadHabit, Options, Redirect, TokenField, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        field: TokenField::Token,
        expires_in: None,
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        redirect: Redirect::Absolute,
        storage_head: HeadHabit::Status(403),
        ..Options::default()
    };
    Profile {
        limit: Limit {
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: 985.86µs, allowed: 44000/minute"}]}"#,
            again: Again::AtOnce,
        },
        ..Profile::new("org/tool", options)
    }
}
