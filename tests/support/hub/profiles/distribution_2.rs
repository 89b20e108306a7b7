//! `docker-registry` 2.8 of distribution.
//!
//! - htpasswd. Blobs come from itself. No referrers API.
//! - Who asks by sha512 is told the canonical digest, sha256 (oras-project/oras-go#949).

use super::{Login, Profile};
use crate::support::hub::{Auth, Options};

pub fn profile() -> Profile {
    let options = Options { auth: Auth::Basic, referrers: false, names_sha256_alone: true, ..Options::default() };
    Profile { login: Login::Password, ..Profile::new("team/app", options) }
}
