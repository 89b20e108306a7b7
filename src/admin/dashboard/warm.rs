//! What is brought in before anybody asks: a box to warm images now, the lists that are being warmed, the schedules.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use maud::{Markup, html};

use super::super::kept_warm::{JobEntry, RunEntry, ScheduleEntry, WarmList, list};
use super::layout::{Page, Tab, Visitor, page};
use super::show;
use crate::clock;
use crate::services::Services;

/// Problems of a run that are shown.
const PROBLEMS: usize = 10;
/// Lists that ended and are shown.
const LAST: usize = 10;

/// Shows what is warmed, and when.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>) -> Page {
    let WarmList { schedules, jobs } = list(&services);
    let content = html! {
        div.heading { h1 { "Warm" } }
        @if visitor.may_change { (form()) }
        section.panel #warming data-live="2" data-changes aria-labelledby="warming-title" { (running(&jobs)) }
        section.panel #schedules data-live="5" data-changes aria-labelledby="schedules-title" {
            h2 #schedules-title { "Schedules" }
            @if schedules.is_empty() {
                (show::nothing("Nothing is kept warm by schedule.", &html! {
                    "Add a " code { "[[warm]]" } " to the configuration: Larder then fetches what is new before anybody asks."
                }))
            } @else { ol.schedules { @for schedule in &schedules { li { (entry(schedule, &visitor)) } } } }
        }
        section.panel #warmed data-live="5" aria-labelledby="warmed-title" { (ended(&jobs)) }
    };
    page(&visitor, Tab::Warm, "Warm", "", &content)
}

fn form() -> Markup {
    html! {
        section.panel.needs-js aria-labelledby="warm-title" {
            h2 #warm-title { "Warm images now" }
            form.filters #warm {
                label.wide { span { "Images, with spaces between them" }
                    input name="images" required placeholder="docker.io/library/alpine:3.20" autocomplete="off" spellcheck="false" autocapitalize="off"; }
                label { span { "Platforms" }
                    input name="platforms" placeholder="all, or linux/amd64" autocomplete="off" spellcheck="false" autocapitalize="off"; }
                button type="submit" { "Warm" }
            }
            p.hint { "What is in the cache is not fetched again. The page may be closed meanwhile." }
        }
    }
}

fn running(jobs: &[JobEntry]) -> Markup {
    let running: Vec<_> = jobs.iter().filter(|job| !job.done).collect();
    html! {
        div.heading { h2 #warming-title { "Being warmed" } span.amount { (running.len()) } }
        @if running.is_empty() { p.hint { "Nothing is being warmed." } }
        @else { ul.fills { @for job in running { li {
            div.line {
                @if job.images_resting > 0 { (show::chip("limited", "rests")) }
                strong { (named(job)) }
                @if let Some(number) = job.schedule { span.quiet { "by schedule " (number) } }
            }
            (progress(job))
        } } } }
    }
}

/// Shows what a list is, in short.
fn named(job: &JobEntry) -> Markup {
    html! {
        @match &job.first { Some(first) => (show::reference(first)), None => "no image" }
        @if job.images > 1 { " and " (job.images - 1) " more" }
    }
}

fn progress(job: &JobEntry) -> Markup {
    let ended = job.images_done + job.images_failed;
    html! {
        progress max=(job.bytes.max(1)) value=(job.bytes_done) aria-label={ "Progress of list " (job.id) } {}
        p.meta {
            (ended) " of " (job.images) @if job.images == 1 { " image" } @else { " images" }
            " · " (show::bytes(job.bytes_done)) " of " (show::bytes(job.bytes))
            " · " (show::bytes(job.fetched)) " from upstream"
            @if job.images_failed > 0 { " · " span.bad { (job.images_failed) " failed" } }
            " · begun " (show::ago_of(&job.begun))
        }
        @if let Some(resting) = &job.resting { p.meta.sentence { (resting) } }
    }
}

fn entry(schedule: &ScheduleEntry, visitor: &Visitor) -> Markup {
    let failed = schedule.last.as_ref().map_or(0, |run| run.problems.len() + run.more_problems);
    let is_elsewhere = schedule.next.is_none() && !schedule.running;
    let (kind, word) = match &schedule.last {
        _ if schedule.running => ("fetched", "runs"),
        None if is_elsewhere => ("waiting", "elsewhere"),
        None => ("waiting", "waits"),
        Some(_) if failed > 0 => ("failed", "in part"),
        Some(_) => ("ready", "warm"),
    };
    html! {
        div.heading {
            div.line {
                (show::chip(kind, word))
                h3 { "Schedule " (schedule.number) }
                span.quiet {
                    "every " (schedule.every) " · "
                    @if schedule.platforms.is_empty() { "all platforms" } @else { (schedule.platforms.join(", ")) }
                }
            }
            @if visitor.may_change {
                button.needs-js type="button" data-action="run" data-reference=(schedule.number)
                    data-name={ "schedule " (schedule.number) } disabled[schedule.running || is_elsewhere] { "Run now" }
            }
        }
        ul.images-wanted { @for image in &schedule.images { li { code { (show::reference(image)) } } } }
        dl.facts {
            @if let Some(run) = &schedule.last { (last_run(run)) }
            @if let Some(replica) = &schedule.replica { div { dt { "Runs at" } dd { code { (replica) } } } }
            @if let Some(next) = &schedule.next { div { dt { "Next run" } dd { (ahead(next)) } } }
        }
        @if let Some(run) = schedule.last.as_ref().filter(|_| failed > 0) { (problems(run)) }
    }
}

fn last_run(run: &RunEntry) -> Markup {
    html! {
        div {
            dt { @if run.ended.is_some() { "Last run" } @else { "This run" } }
            dd {
                @match &run.ended { Some(ended) => (show::ago_of(ended)), None => { "since " (show::ago_of(&run.begun)) } }
                @match &run.job {
                    None => ": the tags are being listed",
                    Some(job) => {
                        ": " (job.images_done) " of " (job.images) @if job.images == 1 { " image" } @else { " images" } " warm, "
                        (show::bytes(job.fetched)) " fetched"
                    }
                }
            }
        }
        @if let Some(resting) = run.job.as_ref().and_then(|job| job.resting.as_ref()) {
            div { dt { "Rests" } dd { (resting) } }
        }
    }
}

fn problems(run: &RunEntry) -> Markup {
    let left = run.problems.len().saturating_sub(PROBLEMS) + run.more_problems;
    html! {
        ul.problems { @for problem in run.problems.iter().take(PROBLEMS) {
            li { (show::sign("failed")) div { strong { (show::reference(&problem.image)) } p.why { (show::prose(&problem.why)) } } }
        } }
        @if left > 0 { p.hint { "and " (left) " more: " a href="/api/warm" { "the API tells more" } } }
    }
}

/// Says when something will be, which is to come.
fn ahead(at: &str) -> Markup {
    let left = humantime::parse_rfc3339(at).ok().and_then(|at| at.duration_since(clock::wall()).ok());
    let text = match left.unwrap_or_default() {
        left if left < Duration::from_secs(1) => "now".to_owned(),
        left => format!("in {}", show::span(left)),
    };
    html! { time datetime=(at) title=(at) { (text) } }
}

fn ended(jobs: &[JobEntry]) -> Markup {
    let ended: Vec<_> = jobs.iter().filter(|job| job.done && job.schedule.is_none()).take(LAST).collect();
    html! {
        h2 #warmed-title { "Lately warmed by hand" }
        @if ended.is_empty() { p.hint { "No list has been warmed since the start." } }
        @else {
            div.scroll role="region" aria-label="Lists that were warmed" tabindex="0" {
                table {
                    thead { tr {
                        th scope="col" { "Images" } th.number scope="col" { "Warm" } th.number scope="col" { "Failed" }
                        th.number scope="col" { "Size" } th.number scope="col" { "Fetched" } th scope="col" { "Begun" }
                    } }
                    tbody { @for job in ended { tr {
                        th scope="row" { a href={ "/api/warm/" (job.id) } { (named(job)) } }
                        td.number { (job.images_done) }
                        td.number { @if job.images_failed > 0 { span.bad { (job.images_failed) } } @else { "0" } }
                        td.number { (show::bytes(job.bytes)) } td.number { (show::bytes(job.fetched)) }
                        td { (show::ago_of(&job.begun)) }
                    } } }
                }
            }
        }
    }
}
