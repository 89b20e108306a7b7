//! What people do to a cache: list, purge, pin, verify. The API does it to its own running instance, the command line
//! to a directory that no instance uses. The answers are the same.

pub mod export;
pub mod import;
pub mod layout;
mod look;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use crate::cache::Cache;
use crate::failure::Failure;
use crate::index::{ImageName, Purge};
use crate::observe::Metrics;
use crate::oci::Reference;
use crate::routing::{Asked, OwnNames, Routing, RoutingError, Target};
use crate::text::one_line;
use crate::upkeep::scrub::Report;
use crate::{clock, descriptors};

pub use crate::index::{ImageOrder, ImageSearch};
pub use look::{Part, Picture, Platform, Referrer, find, picture};

/// Images on a page if the caller does not state a number.
pub const PAGE: usize = 500;
const MAX_PAGE: usize = 10_000;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error("{0}")]
    Wrong(String),
    #[error(transparent)]
    Unknown(RoutingError),
    /// With what was named.
    #[error("nothing of `{0}` is cached{1}")]
    Absent(String, String),
    #[error("a verification is under way; wait for its end")]
    Busy,
    #[error("an export or import is under way; wait for its end")]
    Carrying,
    /// An archive of so many bytes.
    #[error(
        "the archive has {0} bytes, more than cache.max_size and cache.min_free leave room for; import it in parts"
    )]
    TooLarge(u64),
    /// An archive that is not taken.
    #[error(transparent)]
    Archive(layout::LayoutError),
    /// None of an archive's images can be taken in; with the first and the reason.
    #[error("nothing was imported; {0}")]
    NothingOf(String),
    #[error(transparent)]
    Failed(Failure),
}

impl From<Failure> for OpsError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Some of the cached images.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Images {
    pub images: Vec<Image>,
    /// The value of `last` for the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An image whose manifest is cached.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// As in a pull: `docker.io/library/alpine:3.20`, or with `@sha256:…`.
    pub reference: String,
    pub repository: String,
    pub name: String,
    pub digest: String,
    pub media_type: Option<String>,
    /// The stored objects of the image, its manifest included: count and bytes. Layers that several images share count
    /// for each of them.
    pub objects: u64,
    pub size: u64,
    /// How many further objects of the image are known and not stored, because nobody has pulled them or they were
    /// evicted.
    pub missing: u64,
    /// Of an image for several platforms: its manifests. Absent where none of them is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Manifests>,
    /// RFC 3339; absent if the image was asked for by digest only.
    pub checked_at: Option<String>,
    /// RFC 3339, accurate to a minute.
    pub last_use: String,
    pub pinned: bool,
}

/// The manifests of an image for several platforms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Manifests {
    /// How many are stored with all that they lead to.
    pub whole: u64,
    pub all: u64,
}

/// What was purged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PurgeDone {
    pub status: String,
    pub objects: u64,
    pub bytes: u64,
}

/// The state of an image's pin.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PinDone {
    pub reference: String,
    pub pinned: bool,
    /// Whether this call changed the pin.
    pub changed: bool,
}

/// The images that are pinned by name, without those that `repository.pin` matches.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Pins {
    pub pins: Vec<String>,
}

/// Returns some of the cached images: `count` of them after `last`.
pub async fn images(cache: &Cache, last: &str, count: usize) -> Result<Images, OpsError> {
    let count = count.clamp(1, MAX_PAGE);
    let (found, next) = cache.images(last.to_owned(), count).await?;
    Ok(Images { images: found.into_iter().map(Image::of).collect(), next })
}

impl Image {
    fn of((image, pinned): (crate::index::Image, bool)) -> Self {
        let time = |time: crate::index::Timestamp| humantime::format_rfc3339_seconds(time.to_system_time()).to_string();
        Self {
            reference: image.reference,
            repository: image.repository,
            name: image.name,
            digest: image.digest.to_string(),
            media_type: image.media_type.map(|media_type| media_type.as_str().to_owned()),
            objects: image.objects,
            size: image.bytes,
            missing: image.missing,
            manifests: image.children.map(|(whole, all)| Manifests { whole, all }),
            checked_at: image.checked_at.map(time),
            last_use: time(image.last_use),
            pinned,
        }
    }
}

/// What to say while the clock is surely wrong.
pub const WRONG_CLOCK: &str = "the clock of this machine is wrong: it says a time before this program was made; \
    certificates cannot be checked until it is set";

/// Returns what is wrong with an instance that nevertheless serves, each with what to do.
pub fn warnings(cache: &Cache, metrics: &Metrics) -> Vec<String> {
    let mut warnings = Vec::from_iter(cache.warning());
    if metrics.log.is_failing() {
        let lost = metrics.log.lost.get();
        warnings.push(format!("the log cannot be written ({lost} lines dropped); look at logging.file and its disk"));
    }
    if let Some(limit) = descriptors::few() {
        warnings
            .push(format!("only {limit} files and connections may be open; raise the limit (LimitNOFILE, ulimit -n)"));
    }
    if !clock::is_plausible() {
        warnings.push(WRONG_CLOCK.to_owned());
    }
    warnings
}

/// The cache of an instance, with what is needed to understand references.
pub struct Named<'a> {
    pub cache: &'a Cache,
    pub routing: &'a Routing,
    pub own: &'a OwnNames,
}

/// Removes everything (`None`), or what `which` names: a repository, a name, a tag or a digest. Fails if nothing of
/// that is cached.
pub async fn purge(named: &Named<'_>, which: Option<&str>) -> Result<PurgeDone, OpsError> {
    let purge = match which {
        None => Purge::All,
        Some(text) => what_to_purge(named, text)?,
    };
    let purged = named.cache.purge(purge.clone()).await?;
    if !purged.is_any() && purge != Purge::All {
        return Err(absent(named.routing, &purge));
    }
    Ok(PurgeDone { status: "ok".to_owned(), objects: purged.objects, bytes: purged.bytes })
}

/// Returns the text without the address of this cache before it. The prefix of a repository is left, even if it is
/// written like that address.
fn without_own_name<'a>((routing, own): (&Routing, &OwnNames), text: &'a str) -> &'a str {
    let is_prefix = text.split_once('/').is_some_and(|(first, _)| routing.prefixes().any(|prefix| prefix == first));
    if is_prefix { text } else { own.without(text) }
}

fn what_to_purge(named: &Named<'_>, text: &str) -> Result<Purge, OpsError> {
    let (text, routing) = (without_own_name((named.routing, named.own), text), named.routing);
    if routing.prefixes().any(|prefix| prefix == text) {
        return Ok(Purge::Repository(text.to_owned()));
    }
    let (path, reference) = split(text)?;
    let (repository, name) = routing.locate(path).map_err(|error| unrouted(text, error))?;
    let name = name.to_string();
    Ok(match reference {
        Some(reference) => Purge::Reference { repository, name, reference },
        None => Purge::Name { repository, name },
    })
}

/// Returns the error that nothing of what was to be purged is cached, with the repository that may be meant.
fn absent(routing: &Routing, purge: &Purge) -> OpsError {
    let (text, first) = match purge {
        Purge::All => (String::new(), String::new()),
        Purge::Repository(repository) => (repository.clone(), String::new()),
        Purge::Name { repository, name } => {
            // A name of one part may have been meant as a repository.
            let part = name.strip_prefix("library/").unwrap_or(name);
            let first = if part.contains('/') { repository } else { part };
            (format!("{repository}/{name}"), first.to_owned())
        }
        Purge::Reference { repository, name, reference } => {
            let (repository, name, reference) = (repository.clone(), name.clone(), reference.clone());
            let image = ImageName { repository: repository.clone(), name, reference };
            (written(&image), repository)
        }
    };
    let is_repository = routing.prefixes().any(|prefix| prefix == first);
    let nearest = Some(first).filter(|_| !is_repository).and_then(|first| routing.nearest(&first).map(str::to_owned));
    OpsError::Absent(text, nearest.map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?")))
}

/// Pins the image that `text` names (`NAME:TAG` or `NAME@DIGEST`; `latest` if neither is given), or unpins it. The
/// image need not be cached yet.
pub async fn set_pin(named: &Named<'_>, text: &str, is_pinned: bool) -> Result<PinDone, OpsError> {
    let (text, routing) = (without_own_name((named.routing, named.own), text), named.routing);
    let (path, reference) = split(text)?;
    if routing.prefixes().any(|prefix| prefix == path) {
        return Err(OpsError::Wrong(format!("`{path}` is a whole repository; name an image of it, or use its `pin`")));
    }
    if is_pinned {
        routing.expects(path).map_err(|error| unrouted(text, error))?;
    }
    let (repository, name) = routing.locate(path).map_err(|error| unrouted(text, error))?;
    let latest = || "latest".parse().map(Reference::Tag).map_err(|_| OpsError::Wrong("no tag".to_owned()));
    let reference = reference.map_or_else(latest, Ok)?;
    let image = ImageName { repository, name: name.to_string(), reference };
    let reference = written(&image);
    let changed = named.cache.set_pin(image, is_pinned).await?;
    Ok(PinDone { reference, pinned: is_pinned, changed })
}

/// An image as a request for it would find it.
pub struct Located {
    pub target: Target,
    pub reference: Reference,
}

impl Located {
    /// Returns it as it is written in a pull.
    pub fn written(&self) -> String {
        let (repository, name) = (self.target.repository.prefix().to_owned(), self.target.name.to_string());
        written(&ImageName { repository, name, reference: self.reference.clone() })
    }
}

/// Finds the image that `text` names, as a request would that comes to the registry door; `latest` where it has
/// neither tag nor digest.
pub fn located(routing: &Routing, own: &OwnNames, text: &str) -> Result<Located, OpsError> {
    let text = without_own_name((routing, own), text);
    let (path, reference) = split(text)?;
    let latest = || "latest".parse().map(Reference::Tag).map_err(|_| OpsError::Wrong("no tag".to_owned()));
    let reference = reference.map_or_else(latest, Ok)?;
    let tag = match &reference {
        Reference::Tag(tag) => Some(tag.as_str()),
        Reference::Digest(_) => None,
    };
    let target = routing.route(Asked { path, tag, ..Asked::default() }).map_err(|error| unrouted(text, error))?;
    Ok(Located { target, reference })
}

/// Returns the images that are pinned by name.
pub async fn pins(cache: &Cache) -> Result<Pins, OpsError> {
    let pins = cache.pins().await?;
    Ok(Pins { pins: pins.iter().map(written).collect() })
}

/// Reads everything that is stored; see [`crate::upkeep::scrub`]. Only one verification runs at a time; `begun` is
/// notified when this one begins.
pub async fn verify(
    cache: &Cache,
    is_repair: bool,
    begun: oneshot::Sender<()>,
    progress: impl FnMut(&Report) -> bool + Send + 'static,
) -> Result<Report, OpsError> {
    let turn = cache.begin_verification().ok_or(OpsError::Busy)?;
    // The caller may have left; the first call of `progress` tells.
    let _ = begun.send(());
    Ok(turn.run(is_repair, progress).await?)
}

/// Returns an image as it is written in a pull.
fn written(image: &ImageName) -> String {
    let ImageName { repository, name, reference } = image;
    let sign = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
    format!("{repository}/{name}{sign}{reference}")
}

/// Returns the error that no repository is for what a person wrote, or that it is no name.
fn unrouted(text: &str, error: RoutingError) -> OpsError {
    match error {
        RoutingError::InvalidName(error) => wrong(text, &error),
        unknown => OpsError::Unknown(unknown),
    }
}

/// Says of what a person wrote why it is no reference.
fn wrong(text: &str, error: &dyn std::fmt::Display) -> OpsError {
    let remedy = match text.contains('*') {
        true => "; to name all of a name or repository, leave the rest out",
        false => "",
    };
    OpsError::Wrong(format!("`{}`: {error}{remedy}", one_line(text)))
}

/// Splits `NAME`, `NAME:TAG` or `NAME@DIGEST` into name and reference. A tag before a digest is ignored.
fn split(text: &str) -> Result<(&str, Option<Reference>), OpsError> {
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (text, None),
    };
    let last_part = named.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match named[last_part..].find(':') {
        Some(colon) => (&named[..last_part + colon], Some(&named[last_part + colon + 1..])),
        None => (named, None),
    };
    let reference = digest.or(tag).map(str::parse::<Reference>).transpose();
    Ok((path, reference.map_err(|error| wrong(text, &error))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_split_as_in_a_pull() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let full = format!("localhost:5000/team/app:1@{digest}");
        for (text, path, reference) in [
            ("alpine", "alpine", None),
            ("docker.io/library/alpine:3.20", "docker.io/library/alpine", Some("3.20")),
            ("localhost:5000/app", "localhost:5000/app", None),
            (&full, "localhost:5000/team/app", Some(digest.as_str())),
        ] {
            let found = split(text).expect("well formed");
            assert_eq!((found.0, found.1.map(|reference| reference.to_string()).as_deref()), (path, reference));
        }
        assert!(matches!(split("app:-"), Err(OpsError::Wrong(_))));
        assert!(matches!(split("app@sha256:1"), Err(OpsError::Wrong(_))));
    }
}
