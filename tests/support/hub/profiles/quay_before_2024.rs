//! Quay as it was before 2024, and still is on many premises.
//!
//! As `quay`, but the next page is named by an encrypted `next_page` that only it can read (quay/quay, `paginate` in
//! `endpoints/v2/__init__.py`: `urlencode({"n": limit, "next_page": next_page_token})`).

use super::Profile;
use crate::support::hub::{LinkForm, PageToken, Paging};

pub fn profile() -> Profile {
    let mut profile = super::quay::profile();
    profile.options.paging =
        Paging { next: "next_page", token: PageToken::Opaque, link: LinkForm::Absolute, ..Paging::default() };
    profile
}
