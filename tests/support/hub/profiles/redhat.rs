//! Red Hat: registry.redhat.io, registry.access.redhat.com.
//!
//! - The token service is on another host of the company; it is asked with a login.
//! - Blobs: 302 to a CDN. Documents are compressed for who does not ask for `identity`.
//! - Who has not agreed to the terms of use gets 403 with words (access.redhat.com/RegistryAuthentication).

use std::net::Ipv4Addr;

use super::{Denial, Login, Profile};
use crate::support::hub::{Auth, Options, Redirect, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service =
        TokenService { place: TokenPlace::Address(Ipv4Addr::LOCALHOST), path: "/v2/auth", ..TokenService::default() };
    let options = Options {
        auth: Auth::Token(service),
        redirect: Redirect::Absolute,
        redirect_status: 302,
        compresses: true,
        ..Options::default()
    };
    Profile {
        login: Login::Password,
        denial: Denial {
            status: 403,
            body: "Access to the requested resource is not authorized. Please accept the terms of use at https://access.redhat.com/terms.",
            words: "Please accept the terms of use",
        },
        ..Profile::new("ubi9/ubi", options)
    }
}
