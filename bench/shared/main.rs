//! What an index in PostgreSQL costs that replicas share: what each replica that is alive costs the server, what each pull
//! costs it, and what a million objects take. `bench/shared/run` starts a server and this.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::config::Config;
use larder::index::{
    Index, Mark, ObjectEntry, PostgresIndex, Replica, Scope, TagEntry, TagKey, Timestamp, Viewer, Write,
};
use larder::oci::{Algorithm, Digest, MediaType};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What replicas do of their own accord: as `src/cluster/members.rs` and `src/cache/elsewhere.rs` have it.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: usize = 3;
const ALIVE: Duration = Duration::from_secs(10);
/// How long each number of replicas is measured.
const TIME: usize = 9;
/// Handles of the index: each has a few connections.
const HANDLES: usize = 4;
/// Objects of an image: a manifest, a configuration, layers.
const PARTS: u64 = 10;
const READS: u64 = 100_000;
const AT_ONCE: u64 = 32;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (url, server) = (arguments.next().ok_or("no URL")?, arguments.next().ok_or("no process")?);
    let images: u64 = arguments.next().map_or(Ok(100_000), |count| count.parse())?;
    let server = Server(server.parse()?);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("larder.toml");
    fs::write(&file, format!("[index]\nurl = \"{url}\"\n[cache]\ndir = \"{}\"\n", dir.path().display()))?;
    let config = Config::load(&[file], std::iter::empty())?;
    let config = config.index.ok_or("no server")?;
    let open = |name: String| PostgresIndex::start(&config, name, None).map(Arc::new);
    let indexes = (0..HANDLES).map(|at| open(format!("store-{at}"))).collect::<std::result::Result<Vec<_>, _>>()?;
    for index in &indexes {
        index.check().await?;
    }
    let idle = server.cpu()?;
    tokio::time::sleep(5 * LOOK).await;
    println!("{HANDLES} Larders that do nothing: {:.1} ms of CPU a second", (server.cpu()? - idle) / 5.0);
    for replicas in [3, 10, 30, 100, 300, 1_000] {
        alive(&server, &indexes, replicas).await?;
    }
    pulls(&server, &indexes[0], images).await?;
    reads(&server, &indexes[1], images).await
}

/// As many replicas say that they are alive and hear which others are.
async fn alive(server: &Server, indexes: &[Arc<PostgresIndex>], replicas: usize) -> Result<()> {
    let (before, begun) = (server.cpu()?, Instant::now());
    let all = (0..replicas).map(|at| tokio::spawn(replica(indexes[at % indexes.len()].clone(), at)));
    let mut longest = Duration::ZERO;
    for replica in futures_util::future::join_all(all).await {
        longest = longest.max(replica??);
    }
    let cpu = (server.cpu()? - before) / begun.elapsed().as_secs_f64();
    let each = cpu / replicas as f64;
    println!("{replicas} replicas: {cpu:.1} ms of CPU a second, {each:.2} each; the longest look took {longest:.0?}");
    Ok(())
}

/// Returns how long its longest look took.
async fn replica(index: Arc<PostgresIndex>, at: usize) -> Result<Duration> {
    let me = Replica { address: format!("http://10.{}.{}.1:17082", at / 250, at % 250), epoch: 1 };
    let (mut mark, mut longest) = (None::<Mark>, Duration::ZERO);
    // They do not begin together.
    tokio::time::sleep(LOOK.mul_f64(at as f64 / 1_000.0)).await;
    let mut looks = tokio::time::interval(LOOK);
    for look in 0..TIME {
        looks.tick().await;
        let begun = Instant::now();
        if look % LOOKS == 0 {
            index.announce(&me, ALIVE).await?;
        }
        index.replicas().await?;
        mark = Some(index.changes(mark).await?.1);
        longest = longest.max(begun.elapsed());
    }
    index.announce(&me, Duration::ZERO).await?;
    Ok(longest)
}

/// Notes what pulls of new images bring.
async fn pulls(server: &Server, index: &PostgresIndex, images: u64) -> Result<()> {
    let (before, begun, empty) = (server.cpu()?, Instant::now(), index.bytes().await?);
    for image in 0..images {
        index.apply(writes(image)?).await?;
    }
    index.flush().await?;
    let (cpu, time) = (server.cpu()? - before, begun.elapsed().as_secs_f64());
    let objects = (images * PARTS) as f64;
    // The size is looked at once a minute.
    tokio::time::sleep(Duration::from_secs(62)).await;
    let bytes = index.bytes().await?.saturating_sub(empty) as f64;
    println!(
        "{objects} objects of {images} new images: {:.0} a second, {:.0} µs of CPU each; {:.0} MiB for a million",
        objects / time,
        1_000.0 * cpu / objects,
        bytes / objects * 1e6 / f64::from(1 << 20)
    );
    Ok(())
}

/// Asks for objects, as a hit that is in no memory does.
async fn reads(server: &Server, index: &Arc<PostgresIndex>, images: u64) -> Result<()> {
    let (before, begun) = (server.cpu()?, Instant::now());
    let readers = (0..AT_ONCE).map(|reader| {
        let index = index.clone();
        tokio::spawn(async move {
            for read in 0..READS / AT_ONCE {
                index.object(&digest((reader * 7_919 + read * 104_729) % images, read % PARTS)).await?;
            }
            Ok::<_, larder::index::IndexError>(())
        })
    });
    for reader in futures_util::future::join_all(readers).await {
        reader??;
    }
    let time = begun.elapsed().as_secs_f64();
    let each = 1_000.0 * (server.cpu()? - before) / READS as f64;
    println!("reads of an object: {:.0} a second, {each:.0} µs of CPU each", READS as f64 / time);
    Ok(())
}

fn digest(image: u64, part: u64) -> Digest {
    Digest::of(Algorithm::Sha256, &[image.to_le_bytes(), part.to_le_bytes()].concat())
}

fn writes(image: u64) -> Result<Vec<Write>> {
    let (repository, name) = ("registry.example".to_owned(), format!("team/app-{}", image % 1_000));
    let (viewer, at) = (Viewer { repository: repository.clone(), scope: Scope::Own }, Timestamp(i64::try_from(image)?));
    let mut writes = Vec::new();
    for part in 0..PARTS {
        let media_type = (part == 0).then(|| MediaType::new("application/vnd.oci.image.manifest.v1+json"));
        let entry = ObjectEntry { size: 1_000_000, media_type, stored_at: at, generation: None };
        writes.push(Write::Object { digest: digest(image, part), entry });
        writes.push(Write::Visible { viewer: viewer.clone(), digest: digest(image, part) });
    }
    let children = (1..PARTS).map(|part| digest(image, part)).collect();
    writes.push(Write::Edges { parent: digest(image, 0), children });
    let manifest = Write::Manifest { repository: repository.clone(), name: name.clone(), digest: digest(image, 0), at };
    writes.push(manifest);
    let media_type = MediaType::new("application/vnd.oci.image.manifest.v1+json");
    let entry = TagEntry { digest: digest(image, 0), media_type, size: 1_000, checked_at: at };
    let key = TagKey { repository, shelf: String::new(), name, tag: format!("v{image}") };
    writes.push(Write::Tag { key, entry });
    Ok(writes)
}

/// The first process of a PostgreSQL server.
struct Server(u32);

impl Server {
    /// Returns the CPU time of its processes so far, in milliseconds; those that have ended count as long as it is there.
    fn cpu(&self) -> Result<f64> {
        let mut ticks = 0.0;
        for entry in fs::read_dir("/proc")?.flatten() {
            let path: PathBuf = entry.path().join("stat");
            let Ok(text) = fs::read_to_string(path) else {
                continue;
            };
            let Some((start, rest)) = text.rsplit_once(") ") else {
                continue;
            };
            let fields: Vec<&str> = rest.split(' ').collect();
            let is_first = start.split(' ').next() == Some(self.0.to_string().as_str());
            if is_first || fields.get(1) == Some(&self.0.to_string().as_str()) {
                // utime, stime; of the first one also those of its children that have ended.
                let last = if is_first { 15 } else { 13 };
                for field in &fields[11..last] {
                    ticks += field.parse::<f64>()?;
                }
            }
        }
        Ok(ticks * 10.0)
    }
}
