//! Which images a schedule means now: patterns are compared with the upstream's list of tags.

use std::collections::HashSet;

use super::{IMAGES, Image};
use crate::config::tag_pattern::{TagPattern, version};
use crate::config::{WarmImages, Which};
use crate::oci::{Reference, Tag};
use crate::registry::{MOST_TAGS, Objects};
use crate::routing::{Asked, Routing};

/// The images of a run.
pub struct Found {
    pub images: Vec<Image>,
    /// What is not among them, and why: the image as the configuration has it, and the reason.
    pub problems: Vec<(String, String)>,
}

/// Finds the images of a schedule, each once.
pub async fn find(objects: &Objects, routing: &Routing, wanted: &[WarmImages]) -> Found {
    let mut found = Found { images: Vec::new(), problems: Vec::new() };
    let mut seen = HashSet::new();
    for images in wanted {
        let references = match &images.which {
            Which::One(reference) => vec![reference.clone()],
            Which::Matching(pattern) => match matching(objects, routing, images, pattern, &mut found).await {
                Ok(tags) => tags.into_iter().map(Reference::Tag).collect(),
                Err(why) => {
                    found.problems.push((images.to_string(), why));
                    continue;
                }
            },
        };
        for (at, reference) in references.iter().enumerate() {
            if found.images.len() == IMAGES {
                let why = format!("a run has at most {IMAGES} images; {} are left out", references.len() - at);
                found.problems.push((images.to_string(), why));
                break;
            }
            match located(routing, &images.path, reference) {
                Ok(image) if seen.insert(image.written.clone()) => found.images.push(image),
                Ok(_) => {}
                Err(why) => {
                    // The same is wrong with all tags of the name.
                    found.problems.push((images.to_string(), why));
                    break;
                }
            }
        }
    }
    found
}

fn located(routing: &Routing, path: &str, reference: &Reference) -> Result<Image, String> {
    let tag = match reference {
        Reference::Tag(tag) => Some(tag.as_str()),
        Reference::Digest(_) => None,
    };
    let target = routing.route(Asked { path, tag, ..Asked::default() }).map_err(|error| error.to_string())?;
    let sign = if tag.is_some() { ':' } else { '@' };
    let written = format!("{}/{}{sign}{reference}", target.repository.prefix(), target.name);
    Ok(Image::new(target, reference.clone(), written))
}

/// Returns the tags that a pattern means, the newest version first, and behind the versions the others.
async fn matching(
    objects: &Objects,
    routing: &Routing,
    images: &WarmImages,
    pattern: &TagPattern,
    found: &mut Found,
) -> Result<Vec<Tag>, String> {
    let asked = Asked { path: &images.path, ..Asked::default() };
    let target = routing.route(asked).map_err(|error| error.to_string())?;
    let all = objects.all_tags(&target).await;
    let all = all.map_err(|failure| format!("its tags cannot be listed: {}", failure.message()))?;
    if let Some(failure) = &all.stale {
        let why = format!("its tags cannot be listed now, and the last known ones count: {}", failure.message());
        found.problems.push((images.to_string(), why));
    }
    if all.is_cut {
        let why = format!("it has more tags than are looked at ({MOST_TAGS}); the others are left out");
        found.problems.push((images.to_string(), why));
    }
    let mut tags: Vec<_> = all.tags.into_iter().filter(|tag| pattern.is_match(tag.as_str())).collect();
    if tags.is_empty() {
        return Err("no tag fits".to_owned());
    }
    tags.sort_by_cached_key(|tag| std::cmp::Reverse((version(tag.as_str()), tag.clone())));
    Ok(tags)
}
