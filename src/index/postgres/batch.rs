//! What several writes come to, so that one statement for each table makes them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Generation, ListKey, Listing, ObjectEntry, Timestamp, UrlEntry, Viewer, Write};
use super::values::without_zeros;
use crate::oci::{Digest, MediaType};

/// Writes that can be made in any order among each other. All keys are in order, so that two transactions that write
/// the same rows never wait for each other in a circle.
#[derive(Debug, Default)]
pub struct Batch {
    pub objects: BTreeMap<Raw, ObjectChange>,
    pub edges: BTreeSet<(Raw, Raw)>,
    pub visible: BTreeSet<(Raw, i16, String)>,
    /// `None`: the tag goes.
    pub tags: BTreeMap<TagPlace, Option<TagValue>>,
    /// Tags of which the others are to hear.
    pub told: BTreeSet<TagPlace>,
    /// When the name was noted.
    pub manifests: BTreeMap<(String, String, Raw), i64>,
    pub listings: BTreeMap<(String, String, Vec<u8>), (ListKey, Listing)>,
    /// `None`: the answer goes.
    pub urls: BTreeMap<(Raw, [u8; 32]), Option<UrlEntry>>,
    /// Objects whose files are gone.
    pub dropped: BTreeSet<Raw>,
    /// What becomes of uploads, in the order of the writes for each object.
    pub uploads: BTreeMap<Raw, Vec<UploadChange>>,
    /// How many writes these were.
    pub writes: u64,
    /// Whether they are rows of another index: what is here and newer stays.
    pub is_of_another: bool,
}

/// A digest as the database has it, which gives its order.
pub type Raw = Vec<u8>;
/// Repository, name, tag, shelf.
pub type TagPlace = (String, String, String, String);

/// What becomes of an object's rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ObjectChange {
    /// Set if the object was stored.
    pub put: Option<Put>,
    /// Set if the object was found in the bucket, by this upload.
    pub found: Option<(Put, Generation)>,
    /// When the object was last used or stored.
    pub last_use: Option<i64>,
}

/// What becomes of an upload into the bucket of `[storage.s3]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadChange {
    /// The object has it, if it has a row and no other upload.
    Noted(Generation),
    /// The object has it no more.
    TakenBack(Generation),
    /// It goes, and so does the object, unless the object has another one. `None`: unless it has any.
    Gone(Option<Generation>),
}

/// An object that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub size: u64,
    pub media_type: Option<String>,
    pub stored_at: i64,
}

impl Put {
    /// Returns what comes of an object that was stored, and before that as `before` says.
    fn behind(before: Option<Self>, entry: &ObjectEntry) -> Self {
        let stored_at = before.as_ref().map_or(entry.stored_at.0, |before| before.stored_at);
        let media_type = entry.media_type.as_ref().map(text_of).or_else(|| before?.media_type);
        Self { size: entry.size, media_type, stored_at }
    }
}

/// What a tag leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct TagValue {
    pub digest: Raw,
    pub media_type: String,
    pub size: u64,
    pub checked_at: i64,
}

/// Returns what writes come to, in batches that have to be made one after the other.
pub fn batches(writes: &[Write]) -> Vec<Batch> {
    let mut batches = vec![Batch::default()];
    for write in writes {
        if batches.last().is_some_and(|batch| batch.kind().is_some_and(|kind| kind != Kind::of(write))) {
            batches.push(Batch::default());
        }
        if let Some(batch) = batches.last_mut() {
            batch.add(write);
        }
    }
    batches
}

/// The kind of a batch's writes: what goes with an object is not what comes with it anew, and an upload is noted of an
/// object that has a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Put,
    Drop,
    Upload,
}

impl Kind {
    fn of(write: &Write) -> Self {
        match write {
            Write::DropObject { .. } => Self::Drop,
            Write::Uploaded { .. } | Write::NotUploaded { .. } | Write::DropUploaded { .. } => Self::Upload,
            _ => Self::Put,
        }
    }
}

impl Batch {
    /// Returns the kind of its writes; `None`: it has none yet.
    fn kind(&self) -> Option<Kind> {
        let kind = match () {
            () if !self.dropped.is_empty() => Kind::Drop,
            () if !self.uploads.is_empty() => Kind::Upload,
            () => Kind::Put,
        };
        (self.writes > 0).then_some(kind)
    }

    /// Adds a write of the same kind.
    pub fn add(&mut self, write: &Write) {
        self.writes += 1;
        match write {
            Write::Object { digest, entry } => {
                let change = self.objects.entry(raw(digest)).or_default();
                match entry.generation {
                    None => change.put = Some(Put::behind(change.put.take(), entry)),
                    Some(generation) => {
                        let before = change.found.take().map(|(put, _)| put);
                        change.found = Some((Put::behind(before, entry), generation));
                    }
                }
                change.last_use = Some(entry.stored_at.0);
            }
            Write::Used { digest, at } => self.objects.entry(raw(digest)).or_default().last_use = Some(at.0),
            Write::Tag { key, entry } => {
                let value = TagValue {
                    digest: raw(&entry.digest),
                    media_type: text_of(&entry.media_type),
                    size: entry.size,
                    checked_at: entry.checked_at.0,
                };
                self.tags.insert(place_of(key), Some(value));
            }
            Write::DropTag { key } => drop(self.tags.insert(place_of(key), None)),
            Write::TellTag { key } => drop(self.told.insert(place_of(key))),
            Write::Manifest { repository, name, digest, at: Timestamp(at) } => {
                let noted = self.manifests.entry((repository.clone(), name.clone(), raw(digest))).or_insert(*at);
                *noted = (*noted).max(*at);
            }
            Write::Visible { viewer: Viewer { repository, scope }, digest } => {
                self.visible.insert((raw(digest), scope.number(), repository.clone()));
            }
            Write::Edges { parent, children } => {
                self.edges.extend(children.iter().map(|child| (raw(parent), raw(child))));
            }
            Write::Listing { key, listing } => {
                let place = (key.repository.clone(), key.name.clone(), key.page_hash());
                self.listings.insert(place, (key.clone(), listing.clone()));
            }
            Write::Url { key, entry } => drop(self.urls.insert((raw(key), entry.variant), Some(entry.clone()))),
            Write::DropUrl { key, variant } => drop(self.urls.insert((raw(key), *variant), None)),
            Write::DropObject { digest } => drop(self.dropped.insert(raw(digest))),
            Write::Uploaded { digest, generation } => self.upload(digest, UploadChange::Noted(*generation)),
            Write::NotUploaded { digest, generation } => self.upload(digest, UploadChange::TakenBack(*generation)),
            Write::DropUploaded { digest, generation } => self.upload(digest, UploadChange::Gone(*generation)),
        }
    }

    fn upload(&mut self, digest: &Digest, change: UploadChange) {
        self.uploads.entry(raw(digest)).or_default().push(change);
    }

    /// Returns the digests that need a number: those of stored objects, edges and visibility.
    pub fn numbered(&self) -> BTreeSet<&Raw> {
        let is_new = |change: &ObjectChange| change.put.is_some() || change.found.is_some();
        let stored = self.objects.iter().filter(|(_, change)| is_new(change)).map(|(digest, _)| digest);
        let edges = self.edges.iter().flat_map(|(parent, child)| [parent, child]);
        stored.chain(edges).chain(self.visible.iter().map(|(digest, ..)| digest)).collect()
    }

    /// Returns the digests that have a number only if something else needs it, and whose rows must not go while this is
    /// written: a purge looks whether a tag leads to an object.
    pub fn held(&self) -> BTreeSet<&Raw> {
        let tags = self.tags.values().flatten().map(|tag| &tag.digest);
        let manifests = self.manifests.keys().map(|(_, _, digest)| digest);
        tags.chain(manifests).chain(self.objects.keys()).collect()
    }
}

fn raw(digest: &Digest) -> Raw {
    digest.as_raw().to_vec()
}

fn text_of(media_type: &MediaType) -> String {
    without_zeros(media_type.as_str())
}

fn place_of(key: &super::super::TagKey) -> TagPlace {
    (key.repository.clone(), key.name.clone(), key.tag.clone(), key.shelf.clone())
}

#[cfg(test)]
mod tests {
    use super::super::super::{TagEntry, TagKey};
    use super::*;

    fn object(byte: u8) -> Digest {
        Digest::Sha256([byte; 32])
    }

    fn put(byte: u8, at: i64, media_type: Option<&str>) -> Write {
        let media_type = media_type.map(MediaType::new);
        Write::Object {
            digest: object(byte),
            entry: ObjectEntry { size: 1, media_type, stored_at: Timestamp(at), generation: None },
        }
    }

    #[test]
    fn several_writes_of_one_row_come_to_the_last_of_them() {
        let key = TagKey { repository: "r".into(), shelf: String::new(), name: "a".into(), tag: "1".into() };
        let entry =
            TagEntry { digest: object(1), media_type: MediaType::new("m\0n"), size: 1, checked_at: Timestamp(1) };
        let used = |at| Write::Used { digest: object(1), at: Timestamp(at) };
        let writes = [
            used(9),
            put(1, 1, Some("m")),
            used(5),
            put(1, 2, None),
            Write::DropTag { key: key.clone() },
            Write::Tag { key: key.clone(), entry },
        ];
        let batches = batches(&writes);
        assert_eq!((batches.len(), batches[0].writes), (1, 6));
        let change = &batches[0].objects[object(1).as_raw()];
        let stored = Put { size: 1, media_type: Some("m".to_owned()), stored_at: 1 };
        assert_eq!((change.put.as_ref(), change.last_use), (Some(&stored), Some(2)));
        let tag = batches[0].tags[&place_of(&key)].as_ref().expect("it is there");
        assert_eq!(tag.media_type, "mn", "the database has no zero bytes in texts");
        let first = super::batches(&[put(1, 1, None), used(7)]);
        assert_eq!(first[0].objects[object(1).as_raw()].last_use, Some(7));
    }

    /// What the bucket has says nothing of a file, nor the other way round.
    #[test]
    fn an_object_that_was_found_in_the_bucket_and_one_that_was_stored_are_rows_of_their_own() {
        let generation = Generation::new().expect("random numbers");
        let entry = ObjectEntry { size: 1, media_type: None, stored_at: Timestamp(3), generation: Some(generation) };
        let found = Write::Object { digest: object(1), entry };
        let batches = batches(&[put(1, 1, Some("m")), found, put(1, 4, None)]);
        let change = &batches[0].objects[object(1).as_raw()];
        let (here, there) = (change.put.as_ref().expect("stored"), change.found.as_ref().expect("found"));
        assert_eq!((here.media_type.as_deref(), here.stored_at), (Some("m"), 1));
        assert_eq!((there.0.media_type.as_deref(), there.0.stored_at, there.1), (None, 3, generation));
        assert_eq!((change.last_use, batches[0].numbered().len()), (Some(4), 1));
    }

    #[test]
    fn what_comes_behind_the_loss_of_an_object_stays_behind_it() {
        let gone = || Write::DropObject { digest: object(1) };
        let batches = batches(&[put(1, 1, None), gone(), gone(), put(1, 2, None)]);
        let shape: Vec<_> = batches.iter().map(|batch| (batch.objects.len(), batch.dropped.len())).collect();
        assert_eq!(shape, [(1, 0), (0, 1), (1, 0)]);
    }
}
