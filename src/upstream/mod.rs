//! Asking upstream registries: one client each, with its credentials, tokens and limits, and the
//! order in which several are tried.

mod auth;
mod client;
mod errors;
mod fallback;
pub mod health;
pub mod retry;
mod tls;

pub use client::{BlobAnswer, BuildError, ListAnswer, ManifestAnswer, ManifestHead, Upstream};
pub use fallback::Upstreams;
