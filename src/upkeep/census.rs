//! Compares the files with the ledger, and repairs the ledger and the index.

use std::io;

use tokio::sync::oneshot;

use super::clock::now;
use super::desk::Upkeep;
use super::mail::Census;
use super::outline::read_outline;
use crate::index::{ObjectEntry, Timestamp, Write};
use crate::oci::Digest;
use crate::store::{Listed, Walk};

/// Files that are looked at in one step.
const STEP: usize = 64;
/// Rows without a file that are dropped in one step.
const DROPPED: usize = 256;

/// A comparison under way.
pub(super) struct Counting {
    is_repair: bool,
    /// Gets the result, if somebody waits for it.
    done: Option<oneshot::Sender<io::Result<Census>>>,
    /// The files that are still to come; `None` before the comparison has begun.
    files: Option<Walk>,
    census: Census,
    /// Objects in the bucket whose files are gone.
    copies: Vec<Digest>,
    /// How many missing objects were dropped; `None` until all files were seen.
    dropped: Option<usize>,
}

impl Counting {
    pub fn new(is_repair: bool, done: Option<oneshot::Sender<io::Result<Census>>>) -> Self {
        Self { is_repair, done, files: None, census: Census::default(), copies: Vec::new(), dropped: None }
    }

    /// Creates a comparison that repairs and for which nobody waits.
    pub fn of_our_own() -> Self {
        Self::new(true, None)
    }

    /// Looks at some more files. Returns whether the comparison is complete.
    pub async fn step(&mut self, upkeep: &Upkeep) -> bool {
        if let Some(dropped) = self.dropped {
            return self.drop_missing(upkeep, dropped).await;
        }
        let files = self.files.get_or_insert_with(|| {
            upkeep.ledger().begin_census();
            upkeep.parts().store.list()
        });
        for _ in 0..STEP {
            match files.next().await {
                Some(Ok(listed)) => {
                    self.census.bytes += listed.size;
                    let (has_row, known) = upkeep.see(&listed.digest);
                    if known.is_none() {
                        self.census.unknown.push(listed.digest);
                    }
                    // A file of another size is damaged, which shows when it is read. It counts with the size that it
                    // has.
                    if self.is_repair && known != Some(listed.size) {
                        upkeep.adopt(listed).await;
                    } else if self.is_repair && !has_row {
                        upkeep.note_file(&listed).await;
                    }
                }
                Some(Err(error)) => {
                    self.end(upkeep, Err(error));
                    return true;
                }
                None => {
                    (self.census.missing, self.copies) = upkeep.ledger().end_census(self.is_repair);
                    self.dropped = Some(0);
                    return false;
                }
            }
        }
        false
    }

    async fn drop_missing(&mut self, upkeep: &Upkeep, dropped: usize) -> bool {
        if self.is_repair && !self.copies.is_empty() {
            let rest = self.copies.split_off(self.copies.len().min(DROPPED));
            let mut copies = std::mem::replace(&mut self.copies, rest);
            // It may have come back.
            copies.retain(|digest| !upkeep.ledger().has_file(digest));
            upkeep.forget_files(&copies).await;
            return false;
        }
        let until = if self.is_repair { (dropped + DROPPED).min(self.census.missing.len()) } else { usize::MAX };
        if self.is_repair {
            upkeep.forget(&self.census.missing[dropped..until]).await;
        }
        self.dropped = Some(until);
        let is_end = until >= self.census.missing.len();
        if is_end {
            let census = std::mem::take(&mut self.census);
            self.end(upkeep, Ok(census));
        }
        is_end
    }

    fn end(&mut self, upkeep: &Upkeep, result: io::Result<Census>) {
        match &result {
            Ok(census) if self.is_repair => {
                let (adopted, gone) = (census.unknown.len(), census.missing.len());
                if adopted > 0 || gone > 0 {
                    tracing::info!(adopted, gone, "the index was brought in line with the files");
                }
                upkeep.publish_totals();
            }
            Err(error) if self.done.is_none() => {
                upkeep.parts().metrics.errors.inc();
                tracing::error!(%error, "the files cannot be compared with the index");
            }
            _ => {}
        }
        if let Some(done) = self.done.take() {
            // A caller that has left needs no answer.
            let _ = done.send(result);
        }
    }
}

impl Upkeep {
    /// Notes in the ledger that a file was found. Returns whether it has a row, and the size with which the object was known.
    fn see(&self, digest: &Digest) -> (bool, Option<u64>) {
        let mut ledger = self.ledger();
        // An index of one Larder has one row for the file and what is in the bucket.
        let has_row = ledger.has_file(digest) || !self.parts().index.is_on_server();
        (has_row, ledger.seen(digest))
    }

    /// Notes the file of an object of which only the bucket's row is known.
    async fn note_file(&self, listed: &Listed) {
        let Listed { digest, size, .. } = *listed;
        let entry = ObjectEntry { size, media_type: None, stored_at: Timestamp::now(), generation: None };
        self.apply(vec![Write::Object { digest, entry }]).await;
    }

    /// Takes in a file that the index does not know, or knows with another size.
    async fn adopt(&self, listed: Listed) {
        let Listed { digest, size, since } = listed;
        let store = &*self.parts().store;
        // The file may have been removed since it was listed.
        if !store.contains(&digest).await.unwrap_or(false) {
            return;
        }
        let stored_at = Timestamp::from_system_time(since);
        let outline = read_outline(store, &digest, size).await;
        let media_type = outline.as_ref().map(|(media_type, _)| media_type.clone());
        let entry = ObjectEntry { size, media_type, stored_at, generation: None };
        let mut writes = vec![Write::Object { digest, entry }, Write::Used { digest, at: Timestamp::now() }];
        if let Some((_, children)) = outline {
            writes.push(Write::Edges { parent: digest, children });
        }
        self.apply(writes).await;
        self.edges_changed(&digest);
        // It is not known who used the object, and when: it is kept as long as any object is.
        let mut ledger = self.ledger();
        let class = ledger.limits().classes.count() - 1;
        ledger.stored(digest, size, class, now());
    }
}
