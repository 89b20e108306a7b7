//! Asking upstream registries: one client each, with its credentials, tokens and limits, and the
//! order in which several are tried.

mod addresses;
mod anywhere;
mod auth;
mod budget;
mod client;
mod errors;
mod fallback;
mod health;
mod helper;
mod ours;
mod place;
mod pool;
mod reach;
mod storages;
mod token;
mod transport;
mod warning;
mod who;

pub use anywhere::{Anywhere, OTHER_HOSTS, PassError};
pub use budget::Budget;
pub use client::{BlobAnswer, BuildError, Lane, ListAnswer, ManifestAnswer, ManifestHead, Proof, Status, Upstream};
pub use fallback::{Clients, Shared, Upstreams};
pub use ours::Ours;
pub use place::{NoPlace, Place};
pub use storages::Storage;
pub use who::{Who, WhoId};
