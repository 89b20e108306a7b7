//! Lists that everybody may see, where the clients' own credentials decide: what one client is shown is not for others,
//! unless the upstream shows the same to who has no credentials.

use std::sync::Arc;

use super::lists::{List, Lists};
use super::pages::Page;
use crate::failure::{Failure, FailureKind};
use crate::index::{ListKey, Listing, Timestamp};
use crate::oci::Tag;
use crate::routing::Target;
use crate::upstream::Who;

/// Behind the page of a list, where the list is kept that is for everybody; no page has a blank.
const IN_PUBLIC: &str = " in public";

impl Lists {
    /// Where the list of a key is kept that is for everybody; `None` where that is not found out.
    pub fn public_key(target: &Target, key: &ListKey) -> Option<ListKey> {
        let is_learnt = target.who.is_client() && target.repository.learns_public;
        is_learnt.then(|| ListKey { page: format!("{}{IN_PUBLIC}", key.page), ..key.clone() })
    }

    /// A list that a client was just shown: keeps it where it is for everybody. Where that is not known, it is found out
    /// by asking as nobody; no client waits for it. `before` is what was for everybody before.
    pub fn learn_public_list(
        self: &Arc<Self>,
        target: &Target,
        (list, page): (List, &Page),
        (key, public): (ListKey, ListKey),
        shown: &Listing,
        before: Option<&Listing>,
    ) {
        let is_known = before.is_some_and(|before| before.body == shown.body && before.link == shown.link);
        if is_known || matches!(target.who, Who::Anonymous) {
            return self.cache.put_listing(public, Listing { checked_at: Timestamp::now(), ..shown.clone() });
        }
        let Some(permit) = self.consent.may_learn(target) else {
            return;
        };
        let (lists, page) = (self.clone(), page.clone());
        let everybody = Target { who: Who::Anonymous, ..target.clone() };
        tokio::spawn(async move {
            match lists.fetch_once(&everybody, list, &page, key, false).await {
                Ok((listing, _)) => lists.cache.put_listing(public, listing),
                Err(failure) => tracing::debug!(%failure, "it cannot be told whether a list is for everybody"),
            }
            drop(permit);
        });
    }

    /// While the upstream cannot say which referrers there are, its fallback tag that was seen before stands in for a list
    /// that was not: of a registry without the list, that tag is all that clients ever saw.
    pub async fn fallback_in_outage(
        self: &Arc<Self>,
        target: &Target,
        list: List,
        page: &Page,
        failure: &Failure,
    ) -> Option<Listing> {
        let List::ReferrersOf(subject) = list else {
            return None;
        };
        let cannot_say = matches!(failure.kind, FailureKind::Unavailable | FailureKind::Timeout);
        let tag = target.tag_key(&Tag::referrers_fallback(&subject));
        if !cannot_say || self.tags.cached(target, &tag).await.is_none() {
            return None;
        }
        self.referrers_by_tag(target, &subject, &page.filters).await.ok()
    }

    /// Whether a list that is for everybody stands in for one that this failure kept from a client.
    pub fn may_stand_in(target: &Target, failure: &Failure) -> bool {
        !target.who.is_client() || !failure.was_refused
    }
}
