use super::*;

/// Notes what it is given.
#[derive(Default)]
struct Noted {
    members: Vec<(Member, u64, Option<Digest>)>,
    length: u64,
}

impl Take for Noted {
    fn begin(&mut self, _: Member, _: u64) -> Result<(), LayoutError> {
        self.length = 0;
        Ok(())
    }

    fn bytes(&mut self, bytes: Bytes) -> Result<(), LayoutError> {
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self, member: Member, found: Option<Digest>) -> Result<(), LayoutError> {
        self.members.push((member, self.length, found));
        Ok(())
    }
}

fn taken(archive: &[u8]) -> Result<Vec<(Member, u64, Option<Digest>)>, String> {
    let mut noted = Noted::default();
    read(archive, &mut noted).map(|()| noted.members).map_err(|error| error.to_string())
}

fn file(path: &str, bytes: &[u8]) -> Vec<u8> {
    let size = bytes.len() as u64;
    [&header(path, size).expect("a header"), bytes, &filling(size)].concat()
}

fn archive(files: &[Vec<u8>]) -> Vec<u8> {
    [files.concat(), end().to_vec()].concat()
}

/// A header with a path and a type as they are, which the library would not write.
fn raw(path: &str, kind: EntryType, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn what_is_written_is_read_with_long_names_and_empty_files_too() {
    let long = Digest::of(Algorithm::Sha512, b"long");
    let empty = Digest::of(Algorithm::Sha256, b"");
    let bytes = archive(&[file(MARKER, b"{}"), file(&path_of(&long), b"long"), file(&path_of(&empty), b"")]);
    let members = taken(&bytes).expect("read");
    assert_eq!(
        members,
        [(Member::Marker, 2, None), (Member::Blob(long), 4, Some(long)), (Member::Blob(empty), 0, Some(empty))]
    );
    // As `tar -C DIR -cf FILE .` writes it, and what is not a part of a layout.
    let bytes = archive(&[raw("./", EntryType::Directory, 0), file("./index.json", b"{}"), file("README", b"x")]);
    assert_eq!(taken(&bytes).expect("read"), [(Member::Index, 2, None)]);
}

#[test]
fn hostile_archives_are_refused_with_the_reason() {
    let digest = path_of(&Digest::of(Algorithm::Sha256, b"x"));
    let bomb = {
        // A name of 1 GiB.
        let mut bytes = raw("././@LongLink", EntryType::GNULongName, 1 << 30);
        bytes.extend(vec![b'a'; 4 << 20]);
        bytes
    };
    for (bytes, why) in [
        (archive(&[raw("/etc/passwd", EntryType::Regular, 0)]), "leads out"),
        (archive(&[raw("blobs/../../x", EntryType::Regular, 0)]), "leads out"),
        (archive(&[raw("..", EntryType::Directory, 0)]), "leads out"),
        (archive(&[raw(&digest, EntryType::Symlink, 0)]), "a link"),
        (archive(&[raw(&digest, EntryType::Link, 0)]), "a link"),
        (archive(&[raw(&digest, EntryType::Char, 0)]), "neither a file"),
        (archive(&[raw(&digest, EntryType::Fifo, 0)]), "neither a file"),
        (archive(&[file(&digest, b"x"), file(&format!("./{digest}"), b"x")]), "twice"),
        (archive(&[file("blobs/sha256/abc", b"x")]), "no digest"),
        (archive(&[raw(INDEX, EntryType::Regular, 65 << 20)]), "larger than 64 MiB"),
        (bomb, "larger than 1 MiB"),
        (file(&digest, b"x"), "cut off"),
        (raw(&digest, EntryType::Regular, 1 << 40), "cut off"),
        (archive(&[file(MARKER, b"{}"), raw("other", EntryType::Regular, 1 << 30)]), "cut off"),
        (archive(&[file(MARKER, b"{}"), raw("././@LongLink", EntryType::GNULongName, 1 << 33)]), "cut off"),
        (archive(&[file(&digest, &[b'x'; 4000])])[..2000].to_vec(), "cut off"),
        (b"\x1f\x8b\x08 gzip".to_vec(), "no tar file"),
        (vec![7; 4096], "no tar file"),
        (Vec::new(), "cut off"),
    ] {
        let said = taken(&bytes).expect_err(why);
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn a_flipped_byte_is_another_digest() {
    let digest = Digest::of(Algorithm::Sha256, b"right");
    let members = taken(&archive(&[file(&path_of(&digest), b"wrong")])).expect("read");
    assert_eq!(members[0].2, Some(Digest::of(Algorithm::Sha256, b"wrong")));
}

proptest::proptest! {
    /// Whatever is read: an answer, and no panic.
    #[test]
    fn any_bytes_have_an_answer(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000),
        at in 0..2048_usize,
    ) {
        let _ = taken(&bytes);
        let mut archive = archive(&[file(MARKER, b"{}"), file(INDEX, &[b' '; 700])]);
        for (at, byte) in (at..).zip(bytes.iter().take(3)) {
            archive[at] = *byte;
        }
        let _ = taken(&archive);
    }
}
