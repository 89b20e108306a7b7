//! All tags of a name, from all pages of the upstream's list.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;

use super::lists::{Asked, List, Lists};
use super::objects::Objects;
use super::pages::{ListKind, Page};
use super::respond::CacheState;
use crate::failure::{Failure, FailureKind};
use crate::oci::Tag;
use crate::routing::Target;

/// Most tags of a name that are looked at.
pub const MOST_TAGS: usize = 50_000;
/// Most pages of a list that are fetched. Registries give 50 to 1,000 tags on a page.
const MOST_PAGES: usize = 500;
/// The first page: as many tags as registries give at once (`remote.List` of google/go-containerregistry asks for as
/// many).
const FIRST: &str = "n=1000";

/// The tags of a name.
#[derive(Debug, Default)]
pub struct AllTags {
    pub tags: Vec<Tag>,
    /// Whether there are more than were looked at.
    pub is_cut: bool,
    /// Why the list is the last known one, in whole or in part.
    pub stale: Option<Failure>,
}

#[derive(Deserialize)]
struct Document {
    tags: Option<Vec<String>>,
}

impl Objects {
    /// Asks the upstream for all tags of a name. Where it does not answer, the last known list counts, as for clients.
    pub async fn all_tags(&self, target: &Target) -> Result<AllTags, Failure> {
        self.lists.all_tags(target).await
    }
}

impl Lists {
    async fn all_tags(self: &Arc<Self>, target: &Target) -> Result<AllTags, Failure> {
        let (mut all, mut seen) = (AllTags::default(), HashSet::new());
        let mut query = Some(FIRST.to_owned());
        for _ in 0..MOST_PAGES {
            let Some(asked) = query.take() else { break };
            let page = Page::read(ListKind::Tags, &asked);
            let (listing, state) = self.find(target, List::Tags, &page, Asked::Always).await?;
            if let CacheState::Stale { why, .. } = state {
                all.stale.get_or_insert(why);
            }
            let read = serde_json::from_slice::<Document>(&listing.body);
            let tags = read.map_err(|error| Failure::new(FailureKind::WrongContent, error))?.tags.unwrap_or_default();
            let tags = tags.iter().filter_map(|tag| tag.parse::<Tag>().ok());
            all.tags.extend(tags.filter(|tag| seen.insert(tag.clone())));
            query = listing.link.as_deref().and_then(|link| page.next(link));
            if all.tags.len() >= MOST_TAGS {
                all.is_cut = query.is_some() || all.tags.len() > MOST_TAGS;
                all.tags.truncate(MOST_TAGS);
                return Ok(all);
            }
        }
        all.is_cut = query.is_some();
        Ok(all)
    }
}
