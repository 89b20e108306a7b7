//! `larder stats`, `pulls`, `explain`, `refresh` and `replicas`: what a running instance does, and why.

use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use super::error::CommandError;
use super::instance::{Api, Instance, Where};
use super::manage::{aligned, size};
use super::output::{print, print_json};
use crate::admin::explain::{Explanation, Refreshed};
use crate::admin::pulls::{PullEntry, PullList};
use crate::admin::replicas::{ReplicaEntry, Replicas};
use crate::admin::stats::Stats;

/// How often `stats --watch` asks.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct ShowStats {
    #[command(flatten)]
    place: Where,
    /// Show them anew each second, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    /// Print JSON instead of text; with --watch, a document a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub struct ShowPulls {
    #[command(flatten)]
    place: Where,
    /// Go on with new pulls as they come, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// How many of the last pulls to show, at most 1,000
    #[arg(long, short, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=1000))]
    number: u64,
    /// Only pulls that were a `hit`, `miss`, `stale`, `failed` or `refused`, or that got this status code
    #[arg(long)]
    status: Option<String>,
    /// Only pulls from this repository
    #[arg(long)]
    repository: Option<String>,
    /// Only pulls with this text in their reference, client, user, user agent or reason
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// Print JSON instead of text; with --follow, a document a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Explain {
    /// An image: `docker.io/library/alpine:3.20`, or with a digest
    reference: String,
    #[command(flatten)]
    place: Where,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub struct ShowReplicas {
    /// Say of each whether it has this object: `sha256:…`
    digest: Option<String>,
    #[command(flatten)]
    place: Where,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Runs `larder stats`.
pub async fn stats(files: &[PathBuf], arguments: &ShowStats) -> Result<(), CommandError> {
    let api = Instance::running(files, &arguments.place).await?;
    let is_screen = std::io::stdout().is_terminal();
    let mut before: Option<Stats> = None;
    loop {
        let stats: Stats = api.get("api/cache/stats", &[]).await?;
        match (arguments.json, arguments.watch) {
            (true, false) => return print_json(&stats),
            (true, true) => print(&line(&stats)?)?,
            (false, false) => return print(&described(&stats, None)),
            // The screen is cleared from its top, so that the figures stay in their place.
            (false, true) if is_screen => {
                print(&format!("\x1b[H\x1b[2J{}", described(&stats, before.as_ref())))?;
            }
            (false, true) => print(&format!("{}\n", described(&stats, before.as_ref())))?,
        }
        flush()?;
        before = Some(stats);
        tokio::time::sleep(EVERY).await;
    }
}

/// Runs `larder pulls`.
pub async fn pulls(files: &[PathBuf], arguments: &ShowPulls) -> Result<(), CommandError> {
    let api = Instance::running(files, &arguments.place).await?;
    let number = arguments.number.to_string();
    let mut query = Vec::new();
    for (key, value) in [("status", &arguments.status), ("repository", &arguments.repository), ("q", &arguments.text)] {
        query.extend(value.as_deref().map(|value| (key, value)));
    }
    // The listening begins before the list is read, so that no pull is missed between the two.
    let events = if arguments.follow { Some(api.events("api/events").await?) } else { None };
    let mut shown = PullList { pulls: Vec::new(), next: None };
    if arguments.number > 0 {
        query.push(("n", &number));
        shown = api.get("api/pulls", &query).await?;
        query.pop();
    }
    if arguments.json && !arguments.follow {
        return print_json(&shown.pulls);
    }
    shown.pulls.reverse();
    for pull in &shown.pulls {
        print(&if arguments.json { line(pull)? } else { row(pull) })?;
    }
    let Some(mut events) = events else { return Ok(()) };
    let mut last = shown.pulls.last().map_or(0, |pull| pull.id);
    flush()?;
    while let Some((name, _)) = events.next().await? {
        if name != "pull" {
            continue;
        }
        // The list knows what the filter means.
        let mut new: PullList = api.get("api/pulls", &[&query[..], &[("n", "1000")]].concat()).await?;
        new.pulls.retain(|pull| pull.id > last);
        new.pulls.reverse();
        for pull in &new.pulls {
            print(&if arguments.json { line(pull)? } else { row(pull) })?;
            last = pull.id;
        }
        flush()?;
    }
    Ok(())
}

/// Runs `larder explain`.
pub async fn explain(files: &[PathBuf], arguments: &Explain) -> Result<(), CommandError> {
    let api: Api = Instance::running(files, &arguments.place).await?;
    let explanation: Explanation = api.get("api/explain", &[("reference", &arguments.reference)]).await?;
    if arguments.json {
        return print_json(&explanation);
    }
    let mut text = format!("{}\n\nif it were pulled now: {}\n", explanation.reference, explanation.text);
    match &explanation.cached {
        Some(copy) => {
            let checked = copy.checked_at.as_ref().map_or_else(String::new, |at| format!(", last checked {at}"));
            text += &format!("\ncached: {} since {}{checked}\n", copy.digest, copy.stored_at);
        }
        None => text += "\ncached: no\n",
    }
    text += "\nupstreams, in this order:\n";
    for upstream in &explanation.upstreams {
        let why = upstream.reason.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        text += &format!("  {}  {}{why}\n", upstream.upstream, upstream.state);
    }
    text += if explanation.pulls.is_empty() { "\nno pull of it since the start\n" } else { "\nlast pulls:\n" };
    text += &explanation.pulls.iter().map(|pull| format!("  {}", row(pull))).collect::<String>();
    print(&text)
}

/// Runs `larder refresh`.
pub async fn refresh(files: &[PathBuf], arguments: &Explain) -> Result<(), CommandError> {
    let api: Api = Instance::running(files, &arguments.place).await?;
    let query =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("reference", &arguments.reference).finish();
    let refreshed: Refreshed = api.post(&format!("api/refresh?{query}"), &()).await?;
    match arguments.json {
        true => print_json(&refreshed),
        false => print(&format!("{}: {}\n", refreshed.reference, refreshed.text)),
    }
}

/// Runs `larder replicas`.
pub async fn replicas(files: &[PathBuf], arguments: &ShowReplicas) -> Result<(), CommandError> {
    let api: Api = Instance::running(files, &arguments.place).await?;
    let query: Vec<_> = arguments.digest.iter().map(|digest| ("digest", digest.as_str())).collect();
    let Replicas { replicas } = api.get("api/replicas", &query).await?;
    if arguments.json {
        return print_json(&replicas);
    }
    if replicas.is_empty() {
        return print("this Larder is alone: there is no [cluster] in its configuration\n");
    }
    let heads = ["REPLICA", "STATE", "UP", "VERSION", "OBJECTS", "STORED", "FREE", "HITS", "MISSES", "FILLS", "HAS IT"];
    let mut table = vec![heads.map(str::to_owned)];
    table.extend(replicas.iter().map(columns));
    print(&aligned(&table))
}

/// Returns the line of a replica in the table.
fn columns(replica: &ReplicaEntry) -> [String; 11] {
    let (address, state, none) = (replica.address.clone(), replica.state.clone(), || "-".to_owned());
    let Some(report) = &replica.report else {
        return [address, state, none(), none(), none(), none(), none(), none(), none(), none(), none()];
    };
    let up = Duration::try_from_secs_f64(report.uptime).unwrap_or_default().as_secs();
    let limit = report.limit.map_or_else(String::new, |limit| format!(" of {}", size(limit)));
    let holds = report.holds.map_or_else(none, |holds| if holds { "yes" } else { "no" }.to_owned());
    [
        address,
        state,
        humantime::format_duration(Duration::from_secs(up)).to_string(),
        report.version.clone(),
        report.objects.to_string(),
        size(report.bytes) + &limit,
        size(report.free),
        (report.hits + report.stale).to_string(),
        report.misses.to_string(),
        (report.fills.len() + report.more_fills).to_string(),
        holds,
    ]
}

/// Returns the line of a pull.
fn row(pull: &PullEntry) -> String {
    let what = pull.reference.as_deref().unwrap_or(&pull.path);
    let slow = pull.slow.as_ref().map_or_else(String::new, |slow| format!(" ({slow})"));
    format!(
        "{}  {:<7}  {}  {} {what}  {}  {:.0} ms: {}{slow}\n",
        pull.at,
        pull.cache,
        pull.client,
        pull.method,
        size(pull.bytes),
        pull.took_ms,
        pull.why
    )
}

fn line(value: &impl serde::Serialize) -> Result<String, CommandError> {
    serde_json::to_string(value).map(|line| line + "\n").map_err(|error| CommandError::Failed(error.to_string()))
}

fn flush() -> Result<(), CommandError> {
    std::io::stdout().flush().or_else(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(CommandError::Failed(error.to_string())),
    })
}

/// Returns the figures as a table. `before`: those of a second ago, from which rates are made.
fn described(stats: &Stats, before: Option<&Stats>) -> String {
    let of = |bytes: u64, then: Option<u64>| match then {
        Some(then) => format!("{}  ({}/s)", size(bytes), size(bytes.saturating_sub(then))),
        None => size(bytes),
    };
    let then = |of: fn(&Stats) -> u64| before.map(of);
    let held = u64::try_from(stats.current_size).unwrap_or(0);
    let rows = [
        ("hit rate", format!("{:.1} %", stats.hit_rate * 100.0)),
        ("hits", stats.hits.to_string()),
        ("misses", stats.misses.to_string()),
        ("stale", stats.stale.to_string()),
        ("served", of(stats.traffic.bytes_served, then(|stats| stats.traffic.bytes_served))),
        ("fetched", of(stats.traffic.bytes_fetched, then(|stats| stats.traffic.bytes_fetched))),
        ("saved", of(stats.traffic.bytes_saved, then(|stats| stats.traffic.bytes_saved))),
        ("stored", format!("{} in {} objects", size(held), stats.objects)),
        ("transfers running", stats.fills_running.to_string()),
        ("evictions", stats.evictions.to_string()),
        ("errors", stats.errors.to_string()),
    ];
    let mut text = aligned(&rows.map(|(name, value)| [name.to_owned(), value]));
    let asked = stats.repositories.iter().filter(|(_, of)| of.hits + of.misses + of.stale + of.failed > 0);
    let mut table = vec![["REPOSITORY", "HITS", "MISSES", "STALE", "FAILED", "SERVED", "FETCHED"].map(str::to_owned)];
    table.extend(asked.map(|(name, of)| {
        let count = |number: u64| number.to_string();
        let (served, fetched) = (size(of.traffic.bytes_served), size(of.traffic.bytes_fetched));
        [name.clone(), count(of.hits), count(of.misses), count(of.stale), count(of.failed), served, fetched]
    }));
    if table.len() > 1 {
        text += &format!("\n{}", aligned(&table));
    }
    text
}
