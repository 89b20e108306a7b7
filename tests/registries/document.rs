//! docs/registries.md says what is tried.

use std::collections::BTreeSet;
use std::path::Path;

use super::TRIED;

/// The table's rows: the name of the profile, and the last column.
fn rows() -> Vec<(&'static str, &'static str)> {
    let document = include_str!("../../docs/registries.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")).filter(|row| row.contains("`registries::"));
    rows.map(|row| {
        let shown_by = row.trim_end_matches('|').rsplit('|').next().expect("a last column");
        let (_, rest) = shown_by.split_once("`registries::").expect("checked");
        (rest.split_once("::").expect("a module").0, shown_by)
    })
    .collect()
}

#[test]
fn each_registry_has_its_row_and_each_row_its_registry() {
    let named: Vec<_> = rows().into_iter().map(|(name, _)| name).collect();
    let as_set = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
    let tried: Vec<_> = TRIED.iter().map(|(registry, _)| *registry).collect();
    assert_eq!(as_set(&named), as_set(&tried));
    assert_eq!(named.len(), tried.len(), "a row for each");
    let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/hub/profiles");
    let files = std::fs::read_dir(profiles).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let files: BTreeSet<_> = files.filter_map(|name| Some(name.to_str()?.strip_suffix(".rs")?.to_owned())).collect();
    let expected = tried.into_iter().chain(["mod"]).map(str::to_owned);
    assert_eq!(files, expected.collect(), "each profile is tried");
}

#[test]
fn the_promises_that_rows_name_are_tried() {
    for (registry, shown_by) in rows() {
        let (_, promises) = TRIED.iter().find(|(tried, _)| *tried == registry).expect("a row for each, as tried above");
        let tests: Vec<_> = shown_by.split('`').skip(1).step_by(2).collect();
        for test in &tests {
            let promise = test.rsplit("::").next().expect("a name");
            assert!(promises.contains(&promise), "{registry}: there is no promise {promise}");
            let is_own = *test == promise || *test == format!("registries::{registry}::{promise}");
            assert!(is_own, "{test} is of another registry than {registry}");
        }
    }
    let document = include_str!("../../docs/registries.md");
    for promise in TRIED.iter().flat_map(|(_, promises)| *promises) {
        assert!(document.contains(&format!("| `{promise}` |")), "docs/registries.md does not say what {promise} is");
    }
}
