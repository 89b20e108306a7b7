//! Lists of images and searches among them.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use super::super::images::extent::{Extent, Part};
use super::super::images::rows::{Row, digests_like};
use super::super::images::{LOOKED_AT, SORTED};
use super::super::{ImageOrder, ImagePage, ImageSearch, IndexError};
use super::values::{Mine, before_zero, digest, raws, signed, values};
use crate::oci::Digest;

/// Rows that are read at once.
const AT_ONCE: usize = 500;
/// The fewest rows that are read at once, also where fewer images are wanted.
const FEWEST: usize = 50;

/// The reference of a tag, as it is in the index `tags_by_reference`.
macro_rules! of_tag {
    () => {
        "t.repository || '/' || t.name || ':' || t.tag"
    };
}

/// The reference of a manifest, as it is in the index `manifests_by_reference`.
macro_rules! of_manifest {
    () => {
        "m.repository || '/' || m.name \
            || CASE length(m.digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || encode(m.digest, 'hex')"
    };
}

/// What is stored of an object, with `$1` for the holders whose objects this Larder serves: each may have a row of it.
macro_rules! stored {
    ($id:literal) => {
        concat!(
            "LEFT JOIN LATERAL (SELECT max(size) AS size, max(media_type) AS media_type, max(last_use) AS last_use \
                FROM larder.objects WHERE objects.id = ",
            $id,
            " AND holder = ANY($1)) AS o ON TRUE"
        )
    };
}

/// Tags as rows. A condition and the end of [`of_each_tag`] follow.
macro_rules! tags {
    () => {
        concat!(
            "SELECT DISTINCT ON (1, 2) ",
            of_tag!(),
            " AS reference, t.repository, t.name, t.digest, t.media_type, t.checked_at, o.last_use \
             FROM larder.tags AS t LEFT JOIN larder.digests AS d ON d.digest = t.digest ",
            stored!("d.id"),
            " WHERE "
        )
    };
}

/// Of one tag on several shelves, the newest row whose manifest is stored is shown, else the newest.
macro_rules! of_each_tag {
    () => {
        concat!(" ORDER BY ", of_tag!(), ", t.repository, (o.last_use IS NOT NULL) DESC, t.checked_at DESC, t.shelf")
    };
}

/// Manifests as rows. Manifests that a tag of the name or a stored manifest leads to count as not stored.
macro_rules! manifests {
    () => {
        concat!(
            "SELECT ",
            of_manifest!(),
            " AS reference, m.repository, m.name, m.digest, o.media_type, NULL::bigint AS checked_at, \
             CASE WHEN EXISTS (SELECT 1 FROM larder.tags AS t WHERE t.digest = m.digest \
                 AND t.repository = m.repository AND t.name = m.name) \
             OR EXISTS (SELECT 1 FROM larder.edges AS e JOIN larder.objects AS above \
                 ON above.id = e.parent AND above.holder = ANY($1) WHERE e.child = d.id) \
             THEN NULL ELSE o.last_use END AS last_use \
             FROM larder.manifests AS m LEFT JOIN larder.digests AS d ON d.digest = m.digest ",
            stored!("d.id"),
            " WHERE "
        )
    };
}

/// The next `$3` rows behind the reference `$2`.
pub(super) const ALL: &str = concat!(
    "(",
    tags!(),
    of_tag!(),
    " > $2",
    of_each_tag!(),
    " LIMIT $3) UNION ALL (",
    manifests!(),
    of_manifest!(),
    " > $2 ORDER BY 1 LIMIT $3) ORDER BY 1, 2 LIMIT $3"
);

/// The same, of those that have the text `$4` in their references. A digest has to begin with it (between `$5` and
/// `$6`), unless the text names a manifest as a reference does (`$7`).
const WITH: &str = concat!(
    "(",
    tags!(),
    of_tag!(),
    " > $2 AND position($4 IN lower(",
    of_tag!(),
    ")) > 0",
    of_each_tag!(),
    " LIMIT $3) UNION ALL (",
    manifests!(),
    of_manifest!(),
    " > $2 AND (position($4 IN lower(m.repository || '/' || m.name)) > 0 OR (m.digest >= $5 AND m.digest < $6) \
      OR ($7 AND position($4 IN lower(",
    of_manifest!(),
    ")) > 0)) ORDER BY 1 LIMIT $3) ORDER BY 1, 2 LIMIT $3"
);

/// The rows of the manifests `$2`: the tags that lead to one of them on any shelf, and the names.
const OF_MANIFESTS: &str = concat!(
    "(",
    tags!(),
    "(t.repository, t.name, t.tag) IN (SELECT repository, name, tag FROM larder.tags WHERE digest = ANY($2))",
    of_each_tag!(),
    ") UNION ALL (",
    manifests!(),
    "m.digest = ANY($2))"
);

/// Stored manifests that were used before `$2`, or then and have a smaller number than `$3`; the last used first. One may
/// come twice, with the use that each holder's row has.
pub(super) const USED_LAST: &str = "SELECT digest, used.last_use, id FROM unnest($1) AS mine (holder) CROSS JOIN LATERAL ( \
        SELECT o.id, o.last_use FROM larder.objects AS o \
        WHERE o.holder = mine.holder AND o.media_type IS NOT NULL AND (o.last_use, o.id) < ($2, $3) \
        ORDER BY o.last_use DESC, o.id DESC LIMIT $4) AS used \
    JOIN larder.digests USING (id) ORDER BY used.last_use DESC, id DESC LIMIT $4";

/// What is known of the objects `$2`: their size if they are stored, whether they came as blobs, and what they refer to.
/// An object that came as a blob leads nowhere, and most objects of an image are blobs.
const PARTS: &str = concat!(
    "SELECT w.id, o.size, o.size IS NOT NULL AND o.media_type IS NULL, \
        CASE WHEN o.size IS NOT NULL AND o.media_type IS NULL THEN '{}' \
            ELSE ARRAY(SELECT child FROM larder.edges WHERE parent = w.id) END \
     FROM unnest($2) AS w (id) ",
    stored!("w.id")
);

const NUMBERS: &str = "SELECT id, digest FROM larder.digests WHERE digest = ANY($1)";

/// See [`super::super::Sqlite::find_images`].
pub async fn find(client: &Client, mine: Mine, search: &ImageSearch) -> Result<ImagePage, IndexError> {
    let finder = Finder { client, holders: mine.all(), text: &search.text };
    if search.text.contains('\0') {
        // No text of the database has that.
        return Ok(ImagePage::default());
    }
    match search.order {
        ImageOrder::Reference => finder.page(&search.last, search.count, LOOKED_AT).await,
        ImageOrder::LastUse => finder.used_last(search.count, SORTED).await,
        ImageOrder::Size => {
            let ImagePage { mut images, next } = finder.page("", usize::MAX, SORTED).await?;
            images.sort_by_key(|image| Reverse(image.bytes));
            images.truncate(search.count);
            Ok(ImagePage { images, next })
        }
    }
}

struct Finder<'a> {
    client: &'a Client,
    holders: Vec<i32>,
    text: &'a str,
}

impl Finder<'_> {
    /// Returns images in the order of their references. Ends when `most` rows and objects were looked at.
    async fn page(&self, last: &str, count: usize, most: usize) -> Result<ImagePage, IndexError> {
        let (mut page, mut looked_at, mut last) = (ImagePage::default(), 0, before_zero(last).to_owned());
        let mut sizes = Sizes::new(self.client, &self.holders);
        loop {
            let wanted = AT_ONCE.min(count.saturating_sub(page.images.len()).max(FEWEST));
            let mut rows = self.rows(&last, wanted).await?;
            let is_end = rows.len() < wanted;
            if !is_end {
                // Images of two repositories may have the same reference; the second would be missing.
                let end = rows.last().map(|row| row.reference.clone());
                rows.retain(|row| end.as_ref() != Some(&row.reference));
            }
            sizes.read(rows.iter().filter(|row| row.last_use.is_some()).map(|row| row.digest)).await?;
            for row in rows {
                looked_at += 1;
                last.clone_from(&row.reference);
                if let Some(last_use) = row.last_use {
                    let extent = sizes.extent(&row.digest);
                    page.images.push(row.image(last_use, extent));
                }
                if page.images.len() >= count || looked_at + sizes.looked_at > most {
                    page.next = Some(last);
                    return Ok(page);
                }
            }
            if is_end {
                return Ok(page);
            }
        }
    }

    /// Returns the next rows behind a reference.
    async fn rows(&self, last: &str, count: usize) -> Result<Vec<Row>, IndexError> {
        let (client, holders, count) = (self.client, &self.holders, i64::try_from(count).unwrap_or(i64::MAX));
        let found = if self.text.is_empty() {
            client.query_typed(ALL, values![holders => INT4_ARRAY, last => TEXT, count => INT8]).await?
        } else {
            let (begin, end) = digests_like(self.text).unwrap_or_default();
            let (text, is_reference) = (self.text, self.text.contains('@'));
            let list = values![holders => INT4_ARRAY, last => TEXT, count => INT8, text => TEXT, begin => BYTEA,
                end => BYTEA, is_reference => BOOL];
            client.query_typed(WITH, list).await?
        };
        found.iter().map(row_of).collect()
    }

    /// Returns the images that were used last. If not all were looked at, `next` is set.
    async fn used_last(&self, count: usize, most: usize) -> Result<ImagePage, IndexError> {
        let few = if self.text.is_empty() { None } else { self.used_last_of_few(most).await? };
        let (mut rows, next) = match few {
            Some(rows) => (rows, None),
            None => self.used_last_of_all(count, most).await?,
        };
        rows.truncate(count);
        let mut sizes = Sizes::new(self.client, &self.holders);
        sizes.read(rows.iter().map(|row| row.digest)).await?;
        let image = |row: Row| {
            let (last_use, extent) = (row.last_use?, sizes.extent(&row.digest));
            Some(row.image(last_use, extent))
        };
        Ok(ImagePage { images: rows.into_iter().filter_map(image).collect(), next })
    }

    /// Returns the rows that have the text in their references, the last used first; `None` if there are more than
    /// `most`.
    async fn used_last_of_few(&self, most: usize) -> Result<Option<Vec<Row>>, IndexError> {
        let mut rows = self.rows("", most + 1).await?;
        if rows.len() > most {
            return Ok(None);
        }
        rows.retain(|row| row.last_use.is_some());
        rows.sort_by_key(|row| Reverse(row.last_use));
        Ok(Some(rows))
    }

    /// Returns the first rows, at least `count` if there are so many, of those that were used last and have the text in
    /// their references. Ends when `most` rows were looked at; then the second value is the last of them.
    async fn used_last_of_all(&self, count: usize, most: usize) -> Result<(Vec<Row>, Option<String>), IndexError> {
        let (client, holders, at_once) = (self.client, &self.holders, signed(AT_ONCE as u64));
        let (mut found, mut looked_at, mut before) = (Vec::new(), 0, (i64::MAX, i64::MAX));
        let mut known = HashSet::new();
        while found.len() < count {
            let list = values![holders => INT4_ARRAY, before.0 => INT8, before.1 => INT8, at_once => INT8];
            let used = client.query_typed(USED_LAST, list).await?;
            let Some(end) = used.last() else {
                return Ok((found, None));
            };
            before = (end.try_get(1)?, end.try_get(2)?);
            looked_at += used.len();
            let mut manifests = used.iter().map(|row| digest(row, 0)).collect::<Result<Vec<_>, _>>()?;
            // The last use comes first.
            manifests.retain(|manifest| known.insert(*manifest));
            let mut rows = self.rows_of(&manifests).await?;
            looked_at += rows.len();
            rows.sort_by_key(|row| Reverse(row.last_use));
            let last = rows.last().map(|row| row.reference.clone());
            found.extend(rows.into_iter().filter(|row| row.reference.to_lowercase().contains(self.text)));
            if looked_at > most && found.len() < count {
                return Ok((found, Some(last.unwrap_or_default())));
            }
        }
        Ok((found, None))
    }

    /// Returns the tags of these manifests and the names under which they were asked for by digest, as far as they are
    /// shown.
    async fn rows_of(&self, manifests: &[Digest]) -> Result<Vec<Row>, IndexError> {
        let (holders, raws) = (&self.holders, raws(manifests));
        let found = self.client.query_typed(OF_MANIFESTS, values![holders => INT4_ARRAY, raws => BYTEA_ARRAY]).await?;
        let mut rows = found.iter().map(row_of).collect::<Result<Vec<_>, _>>()?;
        let wanted: HashSet<_> = manifests.iter().collect();
        // On another shelf, a newer row of the same tag may lead elsewhere.
        rows.retain(|row| row.last_use.is_some() && wanted.contains(&row.digest));
        Ok(rows)
    }
}

fn row_of(row: &tokio_postgres::Row) -> Result<Row, IndexError> {
    Ok(Row {
        reference: row.try_get(0)?,
        repository: row.try_get(1)?,
        name: row.try_get(2)?,
        digest: digest(row, 3)?,
        media_type: row.try_get(4)?,
        checked_at: row.try_get(5)?,
        last_use: row.try_get(6)?,
    })
}

/// Counts the stored objects of images, and their bytes.
struct Sizes<'a> {
    client: &'a Client,
    holders: &'a Vec<i32>,
    known: HashMap<Digest, Extent>,
    /// Objects that were looked at in all.
    looked_at: usize,
}

/// What is known of an object, by its number.
struct Known {
    size: Option<u64>,
    is_blob: bool,
    children: Vec<i64>,
}

impl<'a> Sizes<'a> {
    fn new(client: &'a Client, holders: &'a Vec<i32>) -> Self {
        Self { client, holders, known: HashMap::new(), looked_at: 0 }
    }

    /// Returns how much of an image is there that was read before.
    fn extent(&self, manifest: &Digest) -> Extent {
        self.known.get(manifest).copied().unwrap_or_default()
    }

    /// Reads how much of images is there, level by level: a question for each level of all of them.
    async fn read(&mut self, manifests: impl Iterator<Item = Digest>) -> Result<(), IndexError> {
        let wanted: HashSet<_> = manifests.filter(|manifest| !self.known.contains_key(manifest)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let raws = raws(&wanted);
        let mut roots = Vec::new();
        for row in self.client.query_typed(NUMBERS, values![raws => BYTEA_ARRAY]).await? {
            roots.push((row.try_get::<_, i64>(0)?, digest(&row, 1)?));
        }
        let (mut found, mut open) = (HashMap::new(), roots.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        while !open.is_empty() {
            let rows = self.client.query_typed(PARTS, values![self.holders => INT4_ARRAY, open => INT8_ARRAY]).await?;
            let mut below = HashSet::new();
            for row in &rows {
                let size = row.try_get::<_, Option<i64>>(1)?.map(|size| u64::try_from(size).unwrap_or(0));
                let children: Vec<i64> = row.try_get(3)?;
                below.extend(children.iter().copied());
                found.insert(row.try_get::<_, i64>(0)?, Known { size, is_blob: row.try_get(2)?, children });
            }
            open = below.into_iter().filter(|id| !found.contains_key(id)).collect();
        }
        for (id, manifest) in roots {
            let parts = parts_of(&found, id);
            self.looked_at += parts.len();
            self.known.insert(manifest, Extent::of(&parts, id));
        }
        Ok(())
    }
}

/// Returns a manifest and all that it leads to.
fn parts_of(found: &HashMap<i64, Known>, manifest: i64) -> HashMap<i64, Part<i64>> {
    let (mut parts, mut open) = (HashMap::new(), vec![manifest]);
    while let Some(next) = open.pop() {
        if let Some(Known { size, is_blob, children }) = found.get(&next)
            && !parts.contains_key(&next)
        {
            open.extend(children);
            parts.insert(next, Part { size: *size, is_blob: *is_blob, children: children.clone() });
        }
    }
    parts
}
