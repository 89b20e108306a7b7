//! Public lists, where the clients' own credentials decide. A list that one client is shown is not for others, unless
//! the upstream shows the same list to clients without credentials.

use std::sync::Arc;

use tracing::Instrument;

use super::lists::{List, Lists};
use super::pages::Page;
use crate::failure::{Failure, FailureKind};
use crate::index::{ListKey, Listing, Timestamp};
use crate::oci::Tag;
use crate::routing::Target;
use crate::upstream::Who;

/// Suffix of a page's key under which the public list is kept. A page itself contains no space.
const IN_PUBLIC: &str = " in public";

impl Lists {
    /// Returns the key of the public list that belongs to a key; `None` if Larder does not find out which lists are
    /// public.
    pub fn public_key(target: &Target, key: &ListKey) -> Option<ListKey> {
        let is_learnt = target.who.is_client() && target.repository.learns_public;
        is_learnt.then(|| ListKey { page: format!("{}{IN_PUBLIC}", key.page), ..key.clone() })
    }

    /// Keeps a list that a client was just shown as the public list, if it is known to be public. If that is not known,
    /// a background task asks without credentials; no client waits for it. `before` is the public list that was kept
    /// until now.
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
        let learning = async move {
            match lists.fetch_once(&everybody, list, &page, key, false).await {
                Ok((listing, _)) => lists.cache.put_listing(public, listing),
                Err(failure) => tracing::debug!(%failure, "it cannot be told whether a list is for everybody"),
            }
            drop(permit);
        };
        tokio::spawn(learning.in_current_span());
    }

    /// While the upstream cannot answer, makes the list of referrers from the fallback tag, if the tag was seen before.
    /// With a registry that has no referrers API, the fallback tag is all that clients ever saw.
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

    /// Returns whether the public list may be served in place of a list that this failure kept from a client.
    pub fn may_stand_in(target: &Target, failure: &Failure) -> bool {
        !target.who.is_client() || !failure.was_refused
    }
}
