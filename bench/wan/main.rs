//! How long pulls over a long line take, directly and by way of Larder.
//!
//! `bench/wan/run [ROUNDS] [WORK]` (5 rounds of all works by default; `WORK` is a part of the names of those wanted). A
//! relay makes connections over loopback as slow as over a long line; behind it are a registry over TLS, its token
//! service and the storage that it redirects to, each a host of its own. A client with containerd's manners pulls
//! through the relay, and through a `target/release/larder` that was started a moment ago; both in turn.

mod client;
mod larder;
mod relay;
mod upstream;

use std::error::Error;
use std::io::Read;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::client::Client;
use self::larder::Larder;
use self::relay::Line;
use self::upstream::{Content, Image, Upstream};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const MIB: usize = 1 << 20;
const LINES: [Line; 3] = [
    Line { round_trip: Duration::from_millis(60), rate: 40e6, is_shared: false },
    Line { round_trip: Duration::from_millis(100), rate: 12e6, is_shared: false },
    Line { round_trip: Duration::from_millis(60), rate: 40e6, is_shared: true },
];

/// Random bytes.
fn random(length: usize) -> Result<Bytes> {
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(Ok(5), |rounds| rounds.parse())?;
    let wanted = arguments.next().unwrap_or_default();
    let directory = tempfile::tempdir()?;
    let mut content = Content::default();
    let works = [
        ("12 layers of 1 MB", "small", content.add_image("small", 12, MIB)?),
        ("one layer of 96 MB", "large", content.add_image("large", 1, 96 * MIB)?),
        ("6 layers of 16 MB", "mixed", content.add_image("mixed", 6, 16 * MIB)?),
    ];
    for line in LINES {
        let upstream = content.serve(line, directory.path()).await?;
        let whose = if line.is_shared { "for all, and for the client" } else { "a connection" };
        println!("\nround trip {} ms, {} MB/s {whose}", line.round_trip.as_millis(), line.rate / 1e6);
        // Where the line is the limit, a client that is as fast shows whether bytes come in the order it reads them.
        let rate = Some(line.rate).filter(|_| line.is_shared);
        for (name, tag, image) in &works {
            let name = if line.is_shared { format!("{name}, one line") } else { (*name).to_owned() };
            if name.contains(&wanted) {
                Bench { upstream: &upstream, tag, image, rounds, rate }.run(&name).await?;
            }
        }
    }
    Ok(())
}

/// One image over one line.
struct Bench<'a> {
    upstream: &'a Upstream,
    tag: &'a str,
    image: &'a Image,
    rounds: usize,
    /// What the client takes at most, in bytes per second.
    rate: Option<f64>,
}

/// The seconds that the pulls of one round took.
struct Round {
    direct: f64,
    cold: f64,
    /// A second node, begun in the middle of the first: its time, as a share of what the first still took.
    joined: f64,
    warm: f64,
    fresh: f64,
}

impl Bench<'_> {
    async fn run(&self, name: &str) -> Result<()> {
        let (mut rounds, mut counts) = (Vec::new(), Counted::default());
        let mut half = None;
        for _ in 0..self.rounds {
            let direct = {
                self.upstream.counts.reset();
                let seconds = self.pull(Client::direct(self.upstream.registry, &self.upstream.authority)?).await?;
                counts.direct = self.upstream.counts.summary();
                seconds
            };
            let (cold, warm) = self.cold_and_warm(&mut counts).await?;
            let fresh = self.fresh(&mut counts).await?;
            let joined = self.joined(*half.get_or_insert(cold / 2.0)).await?;
            rounds.push(Round { direct, cold, joined, warm, fresh });
        }
        let of = |what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
        let ratio = median(rounds.iter().map(|round| round.cold / round.direct).collect());
        println!(
            "{name}: direct {:.3} s, Larder {:.3} s: {ratio:.2} of the direct pull",
            of(|r| r.direct),
            of(|r| r.cold)
        );
        println!("  from another node while the first pulls: {:.2} of what is left", of(|r| r.joined));
        println!(
            "  warm: {:.3} s, {} upstream; within max_age: {:.3} s, {} upstream",
            of(|r| r.warm),
            counts.warm,
            of(|r| r.fresh),
            counts.fresh
        );
        println!("  asked directly:  {}", counts.direct);
        println!("  asked by Larder: {}", counts.cold);
        let all: Vec<_> = rounds.iter().map(|round| format!("{:.3}/{:.3}", round.cold, round.direct)).collect();
        println!("  rounds: {}", all.join(" "));
        Ok(())
    }

    /// A pull through a Larder that has nothing, and the same again.
    async fn cold_and_warm(&self, counts: &mut Counted) -> Result<(f64, f64)> {
        let larder = Larder::start(self.upstream, "0s")?;
        self.upstream.counts.reset();
        let cold = self.pull(larder.client()?).await?;
        counts.cold = self.upstream.counts.summary();
        self.upstream.counts.reset();
        let warm = self.pull(larder.client()?).await?;
        counts.warm = self.upstream.counts.requests();
        Ok((cold, warm))
    }

    /// A second pull within `max_age`.
    async fn fresh(&self, counts: &mut Counted) -> Result<f64> {
        let larder = Larder::start(self.upstream, "1h")?;
        self.pull(larder.client()?).await?;
        self.upstream.counts.reset();
        let fresh = self.pull(larder.client()?).await?;
        counts.fresh = self.upstream.counts.requests();
        Ok(fresh)
    }

    /// A pull by a second node, begun `after` so many seconds of the first one's pull.
    async fn joined(&self, after: f64) -> Result<f64> {
        let larder = Larder::start(self.upstream, "0s")?;
        let (first, second) = (larder.client()?, larder.client()?);
        let began = Instant::now();
        let first = async {
            self.pull(first).await?;
            Ok::<_, Box<dyn Error + Send + Sync>>(began.elapsed().as_secs_f64())
        };
        let second = async {
            tokio::time::sleep(Duration::from_secs_f64(after)).await;
            let since = began.elapsed().as_secs_f64();
            Ok((since, self.pull(second).await?))
        };
        let (ended, (since, took)) = tokio::try_join!(first, second)?;
        Ok(took / (ended - since))
    }

    async fn pull(&self, client: Client) -> Result<f64> {
        let began = Instant::now();
        client.at_rate(self.rate).pull(self.tag, self.image).await?;
        Ok(began.elapsed().as_secs_f64())
    }
}

/// What was asked of the upstream in the last round.
#[derive(Default)]
struct Counted {
    direct: String,
    cold: String,
    warm: u64,
    fresh: u64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
