//! `GET /api/warm` and `POST /api/warm/schedules/{number}`: what is kept warm by schedule, and what is being warmed.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::door::Person;
use super::problem::{ErrorBody, Problem};
use super::time::rfc3339;
use super::warm;
use crate::clock::{self, Instant};
use crate::services::Services;
use crate::warm::schedule::{Run, Runs, Schedule};
use crate::warm::{Job, State as Stage};

/// Most problems of a run that are told.
const PROBLEMS: usize = 50;

/// What is warmed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WarmList {
    /// `[[warm]]`, in the order of the configuration.
    pub schedules: Vec<ScheduleEntry>,
    /// The last lists of images, the newest first; `/api/warm/{id}` tells more of each.
    pub jobs: Vec<JobEntry>,
}

/// What is kept warm by schedule.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ScheduleEntry {
    /// Its place in the configuration, from 1.
    pub number: usize,
    /// As the configuration has them.
    pub images: Vec<String>,
    /// Empty for all.
    pub platforms: Vec<String>,
    /// From the end of one run to the begin of the next: `6h`.
    pub every: String,
    /// The address of the replica that runs it; absent where this Larder is alone, and while none runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// Whether a run goes on here.
    pub running: bool,
    /// When the next run begins, RFC 3339; absent while one goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The run that goes on, or else the last one; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<RunEntry>,
}

/// One run of a schedule.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RunEntry {
    /// RFC 3339
    pub begun: String,
    /// RFC 3339; absent while it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The images, as soon as the tags are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobEntry>,
    /// What went wrong, at most 50.
    pub problems: Vec<WarmProblem>,
    /// How many more there were.
    pub more_problems: usize,
}

/// What is not kept warm, and why.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WarmProblem {
    /// An image, or images as the configuration has them.
    pub image: String,
    pub why: String,
}

/// How far a list of images is, in all.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct JobEntry {
    pub id: u64,
    /// RFC 3339
    pub begun: String,
    /// Whether nothing is left to do.
    pub done: bool,
    /// The number of the schedule that wants it; absent where a person does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<usize>,
    /// The first image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    pub images: usize,
    pub images_done: usize,
    pub images_failed: usize,
    /// Images that wait until an upstream's quota is renewed.
    pub images_resting: usize,
    /// When they go on, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resting: Option<String>,
    /// Bytes of the blobs, as far as they are known.
    pub bytes: u64,
    pub bytes_done: u64,
    /// Bytes that came from upstream; the rest was in the cache.
    pub fetched: u64,
}

/// What is kept warm, and what is being warmed
#[utoipa::path(get, path = "/api/warm", tag = "cache", responses((status = 200, body = WarmList)))]
pub async fn show(State(services): State<Arc<Services>>) -> Json<WarmList> {
    Json(list(&services))
}

/// Run a schedule now
///
/// In the background; a run that goes on is not begun again.
#[utoipa::path(post, path = "/api/warm/schedules/{number}", tag = "cache",
    params(("number" = u64, Path, description = "the `number` that `GET /api/warm` gives", maximum = 9_223_372_036_854_775_807_i64)),
    responses((status = 200, body = ScheduleEntry), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, description = "another replica runs the schedules", body = ErrorBody)))]
pub async fn run(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    number: Result<Path<u64>, PathRejection>,
) -> Result<Json<ScheduleEntry>, Problem> {
    let Path(number) = number.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let schedule = services.schedules.run_now(number);
    let schedule = schedule.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such [[warm]]"))?;
    let elsewhere = match services.schedules.runs() {
        Runs::Here => None,
        Runs::At(replica) => Some(format!("the schedules run at the replica {replica}; ask its admin door")),
        Runs::Nowhere => Some("no replica runs the schedules at the moment; try again in half a minute".to_owned()),
    };
    if let Some(elsewhere) = elsewhere {
        return Err(Problem::new(StatusCode::CONFLICT, elsewhere));
    }
    tracing::info!(by = %person, schedule = number, "warming");
    Ok(Json(entry(&services, number, &schedule)))
}

/// Returns what is warmed.
pub fn list(services: &Services) -> WarmList {
    let schedules = services.schedules.all();
    WarmList {
        schedules: schedules.iter().enumerate().map(|(at, schedule)| entry(services, at + 1, schedule)).collect(),
        jobs: services.warming.all().iter().map(|job| summary(job)).collect(),
    }
}

fn entry(services: &Services, number: usize, schedule: &Schedule) -> ScheduleEntry {
    let replica = services.cluster.as_ref().and_then(|cluster| match services.schedules.runs() {
        Runs::Here => Some(cluster.me().address.clone()),
        Runs::At(address) => Some(address),
        Runs::Nowhere => None,
    });
    let (wanted, state) = (&schedule.wanted, schedule.state());
    let (now, wall) = (Instant::now(), clock::wall());
    let next = state.next.map(|next| rfc3339(wall + next.saturating_duration_since(now)));
    ScheduleEntry {
        number,
        images: wanted.images.iter().map(ToString::to_string).collect(),
        platforms: wanted.platforms.iter().map(ToString::to_string).collect(),
        every: humantime::format_duration(wanted.every).to_string(),
        replica,
        running: state.run.as_ref().is_some_and(|run| run.ended.is_none()),
        next,
        last: state.run.as_ref().map(run_entry),
    }
}

fn run_entry(run: &Run) -> RunEntry {
    let failed = run.job.iter().flat_map(|job| &job.images);
    let failed = failed.filter_map(|image| Some((image.written.clone(), image.failure()?.message().to_owned())));
    let all = run.problems.iter().cloned().chain(failed);
    let mut problems: Vec<_> = all.map(|(image, why)| WarmProblem { image, why }).collect();
    let more_problems = problems.len().saturating_sub(PROBLEMS);
    problems.truncate(PROBLEMS);
    RunEntry {
        begun: rfc3339(run.begun),
        ended: run.ended.map(rfc3339),
        job: run.job.as_deref().map(summary),
        problems,
        more_problems,
    }
}

fn summary(job: &Job) -> JobEntry {
    let (mut done, mut failed, mut resting, mut left) = (0, 0, 0, None::<Duration>);
    for image in &job.images {
        match image.state() {
            Stage::Done => done += 1,
            Stage::Failed(_) => failed += 1,
            Stage::Resting(of) => {
                resting += 1;
                left = left.into_iter().chain(of).min();
            }
            Stage::Waiting | Stage::Running => {}
        }
    }
    let sum = |of: fn(&crate::registry::warm::Progress) -> &std::sync::atomic::AtomicU64| {
        job.images.iter().map(|image| of(&image.progress).load(std::sync::atomic::Ordering::Relaxed)).sum()
    };
    JobEntry {
        id: job.id,
        begun: rfc3339(job.begun),
        done: job.has_ended(),
        schedule: job.schedule,
        first: job.images.first().map(|image| image.written.clone()),
        images: job.images.len(),
        images_done: done,
        images_failed: failed,
        images_resting: resting,
        resting: (resting > 0).then(|| warm::resting(left)),
        bytes: sum(|progress| &progress.bytes),
        bytes_done: sum(|progress| &progress.bytes_done),
        fetched: sum(|progress| &progress.fetched),
    }
}
