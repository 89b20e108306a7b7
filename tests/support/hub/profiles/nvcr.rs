//! NVIDIA's registry, nvcr.io.
//!
//! - The first challenge leads to `/proxy_auth`, that of an ended token to another service, which gives nothing to
//!   anonymous clients (NVIDIA/nvidia-container-toolkit#1945).
//! - Blobs: 307.

use super::Profile;
use crate::support::hub::{Auth, EndedToken, Options, Redirect, TokenField, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/proxy_auth",
        field: TokenField::Token,
        ended: EndedToken::OtherRealm,
        ..TokenService::default()
    };
    let options = Options { auth: Auth::Token(service), redirect: Redirect::Absolute, ..Options::default() };
    Profile::new("nvidia/cuda", options)
}
