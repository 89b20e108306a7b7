//! Finds out what the server of a bucket can do, with a key of its own, and says it in plain words.

use std::fmt;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};

use super::{Bucket, PATIENCE, S3Error, probe_key, within};
use crate::index::Generation;

/// What is stored for the probe.
const CONTENT: &[u8] = b"larder looks what this server can do";

/// Without this, nothing else is tried.
const STORING: &str = "Storing an object";

/// Keys that a server lists at a time.
const A_PAGE: usize = 1_000;

/// Something that the server cannot do, with what follows from it.
#[derive(Debug)]
pub struct Finding {
    /// What was tried.
    what: &'static str,
    /// What follows.
    follows: &'static str,
    why: S3Error,
}

impl Finding {
    /// Returns whether nothing can be stored at all.
    pub fn is_fatal(&self) -> bool {
        self.what == STORING
    }

    /// Returns why it fails.
    pub fn why(&self) -> &S3Error {
        &self.why
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, follows, why } = self;
        write!(f, "{what} fails: {why}. {follows}")
    }
}

impl Bucket {
    /// Tries everything that Larder needs of the server. Returns what it cannot do; if nothing can be stored, this alone.
    pub async fn probe(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let generation = match Generation::new() {
            Ok(generation) => generation,
            Err(error) => return vec![Finding { what: "A name for a key", follows: "", why: error.into() }],
        };
        let path = Path::from(probe_key(&self.prefix, &generation.to_string()));
        let put = self.put_at(&path, vec![Bytes::from_static(CONTENT)]).await;
        if !note(&mut found, put, STORING, "Nothing is kept in the bucket; content stays in cache.dir.") {
            return found;
        }
        let follows = "What is only in the bucket is fetched from the upstreams again.";
        note(&mut found, self.read_whole(&path).await, "Reading an object", follows);
        let follows = "A transfer from the bucket that breaks goes on from the upstreams.";
        note(&mut found, self.read_part(&path).await, "Reading a part of an object", follows);
        let follows = "Keys that nothing refers to, as a crash leaves them, stay in the bucket.";
        note(&mut found, self.find_in_list(&path).await, "Listing the keys", follows);
        let parts = self.in_parts(&path).await;
        note(&mut found, parts, "An upload in parts", "Objects of 16 MiB and more stay in cache.dir alone.");
        let follows = "Uploads that a crash leaves unfinished stay; a lifecycle rule of the bucket can remove them \
                       (AbortIncompleteMultipartUpload).";
        note(&mut found, self.unfinished().await, "Listing unfinished uploads", follows);
        let follows = "What is evicted or purged stays in the bucket and takes room there, though no client gets it.";
        note(&mut found, self.delete_for_good(&path).await, "Deleting an object", follows);
        found
    }

    async fn read_whole(&self, path: &Path) -> Result<(), S3Error> {
        let got = within(PATIENCE, self.store.get_opts(path, GetOptions::default())).await?;
        is_right(&within(PATIENCE, got.bytes()).await?, CONTENT)
    }

    async fn read_part(&self, path: &Path) -> Result<(), S3Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(7..12)), ..GetOptions::default() };
        let got = within(PATIENCE, self.store.get_opts(path, options)).await?;
        if got.meta.size != CONTENT.len() as u64 {
            return Err(S3Error::wrong("it states another size than the object has"));
        }
        is_right(&within(PATIENCE, got.bytes()).await?, &CONTENT[7..12])
    }

    async fn find_in_list(&self, path: &Path) -> Result<(), S3Error> {
        let folder = Path::from(format!("{}blobs", self.prefix));
        // From just before it on: the list of a full bucket is long.
        let before = path.as_ref().split_at(path.as_ref().len() - 1).0;
        let mut list = self.store.list_with_offset(Some(&folder), &Path::from(before)).take(A_PAGE);
        while let Some(listed) = within(PATIENCE, list.try_next()).await? {
            if listed.location == *path {
                return Ok(());
            }
        }
        Err(S3Error::wrong("an object that was just stored is not in the list"))
    }

    async fn in_parts(&self, path: &Path) -> Result<(), S3Error> {
        let mut multipart = self.begin_at(path.clone()).await?;
        self.send(&mut multipart, vec![Bytes::from_static(CONTENT)]).await?;
        self.complete(&multipart).await?;
        if self.size_at(path).await? != Some(CONTENT.len() as u64) {
            return Err(S3Error::wrong("it was acknowledged, and the object is not there"));
        }
        let multipart = self.begin_at(path.clone()).await?;
        self.abort(&multipart).await
    }

    async fn delete_for_good(&self, path: &Path) -> Result<(), S3Error> {
        self.delete_at(path).await?;
        match self.size_at(path).await? {
            None => Ok(()),
            Some(_) => Err(S3Error::wrong("it was acknowledged, and the object is still there")),
        }
    }
}

fn is_right(got: &[u8], wanted: &[u8]) -> Result<(), S3Error> {
    if got == wanted { Ok(()) } else { Err(S3Error::wrong("other bytes came than were stored")) }
}

/// Notes a failure. Returns whether it went well.
fn note<T>(found: &mut Vec<Finding>, result: Result<T, S3Error>, what: &'static str, follows: &'static str) -> bool {
    let failed = result.err().map(|why| Finding { what, follows, why });
    let is_well = failed.is_none();
    found.extend(failed);
    is_well
}
