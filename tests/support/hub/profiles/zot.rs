//! zot.
//!
//! - Basic, no tokens; blobs come from itself, and it does not redirect (project-zot/zot, `pkg/api/routes.go`).
//! - Referrers of all kinds; its links are written in a way of their own.

use super::{Login, Profile};
use crate::support::hub::{Auth, LinkForm, Options, Paging};

pub fn profile() -> Profile {
    let options = Options {
        auth: Auth::Basic,
        paging: Paging { link: LinkForm::Odd, ..Paging::default() },
        ..Options::default()
    };
    Profile { login: Login::Password, ..Profile::new("team/app", options) }
}
