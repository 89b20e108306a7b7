//! A proxy project of Harbor: it is a cache itself.
//!
//! - HEAD of a blob that it does not have yet is 404, though GET works (goharbor/harbor#22609). HEAD of a manifest was so
//!   before 2.1.1 (goharbor/harbor#13153).
//! - No referrers API: it knows what it has, and not what its registry has.

use super::Profile;
use crate::support::hub::{Auth, HeadHabit, Options, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/service/token",
        expires_in: Some(1800),
        ..TokenService::default()
    };
    let options =
        Options { auth: Auth::Token(service), blob_head: HeadHabit::AfterGet, referrers: false, ..Options::default() };
    Profile::new("hub-proxy/library/app", options)
}
