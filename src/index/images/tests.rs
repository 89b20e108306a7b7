use proptest::prelude::*;

use super::super::graph::{assert_goes_by_indexes, graphs, rows};
use super::*;
use crate::index::{TagEntry, Viewer, Write};

/// Returns the references of all images by their plain definition, which looks at everything.
fn defined(connection: &Connection) -> Vec<String> {
    let sql = "
        SELECT repository || '/' || name || reference, digest, checked_at FROM (
            SELECT repository, name, ':' || tag AS reference, digest, max(checked_at) AS checked_at
            FROM tags JOIN objects USING (digest) GROUP BY repository, name, tag
            UNION ALL
            SELECT repository, name,
                CASE length(digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || lower(hex(digest)), digest, NULL
            FROM manifests JOIN objects USING (digest)
            WHERE NOT EXISTS (SELECT 1 FROM tags WHERE tags.digest = manifests.digest
                    AND tags.repository = manifests.repository AND tags.name = manifests.name)
                AND NOT EXISTS (SELECT 1 FROM edges JOIN objects AS above ON above.digest = edges.parent
                    WHERE edges.child = manifests.digest))
        ORDER BY repository || '/' || name || reference";
    rows(connection, sql)
}

fn shown(image: &Image) -> [String; 2] {
    [image.reference.clone(), image.checked_at.map_or_else(String::new, |at| at.0.to_string())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn pages_of_images_are_what_their_plain_definition_lists((graph, count) in (graphs(), 1..4_usize)) {
        let (_dir, index) = graph.written();
        let expected = index.read(|connection| Ok(defined(connection))).expect("read");
        let all = index.images("", 1_000).expect("read");
        prop_assert_eq!(all.next, None);
        prop_assert_eq!(all.images.len(), expected.len());
        for (image, row) in all.images.iter().zip(&expected) {
            let [reference, checked_at] = shown(image);
            prop_assert!(row.contains(&checked_at), "{} {}", row, checked_at);
            let stored = |digest: &Digest| index.object(digest).expect("read").is_some();
            let below = index.below(vec![image.digest]).expect("read").into_iter().filter(stored).count() as u64;
            prop_assert_eq!((image.objects, image.bytes), (below, 10 * below));
            prop_assert_eq!(&format!("{}/{}", image.repository, image.name), reference.split_once(['@']).map_or_else(
                || reference.rsplit_once(':').expect("a tag").0, |(path, _)| path));
        }
        // Images of two repositories may have the same reference. They are on one page, or the second is lost: so each
        // reference is compared once.
        let mut references: Vec<_> = all.images.iter().map(|image| image.reference.clone()).collect();
        prop_assert!(references.is_sorted());
        references.dedup();
        let (mut paged, mut last) = (Vec::new(), Some(String::new()));
        while let Some(begin) = last {
            let page = index.images(&begin, count).expect("read");
            prop_assert!(page.images.len() <= count);
            paged.extend(page.images.into_iter().map(|image| image.reference));
            last = page.next;
        }
        paged.dedup();
        prop_assert_eq!(paged, references);
    }
}

#[test]
fn a_page_of_images_is_read_in_order_and_looks_through_no_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = Sqlite::open(dir.path()).expect("an index");
    assert_goes_by_indexes(&index, TAGS);
    assert_goes_by_indexes(&index, MANIFESTS);
}

#[test]
fn a_page_ends_where_much_was_looked_at_and_little_of_it_is_an_image() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = Sqlite::open(dir.path()).expect("an index");
    // Tags whose manifests are not stored, and one tag whose manifest is.
    let digest = Digest::Sha256([1; 32]);
    let key = |tag: &str| TagKey {
        repository: "r".to_owned(),
        shelf: String::new(),
        name: "a".to_owned(),
        tag: tag.to_owned(),
    };
    let entry = |digest| TagEntry { digest, media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
    for number in 0..20 {
        index.apply([Write::Tag { key: key(&format!("t{number:02}")), entry: entry(Digest::Sha256([2; 32])) }]);
    }
    index.apply([
        Write::Object {
            digest,
            entry: super::super::ObjectEntry { size: 1, media_type: None, stored_at: Timestamp(1) },
        },
        Write::Visible { viewer: Viewer::own("r"), digest },
        Write::Tag { key: key("t99"), entry: entry(digest) },
    ]);
    index.flush_blocking_here();
    let page = index.images_within("", "", 100, 5).expect("read");
    assert_eq!((page.images, page.next.as_deref()), (Vec::new(), Some("r/a:t05")));
    let page = index.images_within("r/a:t18", "", 100, 5).expect("read");
    assert_eq!((page.images.len(), page.next), (1, None));
}
