//! How the index does with very many objects: the pages of `larder ls` and of the catalog, a purge, and how long others
//! wait for the writing thread meanwhile.
//!
//! `cargo run --release --example index [IMAGES]` (a hundred thousand by default, of ten objects each).

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder::index::{
    ImageOrder, ImageSearch, ObjectEntry, Purge, Scope, Sqlite, TagEntry, TagKey, Timestamp, Viewer, Write,
};
use larder::oci::{Algorithm, Digest, MediaType, Reference};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const REPOSITORIES: u64 = 10;
/// Names in each repository.
const NAMES: u64 = 100;
/// Layers that many images have.
const BASES: u64 = 20;
const PAGE: usize = 500;

fn main() -> Result<()> {
    let images: u64 = std::env::args().nth(1).map_or(Ok(100_000), |count| count.parse())?;
    let dir = tempfile::tempdir()?;
    let began = Instant::now();
    fill(dir.path(), images)?;
    let bytes = std::fs::metadata(dir.path().join("larder.db"))?.len() >> 20;
    println!("{} objects in {bytes} MiB, made in {:.0} s", images * 10 + BASES, began.elapsed().as_secs_f64());
    let index = Sqlite::open(dir.path())?;

    read(&index, images)?;
    let tag = |tag: &str| Ok::<_, Box<dyn Error>>(Reference::Tag(tag.parse()?));
    let (repository, name) = place(1);
    purge(&index, "one tag", &Purge::Reference { repository, name, reference: tag("v1")? })?;
    let (repository, name) = place(2);
    purge(&index, "a name", &Purge::Name { repository, name })?;
    purge(&index, "a repository", &Purge::Repository(place(3).0))?;
    flood(&index, images)?;
    purge(&index, "everything", &Purge::All)?;
    Ok(())
}

fn read(index: &Sqlite, images: u64) -> Result<()> {
    let middle = {
        let (repository, name) = place(images / 2);
        format!("{repository}/{name}")
    };
    for (which, last) in [("first", ""), ("middle", &middle)] {
        let began = Instant::now();
        let found = index.images(&format!("{last}:"), PAGE)?.images.len();
        println!("{which} page of ls: {found} images in {:.1} ms", millis(began));
    }
    let searches = [
        ("a part of few", "v99", ImageOrder::Reference),
        ("a part of none", "nothing has this", ImageOrder::Reference),
        ("the beginning of a digest", "0123456789ab", ImageOrder::Reference),
        ("the last used", "", ImageOrder::LastUse),
        ("the last used of few", "app-77:", ImageOrder::LastUse),
        ("the largest", "", ImageOrder::Size),
    ];
    for (which, text, order) in searches {
        let search = ImageSearch { text: text.to_owned(), order, last: String::new(), count: 100 };
        let began = Instant::now();
        let found = index.find_images(&search)?;
        let whole = if found.next.is_none() { "" } else { ", of a part" };
        println!("a search for {which}: {} images in {:.1} ms{whole}", found.images.len(), millis(began));
    }
    let repositories: Vec<_> = (0..REPOSITORIES).map(repository).collect();
    for (which, last) in [("first", ""), ("middle", &middle)] {
        let began = Instant::now();
        let found = index.catalog(&repositories, last, PAGE + 1)?.len();
        println!("{which} page of the catalog: {found} names in {:.1} ms", millis(began));
    }
    Ok(())
}

/// Purges, and tells how long it took and how long a write of somebody else waited at most.
fn purge(index: &Sqlite, what: &str, purge: &Purge) -> Result<()> {
    let began = Instant::now();
    let mut objects = 0;
    let longest = watched(index, || Ok(index.purge(purge, |purged| objects += purged.objects)?))?;
    println!("purge of {what}: {objects} objects in {:.1} ms, longest step {longest:.1} ms", millis(began));
    Ok(())
}

/// As many tags as make the oldest go, some times over.
fn flood(index: &Sqlite, images: u64) -> Result<()> {
    index.keep_within(larder::index::Bounds { names: images / 2, ..Default::default() });
    let began = Instant::now();
    let longest = watched(index, || {
        for number in 0..images / 2 {
            let key = TagKey {
                repository: repository(number % REPOSITORIES),
                shelf: String::new(),
                name: "flood".to_owned(),
                tag: format!("t{number}"),
            };
            let digest = digest(number, 0);
            let entry = TagEntry { digest, media_type: MediaType::new("m"), size: 1, checked_at: Timestamp::now() };
            index.apply([Write::Tag { key, entry }]);
            if number % 100 == 0 {
                index.flush_blocking()?;
            }
        }
        Ok(())
    })?;
    println!("a flood of {} tags: {:.1} ms, longest step {longest:.1} ms", images / 2, millis(began));
    Ok(())
}

/// The longest wait, in milliseconds, of a write while `work` is done.
fn watched(index: &Sqlite, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut longest = 0.0_f64;
            while !is_done.load(Ordering::Relaxed) {
                let began = Instant::now();
                index.write(Write::Used { digest: digest(0, 0), at: Timestamp::now() });
                if index.flush_blocking().is_err() {
                    break;
                }
                longest = longest.max(millis(began));
                std::thread::sleep(Duration::from_micros(100));
            }
            longest
        });
        let result = work();
        is_done.store(true, Ordering::Relaxed);
        let longest = watch.join().map_err(|_| "the watching thread panicked")?;
        result.map(|()| longest)
    })
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn repository(number: u64) -> String {
    format!("registry-{number}.example")
}

/// Repository and name of an image.
fn place(image: u64) -> (String, String) {
    (repository(image % REPOSITORIES), format!("team/app-{}", image / REPOSITORIES % NAMES))
}

fn digest(image: u64, part: u64) -> Digest {
    Digest::of(Algorithm::Sha256, &[image.to_le_bytes(), part.to_le_bytes()].concat())
}

/// Images of an index, two manifests, and of each a configuration, layers of its own and one that many have.
fn fill(dir: &Path, images: u64) -> Result<()> {
    let index = Sqlite::open(dir)?;
    for image in 0..images {
        let (repository, name) = place(image);
        let viewer = Viewer { repository: repository.clone(), scope: Scope::Own };
        let base = digest(u64::MAX, image % BASES);
        let part = |part: u64| digest(image, part);
        let at = Timestamp(i64::try_from(image)?);
        for (number, object) in (0..10).map(part).chain([base]).enumerate() {
            let media_type = (number < 3).then(|| MediaType::new("m"));
            let entry = ObjectEntry { size: 1_000, media_type, stored_at: at, generation: None };
            index.apply([
                Write::Object { digest: object, entry },
                Write::Visible { viewer: viewer.clone(), digest: object },
            ]);
        }
        let edges = [(0, vec![part(1), part(2)]), (1, vec![part(3), part(5), part(6), base])];
        let edges = edges.into_iter().chain([(2, vec![part(4), part(7), part(8), part(9), base])]);
        index.apply(edges.map(|(parent, children)| Write::Edges { parent: part(parent), children }));
        let manifest =
            |number| Write::Manifest { repository: repository.clone(), name: name.clone(), digest: part(number), at };
        index.apply([manifest(0), manifest(1), manifest(2)]);
        let tag = format!("v{}", image / REPOSITORIES / NAMES);
        let key = TagKey { repository: repository.clone(), shelf: String::new(), name: name.clone(), tag };
        let entry = TagEntry { digest: part(0), media_type: MediaType::new("m"), size: 1, checked_at: at };
        index.apply([Write::Tag { key, entry }]);
    }
    Ok(index.flush_blocking()?)
}
