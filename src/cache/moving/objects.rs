//! Brings objects over: content first, then the row.

use std::io;
use std::sync::PoisonError;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::content::{Content, ReadError, Source};
use super::error::{MovingError, Side};
use super::report::Report;
use super::send::{SendError, size_of, to_bucket, to_folder};
use super::{AT_ONCE, Moving};
use crate::index::{Generation, IndexError, ObjectEntry, Row, RowKey, Table, Timestamp, Write};
use crate::oci::Digest;
use crate::s3::{Bucket, Upload};

/// Most objects that may be lost or damaged: with more of them, the old place is broken as a whole.
const MOST_LOST: usize = 10_000;

/// An object of the old cache.
pub struct Known {
    pub digest: Digest,
    pub entry: ObjectEntry,
    last_use: Timestamp,
}

/// Where the new cache has an object: in the bucket by this upload, or in a file.
#[derive(Clone, Copy)]
pub struct There(Option<Generation>);

/// What became of an object.
enum Outcome {
    Present(There),
    Moved,
    Damaged,
    Missing,
    /// It has left the old cache meanwhile.
    Gone,
}

/// Returns the objects of a page.
pub fn known(page: Vec<Row>) -> impl Iterator<Item = Known> {
    page.into_iter().filter_map(|row| match row {
        Row::Object { digest, entry, last_use, .. } => Some(Known { digest, entry, last_use }),
        _ => None,
    })
}

fn of_old(error: IndexError) -> MovingError {
    MovingError::Index(Side::Old, error)
}

fn of_new(error: IndexError) -> MovingError {
    MovingError::Index(Side::New, error)
}

impl Moving {
    /// Returns the next page of a table of the old cache, and moves the key behind it; `None` at the end.
    pub(super) async fn page(
        &self,
        table: Table,
        behind: &mut RowKey,
        count: usize,
    ) -> Result<Option<Vec<Row>>, MovingError> {
        let page = self.from.index.rows(table, behind.clone(), count).await.map_err(of_old)?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        *behind = last.key();
        Ok(Some(page))
    }

    /// Writes rows at the new place.
    pub(super) async fn take_in(&self, rows: Vec<Row>) -> Result<(), MovingError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.to.index.take_in(rows).await.map_err(of_new)
    }

    /// Brings a page of objects over.
    pub(super) async fn bring_page(&self, page: Vec<Row>, report: &mut Report) -> Result<(), MovingError> {
        let bringing = stream::iter(known(page)).map(async |object| {
            let outcome = self.bring(&object).await?;
            Ok::<_, MovingError>((object, outcome))
        });
        let mut bringing = std::pin::pin!(bringing.buffer_unordered(AT_ONCE));
        let mut present = Vec::new();
        while let Some((object, outcome)) = bringing.try_next().await? {
            let size = object.entry.size;
            match outcome {
                Outcome::Present(there) => {
                    report.present += 1;
                    report.present_bytes += size;
                    self.progress.add(size);
                    present.push(self.row(&object, there).await?);
                }
                Outcome::Moved => {
                    report.moved += 1;
                    report.moved_bytes += size;
                }
                Outcome::Damaged => {
                    report.damaged.add(&object.digest);
                    self.lose(object.digest)?;
                }
                Outcome::Missing => {
                    report.missing.add(&object.digest);
                    self.lose(object.digest)?;
                }
                Outcome::Gone => report.gone += 1,
            }
        }
        self.take_in(present).await
    }

    /// Brings one object over, and writes its row.
    async fn bring(&self, object: &Known) -> Result<Outcome, MovingError> {
        if let Some(there) = self.there(object, true).await? {
            return Ok(Outcome::Present(there));
        }
        self.forget_upload(object).await?;
        let mut outcome = Outcome::Missing;
        for source in self.sources(object).await? {
            let is_file = matches!(source, Source::File(_));
            match self.send(object, source).await {
                Ok(there) => {
                    self.take_in(vec![self.row(object, there).await?]).await?;
                    return Ok(Outcome::Moved);
                }
                Err(SendError::Read(ReadError::Damaged)) => {
                    if is_file && self.same.folder {
                        self.unseal(&object.digest).await;
                    }
                    outcome = Outcome::Damaged;
                }
                Err(SendError::Read(ReadError::File(error))) if error.kind() != io::ErrorKind::TimedOut => {
                    tracing::warn!(digest = %object.digest, %error, "a file of the old cache cannot be read");
                    outcome = Outcome::Damaged;
                }
                Err(SendError::Read(ReadError::Absent)) => {}
                Err(error) => return Err(MovingError::of_object(object.digest, error)),
            }
        }
        // Others may use the index of the old cache, and have evicted the object meanwhile.
        let known = self.from.index.object(&object.digest).await.map_err(of_old)?;
        let is_as_before = known.is_some_and(|known| known.generation == object.entry.generation);
        Ok(if is_as_before { outcome } else { Outcome::Gone })
    }

    /// Returns where the new cache has an object. `is_thorough`: the bucket is asked, and a file that was touched is read.
    pub(super) async fn there(&self, object: &Known, is_thorough: bool) -> Result<Option<There>, MovingError> {
        let Known { digest, entry, .. } = object;
        let Some(bucket) = &self.to.bucket else {
            let disk = |error| MovingError::Disk(Side::New, error);
            let found = self.to.folder.store.open(digest).await.map_err(disk)?;
            let Some(found) = found.filter(|found| found.size == entry.size) else {
                return Ok(None);
            };
            let is_fine = found.is_sealed || !is_thorough || found.is_intact(digest, |_| true).await.map_err(disk)?;
            return Ok(is_fine.then_some(There(None)));
        };
        let known = self.to.index.object(digest).await.map_err(of_new)?.and_then(|known| known.generation);
        let old = entry.generation.filter(|_| self.same.bucket);
        for generation in [known, old].into_iter().flatten() {
            let upload = Upload { digest: *digest, generation };
            if !is_thorough || self.has(bucket, &upload, entry.size).await? {
                return Ok(Some(There(Some(generation))));
            }
        }
        Ok(None)
    }

    async fn has(&self, bucket: &Bucket, upload: &Upload, size: u64) -> Result<bool, MovingError> {
        let found = size_of(bucket, upload).await.map_err(|error| MovingError::Bucket(Side::New, error))?;
        Ok(found == Some(size))
    }

    /// Takes an upload out of the row of an object that the new bucket was found not to have.
    async fn forget_upload(&self, object: &Known) -> Result<(), MovingError> {
        let digest = object.digest;
        if self.to.bucket.is_none() {
            return Ok(());
        }
        let known = self.to.index.object(&digest).await.map_err(of_new)?;
        let Some(generation) = known.and_then(|known| known.generation) else {
            return Ok(());
        };
        self.to.index.apply(vec![Write::NotUploaded { digest, generation }]).await.map_err(of_new)?;
        self.to.index.flush().await.map_err(of_new)
    }

    /// Returns where the old cache has an object.
    async fn sources(&self, object: &Known) -> Result<Vec<Source>, MovingError> {
        let Known { digest, entry, .. } = object;
        let file = self.from.folder.store.open(digest).await;
        let file = file.map_err(|error| MovingError::Disk(Side::Old, error))?;
        let uploaded = self.from.bucket.clone().zip(entry.generation);
        let uploaded = uploaded.map(|(bucket, generation)| {
            let upload = Upload { digest: *digest, generation };
            Source::Bucket(bucket, upload)
        });
        Ok(file.map(Source::File).into_iter().chain(uploaded).collect())
    }

    async fn send(&self, object: &Known, source: Source) -> Result<There, SendError> {
        let open = || Content::new(source.clone(), object.digest, object.entry.size, self.progress.clone());
        match &self.to.bucket {
            Some(bucket) => Ok(There(Some(to_bucket(bucket, open).await?.generation))),
            None => to_folder(&self.to.folder, open()).await.map(|()| There(None)),
        }
    }

    /// Returns the row of an object at the new place.
    async fn row(&self, object: &Known, there: There) -> Result<Row, MovingError> {
        let Known { digest, entry, last_use } = object;
        let has_file = match there {
            There(None) => true,
            There(Some(_)) if self.same.folder => {
                let found = self.to.folder.store.contains(digest).await;
                found.map_err(|error| MovingError::Disk(Side::New, error))?
            }
            There(Some(_)) => false,
        };
        let entry = ObjectEntry { generation: there.0, ..entry.clone() };
        Ok(Row::Object { digest: *digest, entry, last_use: *last_use, has_file })
    }

    /// Marks a damaged file that stays where it is, so that the new cache does not serve it either.
    async fn unseal(&self, digest: &Digest) {
        let store = &self.to.folder.store;
        let unsealed = match store.open(digest).await {
            Ok(Some(object)) => store.unseal(&object).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = unsealed {
            tracing::warn!(%digest, %error, "a damaged object's seal could not be broken");
        }
    }

    /// Notes an object that cannot be brought over.
    fn lose(&self, digest: Digest) -> Result<(), MovingError> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.insert(digest);
        if lost.len() > MOST_LOST { Err(MovingError::TooMuchLost(lost.len())) } else { Ok(()) }
    }
}
