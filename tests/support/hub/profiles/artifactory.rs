//! JFrog Artifactory.
//!
//! - The scope of a challenge is without the first part of the name, where it rewrites paths (oras-project/oras-go#650), and
//!   the realm is of one repository (containerd/containerd#6339). A POST for a token is 401 (containerd/containerd#2170).
//! - Blobs: 302 to a CDN.
//! - A refusal has its reason in the body.

use super::{Denial, Login, Profile};
use crate::support::hub::{Auth, Options, Redirect, TokenField, TokenPlace, TokenService, ToldScope};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/v2/token",
        field: TokenField::Token,
        refuses_post: Some(401),
        told_scope: ToldScope::WithoutFirst,
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        redirect: Redirect::Absolute,
        redirect_status: 302,
        ..Options::default()
    };
    Profile {
        login: Login::Password,
        denial: Denial {
            status: 403,
            body: r#"{"errors":[{"status":403,"code":"DENIED","message":"Artifact download request rejected: it was not downloaded due to a curation policy"}]}"#,
            words: "due to a curation policy",
        },
        ..Profile::new("docker-remote/team/app", options)
    }
}
