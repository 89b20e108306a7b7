//! What the index may hold, and which rows go beyond that. What is dropped is learnt again from the upstreams.

use rusqlite::{Connection, Transaction, params};

use super::{Write, listings, size, urls};

/// What the index may hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of lists of tags and referrers.
    pub lists: u64,
    /// Bytes of what is known of other URLs than registries'.
    pub urls: u64,
    /// Tags, and names of manifests; as many of each.
    pub names: u64,
    /// Bytes of the database. Beyond this lists and URLs go, whatever they take.
    pub whole: u64,
}

/// Most bytes of lists, and of URLs.
const MOST: u64 = 64 << 20;
const MOST_NAMES: u64 = 1_000_000;
/// A row with a long name, in the table and its indexes.
const LARGE_ROW: u64 = 1 << 10;
/// Repositories that one object is noted to be visible in. Hosts that clients of the proxy door name may be any number.
pub const MAX_VISIBLE: u32 = 256;

impl Bounds {
    /// Those of a cache that has `capacity` bytes of disk for all.
    pub fn of(capacity: u64) -> Self {
        let share = capacity / 8;
        Self {
            lists: share.min(MOST),
            urls: share.min(MOST),
            names: (share / LARGE_ROW).clamp(1_000, MOST_NAMES),
            whole: (capacity / 2).max(2 << 20),
        }
    }
}

impl Bounds {
    /// Whether a write is worth beginning with: a list that is larger than all may be would go at once.
    pub(super) fn admit(&self, write: &Write) -> bool {
        match write {
            Write::Listing { key, listing } => listing.weight(key) <= self.lists,
            _ => true,
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::of(u64::MAX)
    }
}

/// Rows written since a table was last measured: that takes a look at all of it, so it is done now and then.
#[derive(Debug)]
pub struct Since {
    tags: u64,
    names: u64,
    urls: u64,
    has_listing: bool,
}

impl Default for Since {
    /// As if much had been written: an index that was opened is measured once.
    fn default() -> Self {
        Self { tags: u64::MAX / 2, names: u64::MAX / 2, urls: u64::MAX / 2, has_listing: true }
    }
}

impl Since {
    pub fn count(&mut self, write: &Write) {
        match write {
            Write::Tag { .. } => self.tags += 1,
            Write::Manifest { .. } => self.names += 1,
            Write::Url { entry, .. } => self.urls += entry.head.len() as u64 + urls::ROW,
            Write::Listing { .. } => self.has_listing = true,
            _ => {}
        }
    }
}

/// Removes what is beyond the bounds, as far as something was written since.
pub fn keep_within(transaction: &Transaction<'_>, bounds: &Bounds, since: &mut Since) -> rusqlite::Result<()> {
    // In steps of a sixteenth, so that it is not done for each row.
    let is_due = |written: u64, bound: u64| written > (bound / 16).max(100);
    if std::mem::take(&mut since.has_listing) {
        listings::keep_within(transaction, bounds.lists)?;
    }
    if is_due(since.urls, bounds.urls) {
        since.urls = 0;
        urls::keep_within(transaction, bounds.urls)?;
    }
    if is_due(since.tags, bounds.names) {
        since.tags = 0;
        keep_rows_within(transaction, "tags", "checked_at", bounds.names)?;
    }
    if is_due(since.names, bounds.names) {
        since.names = 0;
        keep_rows_within(transaction, "manifests", "noted_at", bounds.names)?;
    }
    Ok(())
}

/// Where the database as a whole takes more than it may, lists go, then URLs. What is left belongs to objects and goes
/// with them.
pub fn relieve(connection: &Connection, bounds: &Bounds) -> rusqlite::Result<()> {
    for table in ["listings", "urls"] {
        if size::used(connection)? <= bounds.whole {
            break;
        }
        let dropped = connection.execute(&format!("DELETE FROM {table}"), [])?;
        if dropped > 0 {
            tracing::warn!(table, dropped, "the index takes too much of cache.max_size; a part of it is dropped");
        }
    }
    Ok(())
}

/// Removes the oldest rows, of the repository with the most. Names with a pinned image stay.
fn keep_rows_within(transaction: &Transaction<'_>, table: &str, age: &str, bound: u64) -> rusqlite::Result<()> {
    let key = if table == "tags" { "repository, name, tag, shelf" } else { "repository, name, digest" };
    let counts = format!("SELECT repository, count(*) FROM {table} GROUP BY repository ORDER BY count(*) DESC");
    let delete = format!(
        "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE repository = ?1 AND NOT EXISTS \
            (SELECT 1 FROM pins WHERE pins.repository = {table}.repository AND pins.name = {table}.name) \
         ORDER BY {age} LIMIT ?2)"
    );
    let counts = transaction
        .prepare(&counts)?
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, u64>(1)?)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    if total <= bound {
        return Ok(());
    }
    let mut excess = total - (bound - bound / 16);
    for (at, (repository, count)) in counts.iter().enumerate() {
        if excess == 0 {
            break;
        }
        // What it has beyond the next one, but at least half of what is to go.
        let next = counts.get(at + 1).map_or(0, |(_, count)| *count);
        let gives = (count - next).max(excess.div_ceil(2)).min(excess).min(*count);
        let dropped = transaction.execute(&delete, params![repository, i64::try_from(gives).unwrap_or(i64::MAX)])?;
        excess = excess.saturating_sub(dropped as u64);
    }
    tracing::info!(table, total, bound, "the index has too many rows; the oldest are dropped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Index, TagEntry, TagKey, Timestamp};
    use super::*;
    use crate::index::{ImageName, ObjectEntry, Viewer};
    use crate::oci::{Algorithm, Digest, MediaType};

    fn digest(number: u64) -> Digest {
        Digest::of(Algorithm::Sha256, &number.to_le_bytes())
    }

    fn count(index: &Index, sql: &str) -> u64 {
        index.read(|connection| connection.query_row(sql, [], |row| row.get(0))).expect("read")
    }

    fn tag(repository: &str, tag: &str, at: i64) -> Write {
        let key = TagKey {
            repository: repository.to_owned(),
            name: "a".to_owned(),
            tag: tag.to_owned(),
            shelf: String::new(),
        };
        let entry = TagEntry { digest: digest(1), media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(at) };
        Write::Tag { key, entry }
    }

    #[tokio::test]
    async fn tags_and_names_keep_to_their_number_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Index::open(dir.path()).expect("an index");
        index.keep_within(Bounds { names: 1_000, ..Bounds::default() });
        let pin = ImageName {
            repository: "flood".to_owned(),
            name: "pinned".to_owned(),
            reference: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().expect("one"),
        };
        index.set_pin(pin, true).await.expect("pinned");
        index.write(tag("quiet", "old", 1));
        let named = |name: &str, number: u64| Write::Manifest {
            repository: "flood".to_owned(),
            name: name.to_owned(),
            digest: digest(number),
            at: Timestamp(i64::try_from(number).expect("small")),
        };
        index.write(named("pinned", 0));
        for number in 1..3_000 {
            index.write(tag("flood", &number.to_string(), number));
            index.write(named("made-up", number.unsigned_abs()));
            if number % 50 == 0 {
                index.flush().await.expect("written");
            }
        }
        index.flush().await.expect("written");
        // And what was written since the last look.
        assert!((900..=1_101).contains(&count(&index, "SELECT count(*) FROM tags")));
        assert!((900..=1_101).contains(&count(&index, "SELECT count(*) FROM manifests")));
        assert_eq!(count(&index, "SELECT count(*) FROM tags WHERE repository = 'quiet'"), 1);
        assert_eq!(count(&index, "SELECT count(*) FROM manifests WHERE name = 'pinned'"), 1);
        assert_eq!(count(&index, "SELECT count(*) FROM tags WHERE tag = '2999'"), 1);
        assert_eq!(count(&index, "SELECT count(*) FROM tags WHERE tag = '1'"), 0);
    }

    #[tokio::test]
    async fn an_object_is_noted_for_so_many_repositories_and_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Index::open(dir.path()).expect("an index");
        for number in 0..1_000 {
            index.write(Write::Visible { viewer: Viewer::own(format!("host-{number}.example")), digest: digest(1) });
        }
        index.write(Write::Visible { viewer: Viewer::own("r"), digest: digest(1) });
        index.flush().await.expect("written");
        assert_eq!(count(&index, "SELECT count(*) FROM visibility"), u64::from(MAX_VISIBLE));
        assert!(index.is_visible(&Viewer::own("r"), &digest(1)).expect("read"), "the newest is among them");
    }

    #[tokio::test]
    async fn a_database_beyond_its_bound_drops_lists_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Index::open(dir.path()).expect("an index");
        index.write(Write::Object {
            digest: digest(1),
            entry: ObjectEntry { size: 1, media_type: None, stored_at: Timestamp(1) },
        });
        let key =
            super::super::ListKey { repository: "r".to_owned(), name: "a".to_owned(), page: "tags/list".to_owned() };
        let listing = super::super::Listing {
            body: vec![b' '; 5 << 20].into(),
            media_type: None,
            link: None,
            filters_applied: None,
            checked_at: Timestamp(1),
        };
        index.write(Write::Listing { key: key.clone(), listing });
        index.flush().await.expect("written");
        assert!(index.listing(&key, u64::MAX).expect("read").is_some());
        index.keep_within(Bounds { whole: 2 << 20, ..Bounds::default() });
        index.write(tag("r", "1", 1));
        index.flush().await.expect("written");
        assert!(index.listing(&key, u64::MAX).expect("read").is_none());
        assert!(index.object(&digest(1)).expect("read").is_some());
        assert!(
            index
                .tag(&TagKey {
                    repository: "r".to_owned(),
                    name: "a".to_owned(),
                    tag: "1".to_owned(),
                    shelf: String::new()
                })
                .expect("read")
                .is_some()
        );
    }

    proptest! {
        #[test]
        fn bounds_are_a_part_of_the_room_there_is(capacity: u64) {
            let bounds = Bounds::of(capacity);
            prop_assert!(bounds.lists <= MOST && bounds.lists <= capacity / 8);
            prop_assert!(bounds.urls <= MOST && bounds.urls <= capacity / 8);
            prop_assert!((1_000..=MOST_NAMES).contains(&bounds.names));
            prop_assert!(bounds.whole >= bounds.lists);
        }
    }
}
