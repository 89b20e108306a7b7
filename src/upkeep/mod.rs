//! Upkeep: keeps the cache within its limits, and what is known about its objects right.
//!
//! One task ([`keeper`]) does everything that takes time or has to be done one thing after the other: it makes room,
//! expires objects, compares the files with the ledger, and finds out which objects are pinned. Others ask it through a
//! mailbox ([`mail`]). It decides by the [`ledger`], which is pure and behind a lock that is never held over a system
//! call. The task works in small steps, and between them serves callers that wait for room.
//!
//! Lock order: `leases`, then `ledger`. `uses` is taken alone.

mod census;
mod classes;
mod clock;
mod desk;
pub mod evict;
mod gone;
mod keeper;
mod keeping;
mod leaving;
mod ledger;
mod limits;
mod mail;
mod outline;
mod pins;
pub mod room;
pub mod scrub;
mod sweep;
mod uploaded;
mod uploading;

use std::sync::Arc;

pub use desk::{Cached, Lease, Parts, Upkeep, bounds};
pub use leaving::{MOST as MOST_LEAVING, delete as delete_uploads};

use tokio::task::JoinHandle;

use crate::s3::Bucket;
use keeper::Keeper;

/// Reads which objects are stored and does what is asked, for as long as the process lives. With `is_keeping`, it also
/// keeps the limits; without, it does nothing of its own accord: for a command on a stopped cache.
pub async fn run(upkeep: Arc<Upkeep>, is_keeping: bool) {
    let bucket = upkeep.parts().bucket.clone();
    let _sweeping = bucket.filter(|_| is_keeping).map(|bucket| Sweeping::begin(&upkeep, bucket));
    match upkeep.mailbox() {
        Some(received) => Keeper::new(upkeep).run(received, is_keeping).await,
        None => tracing::error!("upkeep runs already"),
    }
}

/// The tasks that look after the bucket, until this is dropped.
struct Sweeping([JoinHandle<()>; 3]);

impl Sweeping {
    fn begin(upkeep: &Arc<Upkeep>, bucket: Bucket) -> Self {
        let (leaving, from) = (upkeep.clone(), bucket.clone());
        let deleting = tokio::spawn(async move { leaving.leaving().run(&*leaving.parts().index, &from).await });
        let keeping = upkeep.clone();
        let keeping = tokio::spawn(async move { keeping.keeping().run(&*keeping.parts().index).await });
        Self([deleting, keeping, tokio::spawn(sweep::run(upkeep.clone(), bucket))])
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

#[cfg(test)]
mod tests;
