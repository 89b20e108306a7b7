//! Ollama's registry.
//!
//! - Manifests are `text/plain`, chunked, without a digest (ollama/ollama#6470, oras-project/oras-go#882); HEAD of them is
//!   405 or an empty 200.
//! - Anonymous; no referrers API.

use super::Profile;
use crate::support::hub::{HeadHabit, Options, Redirect};

pub fn profile() -> Profile {
    let options = Options {
        redirect: Redirect::Absolute,
        manifest_head: HeadHabit::Hollow("text/plain; charset=utf-8"),
        manifest_type: Some("text/plain; charset=utf-8"),
        names_digests: false,
        sends_lengths: false,
        referrers: false,
        ..Options::default()
    };
    Profile::new("library/qwen2", options)
}
