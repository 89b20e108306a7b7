//! Microsoft's registry, mcr.microsoft.com.
//!
//! - Anonymous, without tokens. Blobs: 307 to a CDN by region. Lists are long and come as a whole.
//! - 429 is told of (microsoft/containerregistry#140). With which words is not, so there are none here.

use super::{Again, Limit, Profile};
use crate::support::hub::{Options, Redirect};

pub fn profile() -> Profile {
    let options = Options { redirect: Redirect::Absolute, page_size: 100_000, referrers: false, ..Options::default() };
    Profile {
        limit: Limit { headers: &[("content-type", "text/html")], body: "", again: Again::Unsaid },
        ..Profile::new("dotnet/runtime", options)
    }
}
