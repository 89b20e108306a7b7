//! distribution 3, with a token service of one's own and S3 behind it.
//!
//! - Blobs: 307 to S3. No referrers API. `Link` is path and query (distribution/distribution,
//!   `registry/handlers/tags.go`: `createLinkEntry`).

use super::Profile;
use crate::support::hub::{Auth, Options, Redirect, TokenService};

pub fn profile() -> Profile {
    let options = Options {
        auth: Auth::Token(TokenService::default()),
        redirect: Redirect::Absolute,
        referrers: false,
        ..Options::default()
    };
    Profile::new("team/app", options)
}
