//! How Larder does with very many objects: time to start, memory for each, what a hit writes to the
//! index, and how long it takes to choose what to evict.
//!
//! `cargo run --release --example scale [OBJECTS]` (a million by default; each takes a block of disk
//! below the temporary directory). It runs `target/release/larder`.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use larder::index::{ObjectEntry, Sqlite, Timestamp, Viewer, Write};
use larder::oci::{Algorithm, Digest};
use larder::store::Disk;
use larder::upkeep::evict::Evictor;
use larder::work::Pool;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HITS: u64 = 100_000;
const EVICTED: u64 = 20_000;

fn main() -> Result<()> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |count| count.parse())?;
    choosing_victims();

    let dir = tempfile::tempdir()?;
    let cache = dir.path().join("cache");
    let began = Instant::now();
    fill(&cache, count)?;
    println!("{count} objects made in {:.0} s", began.elapsed().as_secs_f64());

    let empty = dir.path().join("empty");
    let (server, _) = Server::start(&empty, "none")?;
    let memory_of_none = server.anonymous_memory()?;
    drop(server);

    let (server, started) = Server::start(&cache, "none")?;
    println!("start to the first answer: {:.3} s", started.as_secs_f64());
    let loaded = server.wait_for("objects", |objects| objects == count)?;
    println!("all objects known after:   {:.3} s", loaded.as_secs_f64());
    // The comparison with the files has ended when the index has nothing more to write.
    settle(&cache)?;
    let each = (server.anonymous_memory()? - memory_of_none) as f64 / count as f64;
    println!("memory for each object:    {each:.0} bytes");

    // Warm first: a use is written down when the one before is older than a minute.
    let some = (0..HITS).map(|at| at * (count / HITS).max(1) % count);
    let some: Vec<_> = some.map(digest).collect();
    server.hits(&some)?;
    let before = settle(&cache)?;
    let began = Instant::now();
    server.hits(&some)?;
    let rate = HITS as f64 / began.elapsed().as_secs_f64();
    let written = if settle(&cache)? == before { "nothing" } else { "something (wrong!)" };
    println!("{HITS} hits, one connection: {rate:.0}/s; written to the index: {written}");
    drop(server);

    // As many objects as a limit a little below what is there makes go.
    let limit = (count - EVICTED.min(count / 2)) * CONTENT as u64;
    let (server, _) = Server::start(&cache, &limit.to_string())?;
    let took = server.wait_for("evictions", |evictions| evictions >= EVICTED.min(count / 2))?;
    let evictions = server.stat("evictions")?;
    println!("{evictions} objects evicted within {:.2} s of the start", took.as_secs_f64());
    Ok(())
}

/// How long one choice takes, by how many objects there are.
fn choosing_victims() {
    for count in [1_000u64, 10_000, 100_000, 1_000_000] {
        let mut evictor = Evictor::new(1);
        (0..count).for_each(|at| evictor.insert(digest(at), 1, at as u32, 0, false));
        let began = Instant::now();
        let picked = (0..1_000).map(|_| evictor.make_room(1, 1, 0, |_| false).len()).sum::<usize>();
        let each = began.elapsed().as_nanos() as usize / picked.max(1);
        println!("choosing one of {count:>8} objects to evict: {each} ns");
    }
}

/// Each object's content is its number; nobody verifies it here.
const CONTENT: usize = 8;

fn digest(number: u64) -> Digest {
    Digest::of(Algorithm::Sha256, &number.to_le_bytes())
}

/// Files and rows as Larder leaves them.
fn fill(cache: &Path, count: u64) -> Result<()> {
    drop(Disk::open(cache, Pool::new("reading the cache directory", 1, Duration::from_secs(60)))?);
    let index = Sqlite::open(cache)?;
    for first in 0..=255u8 {
        fs::create_dir_all(cache.join(format!("blobs/sha256/{first:02x}")))?;
    }
    for number in 0..count {
        let digest = digest(number);
        let hex = digest.hex();
        fs::write(cache.join("blobs/sha256").join(&hex[..2]).join(&hex), number.to_le_bytes())?;
        let entry = ObjectEntry {
            size: CONTENT as u64,
            media_type: None,
            stored_at: Timestamp(number as i64),
            generation: None,
        };
        index.write(Write::Object { digest, entry });
        index.write(Write::Visible { viewer: Viewer::own("hub"), digest });
        if number % 4_000 == 0 {
            index.flush_blocking()?;
        }
    }
    Ok(index.flush_blocking()?)
}

/// Waits until nothing has been written to the index for longer than Larder collects uses.
fn settle(cache: &Path) -> Result<IndexFiles> {
    loop {
        let before = index_files(cache)?;
        std::thread::sleep(Duration::from_secs(3));
        if index_files(cache)? == before {
            return Ok(before);
        }
    }
}

type IndexFiles = Vec<(PathBuf, u64, std::time::SystemTime)>;

/// Names, lengths and times of the index's files.
fn index_files(cache: &Path) -> Result<IndexFiles> {
    let mut files = Vec::new();
    for entry in fs::read_dir(cache)? {
        let (path, metadata) = (entry.as_ref().map(fs::DirEntry::path), entry.as_ref().map(fs::DirEntry::metadata));
        if let (Ok(path), Ok(Ok(metadata))) = (path, metadata)
            && path.to_string_lossy().contains("larder.db")
            && !path.to_string_lossy().ends_with("-shm")
        {
            files.push((path, metadata.len(), metadata.modified()?));
        }
    }
    files.sort();
    Ok(files)
}

struct Server {
    child: Child,
    registry: String,
    admin: String,
    began: Instant,
}

impl Server {
    /// Starts the release binary; returns the time until it answered.
    fn start(cache: &Path, max_size: &str) -> Result<(Self, Duration)> {
        let began = Instant::now();
        let config = cache.with_extension("toml");
        fs::write(&config, "[[repository.hub.upstream]]\nurl = \"http://127.0.0.1:1\"\n")?;
        let mut child = Command::new("target/release/larder")
            .args(["serve".as_ref(), "--config".as_ref(), config.as_os_str()])
            .envs([("LARDER_SERVER__LISTEN", "127.0.0.1:0"), ("LARDER_ADMIN__LISTEN", "127.0.0.1:0")])
            .envs([("LARDER_CACHE__MIN_FREE", "0"), ("LARDER_CACHE__MAX_SIZE", max_size)])
            .env("LARDER_CACHE__DIR", cache)
            .envs([("LARDER_LOGGING__FORMAT", "json"), ("LARDER_LOGGING__ACCESS", "false")])
            .stderr(Stdio::piped())
            .spawn()?;
        let mut doors = (String::new(), String::new());
        let mut log = BufReader::new(child.stderr.take().ok_or("no standard error")?);
        let mut line = String::new();
        while doors.0.is_empty() || doors.1.is_empty() {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                return Err("larder ended while it was starting".into());
            }
            let record: serde_json::Value = serde_json::from_str(&line)?;
            let address = record["fields"]["address"].as_str().unwrap_or_default().to_owned();
            match record["fields"]["door"].as_str() {
                Some("registry") => doors.0 = address,
                Some("admin") => doors.1 = address,
                _ => {}
            }
        }
        // Whoever writes to a pipe that nobody reads waits.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let server = Self { child, registry: doors.0, admin: doors.1, began };
        server.stat("objects")?;
        Ok((server, began.elapsed()))
    }

    /// Bytes that the process has for itself, without pages of files.
    fn anonymous_memory(&self) -> Result<i64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<i64>()? * 1024)
    }

    fn stat(&self, figure: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(&self.admin)?;
        write!(stream, "GET /api/cache/stats HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").ok_or("no body")?.1;
        Ok(serde_json::from_str::<serde_json::Value>(body)?[figure].as_u64().ok_or("no such figure")?)
    }

    /// Waits for a figure; returns the time since the start.
    fn wait_for(&self, figure: &str, is_reached: impl Fn(u64) -> bool) -> Result<Duration> {
        while !is_reached(self.stat(figure)?) {
            if self.began.elapsed() > Duration::from_secs(120) {
                return Err(format!("{figure} did not get there").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(self.began.elapsed())
    }

    /// Asks for each object in turn over one connection.
    fn hits(&self, digests: &[Digest]) -> Result<()> {
        let mut stream = BufReader::new(TcpStream::connect(&self.registry)?);
        stream.get_ref().set_nodelay(true)?;
        let mut line = String::new();
        for digest in digests {
            let request = format!("GET /v2/hub/app/blobs/{digest} HTTP/1.1\r\nHost: larder\r\n\r\n");
            stream.get_mut().write_all(request.as_bytes())?;
            let mut is_first = true;
            loop {
                line.clear();
                stream.read_line(&mut line)?;
                if std::mem::take(&mut is_first) && !line.contains(" 200 ") {
                    return Err(format!("no hit: {line}").into());
                }
                if line == "\r\n" {
                    break;
                }
            }
            stream.read_exact(&mut [0; CONTENT])?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is gone either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
