use proptest::prelude::*;

use super::super::graph::{self, assert_goes_by_indexes, graphs, plan};
use super::*;
use crate::index::{TagEntry, Timestamp, Viewer, Write};
use crate::oci::MediaType;

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
    graph::rows(connection, sql)
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_search_finds_what_is_in_the_list_of_all(
        (graph, text, count) in
            (graphs(), "[ar:@/-]{0,2}|x/b|v-2|s:1/a|0{6,9}|0[1-9]0[1-9]{3}|(01){3,4}|sha256:010101|@sha256:0", 1..9_usize)
    ) {
        let (_dir, index) = graph.written();
        let all = index.images("", 1_000).expect("read").images;
        let is_found = |image: &&Image| {
            let reference = image.reference.to_lowercase();
            let Some((path, digest)) = reference.split_once('@') else { return reference.contains(&text) };
            // Only a text that names a manifest as a reference does is looked for in all of that.
            let digits = text.strip_prefix("sha256:").unwrap_or(&text);
            let is_beginning = digits.len() >= 6 && digest.split_once(':').is_some_and(|(_, all)| all.starts_with(digits));
            path.contains(&text) || is_beginning || (text.contains('@') && reference.contains(&text))
        };
        let expected: Vec<_> = all.iter().filter(is_found).cloned().collect();
        let search = |order, count| ImageSearch { text: text.clone(), order, last: String::new(), count };
        prop_assert_eq!(&index.find_images(&search(ImageOrder::Reference, 1_000)).expect("read").images, &expected);

        // Page by page. Images of two repositories may have the same reference, and are on one page or the second is lost.
        let references = |images: &[Image]| {
            let mut references: Vec<_> = images.iter().map(|image| image.reference.clone()).collect();
            references.dedup();
            references
        };
        let (mut paged, mut last) = (Vec::new(), Some(String::new()));
        while let Some(begin) = last {
            let page = index.find_images(&ImageSearch { last: begin, ..search(ImageOrder::Reference, count) });
            let page = page.expect("read");
            paged.extend(page.images);
            last = page.next;
        }
        prop_assert_eq!(references(&paged), references(&expected));

        let used = index.find_images(&search(ImageOrder::LastUse, count)).expect("read");
        prop_assert_eq!(used.next, None);
        prop_assert_eq!(used.images.len(), count.min(expected.len()));
        prop_assert!(used.images.is_sorted_by_key(|image| std::cmp::Reverse(image.last_use)));
        prop_assert!(used.images.iter().all(|image| expected.contains(image)));
        let least = used.images.last().map_or(Timestamp(0), |image| image.last_use);
        let before = expected.iter().filter(|image| image.last_use > least).count();
        prop_assert!(before <= used.images.len(), "no image that was used later is left out");
    }
}

#[test]
fn a_page_of_images_is_read_in_order_and_looks_through_no_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = Sqlite::open(dir.path()).expect("an index");
    for sql in [rows::TAGS, rows::MANIFESTS, rows::MANIFESTS_WITH, rows::MANIFESTS_BETWEEN, rows::MANIFESTS_LIKE] {
        assert_goes_by_indexes(&index, sql);
    }
    for sql in [rows::TAGS_OF, rows::TAGS_NAMED, rows::MANIFESTS_OF] {
        assert_goes_by_indexes(&index, sql);
    }
    for (sql, index_name) in [(rows::TAGS_WITH, "COVERING INDEX tags_by_reference"), (USED_LAST, "objects_by_use")] {
        let plan = plan(&index, sql);
        assert!(plan[0].contains(index_name) || plan[1].contains(index_name), "{plan:?}");
        assert!(!plan.iter().any(|line| line.contains("TEMP B-TREE")), "{plan:?}");
    }
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
            entry: super::super::ObjectEntry { size: 1, media_type: None, stored_at: Timestamp(1), generation: None },
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
                generation: None,
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
    let entry = super::super::ObjectEntry {
        size: 1,
        media_type: Some(MediaType::new("m")),
        stored_at: Timestamp(1),
        generation: None,
    };
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
