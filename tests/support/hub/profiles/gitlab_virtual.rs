//! GitLab's virtual registry and dependency proxy.
//!
//! - Manifests are 302 to object storage, signed for GET: HEAD is 403 there (moby/moby#50065).
//! - No referrers API.

use super::Profile;
use crate::support::hub::{Auth, HeadHabit, ManifestsAt, Options, Redirect, TokenField, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/jwt/auth",
        field: TokenField::Token,
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        redirect: Redirect::Absolute,
        redirect_status: 302,
        manifests_at: ManifestsAt::Storage,
        storage_head: HeadHabit::Status(403),
        referrers: false,
        ..Options::default()
    };
    Profile::new("virtual_registries/container/1/app", options)
}
