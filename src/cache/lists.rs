//! Lists of tags and referrers: kept for a while, and for outages.

use super::Cache;
use super::list_room::{SMALL, hold};
use crate::failure::Failure;
use crate::index::{IndexError, ListKey, Listing, Write};

impl Cache {
    /// Returns a list as it was last seen.
    pub async fn listing(&self, key: &ListKey) -> Result<Option<Listing>, Failure> {
        if let Some(listing) = self.hot.listings.get(key) {
            return Ok(Some(listing));
        }
        match self.index.listing(key, SMALL).await {
            Err(IndexError::TooLarge(bytes)) => {
                let right = self.lists.admit(bytes).await?;
                let found = self.index.listing(key, bytes).await;
                Ok(found.map_err(|error| self.broken("cannot read a list", error))?.map(|listing| hold(listing, right)))
            }
            found => found.map_err(|error| self.broken("cannot read a list", error)),
        }
    }

    /// Takes a new list into memory, to be handed out and perhaps kept. Fails if no memory becomes free for it in time.
    pub async fn hold_listing(&self, listing: Listing) -> Result<Listing, Failure> {
        let right = self.lists.admit(listing.body.len() as u64).await?;
        Ok(hold(listing, right))
    }

    /// Keeps a list for a while and for outages.
    pub fn put_listing(&self, key: ListKey, listing: Listing) {
        self.hot.listings.insert(key.clone(), listing.clone());
        self.index.note(Write::Listing { key, listing });
    }
}
