//! The content of an object on its way from the old place to the new one, compared with its digest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::progress::Progress;
use crate::oci::{Digest, Hasher};
use crate::s3::{Bucket, Kind, S3Error, Upload};
use crate::store::Object;

/// Bytes that are read of a file at a time.
const PIECE: u64 = 1 << 20;
/// How often a request is made before it is given up, the wait after the first failure, and the longest wait: half a
/// minute in all. Whoever looks after the bucket may start the migration again.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(8);

/// Why an object cannot be read at the old place.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("its bytes do not have its digest")]
    Damaged,
    #[error("it is not there")]
    Absent,
    #[error("the file: {0}")]
    File(#[from] io::Error),
    #[error("{0}")]
    Bucket(S3Error),
}

impl From<S3Error> for ReadError {
    fn from(error: S3Error) -> Self {
        match error.kind() {
            Kind::Absent => Self::Absent,
            _ => Self::Bucket(error),
        }
    }
}

/// Where the bytes come from.
#[derive(Clone)]
pub enum Source {
    File(Object),
    Bucket(Bucket, Upload),
}

/// What a bucket sends.
type Body = BoxStream<'static, Result<Bytes, S3Error>>;

/// The bytes of an object, in order.
pub struct Content {
    source: Source,
    /// What the bucket sends, once it was asked.
    body: Option<Body>,
    pub digest: Digest,
    /// In bytes, as the index says.
    pub size: u64,
    at: u64,
    /// What came and was not asked for yet.
    rest: Bytes,
    hasher: Hasher,
    progress: Arc<Progress>,
}

impl Content {
    pub fn new(source: Source, digest: Digest, size: u64, progress: Arc<Progress>) -> Self {
        let (rest, hasher) = (Bytes::new(), digest.algorithm().hasher());
        Self { source, body: None, digest, size, at: 0, rest, hasher, progress }
    }

    /// Returns the next bytes, as many as these or all that are left.
    pub async fn read(&mut self, length: u64) -> Result<Vec<Bytes>, ReadError> {
        let (mut pieces, mut missing) = (Vec::new(), length.min(self.size - self.at));
        while missing > 0 {
            let mut piece = match self.rest.is_empty() {
                true => self.next(missing).await?,
                false => std::mem::take(&mut self.rest),
            };
            let fitting = usize::try_from(missing).unwrap_or(usize::MAX).min(piece.len());
            self.rest = piece.split_off(fitting);
            self.hasher.update(&piece);
            self.at += piece.len() as u64;
            self.progress.add(piece.len() as u64);
            missing -= piece.len() as u64;
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Compares what was read, which has to be all of it, with the digest.
    pub fn finish(self) -> Result<(), ReadError> {
        let is_whole = self.at == self.size && self.rest.is_empty() && self.hasher.finish() == self.digest;
        if is_whole { Ok(()) } else { Err(ReadError::Damaged) }
    }

    /// Returns the next piece that the old place gives; of a file, at most `most` bytes. Never an empty one.
    async fn next(&mut self, most: u64) -> Result<Bytes, ReadError> {
        // A file that is shorter than it should be, or a bucket that sends less.
        let end = || ReadError::Damaged;
        match &self.source {
            Source::File(object) if object.size != self.size => Err(end()),
            Source::File(object) => {
                let piece = object.read(self.at, PIECE.min(most)).await?;
                if piece.is_empty() { Err(end()) } else { Ok(piece) }
            }
            Source::Bucket(bucket, upload) => {
                let mut tries = 1;
                loop {
                    match next_of(bucket, upload, &mut self.body, self.at, self.size).await {
                        Ok(Some(piece)) if piece.is_empty() => {}
                        Ok(Some(piece)) => return Ok(piece),
                        Ok(None) => return Err(end()),
                        Err(error) => {
                            // The next try goes on where this one broke off.
                            self.body = None;
                            tries = again(tries, error).await?;
                        }
                    }
                }
            }
        }
    }
}

async fn next_of(
    bucket: &Bucket,
    upload: &Upload,
    body: &mut Option<Body>,
    at: u64,
    size: u64,
) -> Result<Option<Bytes>, S3Error> {
    let body = match body {
        Some(body) => body,
        None => {
            let got = bucket.get(upload, at, None).await?;
            if got.total != size {
                return Ok(None);
            }
            body.insert(got.body)
        }
    };
    body.next().await.transpose()
}

/// Waits before a request is made again that failed `tries` times, if the server may do better in a moment.
pub async fn again(tries: u32, error: S3Error) -> Result<u32, S3Error> {
    if tries >= TRIES || !error.is_passing() {
        return Err(error);
    }
    tokio::time::sleep((PAUSE * 2u32.pow(tries - 1)).min(LONGEST)).await;
    Ok(tries + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::store::Body;

    fn content(bytes: &'static [u8], digest_of: &[u8], size: u64) -> Content {
        let object = Object {
            size: bytes.len() as u64,
            since: std::time::SystemTime::UNIX_EPOCH,
            is_sealed: true,
            body: Body::Read(Bytes::from_static(bytes), None),
        };
        Content::new(Source::File(object), Digest::of(Algorithm::Sha256, digest_of), size, Arc::default())
    }

    #[tokio::test]
    async fn bytes_come_as_they_are_asked_for_and_count_only_if_all_of_them_have_the_digest() {
        let mut whole = content(b"abcdefg", b"abcdefg", 7);
        let mut lengths = Vec::new();
        for _ in 0..4 {
            let pieces = whole.read(3).await.expect("read");
            lengths.push(pieces.iter().map(Bytes::len).sum::<usize>());
        }
        assert_eq!(lengths, [3, 3, 1, 0]);
        assert!(whole.finish().is_ok());
        let mut half = content(b"abcdefg", b"abcdefg", 7);
        half.read(3).await.expect("read");
        assert!(matches!(half.finish(), Err(ReadError::Damaged)), "that is not all of it");
        let mut other = content(b"abcdefg", b"abcdefx", 7);
        other.read(7).await.expect("read");
        assert!(matches!(other.finish(), Err(ReadError::Damaged)));
        assert!(matches!(content(b"abc", b"abc", 7).read(7).await, Err(ReadError::Damaged)), "it is cut off");
    }
}
