//! Room for transfers: what a fill asks for before it writes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Made, Space, on_disk};
use crate::cache::fill::{Reservation, Room};
use crate::failure::{Failure, FailureKind};

/// How long room is waited for that objects being stored will leave, and how often it is looked for.
const FOR_STORES: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

impl Space {
    async fn reserve_bytes(self: Arc<Self>, bytes: u64) -> Result<Reservation, Failure> {
        let failed = |why: String| Failure::new(FailureKind::Storage, why);
        let bytes = on_disk(bytes);
        let deadline = Instant::now() + FOR_STORES;
        loop {
            // The wait is for one read of the index, at the start or after a change; the sender lives as
            // long as `self`.
            let loaded = self.loaded.subscribe().wait_for(|loaded| *loaded).await.map(drop);
            loaded.map_err(|_| failed("the cache is closing".to_owned()))?;
            let space = self.clone();
            let fits = tokio::task::spawn_blocking(move || space.make_room(bytes));
            return match fits.await {
                Ok(Ok(Made::Unknown)) => continue,
                Ok(Ok(Made::Room)) => Ok(Reservation::new(move || {
                    self.reserved.fetch_sub(bytes, Ordering::Relaxed);
                })),
                // What is verified counts, and can be evicted, only when it is stored.
                Ok(Ok(Made::None | Made::More)) if self.fills.are_storing() && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Ok(Ok(Made::None | Made::More)) => {
                    let message = format!("{bytes} bytes do not fit into cache.max_size and cache.min_free");
                    Err(Failure::new(FailureKind::NoRoom, message))
                }
                Ok(Err(error)) => Err(failed(format!("cannot tell how full the disk is: {error}"))),
                Err(error) => Err(failed(error.to_string())),
            };
        }
    }
}

impl Room for Arc<Space> {
    fn reserve(&self, bytes: u64) -> BoxFuture<'static, Result<Reservation, Failure>> {
        self.clone().reserve_bytes(bytes).boxed()
    }

    fn never_fits(&self, bytes: u64) -> BoxFuture<'static, bool> {
        let space = self.clone();
        async move { tokio::task::spawn_blocking(move || space.as_ref().never_fits(bytes)).await.unwrap_or(false) }
            .boxed()
    }
}
