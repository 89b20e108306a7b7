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

/// Makes an index of images `r/aK:1`, each with two layers of which the second is missing for odd `K`.
fn some_images(count: u8) -> (tempfile::TempDir, Sqlite) {
    let dir = tempfile::tempdir().expect("a directory");
    let index = Sqlite::open(dir.path()).expect("an index");
    let digest = |kind: u8, number: u8| Digest::Sha256([kind ^ (number << 2); 32]);
    for number in 0..count {
        let (manifest, layers) = (digest(0, number), [digest(1, number), digest(2, number)]);
        let object = |digest, size, media_type: Option<&str>| Write::Object {
            digest,
            entry: super::super::ObjectEntry {
                size,
                media_type: media_type.map(MediaType::new),
                stored_at: Timestamp(1),
            },
        };
        let key = TagKey {
            repository: "r".to_owned(),
            shelf: String::new(),
            name: format!("a{number}"),
            tag: "Tag".to_owned(),
        };
        let entry = TagEntry { digest: manifest, media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
        index.apply([
            object(manifest, 1, Some("m")),
            object(layers[0], u64::from(number), None),
            Write::Edges { parent: manifest, children: layers.to_vec() },
            Write::Tag { key, entry },
            Write::Used { digest: manifest, at: Timestamp(i64::from(count - number)) },
        ]);
        if number % 2 == 0 {
            index.apply([object(layers[1], 0, None)]);
        }
    }
    index.flush_blocking_here();
    (dir, index)
}

fn names(index: &Sqlite, search: &ImageSearch) -> Vec<String> {
    let page = index.find_images(search).expect("read");
    page.images.into_iter().map(|image| image.name).collect()
}

#[test]
fn images_are_found_by_a_part_of_the_reference_and_in_the_order_that_is_asked_for() {
    let (_dir, index) = some_images(5);
    let all = |text: &str, order| ImageSearch { text: text.to_owned(), order, last: String::new(), count: 3 };
    assert_eq!(names(&index, &all("", ImageOrder::Reference)), ["a0", "a1", "a2"]);
    assert_eq!(names(&index, &all("/a3:tag", ImageOrder::Reference)), ["a3"], "in any case of letters");
    assert_eq!(names(&index, &all("%", ImageOrder::Reference)), [""; 0], "no pattern");
    assert_eq!(names(&index, &all("", ImageOrder::Size)), ["a4", "a3", "a2"]);
    assert_eq!(names(&index, &all("", ImageOrder::LastUse)), ["a0", "a1", "a2"], "the last used first");
    let behind = ImageSearch { last: "r/a2:Tag".to_owned(), ..all("tag", ImageOrder::Reference) };
    assert_eq!(names(&index, &behind), ["a3", "a4"]);
    // Where not all were looked at, it is said.
    assert_eq!(index.find_images(&all("", ImageOrder::Size)).expect("read").next, None);
    assert!(index.used_last("", 3, 2).expect("read").next.is_some());
}

#[test]
fn how_much_of_an_image_is_there_is_counted() {
    let (_dir, index) = some_images(2);
    let images = index.images("", 10).expect("read").images;
    let there = images.iter().map(|image| (image.objects, image.missing, image.children));
    assert_eq!(there.collect::<Vec<_>>(), [(3, 0, None), (2, 1, None)]);

    // An index of both, and of a platform that nobody pulled.
    let (whole, part) = (images[0].digest, images[1].digest);
    let (above, absent) = (Digest::Sha256([98; 32]), Digest::Sha256([99; 32]));
    let entry = super::super::ObjectEntry { size: 1, media_type: Some(MediaType::new("m")), stored_at: Timestamp(1) };
    index.apply([
        Write::Object { digest: above, entry },
        Write::Edges { parent: above, children: vec![whole, part, absent] },
        Write::Tag {
            key: TagKey {
                repository: "q".to_owned(),
                shelf: String::new(),
                name: "many".to_owned(),
                tag: "1".to_owned(),
            },
            entry: TagEntry { digest: above, media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) },
        },
    ]);
    index.flush_blocking_here();
    let many = &index.images("", 1).expect("read").images[0];
    assert_eq!((many.objects, many.missing, many.children), (6, 2, Some((1, 3))));
    let stored = index.stored_of(&[whole, absent]).expect("read");
    assert_eq!(stored, HashSet::from([whole]));
}
