//! Upkeep: keeps the cache within its limits, and what is known of it true.
//!
//! One task ([`keeper`]) does all that takes time or has to be done one after the other: it makes room, expires, compares
//! with the files, finds out what is pinned. Others ask it through a mailbox ([`mail`]). What it decides by is the
//! [`ledger`], which is pure and behind a lock that nobody holds over a system call. It works in small steps and serves who
//! waits for room between them.
//!
//! Locks: `leases` before `ledger`; `uses` by itself.

mod census;
mod classes;
mod clock;
mod desk;
pub mod evict;
mod keeper;
mod ledger;
mod limits;
mod mail;
mod outline;
mod pins;
pub mod room;
pub mod scrub;

use std::sync::Arc;

pub use desk::{Cached, Lease, Parts, Upkeep, bounds};

use keeper::Keeper;

/// Reads what is stored and does what is asked, for as long as the process lives. With `is_keeping` it also keeps the
/// limits; without, it does nothing of its own accord: for a command on a stopped cache.
pub async fn run(upkeep: Arc<Upkeep>, is_keeping: bool) {
    match upkeep.mailbox() {
        Some(received) => Keeper::new(upkeep).run(received, is_keeping).await,
        None => tracing::error!("upkeep runs already"),
    }
}

#[cfg(test)]
mod tests;
