//! Requests to upstream registries: one client for each upstream, with its credentials, tokens and limits, and the
//! order in which several upstreams are tried.

mod addresses;
mod answers;
mod anywhere;
mod asked;
mod auth;
mod bodies;
mod budget;
mod client;
mod errors;
mod fallback;
mod habits;
mod health;
mod helper;
mod line;
mod logins_sent;
mod noted;
mod ours;
mod pool;
mod probing;
mod questions;
mod reach;
mod reason;
mod record;
mod refusals;
mod server;
mod shared;
mod storages;
mod token;
mod transport;
mod warning;
mod way;
mod who;

pub use answers::{BlobAnswer, BuildError, HeadSaid, Lane, ListAnswer, ManifestAnswer, ManifestHead, Proof};
pub use anywhere::{Anywhere, PassError};
pub use budget::Budget;
pub use client::{Permit, Status, Upstream};
pub use fallback::{Clients, Upstreams, pause};
pub use ours::Ours;
pub use record::Summary;
pub use server::{NoServer, Server};
pub use shared::Shared;
pub use storages::{Storage, Storages};
pub use who::{Who, WhoId};
