//! Promise: what Larder does for its users it does in front of any registry, as they really are.
//!
//! A test for each promise and registry: `registries::ecr_public::warm`. What is odd about a registry is told in its
//! profile (`tests/support/hub/profiles`) and in docs/registries.md.

mod document;
mod lists;
mod promises;
mod scene;

/// Makes a module for each registry, with a test for each promise.
macro_rules! registries {
    ($($registry:ident),+ $(,)?) => {
        /// The registries, by the names of their profiles, and what is promised in front of each.
        const TRIED: &[(&str, &[&str])] = &[$((stringify!($registry), $registry::PROMISES)),+];

        $(mod $registry {
            use crate::support::hub::profiles::$registry::profile;

            promises! {
                promises: cold, warm, outage, shared, range, begins, sha512, hiccup, limit, reason, ended, revoked;
                lists: tags, referrers, filters;
            }
        })+
    };
}

macro_rules! promises {
    ($($module:ident: $($promise:ident),+;)+) => {
        $($(#[tokio::test(flavor = "multi_thread")]
        async fn $promise() {
            crate::registries::$module::$promise(profile()).await;
        })+)+

        /// What is promised.
        pub const PROMISES: &[&str] = &[$($(stringify!($promise)),+),+];
    };
}

registries! {
    acr,
    artifactory,
    distribution_2,
    distribution_3,
    docker_hub,
    ecr,
    ecr_public,
    gar,
    ghcr,
    gitea,
    gitlab,
    gitlab_virtual,
    harbor,
    harbor_proxy,
    k8s,
    mcr,
    mirror,
    nexus,
    nvcr,
    ollama,
    quay,
    quay_before_2024,
    redhat,
    zot,
}
