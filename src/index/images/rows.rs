//! The rows that images are made of: tags and manifests, in the order of the references of images.

use std::collections::HashSet;
use std::iter::Peekable;
use std::vec::IntoIter;

use rusqlite::{CachedStatement, Connection, params};

use super::extent::{Extent, Sizes};
use crate::index::sqlite::digest;
use crate::index::{Image, Timestamp};
use crate::oci::{Digest, MediaType};

/// The reference of a tag, as it is in the index `tags_by_reference`.
macro_rules! of_tag {
    () => {
        "tags.repository || '/' || tags.name || ':' || tags.tag"
    };
}

/// The reference of a manifest, as it is in the index `manifests_by_reference`.
macro_rules! of_manifest {
    () => {
        "manifests.repository || '/' || manifests.name \
            || CASE length(manifests.digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || lower(hex(manifests.digest))"
    };
}

/// Tags as [`Row`]s.
macro_rules! tags {
    () => {
        concat!(
            "SELECT ",
            of_tag!(),
            ", tags.repository, tags.name, tags.digest, tags.media_type, tags.checked_at, objects.last_use FROM "
        )
    };
}

/// The same for manifests. Manifests that a tag of the name or a stored manifest leads to count as not stored.
macro_rules! manifests {
    () => {
        concat!(
            "SELECT ",
            of_manifest!(),
            ", manifests.repository, manifests.name, manifests.digest, objects.media_type, NULL, \
             CASE WHEN EXISTS (SELECT 1 FROM tags WHERE tags.digest = manifests.digest \
                 AND tags.repository = manifests.repository AND tags.name = manifests.name) \
             OR EXISTS (SELECT 1 FROM edges JOIN objects AS above ON above.digest = edges.parent \
                 WHERE edges.child = manifests.digest) THEN NULL ELSE objects.last_use END \
             FROM manifests LEFT JOIN objects ON objects.digest = manifests.digest WHERE "
        )
    };
}

/// What tags are joined with.
macro_rules! joined {
    () => {
        " LEFT JOIN objects ON objects.digest = tags.digest"
    };
}

/// All tags behind the reference `?1`.
pub(super) const TAGS: &str = concat!(tags!(), "tags", joined!(), " WHERE ", of_tag!(), " > ?1 ORDER BY ", of_tag!());

/// The tags that have `?2` in their references. These are looked through in the index alone: reading the row of each
/// tag would take some times as long. A limit keeps SQLite from doing that.
pub(super) const TAGS_WITH: &str = concat!(
    tags!(),
    "(SELECT DISTINCT ",
    of_tag!(),
    " AS reference FROM tags WHERE ",
    of_tag!(),
    " > ?1 AND instr(lower(",
    of_tag!(),
    "), ?2) ORDER BY ",
    of_tag!(),
    " LIMIT -1) AS found CROSS JOIN tags ON ",
    of_tag!(),
    " = found.reference",
    joined!(),
    " ORDER BY found.reference"
);

/// All manifests behind the reference `?1`.
pub(super) const MANIFESTS: &str = concat!(manifests!(), of_manifest!(), " > ?1 ORDER BY ", of_manifest!());

/// The manifests that have `?2` in their references.
pub(super) const MANIFESTS_WITH: &str =
    concat!(manifests!(), of_manifest!(), " > ?1 AND instr(lower(", of_manifest!(), "), ?2) ORDER BY ", of_manifest!());

/// The manifests between the references `?1` and `?2`, at most `?3`.
pub(super) const MANIFESTS_BETWEEN: &str =
    concat!(manifests!(), of_manifest!(), " > ?1 AND ", of_manifest!(), " < ?2 ORDER BY ", of_manifest!(), " LIMIT ?3");

/// The tags of the manifest `?1`.
pub(super) const TAGS_OF: &str = concat!(tags!(), "tags", joined!(), " WHERE tags.digest = ?1");

/// The names of the manifest `?1`.
pub(super) const MANIFESTS_OF: &str = concat!(manifests!(), "manifests.digest = ?1");

/// The tags of the reference `?1`.
pub(super) const TAGS_NAMED: &str = concat!(tags!(), "tags", joined!(), " WHERE ", of_tag!(), " = ?1");

/// The manifests whose digests are between `?1` and `?2`, behind the reference `?3`, at most `?4`.
pub(super) const MANIFESTS_LIKE: &str = concat!(
    manifests!(),
    "manifests.digest >= ?1 \
     AND manifests.digest < ?2 AND ",
    of_manifest!(),
    " > ?3 LIMIT ?4"
);

/// The names of manifests that have `?1` in them, at most `?2`.
const NAMES_WITH: &str = "SELECT repository || '/' || name FROM (SELECT DISTINCT repository, name FROM manifests LIMIT -1) \
    WHERE instr(lower(repository || '/' || name), ?1) LIMIT ?2";

/// Most names whose manifests are looked for one by one. Where more have a text in them, the text is found soon.
const MOST_NAMES: usize = 1_000;
/// Manifests that are read at once.
const AT_ONCE: usize = 200;

/// A tag or a manifest.
pub(in crate::index) struct Row {
    pub reference: String,
    pub repository: String,
    pub name: String,
    pub digest: Digest,
    pub media_type: Option<String>,
    pub checked_at: Option<i64>,
    /// Set if the image is to be shown.
    pub last_use: Option<i64>,
}

impl Row {
    fn of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            reference: row.get(0)?,
            repository: row.get(1)?,
            name: row.get(2)?,
            digest: digest(row.get_ref(3)?)?,
            media_type: row.get(4)?,
            checked_at: row.get(5)?,
            last_use: row.get(6)?,
        })
    }

    pub fn is_same_tag(&self, other: &Self) -> bool {
        self.checked_at.is_some()
            && (&self.reference, &self.repository) == (&other.reference, &other.repository)
            && other.checked_at.is_some()
    }

    fn is_same_manifest(&self, other: &Self) -> bool {
        (&self.reference, &self.repository) == (&other.reference, &other.repository)
    }

    /// Returns the row that is shown, of two rows of one tag.
    fn newer(self, other: Self) -> Self {
        let rank = |row: &Self| (row.last_use.is_some(), row.checked_at);
        if rank(&other) > rank(&self) { other } else { self }
    }

    /// Returns the image, if it is to be shown.
    pub(super) fn into_image(self, sizes: &mut Sizes<'_>) -> rusqlite::Result<Option<Image>> {
        let Some(last_use) = self.last_use else {
            return Ok(None);
        };
        let extent = sizes.below(self.digest)?;
        Ok(Some(self.image(last_use, extent)))
    }

    /// Returns the image of a row that is to be shown.
    pub fn image(self, last_use: i64, extent: Extent) -> Image {
        let Extent { objects, bytes, missing, children } = extent;
        Image {
            reference: self.reference,
            repository: self.repository,
            name: self.name,
            digest: self.digest,
            media_type: self.media_type.map(MediaType::new),
            objects,
            bytes,
            missing,
            children,
            checked_at: self.checked_at.map(Timestamp),
            last_use: Timestamp(last_use),
        }
    }
}

/// Returns the tags of a manifest and the names under which it was asked for by digest, as far as they are shown.
pub(super) fn rows_of(connection: &Connection, manifest: &Digest) -> rusqlite::Result<Vec<Row>> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for tag in all(connection, TAGS_OF, params![manifest.as_raw()])? {
        if !known.insert((tag.reference.clone(), tag.repository.clone())) {
            continue;
        }
        let rows = all(connection, TAGS_NAMED, params![tag.reference])?.into_iter();
        let shown = rows.filter(|row| row.is_same_tag(&tag)).reduce(Row::newer);
        found.extend(shown.filter(|row| row.digest == *manifest));
    }
    found.extend(all(connection, MANIFESTS_OF, params![manifest.as_raw()])?);
    found.retain(|row| row.last_use.is_some());
    Ok(found)
}

fn all(connection: &Connection, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<Vec<Row>> {
    connection.prepare_cached(sql)?.query_map(values, Row::of)?.collect()
}

/// Where the rows of one kind come from, in the order of their references.
enum Rows<'a> {
    Query(rusqlite::Rows<'a>),
    Named(Box<Named<'a>>),
}

impl Rows<'_> {
    fn next(&mut self) -> rusqlite::Result<Option<Row>> {
        match self {
            Self::Query(rows) => rows.next()?.map(Row::of).transpose(),
            Self::Named(rows) => rows.next(),
        }
    }
}

/// The manifests of some names, and some others.
struct Named<'a> {
    connection: &'a Connection,
    /// What the references of each name begin with, the last first.
    names: Vec<String>,
    /// The reference behind which to go on.
    last: String,
    rows: Peekable<IntoIter<Row>>,
    others: Peekable<IntoIter<Row>>,
}

impl<'a> Named<'a> {
    /// Returns the manifests of the names that have a text in them, and those whose digests begin with it, behind the
    /// reference `last`; `None` if there are too many such names.
    fn with(connection: &'a Connection, text: &str, last: &str) -> rusqlite::Result<Option<Self>> {
        let mut statement = connection.prepare_cached(NAMES_WITH)?;
        let names = statement.query_map(params![text, MOST_NAMES], |row| Ok(row.get::<_, String>(0)? + "@"))?;
        let mut names = names.collect::<rusqlite::Result<Vec<_>>>()?;
        if names.len() >= MOST_NAMES {
            return Ok(None);
        }
        names.sort_unstable_by(|one, other| other.cmp(one));
        // Two repositories may have names that make the same path.
        names.dedup();
        let mut others = match digests_like(text) {
            Some((begin, end)) => all(connection, MANIFESTS_LIKE, params![begin, end, last, MOST_NAMES])?,
            None => Vec::new(),
        };
        others.sort_unstable_by(|one, other| one.reference.cmp(&other.reference));
        let (rows, others) = (Vec::new().into_iter().peekable(), others.into_iter().peekable());
        Ok(Some(Self { connection, names, last: last.to_owned(), rows, others }))
    }

    fn next(&mut self) -> rusqlite::Result<Option<Row>> {
        self.load()?;
        let (row, other) = (self.rows.peek(), self.others.peek());
        let is_other = match (row, other) {
            (Some(row), Some(other)) => other.reference < row.reference,
            (row, _) => row.is_none(),
        };
        if is_other {
            return Ok(self.others.next());
        }
        let row = self.rows.next();
        // Found by its name and by its digest.
        let is_same = |other: &Row| row.as_ref().is_some_and(|row| row.is_same_manifest(other));
        let _ = self.others.next_if(is_same);
        Ok(row)
    }

    /// Reads the next manifests of the names.
    fn load(&mut self) -> rusqlite::Result<()> {
        while self.rows.peek().is_none() {
            let Some(name) = self.names.last() else {
                break;
            };
            // `A` is what follows `@`.
            let end = format!("{}A", name.trim_end_matches('@'));
            let begin = self.last.as_str().max(name);
            let rows = all(self.connection, MANIFESTS_BETWEEN, params![begin, end, AT_ONCE])?;
            match rows.last() {
                Some(row) if rows.len() == AT_ONCE => self.last.clone_from(&row.reference),
                _ => drop(self.names.pop()),
            }
            self.rows = rows.into_iter().peekable();
        }
        Ok(())
    }
}

/// Fewest digits of a digest by which it is looked for: a few are in nearly each digest, and nobody means that.
const FEWEST_DIGITS: usize = 6;

/// Returns the bytes between which digests begin as a text says: `0a1b2c`, or `sha256:0a1b2c`. `None` if it is no
/// beginning of a digest.
pub(in crate::index) fn digests_like(text: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let digits = ["sha256:", "sha512:"].iter().find_map(|begin| text.strip_prefix(begin)).unwrap_or(text);
    if digits.len() < FEWEST_DIGITS {
        return None;
    }
    let bytes = |filled: &str| -> Option<Vec<u8>> {
        let filled = if digits.len() % 2 == 0 { digits.to_owned() } else { format!("{digits}{filled}") };
        (0..filled.len()).step_by(2).map(|at| u8::from_str_radix(filled.get(at..at + 2)?, 16).ok()).collect()
    };
    let (begin, mut end) = (bytes("0")?, bytes("f")?);
    // Behind all that begin so: no digest is longer than this.
    end.resize(LONGEST_DIGEST, u8::MAX);
    Some((begin, end))
}

/// Bytes of a digest of SHA-512, and one more.
const LONGEST_DIGEST: usize = 65;

/// Tags and manifests in the order of their references. Of one tag on several shelves there is one row.
pub(super) struct Merged<'a> {
    tags: Rows<'a>,
    manifests: Rows<'a>,
    tag: Option<Row>,
    manifest: Option<Row>,
    /// Rows that were looked at.
    pub looked_at: usize,
}

/// The statements of a [`Merged`].
pub(super) struct Statements<'a> {
    connection: &'a Connection,
    tags: CachedStatement<'a>,
    manifests: CachedStatement<'a>,
}

impl<'a> Statements<'a> {
    /// Prepares to read all rows, or, if there is a text in small letters, those that have it in their references.
    pub fn new(connection: &'a Connection, text: &str) -> rusqlite::Result<Self> {
        let (tags, manifests) = if text.is_empty() { (TAGS, MANIFESTS) } else { (TAGS_WITH, MANIFESTS_WITH) };
        let (tags, manifests) = (connection.prepare_cached(tags)?, connection.prepare_cached(manifests)?);
        Ok(Self { connection, tags, manifests })
    }

    /// Returns the rows behind the reference `last`. `text`: as in [`Self::new`].
    pub fn rows(&mut self, last: &str, text: &str) -> rusqlite::Result<Merged<'_>> {
        if text.is_empty() {
            let (tags, manifests) = (self.tags.query(params![last])?, self.manifests.query(params![last])?);
            return Merged::new(Rows::Query(tags), Rows::Query(manifests));
        }
        let tags = Rows::Query(self.tags.query(params![last, text])?);
        let named = if text.contains('@') { None } else { Named::with(self.connection, text, last)? };
        let manifests = match named {
            Some(named) => Rows::Named(Box::new(named)),
            None => Rows::Query(self.manifests.query(params![last, text])?),
        };
        Merged::new(tags, manifests)
    }
}

impl<'a> Merged<'a> {
    fn new(mut tags: Rows<'a>, mut manifests: Rows<'a>) -> rusqlite::Result<Self> {
        let (tag, manifest) = (tags.next()?, manifests.next()?);
        Ok(Self { tags, manifests, tag, manifest, looked_at: 0 })
    }

    pub fn next(&mut self) -> rusqlite::Result<Option<Row>> {
        // Takes the tag or the manifest, whichever comes first.
        let is_tag = match (&self.tag, &self.manifest) {
            (Some(tag), Some(manifest)) => tag.reference <= manifest.reference,
            (tag, _) => tag.is_some(),
        };
        let (next, others) =
            if is_tag { (&mut self.tag, &mut self.tags) } else { (&mut self.manifest, &mut self.manifests) };
        let Some(mut row) = next.take() else {
            return Ok(None);
        };
        *next = others.next()?;
        self.looked_at += 1;
        // The same tag on other shelves: the newest row whose manifest is stored is shown.
        while let Some(other) = next.take_if(|next| next.is_same_tag(&row)) {
            self.looked_at += 1;
            row = row.newer(other);
            *next = others.next()?;
        }
        Ok(Some(row))
    }
}
