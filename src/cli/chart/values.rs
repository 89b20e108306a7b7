//! Images in the values of a Helm chart.

use super::found::Found;
use crate::config::origin::Provenance;
use crate::config::tree::{Node, Value};

/// What holds for all images of a chart.
pub struct Globals {
    /// `global.imageRegistry`: instead of the registry of each image (Bitnami, prometheus-community).
    registry: Option<String>,
    /// `appVersion`: the tag of images that have none, as in the chart that `helm create` makes.
    version: Option<String>,
}

impl Globals {
    pub fn of(values: &Node, version: Option<&str>) -> Self {
        let registry = text_at(values, &["global", "imageRegistry"]).map(str::to_owned);
        Self { registry, version: version.map(str::to_owned) }
    }
}

/// Returns the text under a path, unless it is empty.
pub fn text_at<'a>(node: &'a Node, path: &[&str]) -> Option<&'a str> {
    match path.split_first() {
        Some((key, rest)) => text_at(child(node, key)?, rest),
        None => text(node),
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::String(text) | Value::Text(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn child<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Table(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
        _ => None,
    }
}

/// Returns the entry of a chart's dependencies for the chart `name`.
pub fn dependency<'a>(chart: &'a Node, name: &str) -> Option<&'a Node> {
    match &child(chart, "dependencies")?.value {
        Value::Array(items) => items.iter().find(|item| text_at(item, &["name"]) == Some(name)),
        _ => None,
    }
}

/// Returns the condition of a dependency that is false: of several, the first that has a value counts.
pub fn switched_off(dependency: &Node, values: &Node) -> Option<String> {
    let conditions = text_at(dependency, &["condition"])?.split(',').map(str::trim);
    let valued = conditions.filter_map(|path| Some((path, text_at(values, &path.split('.').collect::<Vec<_>>())?)));
    valued.take(1).find(|(_, value)| *value == "false").map(|(path, _)| path.to_owned())
}

/// Returns the values that a chart gives to a chart in it: the table under its name, and `global`.
pub fn for_subchart(values: &Node, name: &str) -> Node {
    let mut over = child(values, name).filter(|node| is_table(node)).cloned().unwrap_or_else(Node::empty);
    if let Some(global) = child(values, "global").filter(|node| is_table(node)) {
        let entries = vec![("global".to_owned(), global.clone())];
        over.merge(Node { value: Value::Table(entries), origin: Provenance::Default });
    }
    over
}

fn is_table(node: &Node) -> bool {
    matches!(node.value, Value::Table(_))
}

/// Takes the table under a key out of values.
pub fn take(values: &mut Node, key: &str) {
    if let Value::Table(entries) = &mut values.value {
        entries.retain(|(name, _)| name != key);
    }
}

/// Adds all images in values, wherever they are. `path`: what to call them in a note.
pub fn walk(node: &Node, path: &str, globals: &Globals, found: &mut Found) {
    match &node.value {
        Value::Table(entries) => {
            let is_image = is_map(node, path);
            if is_image {
                of_map(node, path, globals, found);
            } else if names_image(last(path)) && text_at(node, &["name"]).is_some() {
                // cert-manager puts it together from `imageRegistry`, `imageNamespace` and this.
                found.notes.push(format!("{path}: templates make its name, which is not known without helm"));
            }
            for (key, value) in entries {
                let at = format!("{path}.{key}");
                match text(value) {
                    Some(image) if !is_image && names_image(key) => written(node, image, &at, found),
                    Some(_) => {}
                    None => walk(value, &at, globals, found),
                }
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| walk(item, &format!("{path}[{at}]"), globals, found));
        }
        _ => {}
    }
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or_default()
}

fn names_image(key: &str) -> bool {
    key.to_ascii_lowercase().ends_with("image")
}

/// Returns whether a table stands for an image: it has a repository, and a tag or the like, or a key that says so.
fn is_map(node: &Node, path: &str) -> bool {
    let has = |key: &str| child(node, key).is_some();
    let is_named = names_image(last(path));
    let is_versioned = ["tag", "digest", "sha"].iter().any(|key| has(key));
    let has_name = has("repository") || (has("image") && has("registry"));
    has_name && (is_named || is_versioned || has("registry"))
}

/// Adds the image that a table stands for: `registry`, `repository` (in ingress-nginx: `image`), `tag`, and `digest` (in
/// prometheus-community: `sha`).
fn of_map(node: &Node, path: &str, globals: &Globals, found: &mut Found) {
    let of = |key: &str| text_at(node, &[key]);
    // An empty repository stands for a default that the templates know.
    let Some(repository) = of("repository").or(of("image")) else { return };
    if repository.contains("://") {
        return;
    }
    let registry = globals.registry.as_deref().or(of("registry"));
    let mut image = registry.map_or_else(|| repository.to_owned(), |registry| format!("{registry}/{repository}"));
    let digest = of("digest").or(of("sha"));
    let tag = of("tag").or(globals.version.as_deref().filter(|_| digest.is_none()));
    if let Some(tag) = tag {
        image = format!("{image}:{tag}");
    }
    if let Some(digest) = digest {
        let algorithm = if digest.contains(':') { "" } else { "sha256:" };
        image = format!("{image}@{algorithm}{digest}");
    }
    match (is_image(&image), tag.or(digest)) {
        (true, Some(_)) => found.add(image),
        (true, None) => found.notes.push(format!("{path}: {image} has no tag, and the chart has no appVersion")),
        (false, _) => {
            found.notes.push(format!("{path}: `{image}` is made by a template, and is not known without helm"))
        }
    }
}

/// Adds an image that is written as a text; its tag may be beside it.
fn written(around: &Node, image: &str, path: &str, found: &mut Found) {
    if image.contains("{{") {
        found.notes.push(format!("{path}: `{image}` is made by a template, and is not known without helm"));
        return;
    }
    let has_tag = image.contains('@') || image.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let beside = text_at(around, &["imageTag"]).or(text_at(around, &["tag"])).filter(|_| !has_tag);
    let image = beside.map_or_else(|| image.to_owned(), |tag| format!("{image}:{tag}"));
    match is_image(&image) {
        true if has_tag || beside.is_some() => found.add(image),
        true if last(path) == "image" => found.notes.push(format!("{path}: {image} has no tag beside it")),
        _ => {}
    }
}

/// Returns whether a text has the characters of an image, and no template.
pub fn is_image(text: &str) -> bool {
    let is_of_images = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(is_of_images)
        && !text.contains("//")
}
