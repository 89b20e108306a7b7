//! Uploads to the bucket of `[storage.s3]`.
//!
//! A large object is sent while it comes in: part by part, as its bytes are there without a gap. The upload is completed
//! only after the digest has matched and the object is stored; so a fill that fails leaves nothing in the bucket. Small
//! objects, and those for which no place was free, are sent once they are stored. The row of the object then names the
//! upload; until that is so, the bucket has nothing.
//!
//! Of several Larders that share the bucket and know one another, each object has one that uploads it
//! ([`Uploads::share`]). The others look later whether it has: it may have died.
//!
//! No client waits for any of this. While the bucket fails, objects wait in a bounded queue; what does not fit there is
//! found again by what upkeep knows of the files.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use super::bucket::KnownBucket;
use super::fill::{Fill, Readable, Reading};
use super::holds::Holds;
use super::left_uploads::{self, LeftUploads};
use crate::clock::Instant;
use crate::failure::Failure;
use crate::index::{Index, IndexError, Write};
use crate::observe::Metrics;
use crate::oci::Digest;
use crate::random::NoRandomness;
use crate::s3::{Bucket, Kind, Multipart, S3Error, Upload};
use crate::store::{Object, Store};
use crate::upkeep::Upkeep;

/// Uploads at once that run along with a fill, and those of stored objects. Each holds one part in memory.
const ALONG: usize = 3;
const STORED: usize = 2;
/// Most objects that wait for their upload.
const MOST: usize = 10_000;
/// Bytes of a part. All parts but the last have the same size, as R2 wants it; S3 wants at least 5 MiB.
pub(super) const PART: u64 = 16 << 20;
/// Most parts of an upload (AWS, "Amazon S3 multipart upload limits").
const MOST_PARTS: u64 = 10_000;
/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;
/// How often a part is sent before the upload is given up, and the wait after the first failure.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);
/// The wait before the next upload after one failed; each further failure doubles it.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// How often to look whether an index that is away is back.
const INDEX_REST: Duration = Duration::from_secs(1);
/// How often to look for files that are not in the bucket; and where it is known that there are some.
const LOOK: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_secs(30);

/// The uploads of a cache; clones share them.
#[derive(Clone)]
pub struct Uploads(Arc<Shared>);

/// Tells whether this Larder is the one to upload an object, of all that share the bucket.
pub type IsMine = Box<dyn Fn(&Digest) -> bool + Send + Sync>;

/// What uploads work on.
pub struct Parts {
    pub known: Arc<KnownBucket>,
    pub store: Arc<dyn Store>,
    pub index: Arc<dyn Index>,
    pub upkeep: Arc<Upkeep>,
    pub metrics: Arc<Metrics>,
}

struct Shared {
    parts: Parts,
    /// Empty: all objects are.
    is_mine: OnceLock<IsMine>,
    queue: Mutex<Queue>,
    added: Notify,
    /// Whether an object was left out of the queue.
    has_left_out: AtomicBool,
    along: Arc<Semaphore>,
    stored: Arc<Semaphore>,
    /// Objects whose upload was sent and came to nothing.
    holds: Holds,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Digest>,
    /// Those that wait, and those that are being uploaded.
    all: HashSet<Digest>,
    /// Those that others are to upload.
    left: LeftUploads,
}

/// Why an object was not uploaded.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("{0}")]
    Bucket(#[from] S3Error),
    #[error("the file: {0}")]
    File(#[from] io::Error),
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Nothing was sent.
    #[error("whether another has uploaded it cannot be found out: {0}")]
    Unasked(#[source] IndexError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// All was sent: the bucket may have it.
    #[error("it was sent, and the bucket does not confirm it: {0}")]
    Unconfirmed(#[source] S3Error),
    #[error("the bucket acknowledged it and does not have it")]
    Lost,
    /// What was sent is deleted.
    #[error("the index does not know it any more")]
    Forgotten,
    /// It has to be sent as a whole once it is stored, if it is.
    #[error("it was not stored, or not all bytes of it were those of one copy")]
    NotWhole,
}

impl UploadError {
    /// Returns what the bucket answered.
    fn of_bucket(&self) -> Option<&S3Error> {
        match self {
            Self::Bucket(error) | Self::Unconfirmed(error) => Some(error),
            _ => None,
        }
    }

    /// Returns whether the bucket may have the content although no row names it.
    fn may_leave_content(&self) -> bool {
        matches!(self, Self::Unconfirmed(_) | Self::Lost | Self::Forgotten | Self::Index(_))
    }
}

impl From<Failure> for UploadError {
    fn from(_: Failure) -> Self {
        Self::NotWhole
    }
}

/// An upload that runs along with a fill.
pub struct Alongside {
    uploads: Uploads,
    digest: Digest,
    stored: oneshot::Sender<()>,
}

impl Alongside {
    /// Tells the upload that the object is verified and stored.
    pub fn stored(self) {
        if self.stored.send(()).is_err() {
            // The upload has ended before.
            self.uploads.add(self.digest);
        }
    }
}

impl Uploads {
    pub fn new(parts: Parts) -> Self {
        let [along, stored] = [ALONG, STORED].map(|places| Arc::new(Semaphore::new(places)));
        let (queue, added, has_left_out) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        let (is_mine, holds) = (OnceLock::new(), Holds::default());
        Self(Arc::new(Shared { parts, is_mine, queue, added, has_left_out, along, stored, holds }))
    }

    /// Uploads only those objects from now on of which `is_mine` says so: others that share the bucket upload the rest.
    pub fn share(&self, is_mine: IsMine) {
        // The cluster of a process stays what it is.
        let _ = self.0.is_mine.set(is_mine);
    }

    fn is_mine(&self, digest: &Digest) -> bool {
        self.0.is_mine.get().is_none_or(|is_mine| is_mine(digest))
    }

    /// Has a stored object uploaded, by this Larder or by the one whose it is.
    pub fn offer(&self, digest: Digest) {
        if self.is_mine(&digest) {
            return self.add(digest);
        }
        self.queue().left.add(digest, Instant::now());
    }

    /// Has a stored object uploaded, unless it is in the bucket, or too many wait, or it is held back.
    fn add(&self, digest: Digest) {
        if self.0.parts.upkeep.is_uploaded(&digest) {
            return;
        }
        let mut queue = self.queue();
        if queue.waiting.len() >= MOST || self.0.holds.has(&digest, Instant::now()) {
            self.0.has_left_out.store(true, Ordering::Relaxed);
        } else if queue.all.insert(digest) {
            queue.waiting.push_back(digest);
        }
        drop(queue);
        self.publish();
        self.0.added.notify_one();
    }

    /// Begins to upload an object that comes in, if it is large and a place is free; else it waits until it is stored.
    pub fn begin(&self, fill: Arc<Fill>, digest: Digest) -> Option<Alongside> {
        let Parts { known, upkeep, index, .. } = &self.0.parts;
        let is_held = self.0.holds.has(&digest, Instant::now()) || index.server_trouble().is_some();
        let is_wanted = !upkeep.is_uploaded(&digest) && !known.rests() && !is_held && self.is_mine(&digest);
        let place = self.0.along.clone().try_acquire_owned().ok().filter(|_| is_wanted)?;
        if !self.queue().all.insert(digest) {
            return None;
        }
        let (stored, mut is_stored) = oneshot::channel();
        let uploads = self.clone();
        tokio::spawn(async move {
            let result = uploads.send_along(fill, digest, &mut is_stored).await;
            uploads.ended(digest, result, place);
            is_stored.close();
            // The object was stored, and this upload did not wait for that.
            if is_stored.try_recv().is_ok() {
                uploads.add(digest);
            }
        });
        self.publish();
        Some(Alongside { uploads: self.clone(), digest, stored })
    }

    /// Uploads what is offered, for as long as the process lives.
    pub async fn run(self) {
        self.0.parts.upkeep.loaded().await;
        if self.0.is_mine.get().is_some() {
            // The others are not known from the first moment on.
            tokio::time::sleep(left_uploads::LOOK).await;
        }
        self.look();
        let mut rest = FIRST_REST;
        loop {
            let Ok(place) = self.0.stored.clone().acquire_owned().await else {
                return;
            };
            let digest = self.next().await;
            // It would not take in what was uploaded.
            while self.0.parts.index.server_trouble().is_some() {
                tokio::time::sleep(INDEX_REST).await;
            }
            let uploads = self.clone();
            let sending = async move {
                let result = uploads.send_stored(&digest).await;
                uploads.ended(digest, result, place);
            };
            if self.0.parts.known.trouble().is_none() {
                rest = FIRST_REST;
                tokio::spawn(sending);
                continue;
            }
            // One at a time, until one goes well.
            sending.await;
            if self.0.parts.known.trouble().is_some() {
                tokio::time::sleep(rest).await;
                rest = (2 * rest).min(LONGEST_REST);
            }
        }
    }

    /// Returns the next object that waits. Where none does, looks for files that are not in the bucket.
    async fn next(&self) -> Digest {
        let mut look = Instant::now() + LOOK;
        loop {
            let added = self.0.added.notified();
            self.look_at_left();
            if let Some(digest) = self.queue().waiting.pop_front() {
                return digest;
            }
            let now = Instant::now();
            if self.0.has_left_out.load(Ordering::Relaxed) {
                look = look.min(now + SOON);
            }
            let is_idle = tokio::time::timeout_at(look.min(now + left_uploads::LOOK), added).await.is_err();
            if is_idle && look <= Instant::now() {
                self.look();
                look = Instant::now() + LOOK;
            }
        }
    }

    /// Takes in what was left to others and is not in the bucket, once it is this one's to do.
    fn look_at_left(&self) {
        let due = self.queue().left.due(Instant::now(), |digest| self.is_mine(digest));
        due.into_iter().for_each(|digest| self.add(digest));
    }

    /// Looks for files that are not in the bucket.
    fn look(&self) {
        self.0.has_left_out.store(false, Ordering::Relaxed);
        self.0.parts.upkeep.not_yet_uploaded(MOST).into_iter().for_each(|digest| self.offer(digest));
    }

    fn ended(&self, digest: Digest, result: Result<(), UploadError>, place: OwnedSemaphorePermit) {
        let known = &self.0.parts.known;
        self.queue().all.remove(&digest);
        match result {
            Ok(()) => self.0.holds.remove(&digest),
            Err(UploadError::NotWhole) => {}
            Err(error) => {
                if let Some(error) = error.of_bucket() {
                    known.failed(error);
                }
                if error.may_leave_content() {
                    self.0.holds.add(&digest, Instant::now());
                }
                tracing::debug!(%digest, %error, "an object could not be uploaded; it stays in cache.dir");
                match &error {
                    // Behind those that wait.
                    UploadError::Bucket(error) if error.is_passing() => self.add(digest),
                    UploadError::Unasked(_) => self.add(digest),
                    _ => self.0.has_left_out.store(true, Ordering::Relaxed),
                }
            }
        }
        self.publish();
        drop(place);
    }

    fn publish(&self) {
        let waiting = i64::try_from(self.queue().all.len()).unwrap_or(i64::MAX);
        self.0.parts.metrics.s3_uploads_waiting.set(waiting);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bucket(&self) -> &Bucket {
        &self.0.parts.known.bucket
    }

    /// Returns whether another Larder that shares the bucket has uploaded the object, as the index tells; then upkeep knows
    /// it, too.
    async fn is_there(&self, digest: &Digest, size: u64) -> Result<bool, UploadError> {
        let Parts { index, upkeep, .. } = &self.0.parts;
        if !index.is_on_server() {
            return Ok(false);
        }
        let entry = index.object(digest).await.map_err(UploadError::Unasked)?;
        let is_there = entry.is_some_and(|entry| entry.generation.is_some());
        if is_there {
            upkeep.uploaded(digest, size);
        }
        Ok(is_there)
    }

    /// Uploads an object that is stored.
    async fn send_stored(&self, digest: &Digest) -> Result<(), UploadError> {
        let Parts { upkeep, store, .. } = &self.0.parts;
        let _lease = upkeep.lease(digest);
        let Some(object) = store.open(digest).await? else {
            return Ok(());
        };
        if self.is_there(digest, object.size).await? {
            return Ok(());
        }
        // A file that was touched is read and compared before it goes anywhere.
        if !object.is_sealed && !object.is_intact(digest, |_| true).await? {
            return Ok(upkeep.discard(digest).await?);
        }
        let (upload, size) = (Upload::new(*digest)?, object.size);
        let _running = upkeep.begin_upload(upload);
        let mut content = Content::Stored(object);
        if size <= PART {
            let whole = content.read(0, size).await?;
            let sent = self.put(&upload, &whole).await;
            return self.settle(&upload, None, size, sent).await;
        }
        let mut multipart = self.bucket().begin(&upload).await?;
        let sent = match self.send_parts(&mut multipart, size, &mut content).await {
            Ok(()) => self.complete(&multipart).await,
            Err(error) => Err(error),
        };
        self.settle(&upload, Some(&multipart), size, sent).await
    }

    /// Uploads an object that comes in, along with its fill.
    async fn send_along(
        &self,
        fill: Arc<Fill>,
        digest: Digest,
        is_stored: &mut oneshot::Receiver<()>,
    ) -> Result<(), UploadError> {
        let size = fill.size().await?.filter(|&size| size > PART).ok_or(UploadError::NotWhole)?;
        let upkeep = &self.0.parts.upkeep;
        if self.is_there(&digest, size).await? {
            return Ok(());
        }
        // Its file stays once it is stored: else the object could be evicted just before its row names the upload.
        let _lease = upkeep.lease(&digest);
        let upload = Upload::new(digest)?;
        let _running = upkeep.begin_upload(upload);
        let mut multipart = self.bucket().begin(&upload).await?;
        let reading = Reading { attempt: None, end: None, size: Some(size), may_read_unverified: true };
        let mut content = Content::Coming(fill, reading);
        let sent = match self.send_parts(&mut multipart, size, &mut content).await {
            Ok(()) => match is_stored.await {
                Ok(()) => self.complete(&multipart).await,
                Err(_) => Err(UploadError::NotWhole),
            },
            Err(error) => Err(error),
        };
        self.settle(&upload, Some(&multipart), size, sent).await
    }

    /// Sends all parts of an object.
    async fn send_parts(&self, multipart: &mut Multipart, size: u64, content: &mut Content) -> Result<(), UploadError> {
        let part = part_of(size);
        let mut at = 0;
        while at < size {
            let length = part.min(size - at);
            let pieces = content.read(at, length).await?;
            let mut tries = 1;
            while let Err(error) = self.bucket().send(multipart, pieces.clone()).await {
                tries = again(tries, error).await?;
            }
            at += length;
        }
        Ok(())
    }

    /// Sends an object in one piece.
    async fn put(&self, upload: &Upload, content: &[Bytes]) -> Result<(), UploadError> {
        let mut tries = 1;
        while let Err(error) = self.bucket().put(upload, content.to_vec()).await {
            let is_late = error.kind() == Kind::Late;
            tries = again(tries, error).await.map_err(|error| match error {
                // The answer that did not come may have been a good one.
                UploadError::Bucket(error) if is_late => UploadError::Unconfirmed(error),
                error => error,
            })?;
        }
        Ok(())
    }

    /// Completes an upload in parts. The object may be there whatever is answered, see [`Bucket::complete`].
    async fn complete(&self, multipart: &Multipart) -> Result<(), UploadError> {
        self.bucket().complete(multipart).await.map_err(UploadError::Unconfirmed)
    }

    /// Notes an upload that was sent, or gives it up: what it may have left in the bucket is deleted.
    async fn settle(
        &self,
        upload: &Upload,
        multipart: Option<&Multipart>,
        size: u64,
        sent: Result<(), UploadError>,
    ) -> Result<(), UploadError> {
        let confirmed = match sent {
            Ok(()) => self.confirm(upload, size).await,
            Err(error) => Err(error),
        };
        let (is_confirmed, noted) = match confirmed {
            Ok(()) => (true, self.note(upload, size).await),
            Err(error) => (false, Err(error)),
        };
        let Err(error) = noted else {
            return Ok(());
        };
        if let Some(multipart) = multipart.filter(|_| !is_confirmed)
            && let Err(error) = self.bucket().abort(multipart).await
        {
            tracing::debug!(digest = %upload.digest, %error, "an upload cannot be aborted; the sweep does it later");
        }
        if error.may_leave_content() {
            self.0.parts.upkeep.delete_later(vec![*upload]);
        }
        Err(error)
    }

    /// Finds out whether the bucket has what was sent.
    async fn confirm(&self, upload: &Upload, size: u64) -> Result<(), UploadError> {
        match self.bucket().size(upload).await.map_err(UploadError::Unconfirmed)? {
            Some(found) if found == size => {
                self.0.parts.known.works();
                Ok(())
            }
            _ => Err(UploadError::Lost),
        }
    }

    /// Names the upload in the row of its object. If the object was purged meanwhile, or another upload was noted, what
    /// this one brought is deleted.
    async fn note(&self, upload: &Upload, size: u64) -> Result<(), UploadError> {
        let Parts { index, upkeep, .. } = &self.0.parts;
        let &Upload { digest, generation } = upload;
        index.apply(vec![Write::Uploaded { digest, generation }]).await?;
        index.flush().await?;
        let noted = index.object(&digest).await?.and_then(|entry| entry.generation).ok_or(UploadError::Forgotten)?;
        upkeep.uploaded(&digest, size);
        if noted != generation {
            upkeep.delete_later(vec![*upload]);
        }
        Ok(())
    }
}

/// Returns the size of the parts of an object: the same for all but the last.
pub(super) fn part_of(size: u64) -> u64 {
    PART.max(size.div_ceil(MOST_PARTS).next_multiple_of(PIECE))
}

/// Waits before a request is sent again that failed `tries` times, if the server may do better in a moment.
async fn again(tries: u32, error: S3Error) -> Result<u32, UploadError> {
    if tries >= TRIES || !error.is_passing() {
        return Err(error.into());
    }
    tokio::time::sleep(PAUSE * 2u32.pow(tries)).await;
    Ok(tries + 1)
}

/// Where the bytes of an upload come from.
enum Content {
    Stored(Object),
    /// An object that comes in: its bytes are read as they arrive.
    Coming(Arc<Fill>, Reading),
}

impl Content {
    /// Reads a range, in pieces. Of an object that comes in, fails if another copy takes the place of the one that was
    /// read before, or if the object only passes.
    async fn read(&mut self, from: u64, length: u64) -> Result<Vec<Bytes>, UploadError> {
        let (mut pieces, mut at, end) = (Vec::new(), from, from + length);
        while at < end {
            let piece = match self {
                Self::Stored(object) => object.read(at, PIECE.min(end - at)).await?,
                Self::Coming(fill, reading) => {
                    let Readable::File { file, until, attempt, .. } = fill.readable(at, *reading).await? else {
                        return Err(UploadError::NotWhole);
                    };
                    reading.attempt = Some(attempt);
                    file.read(at, PIECE.min(until.min(end).saturating_sub(at))).await?
                }
            };
            if piece.is_empty() {
                return Err(UploadError::NotWhole);
            }
            at += piece.len() as u64;
            pieces.push(piece);
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cache_with_bucket;
    use super::*;

    /// No request was made, so nothing is known of the bucket by it.
    #[tokio::test]
    async fn an_upload_that_sent_nothing_does_not_say_that_the_bucket_works() {
        let (_dir, cache) = cache_with_bucket();
        let uploads = cache.uploads.clone().expect("uploads");
        let known = uploads.0.parts.known.clone();
        known.failed(&S3Error::late(PAUSE));
        let digest = Digest::Sha256([1; 32]);
        let place = uploads.0.stored.clone().acquire_owned().await.expect("a place");
        let result = uploads.send_stored(&digest).await;
        assert!(result.is_ok(), "it has no file");
        uploads.ended(digest, result, place);
        assert!(known.trouble().is_some() && known.rests());
    }

    #[tokio::test]
    async fn an_object_that_is_held_back_is_not_offered_and_is_found_again() {
        let (_dir, cache) = cache_with_bucket();
        let (uploads, digest) = (cache.uploads.clone().expect("uploads"), Digest::Sha256([1; 32]));
        let place = uploads.0.stored.clone().acquire_owned().await.expect("a place");
        uploads.ended(digest, Err(UploadError::Lost), place);
        uploads.offer(digest);
        assert!(uploads.queue().waiting.is_empty() && uploads.0.has_left_out.load(Ordering::Relaxed));
    }

    #[test]
    fn parts_are_as_many_as_an_upload_may_have() {
        assert_eq!(part_of(PART + 1), PART);
        for size in [1u64 << 37, 1 << 40, 5 << 40] {
            let part = part_of(size);
            assert!(size.div_ceil(part) <= MOST_PARTS && part >= PART && part.is_multiple_of(PIECE), "{size}");
        }
    }
}
