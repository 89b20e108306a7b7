//! Fills of objects that no client has asked for yet.
//!
//! Such a fill ends as soon as a client needs its place. What has arrived stays for the next fill to resume. A client
//! that asks for the object joins as it joins any fill; while it reads, the fill is like any other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;

use super::{Fill, FillReader, Fills, Registered};
use crate::index::Viewer;
use crate::oci::Digest;

/// Whether a fill was begun before any client asked for the object.
#[derive(Debug, Default)]
pub struct Behind {
    is_behind: AtomicBool,
    is_given_up: AtomicBool,
    is_asked_for: watch::Sender<bool>,
}

impl Fill {
    /// Returns whether the fill was begun before any client asked for the object.
    pub fn is_behind(&self) -> bool {
        self.behind.is_behind.load(Ordering::Relaxed)
    }

    /// Returns whether no client has asked for the object, or all that did have left.
    pub fn is_for_nobody(&self) -> bool {
        self.is_behind() && !self.is_read()
    }

    /// Waits until a client asks for the object.
    pub async fn asked_for(&self) {
        // The sender lives as long as `self`.
        let _ = self.behind.is_asked_for.subscribe().wait_for(|is_asked_for| *is_asked_for).await;
    }

    /// Notes that a client has asked for the object.
    pub(super) fn note_asked_for(&self) {
        if self.is_behind() {
            self.behind.is_asked_for.send_replace(true);
        }
    }

    /// Ends the fill soon, unless a client reads it.
    pub fn give_up(&self) {
        self.behind.is_given_up.store(true, Ordering::Relaxed);
    }

    /// Returns whether nobody wants the object any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.behind.is_given_up.load(Ordering::Relaxed)
    }
}

impl FillReader {
    /// Returns the fill, for code that waits for its end and keeps no other transfer from taking its place.
    pub fn unread(&self) -> Arc<Fill> {
        self.0.clone()
    }
}

impl Fills {
    /// Registers a fill that no client has asked for; `None` if there is a fill of the object already.
    pub fn begin_behind(&self, digest: &Digest, viewer: &Viewer) -> Option<Registered> {
        let mut fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if fills.get(digest).and_then(Weak::upgrade).is_some_and(|fill| fill.is_joinable()) {
            return None;
        }
        let fill = Arc::new(Fill::new(viewer.clone()));
        fill.behind.is_behind.store(true, Ordering::Relaxed);
        fills.insert(*digest, Arc::downgrade(&fill));
        Some(Registered { fills: self.clone(), digest: *digest, fill, left: Mutex::default() })
    }

    /// Returns whether the running fill of an object is for nobody.
    pub fn is_for_nobody(&self, digest: &Digest) -> bool {
        let fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fills.get(digest).and_then(Weak::upgrade).is_some_and(|fill| fill.is_for_nobody())
    }
}
