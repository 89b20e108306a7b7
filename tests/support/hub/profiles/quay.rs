//! Quay.io.
//!
//! - The token service is at `/v2/auth` of its own host; robot accounts are `user+robot`.
//! - Blobs: 302 to S3 or CloudFront (quay/quay, `endpoints/v2/blob.py`: `redirect(direct_download_url)`).
//! - Tags come in pages by `n` and `last`, and `Link` is a whole address (quay/quay, `oci_tag_paginate` in
//!   `endpoints/v2/__init__.py`). A blob is 502 now and then (oauth2-proxy/oauth2-proxy#3395).

use super::Profile;
use crate::support::hub::{Auth, LinkForm, Options, Paging, Redirect, TokenField, TokenPlace, TokenService};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/v2/auth",
        field: TokenField::Token,
        expires_in: None,
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        redirect: Redirect::Absolute,
        redirect_status: 302,
        paging: Paging { link: LinkForm::Absolute, ..Paging::default() },
        ..Options::default()
    };
    Profile::new("org/tool", options)
}
