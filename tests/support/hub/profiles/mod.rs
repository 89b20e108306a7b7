//! Registries as they are told to be, each in a file of its own: what is odd about it, and where that is told. `docs/registries.md`
//! has a row for each, and `tests/registries` keeps the promises on all of them.

use super::Options;

pub mod acr;
pub mod artifactory;
pub mod distribution_2;
pub mod distribution_3;
pub mod docker_hub;
pub mod ecr;
pub mod ecr_public;
pub mod gar;
pub mod ghcr;
pub mod gitea;
pub mod gitlab;
pub mod gitlab_virtual;
pub mod harbor;
pub mod harbor_proxy;
pub mod k8s;
pub mod mcr;
pub mod mirror;
pub mod nexus;
pub mod nvcr;
pub mod ollama;
pub mod quay;
pub mod quay_before_2024;
pub mod redhat;
pub mod zot;

/// A registry.
#[derive(Clone, Debug)]
pub struct Profile {
    pub options: Options,
    /// A name as it has them.
    pub name: &'static str,
    /// With what Larder comes to it.
    pub login: Login,
    /// How it says that there were too many requests.
    pub limit: Limit,
    /// How it refuses an image.
    pub denial: Denial,
}

impl Profile {
    /// A registry that is odd in nothing but its options.
    pub fn new(name: &'static str, options: Options) -> Self {
        Self { options, name, login: Login::None, limit: Limit::default(), denial: Denial::default() }
    }
}

/// With what Larder comes to a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    None,
    /// A user `me` with a password.
    Password,
    /// A program that gives a password which holds for some hours.
    Helper,
}

/// An answer that says that there were too many requests.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub headers: &'static [(&'static str, &'static str)],
    pub body: &'static str,
    pub again: Again,
}

/// When a limit is over, as the registry says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    Unsaid,
    /// In less than a second.
    AtOnce,
    Seconds(u64),
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"too many requests"}]}"#,
            again: Again::Unsaid,
        }
    }
}

/// An answer that refuses an image. The words are made after what is told of them; those of the real ones may differ.
#[derive(Clone, Copy, Debug)]
pub struct Denial {
    pub status: u16,
    pub body: &'static str,
    /// What of it people have to read.
    pub words: &'static str,
}

impl Default for Denial {
    fn default() -> Self {
        Self {
            status: 403,
            body: r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#,
            words: "requested access to the resource is denied",
        }
    }
}
