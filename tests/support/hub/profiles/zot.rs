//! zot.
//!
//! - Basic, no tokens; blobs come from itself, and it does not redirect (project-zot/zot, `pkg/api/routes.go`).
//! - It has the referrers API (project-zot/zot, `pkg/api/routes.go`).

use super::{Login, Profile};
use crate::support::hub::{Auth, Options};

pub fn profile() -> Profile {
    let options = Options { auth: Auth::Basic, ..Options::default() };
    Profile { login: Login::Password, ..Profile::new("team/app", options) }
}
