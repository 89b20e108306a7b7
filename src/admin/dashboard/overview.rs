//! The overview: what the cache saves, what it does now, and whether something is wrong.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Extension;
use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use super::super::fills::{self, FillEntry};
use super::super::pulls::PullEntry;
use super::super::stats::{self, Stats};
use super::chart::{Chart, Series};
use super::history::{self, Counts, History, Sample};
use super::layout::{Page, Tab, Visitor, page};
use super::{pulls, show};
use crate::observe::pulls::Filter;
use crate::services::Services;

/// Pulls that the overview shows.
const LAST: usize = 6;
/// Transfers that the overview shows.
const MOST_FILLS: usize = 50;
/// The spans of time that charts show: the word in the query, the words in the page, the span and its bars.
const RANGES: [(&str, &str, Duration, u32); 3] = [
    ("1h", "hour", Duration::from_secs(3_600), 60),
    ("6h", "6 hours", Duration::from_secs(6 * 3_600), 72),
    ("24h", "day", Duration::from_secs(24 * 3_600), 96),
];

#[derive(Deserialize)]
pub struct Asked {
    #[serde(default)]
    range: String,
}

/// Shows the overview.
pub async fn show(
    visitor: Visitor,
    State(services): State<Arc<Services>>,
    Extension(history): Extension<Arc<History>>,
    Query(Asked { range }): Query<Asked>,
) -> Page {
    let stats = stats::of(&services);
    let now = history::now(&services);
    let pulls: Vec<_> = services.metrics.pulls.list(&Filter::default(), LAST);
    let pulls: Vec<_> = pulls.iter().map(|pull| PullEntry::from(&**pull)).collect();
    let content = html! {
        h1.unseen { "Overview" }
        section #now data-live="5" {
            (verdict(&visitor))
            div.cards {
                (answers(&stats))
                (saved(&stats))
                (throughput(&history, now))
                (disk(&services))
            }
        }
        section.panel #over-time data-live="10" aria-labelledby="over-time-title" { (over_time(&history, now, &range)) }
        section.panel #fills data-live="2" aria-labelledby="fills-title" { (running(&fills::list(&services).fills)) }
        section.panel #last data-live="2" aria-labelledby="last-title" {
            div.heading { h2 #last-title { "Last pulls" } a href="/pulls" { "All pulls" } }
            @if pulls.is_empty() { (pulls::none_yet()) } @else { (pulls::log(&pulls, &visitor, "last")) }
        }
        section.panel #repositories data-live="5" aria-labelledby="repositories-title" { (repositories(&stats)) }
    };
    page(&visitor, Tab::Overview, "Overview", "", &content)
}

fn verdict(visitor: &Visitor) -> Markup {
    let count = visitor.findings;
    html! {
        @if count == 0 {
            p.verdict.good { (show::sign("good")) "All is well: nothing is wrong that Larder knows of." }
        } @else {
            p.verdict.warning {
                (show::sign("warning"))
                a href="/diagnosis" { (count) @if count == 1 { " thing needs" } @else { " things need" } " attention" }
            }
        }
    }
}

fn card(title: &str, value: &str, note: &Markup) -> Markup {
    html! { div.card { h2 { (title) } p.value { (value) } div.note { (note) } } }
}

fn answers(stats: &Stats) -> Markup {
    let all = stats.hits + stats.misses + stats.stale;
    let value = if all == 0 { "–".to_owned() } else { show::percent(stats.hit_rate) };
    let note = html! {
        @if all == 0 { "no request since the start" } @else {
            (show::count(stats.hits + stats.stale)) " of " (show::count(all)) " answers"
            @if stats.stale > 0 { ", old copies: " (show::count(stats.stale)) }
        }
    };
    card("From the cache", &value, &note)
}

fn saved(stats: &Stats) -> Markup {
    let traffic = &stats.traffic;
    let note =
        html! { (show::bytes(traffic.bytes_served)) " served, " (show::bytes(traffic.bytes_fetched)) " fetched" };
    card("Not fetched again", &show::bytes(traffic.bytes_saved), &note)
}

fn throughput(history: &History, now: Sample) -> Markup {
    let (lately, span) = history.lately(now);
    let note = html! { "from upstreams " (rate(lately.fetched, span)) };
    card("To clients now", &rate(lately.served, span), &note)
}

/// Writes bytes as bytes a second.
fn rate(bytes: u64, span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
    format!("{}/s", show::bytes(bytes.saturating_mul(1000) / millis))
}

fn disk(services: &Services) -> Markup {
    let metrics = &services.metrics;
    let of = |gauge: i64| u64::try_from(gauge).unwrap_or(0);
    let (used, limit) = (of(metrics.cache_bytes.get()), of(metrics.cache_limit.get()));
    let (free, objects) = (of(metrics.disk_free.get()), of(metrics.cache_objects.get()));
    let note = html! {
        @if limit > 0 {
            (show::bar(show::share(used, limit), "Disk used", show::share(used, limit) > 0.98))
            "of " (show::bytes(limit)) " (" (show::percent(show::share(used, limit))) "), "
        }
        (show::count(objects)) " objects, " (show::bytes(free)) " free on the disk"
    };
    card("On disk", &show::bytes(used), &note)
}

fn over_time(history: &History, now: Sample, range: &str) -> Markup {
    let chosen = RANGES.iter().find(|(word, ..)| *word == range).unwrap_or(&RANGES[0]);
    let (_, _, span, bars) = *chosen;
    let slots = history.slots(span, bars, now);
    let known: u64 = slots.iter().flatten().map(|counts| counts.answers()).sum();
    html! {
        div.heading {
            h2 #over-time-title { "Over time" }
            nav aria-label="Span of the charts" { ul.choice { @for (word, name, ..) in RANGES {
                li { a href=(show::link("/", &[("range", word)])) aria-current=[(word == chosen.0).then_some("true")] { (name) } }
            } } }
        }
        div.charts { @for chart in charts(&slots, span / bars, now.at) { (chart.draw()) } }
        @if known == 0 { p.hint { "Nothing was pulled in this time. The charts are kept in memory, for a day." } }
    }
}

/// Returns the charts of parts of time, each as long as `slot`, of which the last ends at `end`.
fn charts(slots: &[Option<Counts>], slot: Duration, end: SystemTime) -> [Chart<'static>; 3] {
    let values = |of: fn(&Counts) -> Vec<u64>| slots.iter().map(|slot| slot.as_ref().map(of)).collect::<Vec<_>>();
    let answers = Chart {
        title: "Answers",
        series: &[
            Series { class: "hit", name: "from the cache" },
            Series { class: "miss", name: "fetched" },
            Series { class: "stale", name: "old copies" },
            Series { class: "failed", name: "failed" },
        ],
        bars: values(|counts| vec![counts.hits, counts.misses, counts.stale, counts.failed]),
        slot,
        end,
        is_stacked: true,
        is_level: false,
        written: |value, _| show::count(value),
    };
    let traffic = Chart {
        title: "Traffic",
        series: &[Series { class: "served", name: "to clients" }, Series { class: "fetched", name: "from upstreams" }],
        bars: values(|counts| vec![counts.served, counts.fetched]),
        slot,
        end,
        is_stacked: false,
        is_level: false,
        written: rate,
    };
    let disk = Chart {
        title: "On disk",
        series: &[Series { class: "hit", name: "stored objects" }],
        bars: values(|counts| vec![counts.used]),
        slot,
        end,
        is_stacked: true,
        is_level: true,
        written: |value, _| show::bytes(value),
    };
    [answers, traffic, disk]
}

fn running(fills: &[FillEntry]) -> Markup {
    html! {
        div.heading { h2 #fills-title { "Running transfers" } span.amount { (fills.len()) } }
        @if fills.is_empty() { p.hint { "Nothing is on its way into the cache." } }
        @else {
            ul.fills { @for fill in fills.iter().take(MOST_FILLS) { li { (transfer(fill)) } } }
            @if fills.len() > MOST_FILLS { p.hint { "and " (fills.len() - MOST_FILLS) " more: " a href="/api/fills" { "all of them" } } }
        }
    }
}

fn transfer(fill: &FillEntry) -> Markup {
    let phase = match fill.phase.as_str() {
        "opening" => "waits for an upstream",
        "growing" => "arrives",
        "passing" => "passes without being stored",
        "storing" => "is being stored",
        other => other,
    };
    #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
    let left = fill
        .size
        .filter(|_| fill.rate > 0.0)
        .map(|size| show::span(Duration::from_secs((size.saturating_sub(fill.bytes) as f64 / fill.rate) as u64)));
    html! {
        div.line { span.digest title=(fill.digest) { (show::short(&fill.digest)) } " " (phase) span.quiet { " for " (fill.repository) } }
        @match fill.size {
            Some(size) => progress max=(size.max(1)) value=(fill.bytes) aria-label={ "Progress of " (show::short(&fill.digest)) } {},
            None => progress aria-label={ "Progress of " (show::short(&fill.digest)) } {},
        }
        p.meta {
            (show::bytes(fill.bytes)) @if let Some(size) = fill.size { " of " (show::bytes(size)) }
            " · " (show::bytes(fill.rate as u64)) "/s"
            @if let Some(left) = left { " · " (left) " left" }
            @if let Some(upstream) = &fill.upstream { " · from " (upstream) }
            " · "
            @if fill.prefetch && fill.clients == 0 { "behind a pull" }
            @else { (fill.clients) @if fill.clients == 1 { " client waits" } @else { " clients wait" } }
        }
    }
}

fn repositories(stats: &Stats) -> Markup {
    let mut rows: Vec<_> = stats.repositories.iter().collect();
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.hits + row.misses + row.stale + row.failed));
    let answered = |row: &stats::RepositoryStats| row.hits + row.misses + row.stale;
    html! {
        h2 #repositories-title { "By repository" }
        div.scroll role="region" aria-label="Figures by repository" tabindex="0" {
            table {
                thead { tr {
                    th scope="col" { "Repository" }
                    @for name in ["From the cache", "Hits", "Fetched", "Old copies", "Failed", "Served", "Not fetched again"] {
                        th.number scope="col" { (name) }
                    }
                } }
                tbody { @for (prefix, row) in rows {
                    tr {
                        th scope="row" { a href=(show::link("/pulls", &[("repository", prefix)])) { (prefix) } }
                        td.number { @if answered(row) == 0 { "–" } @else { (show::percent(show::share(row.hits + row.stale, answered(row)))) } }
                        @for value in [row.hits, row.misses, row.stale, row.failed] { td.number { (show::count(value)) } }
                        @for value in [row.traffic.bytes_served, row.traffic.bytes_saved] { td.number { (show::bytes(value)) } }
                    }
                } }
            }
        }
    }
}
