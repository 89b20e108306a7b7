//! Another cache or a company's proxy in front of a registry.
//!
//! - HEAD of a manifest has a length of 0 (getwharf/wharf#11) and the type `application/json` (LightMirrors#9).
//! - It says that it is there (`Via`), and its errors are pages for people.
//! - Pages are numbered, and filters of referrers are not understood.

use super::{Again, Denial, Limit, Profile};
use crate::support::hub::{HeadHabit, Options, PageToken, Paging};

pub fn profile() -> Profile {
    let options = Options {
        manifest_head: HeadHabit::Hollow("application/json"),
        headers: vec![("via", "1.1 proxy.example (squid)"), ("x-cache", "HIT from proxy.example")],
        paging: Paging { size: "page_size", next: "page", token: PageToken::Number, ..Paging::default() },
        filters_referrers: false,
        ..Options::default()
    };
    Profile {
        limit: Limit {
            headers: &[("content-type", "text/html"), ("retry-after", "1")],
            body: "<html><title>429</title></html>",
            again: Again::Seconds(1),
        },
        denial: Denial {
            status: 403,
            body: "<html><title>Blocked</title><body>This site is blocked by policy 17.</body></html>",
            words: "403",
        },
        ..Profile::new("library/app", options)
    }
}
