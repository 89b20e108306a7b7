//! A proxy project of Harbor: it is a cache itself.
//!
//! - HEAD of a manifest that it does not have yet may be 404, though GET works (goharbor/harbor,
//!   `src/server/middleware/repoproxy`).

use super::Profile;
use crate::support::hub::{Auth, HeadHabit, Options, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/service/token",
        expires_in: Some(1800),
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        manifest_head: HeadHabit::AfterGet,
        referrers: false,
        ..Options::default()
    };
    Profile::new("hub-proxy/library/app", options)
}
