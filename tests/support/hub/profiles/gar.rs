//! Google Artifact Registry and gcr.io.
//!
//! - Logins are `_json_key` and `oauth2accesstoken`; a POST for a token is 404 (containerd, `docker/authorizer.go`).
//! - Blobs: 302 with a `Location` that is only a path (rpardini/docker-registry-proxy, its nginx.conf).
//! - All tags come in one body, with more of each of them (go-containerregistry, `pkg/v1/google/list.go`).

use super::Profile;
use crate::support::hub::{Auth, Options, Redirect, TokenField, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/v2/token",
        field: TokenField::Token,
        refuses_post: Some(404),
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        redirect: Redirect::Relative,
        redirect_status: 302,
        page_size: 10_000,
        details_of_tags: true,
        ..Options::default()
    };
    Profile::new("project/images/app", options)
}
