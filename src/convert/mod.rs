//! Converts other programs' configurations to a `larder.toml`.
//!
//! Each kind takes its values out of a [`Foreign`] tree and puts them into a [`Draft`]; warnings name the values that
//! are left in the tree, so that nothing is lost unseen.

mod discobot;
mod distribution;
mod draft;
mod foreign;
mod kind;
mod manifests;
mod simple_toml;
mod values;
pub mod yaml;

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::config::tree::{Node, Value};
use draft::Draft;
use foreign::Foreign;
pub use kind::{ConvertError, Converted, Kind};

/// Largest file that is read, in bytes; larger files are no configuration.
const MAX_FILE: u64 = 4 << 20;

/// Reads the files, and those in the folders, and converts them to a `larder.toml`. `kind`: the program that they are
/// for; `None`: their content tells.
pub fn convert(paths: &[PathBuf], kind: Option<Kind>) -> Result<Converted, ConvertError> {
    let mut texts = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = read(&file)?;
            texts.push((file, text));
        }
    }
    convert_texts(&texts, kind)
}

fn convert_texts(texts: &[(PathBuf, String)], kind: Option<Kind>) -> Result<Converted, ConvertError> {
    let mut documents = Vec::new();
    let mut found = kind;
    for (path, text) in texts {
        for document in parse(path, text, kind)? {
            if !matches!(document.node.value, Value::Table(_)) {
                return Err(ConvertError::at(&document.node.origin, "this is no table of keys and values"));
            }
            if kind.is_none() && is_larders(&document, text) {
                let message = format!("{}: this is a configuration of Larder already", path.display());
                return Err(ConvertError(message));
            }
            let is = match kind {
                Some(kind) => Some(kind),
                None => recognize(&document),
            };
            let Some(is) = is else {
                return Err(ConvertError(format!(
                    "{}: whose configuration this is cannot be told; name it with --from ({})",
                    path.display(),
                    Kind::ALL.map(Kind::name).join(", ")
                )));
            };
            if let Some(other) = found.replace(is)
                && other != is
            {
                let (is, other) = (is.name(), other.name());
                let message = format!("this is {is}, what came before is {other}; convert them one after the other");
                return Err(ConvertError::at(&document.node.origin, message));
            }
            documents.push(document);
        }
    }
    let Some(kind) = found.filter(|_| !documents.is_empty()) else {
        return Err(ConvertError("there is nothing in it to convert".to_owned()));
    };
    let mut draft = Draft::default();
    match kind {
        Kind::Manifests => manifests::convert(documents, &mut draft)?,
        Kind::SimpleToml => simple_toml::convert(documents, &mut draft)?,
        Kind::Distribution => distribution::convert(only(documents)?, &mut draft)?,
        Kind::Discobot => discobot::convert(only(documents)?, &mut draft)?,
    }
    let converted = draft.finish(kind);
    Config::check_text(&converted.toml).map_err(|error| {
        let names = texts.iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(", ");
        ConvertError(format!(
            "{names}: what it says cannot be a configuration of Larder. The result would be wrong at {error}"
        ))
    })?;
    Ok(converted)
}

/// Returns the file itself, or the YAML files of a folder in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, ConvertError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error| ConvertError(format!("{}: cannot read the folder: {error}", path.display()));
    let entries = fs::read_dir(path).map_err(unreadable)?.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let is_yaml = |file: &PathBuf| {
        let extension = file.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        file.is_file() && matches!(extension.as_deref(), Some("yaml" | "yml"))
    };
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).filter(is_yaml).collect();
    if files.is_empty() {
        return Err(ConvertError(format!("{}: there is no .yaml or .yml file in this folder", path.display())));
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, ConvertError> {
    let unreadable = |error| ConvertError(format!("{}: cannot read the file: {error}", path.display()));
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE {
        return Err(ConvertError(format!("{}: this is too large for a configuration", path.display())));
    }
    fs::read_to_string(path).map_err(unreadable)
}

fn parse(path: &Path, text: &str, kind: Option<Kind>) -> Result<Vec<Foreign>, ConvertError> {
    let toml = || Node::parse(path, text).map(|node| vec![node]).map_err(|error| ConvertError(error.to_string()));
    let yaml = || yaml::documents(path, text);
    let extension = path.extension().and_then(|extension| extension.to_str());
    let documents = match (kind, extension) {
        (Some(Kind::SimpleToml), _) | (None, Some("toml")) => toml()?,
        (Some(_), _) | (None, Some("yaml" | "yml" | "json")) => yaml()?,
        (None, _) => toml().or_else(|_| yaml())?,
    };
    Ok(documents.into_iter().map(Foreign::new).collect())
}

/// Returns whether a document is a configuration of Larder already: Larder accepts it, and it has a table of Larder.
fn is_larders(document: &Foreign, text: &str) -> bool {
    ["server", "cache", "headers", "admin", "logging"].iter().any(|table| document.has(&[table]))
        && Config::check_text(text).is_ok()
}

fn recognize(document: &Foreign) -> Option<Kind> {
    let has = |path: &str| document.has(&path.split('.').collect::<Vec<_>>());
    let any = |paths: &[&str]| paths.iter().any(|path| has(path));
    if has("apiVersion") && has("kind") {
        Some(Kind::Manifests)
    } else if any(&["repository", "blob_store", "metadata_store", "global"]) {
        Some(Kind::SimpleToml)
    } else if any(&["proxy.remoteurl", "storage", "http.addr"]) {
        Some(Kind::Distribution)
    } else if any(&["proxy.port", "proxy.api_port", "cache", "allowlist", "headers", "tls.cert_dir"]) {
        Some(Kind::Discobot)
    } else {
        None
    }
}

fn only(documents: Vec<Foreign>) -> Result<Foreign, ConvertError> {
    let mut documents = documents.into_iter();
    match (documents.next(), documents.next()) {
        (Some(document), None) => Ok(document),
        (_, Some(second)) => Err(ConvertError::at(&second.node.origin, "a second configuration; give one at a time")),
        (None, None) => Err(ConvertError("there is nothing in it to convert".to_owned())),
    }
}

#[cfg(test)]
mod tests;
