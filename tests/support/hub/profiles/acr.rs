//! Azure Container Registry.
//!
//! - Tokens are exchanged by POST, and a bad one is 400; GET works too (containerd, `docker/authorizer.go`). The answer
//!   has an `access_token` alone.
//! - Blobs: 307 to storage.
//! - Referrers come in pages, named by parameters of its own (oras-project/artifacts-spec#93).

use super::{Login, Profile};
use crate::support::hub::{Auth, Options, PageToken, Paging, Redirect, TokenField, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        field: TokenField::AccessToken,
        refuses_post: Some(400),
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        redirect: Redirect::Absolute,
        paging: Paging { next: "nextToken", token: PageToken::Opaque, ..Paging::default() },
        ..Options::default()
    };
    Profile { login: Login::Password, ..Profile::new("team/app", options) }
}
