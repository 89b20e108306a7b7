//! Which names have which manifests, as their upstreams have said.

use rusqlite::{OptionalExtension, Transaction, params};

use super::{IndexError, Sqlite, Timestamp};
use crate::oci::Digest;

/// A name that is noted again is written again only after this time, in milliseconds.
pub(super) const RESOLUTION: i64 = 24 * 3_600_000;

impl Sqlite {
    /// Returns whether the upstream of `repository` is known to have the manifest under this name: the upstream said
    /// so, or a tag of the name leads to the manifest, or a manifest of the name does. Blocks.
    pub fn knows_name(&self, repository: &str, name: &str, digest: &Digest) -> Result<bool, IndexError> {
        const SQL: &str = "WITH wanted(digest) AS (SELECT ?3 UNION ALL SELECT parent FROM edges WHERE child = ?3) \
            SELECT 1 FROM wanted WHERE \
            EXISTS (SELECT 1 FROM manifests WHERE repository = ?1 AND name = ?2 AND digest = wanted.digest) \
            OR EXISTS (SELECT 1 FROM tags WHERE digest = wanted.digest AND repository = ?1 AND name = ?2)";
        self.read(|connection| connection.prepare_cached(SQL)?.exists(params![repository, name, digest.as_raw()]))
    }

    /// Returns for each of these objects one of its names for people, as far as they are known. Blocks.
    pub fn names(&self, objects: &[Digest]) -> Result<Vec<String>, IndexError> {
        // Very many manifests may share a layer; a few are enough to find a name.
        const SQL: &str = "WITH above(digest) AS (SELECT ?1 UNION ALL \
                SELECT parent FROM (SELECT parent FROM edges WHERE child = ?1 LIMIT 8)) \
            SELECT repository || '/' || name || ':' || tag FROM tags WHERE digest IN (SELECT digest FROM above) \
            UNION ALL SELECT repository || '/' || name FROM manifests WHERE digest IN (SELECT digest FROM above) LIMIT 1";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let name = |object: &Digest| statement.query_row(params![object.as_raw()], |row| row.get(0)).optional();
            objects.iter().map(name).filter_map(rusqlite::Result::transpose).collect()
        })
    }
}

/// Notes that the upstream has a manifest under a name.
pub(super) fn put(
    transaction: &Transaction<'_>,
    repository: &str,
    name: &str,
    digest: &Digest,
    at: Timestamp,
) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO manifests (repository, name, digest, noted_at, is_listed) \
        VALUES (?1, ?2, ?3, ?4, EXISTS (SELECT 1 FROM visibility \
            WHERE repository = ?1 AND scope IN (0, 2) AND digest = ?3)) \
        ON CONFLICT (repository, name, digest) DO UPDATE SET noted_at = ?4 WHERE noted_at < ?4 - ?5";
    transaction.prepare_cached(SQL)?.execute(params![repository, name, digest.as_raw(), at.0, RESOLUTION]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::Write;
    use super::*;
    use crate::index::{TagEntry, TagKey};
    use crate::oci::MediaType;

    #[tokio::test]
    async fn a_name_has_what_its_tags_and_its_manifests_lead_to() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Sqlite::open(dir.path()).expect("an index");
        let [image_index, image, other] = [1, 2, 3].map(|byte| Digest::Sha256([byte; 32]));
        let key =
            TagKey { repository: "r".to_owned(), name: "a".to_owned(), tag: "1".to_owned(), shelf: String::new() };
        let entry =
            TagEntry { digest: image_index, media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
        index.write(Write::Tag { key, entry });
        index.write(Write::Edges { parent: image_index, children: vec![image] });
        let (repository, name) = ("r".to_owned(), "b".to_owned());
        index.write(Write::Manifest { repository, name, digest: other, at: Timestamp(1) });
        index.flush().await.expect("written");
        let knows = |repository: &str, name: &str, digest| index.knows_name(repository, name, &digest).expect("read");
        assert!(knows("r", "a", image_index) && knows("r", "a", image) && knows("r", "b", other));
        let names = index.names(&[image_index, image, other, Digest::Sha256([9; 32])]).expect("read");
        assert_eq!(names, ["r/a:1", "r/a:1", "r/b"]);
        assert!(!knows("r", "a", other) && !knows("r", "b", image) && !knows("elsewhere", "a", image));
    }
}
