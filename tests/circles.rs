//! The house has no circle: no file imports, by way of others, a file that imports it.
//!
//! A name counts as imported from the file that defines it: what a `mod.rs` only hands on (`pub use`) is followed to there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module by its path below `src`; the library itself is empty.
type Module = Vec<String>;

/// A path in a `use`, as written.
#[derive(Clone, Debug)]
struct Import {
    path: Vec<String>,
    /// The name that it has here.
    name: String,
    /// Whether it is handed on to those who import this file.
    is_handed_on: bool,
}

/// All files and their imports, without those of their tests.
fn read(folder: &Path, module: &[String], files: &mut BTreeMap<Module, Vec<Import>>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let of = |name: &str| module.iter().cloned().chain([name.to_owned()]).collect::<Vec<_>>();
        if stem.contains("tests") || matches!(stem.as_str(), "main" | "suite" | "simulated") {
            continue;
        }
        if path.is_dir() {
            read(&path, &of(&stem), files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("readable");
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let module = if matches!(stem.as_str(), "mod" | "lib") { module.to_vec() } else { of(&stem) };
            files.insert(module, imports(code));
        }
    }
}

fn imports(code: &str) -> Vec<Import> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let line = rest[..at].rsplit('\n').next().unwrap_or_default().trim().to_owned();
        rest = &rest[at + "use ".len()..];
        if line.is_empty() || line.starts_with("pub") {
            let tree = rest.split(';').next().unwrap_or_default();
            spread(tree, &[], !line.is_empty(), &mut found);
        }
    }
    found
}

/// The parts of `a::b`.
fn segments(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty())
}

/// The paths of a tree such as `a::{b, c::{self, d as e}}`.
fn spread(tree: &str, before: &[String], is_handed_on: bool, found: &mut Vec<Import>) {
    if let Some((head, tail)) = tree.split_once('{') {
        let before: Vec<_> = before.iter().cloned().chain(segments(head)).collect();
        let (mut depth, mut start) = (0, 0);
        let inner = &tail[..tail.rfind('}').unwrap_or(tail.len())];
        for (at, character) in inner.char_indices().chain([(inner.len(), ',')]) {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    if !inner[start..at].trim().is_empty() {
                        spread(&inner[start..at], &before, is_handed_on, found);
                    }
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
    let path: Vec<_> = before.iter().cloned().chain(segments(path)).collect();
    let last = path.last().cloned().unwrap_or_default();
    let name = if alias.is_empty() { last } else { alias.trim().to_owned() };
    found.push(Import { path, name, is_handed_on });
}

/// A path as seen from the library's root; `None` where it leads out of the library.
fn from_root(module: &[String], path: &[String], files: &BTreeMap<Module, Vec<Import>>) -> Option<Module> {
    let mut here = module.to_vec();
    let mut path = path;
    match path.first()?.as_str() {
        "crate" => return Some(path[1..].to_vec()),
        "self" => path = &path[1..],
        "super" => {
            while path.first().is_some_and(|part| part == "super") {
                here.pop();
                path = &path[1..];
            }
        }
        child => {
            here.push(child.to_owned());
            let is_child = files.contains_key(&here);
            here.pop();
            if !is_child {
                return None;
            }
        }
    }
    here.extend(path.iter().cloned());
    Some(here)
}

/// The file that defines what a path names, and the name; `None` for a module itself.
fn defined_in(path: &[String], files: &BTreeMap<Module, Vec<Import>>, steps: usize) -> Option<Module> {
    let module = (0..=path.len()).rev().map(|length| &path[..length]).find(|module| files.contains_key(*module))?;
    let name = path.get(module.len()).filter(|name| *name != "self" && *name != "*")?;
    let handed_on = files[module].iter().find(|import| import.is_handed_on && import.name == *name);
    match handed_on.and_then(|import| from_root(module, &import.path, files)) {
        Some(path) if steps > 0 => defined_in(&path, files, steps - 1),
        _ => Some(module.to_vec()),
    }
}

/// Whether `to` is reached from `from`.
fn leads(from: &Module, to: &Module, edges: &BTreeMap<Module, BTreeSet<Module>>) -> bool {
    let (mut open, mut seen) = (vec![from], BTreeSet::new());
    while let Some(module) = open.pop() {
        for next in edges.get(module).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    false
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut files = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut files);
    let mut edges: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, imports) in &files {
        for import in imports.iter().filter(|import| !import.is_handed_on) {
            let path = from_root(module, &import.path, &files);
            let defined = path.and_then(|path| defined_in(&path, &files, 10)).filter(|defined| defined != module);
            edges.entry(module.clone()).or_default().extend(defined);
        }
    }
    assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 500, "the imports were read");
    let in_circles: BTreeSet<_> = edges.keys().filter(|module| leads(module, module, &edges)).collect();
    let named: Vec<_> = in_circles.iter().map(|module| module.join("/")).collect();
    assert!(named.is_empty(), "these import each other in circles: {named:?}");
}

#[test]
fn a_circle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let edges = BTreeMap::from([
        (module("a"), BTreeSet::from([module("b")])),
        (module("b"), BTreeSet::from([module("c")])),
        (module("c"), BTreeSet::from([module("b")])),
    ]);
    assert!(!leads(&module("a"), &module("a"), &edges) && leads(&module("b"), &module("b"), &edges));
    let found = imports("pub use a::{b, c::{self, d as e}};\nuse super::f;\n");
    let names: Vec<_> = found.iter().map(|import| import.name.as_str()).collect();
    assert_eq!(names, ["b", "self", "e", "f"]);
    assert!(found[0].is_handed_on && !found[3].is_handed_on && found[2].path == ["a", "c", "d"]);
}
