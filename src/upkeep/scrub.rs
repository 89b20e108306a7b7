//! Verifies all that is stored: each byte against the digest in the file's name, and the files against the ledger. Also
//! rebuilds a lost index from the files.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::desk::Upkeep;
use crate::oci::Digest;
use crate::store::Object;

/// Most objects of each kind of trouble that a report names; all are counted.
const MAX_NAMED: usize = 1000;

/// The wait before an object that could not be read is read once more: it may be being replaced.
const AGAIN: Duration = Duration::from_millis(50);

/// What a verification found, and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Files read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes to read in all, as known at the beginning.
    pub bytes_in_all: u64,
    /// Objects whose content does not have the digest in their name. They are not served, repaired or not.
    pub damaged: Trouble,
    /// Objects that the disk could not read.
    pub unreadable: Trouble,
    /// Files that the index did not know.
    pub unknown: Trouble,
    /// Objects that the index knew and that have no file.
    pub missing: Trouble,
    /// [`INDEX_IS_FINE`] if the index can be read to its end, else what is wrong with it.
    pub index: String,
    /// Whether trouble was repaired: damaged and unreadable objects removed, so that they are fetched again; unknown
    /// files taken in; missing objects forgotten.
    pub is_repaired: bool,
    /// Bad objects that could not be removed.
    pub unrepaired: u64,
    /// Whether the verification has come to its end.
    pub is_complete: bool,
}

/// Objects in trouble of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub count: u64,
    /// The first of them.
    pub digests: Vec<String>,
}

impl Trouble {
    /// Counts an object, and names it if few are named so far.
    pub fn add(&mut self, digest: &Digest) {
        self.count += 1;
        if self.digests.len() < MAX_NAMED {
            self.digests.push(digest.to_string());
        }
    }
}

/// The text of a report about an index with which nothing is wrong.
pub const INDEX_IS_FINE: &str = "ok";

impl Report {
    /// Returns how far the verification has come, without the names of bad objects.
    pub fn without_names(&self) -> Self {
        let count = |trouble: &Trouble| Trouble { count: trouble.count, digests: Vec::new() };
        Self {
            damaged: count(&self.damaged),
            unreadable: count(&self.unreadable),
            unknown: count(&self.unknown),
            missing: count(&self.missing),
            index: self.index.clone(),
            ..*self
        }
    }

    /// Returns whether nothing was found that is still wrong.
    pub fn is_clean(&self) -> bool {
        let troubles = [&self.damaged, &self.unreadable, &self.unknown, &self.missing];
        self.index == INDEX_IS_FINE
            && self.unrepaired == 0
            && (self.is_repaired || troubles.iter().all(|trouble| trouble.count == 0))
    }
}

/// Reads everything. `progress` gets the report now and then, and returns whether to go on. Takes as long as reading
/// the store takes.
pub async fn verify(
    upkeep: &Arc<Upkeep>,
    is_repair: bool,
    mut progress: impl FnMut(&Report) -> bool + Send,
) -> io::Result<Report> {
    let mut report = Report { is_repaired: is_repair, index: INDEX_IS_FINE.to_owned(), ..Report::default() };
    if upkeep.parts().index.was_damaged() && !is_repair {
        report.index = "it was damaged when it was opened, and was built anew from the files".to_owned();
    }
    if let Err(error) = upkeep.parts().index.verify().await {
        report.index = error.to_string();
    }
    let census = upkeep.census(is_repair).await?;
    census.unknown.iter().for_each(|digest| report.unknown.add(digest));
    census.missing.iter().for_each(|digest| report.missing.add(digest));
    report.bytes_in_all = census.bytes;

    let mut files = upkeep.parts().store.list();
    while let Some(listed) = files.next().await {
        verify_one(upkeep, &listed?.digest, &mut report, &mut progress).await;
        if !progress(&report) {
            return Ok(report);
        }
    }
    report.is_complete = true;
    Ok(report)
}

/// Reads one object, notes the result, and repairs it if asked to.
async fn verify_one(
    upkeep: &Arc<Upkeep>,
    digest: &Digest,
    report: &mut Report,
    progress: &mut (impl FnMut(&Report) -> bool + Send),
) {
    let before = report.bytes;
    let mut is_left = false;
    let mut result = read(upkeep, digest, report, &mut is_left, progress).await;
    if result.is_err() && !is_left {
        tokio::time::sleep(AGAIN).await;
        report.bytes = before;
        result = read(upkeep, digest, report, &mut is_left, progress).await;
    }
    if is_left {
        return;
    }
    let store = &upkeep.parts().store;
    match result {
        // The object was evicted or purged meanwhile.
        Ok(None) => return,
        Ok(Some((object, true))) => {
            report.objects += 1;
            if !object.is_sealed
                && let Err(error) = store.seal(&object, digest).await
            {
                tracing::warn!(%digest, %error, "an intact object could not be sealed");
            }
            return;
        }
        Ok(Some((object, false))) => {
            report.objects += 1;
            report.damaged.add(digest);
            tracing::error!(%digest, "an object is damaged");
            if let Err(error) = store.unseal(&object).await {
                tracing::warn!(%digest, %error, "a damaged object's seal could not be broken");
            }
        }
        Err(error) => {
            report.unreadable.add(digest);
            tracing::error!(%digest, %error, "an object cannot be read");
            if error.kind() == io::ErrorKind::TimedOut {
                // The disk is slow; the object may be intact.
                report.unrepaired += 1;
                return;
            }
        }
    }
    if report.is_repaired
        && let Err(error) = upkeep.discard(digest).await
    {
        tracing::error!(%digest, %error, "a bad object cannot be removed");
        report.unrepaired += 1;
    }
}

/// Reads one object and returns whether it is intact; `None` if it is not there. Sets `is_left` if `progress` says not
/// to go on.
async fn read(
    upkeep: &Upkeep,
    digest: &Digest,
    report: &mut Report,
    is_left: &mut bool,
    progress: &mut (impl FnMut(&Report) -> bool + Send),
) -> io::Result<Option<(Object, bool)>> {
    let Some(object) = upkeep.parts().store.open(digest).await? else {
        return Ok(None);
    };
    let is_intact = object.is_intact(digest, |read| {
        report.bytes += read;
        *is_left = !progress(report);
        !*is_left
    });
    let is_intact = is_intact.await?;
    Ok(Some((object, is_intact)))
}
