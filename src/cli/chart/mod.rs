//! The images of a Helm chart: as `helm template` renders them where helm is there, else as the chart itself names them.

mod files;
mod found;
mod helm;
mod values;

use std::path::Path;

use crate::config::tree::{Node, Value};
use crate::convert::yaml;
use files::{Budget, Files, is_manifest};
pub use found::Found;
pub use helm::rendered;
use values::{Globals, text_at};

/// Most charts within each other.
const DEPTH: usize = 8;

/// Annotations of Chart.yaml that list images: <https://artifacthub.io/docs/topics/annotations/helm/>, and Bitnami's
/// form of it without a prefix.
const ANNOTATIONS: [&str; 2] = ["artifacthub.io/images", "images"];

/// Reads the images that a chart, and the charts in it, name by themselves. Blocks.
pub fn named(chart: &Path) -> Result<Found, String> {
    let mut budget = Budget::default();
    let files = files::read(chart, &mut budget).map_err(|error| error.to_string())?;
    let mut found = Found::default();
    of_chart(files, None, DEPTH, &mut budget, &mut found)?;
    Ok(found)
}

/// Adds the images of one chart. `over`: the values that the chart around it gives it.
fn of_chart(
    files: Files,
    over: Option<Node>,
    depth: usize,
    budget: &mut Budget,
    found: &mut Found,
) -> Result<(), String> {
    let document = |name: &str| -> Result<Option<Node>, String> {
        let Some(bytes) = files.get(name) else { return Ok(None) };
        let read = yaml::documents(Path::new(name), &String::from_utf8_lossy(bytes));
        Ok(read.map_err(|error| error.to_string())?.into_iter().next())
    };
    let chart = document("Chart.yaml")?.ok_or("it has no Chart.yaml, so it is no chart")?;
    let name = text_at(&chart, &["name"]).unwrap_or("the chart").to_owned();
    let depth = depth.checked_sub(1).ok_or("there are too many charts within each other")?;
    let mut all = document("values.yaml")?.unwrap_or_else(Node::empty);
    all.merge(over.unwrap_or_else(Node::empty));
    annotated(&chart, found);
    of_subcharts(&files, &chart, &mut all, depth, budget, found)?;
    let globals = Globals::of(&all, text_at(&chart, &["appVersion"]));
    values::walk(&all, &name, &globals, found);
    literal(&files, &name, found);
    Ok(())
}

/// Adds the images that the annotations of a chart list.
fn annotated(chart: &Node, found: &mut Found) {
    for annotation in ANNOTATIONS {
        let Some(text) = text_at(chart, &["annotations", annotation]) else { continue };
        let Ok(documents) = yaml::documents(Path::new("Chart.yaml"), text) else { continue };
        for document in &documents {
            let Value::Array(items) = &document.value else { continue };
            items.iter().filter_map(|item| text_at(item, &["image"])).for_each(|image| found.add(image.to_owned()));
        }
    }
}

/// Adds the images of the charts in `charts/`, and takes their values out of those of the chart around them.
fn of_subcharts(
    files: &Files,
    chart: &Node,
    all: &mut Node,
    depth: usize,
    budget: &mut Budget,
    found: &mut Found,
) -> Result<(), String> {
    let mut charts: Vec<(String, Files)> = Vec::new();
    for (path, bytes) in files {
        let Some(rest) = path.strip_prefix("charts/") else { continue };
        match rest.split_once('/') {
            Some((folder, path)) => match charts.last_mut() {
                Some((last, files)) if last == folder => drop(files.insert(path.to_owned(), bytes.clone())),
                _ => charts.push((folder.to_owned(), [(path.to_owned(), bytes.clone())].into())),
            },
            None => {
                let unpacked = files::archive(bytes.as_slice(), budget);
                charts.push((rest.to_owned(), unpacked.map_err(|error| format!("charts/{rest}: {error}"))?));
            }
        }
    }
    for (folder, files) in charts {
        let own = files.get("Chart.yaml").and_then(|bytes| {
            yaml::documents(Path::new("Chart.yaml"), &String::from_utf8_lossy(bytes)).ok()?.into_iter().next()
        });
        let name = own.as_ref().and_then(|own| text_at(own, &["name"])).unwrap_or(&folder).to_owned();
        let dependency = values::dependency(chart, &name);
        if let Some(condition) = dependency.and_then(|of| values::switched_off(of, all)) {
            found.notes.push(format!("{name} is left out: {condition} is false"));
            continue;
        }
        let alias = dependency.and_then(|of| text_at(of, &["alias"])).unwrap_or(&name).to_owned();
        let over = values::for_subchart(all, &alias);
        of_chart(files, Some(over), depth, budget, found).map_err(|why| format!("charts/{folder}: {why}"))?;
        values::take(all, &alias);
    }
    Ok(())
}

/// Adds the images that manifests and templates name literally, and notes how many names are made by templates.
fn literal(files: &Files, name: &str, found: &mut Found) {
    let mut made = 0;
    let own = files.iter().filter(|(path, _)| is_manifest(path) && !path.starts_with("charts/"));
    for (_, bytes) in own {
        for line in String::from_utf8_lossy(bytes).lines() {
            let line = line.trim_start().trim_start_matches("- ");
            let Some(value) = line.strip_prefix("image:").map(str::trim) else { continue };
            if value.contains("{{") {
                made += 1;
                continue;
            }
            let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
            if values::is_image(value) && value.contains([':', '/']) {
                found.add(value.to_owned());
            }
        }
    }
    if made > 0 {
        let lines = if made == 1 { "1 image".to_owned() } else { format!("{made} images") };
        found.notes.push(format!(
            "{name}: templates make the names of {lines}; of these, only what values.yaml names is known without helm"
        ));
    }
}

#[cfg(test)]
mod tests;
