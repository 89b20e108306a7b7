//! Another cache or a company's proxy in front of a registry.
//!
//! - HEAD of a manifest has a length of 0 (harrisonwang/wharf#11, yusing/godoxy#169), and the type `application/json`.
//! - It says that it is there (`Via`), and its errors are pages for people.
//!
//! And what the standards allow or clients are ready for, though it is not told of one product: pages by number, several
//! links in several lines (RFC 8288), filters that are not understood (OCI Distribution Specification: `SHOULD`), challenges
//! that name more actions than were asked for.

use super::{Again, Denial, Limit, Profile};
use crate::support::hub::{Auth, HeadHabit, LinkForm, Options, PageToken, Paging, TokenPlace, TokenService, ToldScope};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        told_scope: ToldScope::Actions("pull,push"),
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        manifest_head: HeadHabit::Hollow("application/json"),
        headers: vec![("via", "1.1 proxy.example (squid)"), ("x-cache", "HIT from proxy.example")],
        paging: Paging { size: "page_size", next: "page", token: PageToken::Number, link: LinkForm::Odd },
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
