//! The bounds of the index, and which rows go beyond them. Dropped rows are learnt again from the upstreams.

use rusqlite::{Connection, Transaction, params};

use super::{Write, listings, size, urls};

/// The most that the index may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of lists of tags and referrers.
    pub lists: u64,
    /// Bytes of stored answers of URLs that are not a registry's.
    pub urls: u64,
    /// How many tags, and how many names of manifests.
    pub names: u64,
    /// Bytes of the database. If it takes more, lists and URLs go, whatever they take.
    pub whole: u64,
}

/// Most bytes of lists, and of URLs.
const MOST: u64 = 64 << 20;
/// Most tags, and most names of manifests.
const MOST_NAMES: u64 = 1_000_000;
/// Bytes of a row with a long name, in the table and its indexes.
const LARGE_ROW: u64 = 1 << 10;
/// Most repositories in which one object is noted as visible: clients of the proxy door may name any number of hosts.
pub const MAX_VISIBLE: u32 = 256;

impl Bounds {
    /// Returns the bounds for a cache that has `capacity` bytes of disk in all.
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
    /// Returns whether to make a write at all: a list larger than all lists may be would go at once.
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

/// Rows of tags or of names that go in one step: more than the writes of the next batch (`writer::SMALL_BATCH`).
const ROWS: usize = 56;
/// Lists or URLs that go in one step.
const LARGE_ROWS: usize = 100;
/// About the bytes of the lists or URLs that go in one step.
const LARGE_BYTES: u64 = 20 << 20;

/// The kinds of rows that are bounded. The database counts the rows of each kind as they come and go.
const KINDS: [&str; 4] = ["listings", "urls", "tags", "manifests"];

/// The kinds of which there is more than there may be. Rows go until there is a sixteenth less than the bound, so that
/// they do not have to go with each write.
#[derive(Debug, Default)]
pub struct Excess {
    kinds: [bool; KINDS.len()],
    /// Up to how much a kind is not checked again, after all that was left of it was pinned; 0: it is checked.
    stuck: [u64; KINDS.len()],
    /// Whether the database as a whole takes too much.
    is_whole: bool,
}

impl Excess {
    /// Returns whether there is a further step to do.
    pub fn is_any(&self) -> bool {
        self.is_whole || self.kinds.contains(&true)
    }
}

/// Takes a step of removing rows beyond the bounds: [`ROWS`] of all kinds together, which is more than a batch adds.
pub fn keep_within(connection: &mut Connection, bounds: &Bounds, excess: &mut Excess) -> rusqlite::Result<()> {
    let mut left = ROWS;
    for ((kind, is_excess), stuck) in KINDS.into_iter().zip(&mut excess.kinds).zip(&mut excess.stuck) {
        let bound = match kind {
            "listings" => bounds.lists,
            "urls" => bounds.urls,
            _ => bounds.names,
        };
        let total = total(connection, kind)?;
        let wanted = if *is_excess { bound - bound / 16 } else { bound.max(*stuck) };
        if total <= wanted {
            *is_excess = false;
            continue;
        }
        if !std::mem::replace(is_excess, true) {
            tracing::info!(kind, total, bound, "the index has too much of a kind; the oldest of it is dropped");
        }
        if left == 0 {
            continue;
        }
        let transaction = connection.transaction()?;
        let surplus = total - (bound - bound / 16);
        let rows = left.min(usize::try_from(surplus).unwrap_or(left));
        let (has_dropped, rows) = match kind {
            "listings" => (listings::drop_some(&transaction, surplus.min(LARGE_BYTES), LARGE_ROWS)?, left),
            "urls" => (urls::drop_some(&transaction, surplus.min(LARGE_BYTES), LARGE_ROWS)?, left),
            _ => (drop_rows(&transaction, kind, rows)?, rows),
        };
        left -= rows;
        transaction.commit()?;
        *is_excess = has_dropped;
        *stuck = if has_dropped { 0 } else { total + bound / 16 };
    }
    if left == ROWS { relieve(connection, bounds, excess) } else { Ok(()) }
}

const TOTAL: &str = "SELECT amount FROM totals WHERE kind = ?1";

fn total(connection: &Connection, kind: &str) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(TOTAL)?;
    statement.query_row(params![kind], |row| row.get(0))
}

/// If the database as a whole takes more than it may, removes a step of its lists, and then of its URLs. The rest
/// belongs to objects and goes with them.
fn relieve(connection: &mut Connection, bounds: &Bounds, excess: &mut Excess) -> rusqlite::Result<()> {
    let was_excess = std::mem::replace(&mut excess.is_whole, false);
    if size::used(connection)? <= bounds.whole {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    excess.is_whole = listings::drop_some(&transaction, LARGE_BYTES, LARGE_ROWS)?
        || urls::drop_some(&transaction, LARGE_BYTES, LARGE_ROWS)?;
    transaction.commit()?;
    if excess.is_whole && !was_excess {
        tracing::warn!("the index takes too much of cache.max_size; lists and URLs are dropped");
    }
    Ok(())
}

const LARGEST: &str = "SELECT repository FROM shares WHERE kind = ?1 ORDER BY amount DESC";

/// Returns the SQL that deletes the oldest rows of a repository, as many as the second value says, except names with
/// pins.
fn delete_oldest(table: &str) -> String {
    let (key, age) = match table {
        "tags" => ("repository, name, tag, shelf", "checked_at"),
        _ => ("repository, name, digest", "noted_at"),
    };
    format!(
        "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE repository = ?1 AND NOT EXISTS \
            (SELECT 1 FROM pins WHERE pins.repository = {table}.repository AND pins.name = {table}.name) \
         ORDER BY {age} LIMIT ?2)"
    )
}

/// Removes the oldest rows of the repository with the most rows. Names with a pinned image stay. Returns whether any
/// row was removed.
fn drop_rows(transaction: &Transaction<'_>, table: &str, count: usize) -> rusqlite::Result<bool> {
    let delete = delete_oldest(table);
    let mut largest = transaction.prepare_cached(LARGEST)?;
    let mut repositories = largest.query(params![table])?;
    while let Some(row) = repositories.next()? {
        let repository: String = row.get(0)?;
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        if transaction.prepare_cached(&delete)?.execute(params![repository, count])? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::graph::assert_goes_by_indexes;
    use super::super::{Sqlite, TagEntry, TagKey, Timestamp};
    use super::*;
    use crate::index::{ImageName, ObjectEntry, Viewer};
    use crate::oci::{Algorithm, Digest, MediaType};

    fn digest(number: u64) -> Digest {
        Digest::of(Algorithm::Sha256, &number.to_le_bytes())
    }

    fn count(index: &Sqlite, sql: &str) -> u64 {
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
        let index = Sqlite::open(dir.path()).expect("an index");
        index.keep_within(Bounds { names: 1_000, ..Bounds::default() });
        let pin = ImageName {
            repository: "flood".to_owned(),
            name: "pinned".to_owned(),
            reference: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().expect("one"),
        };
        index.set_pin(pin, true).expect("pinned");
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
        let counts = || ["tags", "manifests"].map(|table| count(&index, &format!("SELECT count(*) FROM {table}")));
        let flooded = counts();
        assert!(flooded.iter().all(|count| *count < 1_300), "while it was flooded: {flooded:?}");
        // What was written last goes beyond the bound until the thread has nothing else to do.
        let began = std::time::Instant::now();
        while !counts().iter().all(|count| (900..=1_000).contains(count)) {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", counts());
            index.flush().await.expect("written");
        }
        assert_eq!(count(&index, "SELECT count(*) FROM tags WHERE repository = 'quiet'"), 1);
        assert_eq!(count(&index, "SELECT count(*) FROM manifests WHERE name = 'pinned'"), 1);
        assert_eq!(count(&index, "SELECT count(*) FROM tags WHERE tag = '2999'"), 1);
        assert_eq!(count(&index, "SELECT count(*) FROM tags WHERE tag = '1'"), 0);
    }

    #[test]
    fn what_is_too_much_goes_in_steps_and_none_looks_through_a_table() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Sqlite::open(dir.path()).expect("an index");
        index.apply((0..300).map(|number| tag("r", &number.to_string(), number)));
        let bounds = Bounds { names: 160, ..Bounds::default() };
        let left = index.change_blocking(move |connection| {
            let (mut excess, mut left) = (Excess::default(), Vec::new());
            while left.is_empty() || excess.is_any() {
                keep_within(connection, &bounds, &mut excess)?;
                left.push(total(connection, "tags")?);
            }
            Ok(left)
        });
        let rows = ROWS as u64;
        assert_eq!(left.expect("kept"), [300 - rows, 300 - 2 * rows, 150, 150]);
        for sql in [LARGEST, &delete_oldest("tags"), &delete_oldest("manifests")] {
            assert_goes_by_indexes(&index, sql);
        }
        for sql in [listings::LARGEST, listings::NEXT, urls::OLDEST, TOTAL] {
            assert_goes_by_indexes(&index, sql);
        }
    }

    #[test]
    fn where_all_that_is_left_is_pinned_it_stays_and_is_not_looked_for_again_and_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Sqlite::open(dir.path()).expect("an index");
        index.apply((0..200).map(|number| tag("r", &number.to_string(), number)));
        let bounds = Bounds { names: 160, ..Bounds::default() };
        let excess = index.change_blocking(move |connection| {
            connection.execute("INSERT INTO pins VALUES ('r', 'a', '1')", [])?;
            let mut excess = Excess::default();
            keep_within(connection, &bounds, &mut excess)?;
            assert_eq!(total(connection, "tags")?, 200);
            Ok(excess)
        });
        let excess = excess.expect("kept");
        assert!(!excess.is_any(), "the thread has nothing more to do");
        assert_eq!(excess.stuck, [0, 0, 210, 0]);
    }

    #[tokio::test]
    async fn an_object_is_noted_for_so_many_repositories_and_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Sqlite::open(dir.path()).expect("an index");
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
        let index = Sqlite::open(dir.path()).expect("an index");
        index.write(Write::Object {
            digest: digest(1),
            entry: ObjectEntry { size: 1, media_type: None, stored_at: Timestamp(1), generation: None },
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
        // What goes beyond the bounds goes behind the answer to a flush.
        index.flush().await.expect("written");
        index.flush().await.expect("settled");
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
