//! GitLab's registry.
//!
//! - The token service is `/jwt/auth` of the web host (deitch/docker_registry2#14,
//!   rpardini/docker-registry-proxy#27).
//! - Blobs: 307 to object storage. Tags come in pages by `n` and `last`.

use super::Profile;
use crate::support::hub::{Auth, Options, Redirect, TokenField, TokenService};

pub fn profile() -> Profile {
    let service =
        TokenService { path: "/jwt/auth", field: TokenField::Token, expires_in: None, ..TokenService::default() };
    let options = Options { auth: Auth::Token(service), redirect: Redirect::Absolute, ..Options::default() };
    Profile::new("group/project/app", options)
}
