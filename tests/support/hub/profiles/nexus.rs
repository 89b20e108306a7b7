//! Sonatype Nexus.
//!
//! - Basic, unless its realm for Bearer tokens comes first (sonatype/nexus-public#921). Blobs come from itself.
//! - No referrers API.

use super::{Login, Profile};
use crate::support::hub::{Auth, Options};

pub fn profile() -> Profile {
    let options = Options { auth: Auth::Basic, referrers: false, ..Options::default() };
    Profile { login: Login::Password, ..Profile::new("team/app", options) }
}
