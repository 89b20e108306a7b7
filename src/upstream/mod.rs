//! Asking upstream registries: one client each, with its credentials, tokens and limits, and the
//! order in which several are tried.

mod addresses;
mod anywhere;
mod auth;
mod bodies;
mod budget;
mod client;
mod errors;
mod fallback;
mod habits;
mod health;
mod helper;
mod logins_sent;
mod ours;
mod place;
mod pool;
mod probing;
mod questions;
mod reach;
mod reason;
mod refusals;
mod storages;
mod token;
mod transport;
mod warning;
mod who;

pub use anywhere::{Anywhere, OTHER_HOSTS, PassError};
pub use budget::Budget;
pub use client::{
    BlobAnswer, BuildError, Lane, ListAnswer, ManifestAnswer, ManifestHead, Permit, Proof, Status, Upstream,
};
pub use fallback::{Clients, Shared, Upstreams, pause};
pub use ours::Ours;
pub use place::{NoPlace, Place};
pub use questions::HeadSaid;
pub use storages::Storage;
pub use who::{Who, WhoId};
