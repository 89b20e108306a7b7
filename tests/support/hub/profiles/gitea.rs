//! Gitea and Forgejo.
//!
//! - Challenges say `scope="*"` and lead to `/v2/token` (go-gitea/gitea#36907).
//! - Blobs come from itself, or are 307 to S3.

use super::Profile;
use crate::support::hub::{Auth, Options, TokenField, TokenPlace, TokenService, ToldScope};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/v2/token",
        field: TokenField::Token,
        expires_in: None,
        told_scope: ToldScope::Fixed("*"),
        ..TokenService::default()
    };
    let options = Options { auth: Auth::Token(service), referrers: false, ..Options::default() };
    Profile::new("owner/app", options)
}
