//! Patterns on tags: a glob, `/a regular expression/`, or a range of versions.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};
use semver::{Comparator, Op, Prerelease, Version, VersionReq};

use super::shapes::Pattern;

/// Which tags of a name are meant.
#[derive(Clone, Debug)]
pub struct TagPattern {
    /// As it is written.
    text: String,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    Glob(GlobMatcher),
    Regex(Pattern),
    /// Alternatives, of which one has to fit.
    Ranges(Vec<Range>),
}

/// Bounds that all have to hold, for versions of one variant.
#[derive(Clone, Debug)]
struct Range {
    bounds: VersionReq,
    /// What stands behind the version: `alpine`. `None`: nothing does.
    variant: Option<String>,
}

/// A version as a tag writes it.
struct Written<'a> {
    major: u64,
    minor: Option<u64>,
    patch: Option<u64>,
    pre: Prerelease,
    variant: Option<&'a str>,
}

/// How the words begin that tell an early version (`17-rc1`) from a variant (`17-alpine`).
const EARLY: [&str; 10] =
    ["alpha", "beta", "rc", "pre", "preview", "dev", "snapshot", "nightly", "canary", "milestone"];

impl TagPattern {
    /// Reads a pattern; `None` if the text is none, and so has to be a tag. The error says what is wrong with a
    /// pattern.
    pub fn read(text: &str) -> Option<Result<Self, String>> {
        let rule = if text.starts_with('/') {
            regex(text).map(Rule::Regex)
        } else if text.trim_start().starts_with(['<', '>', '=', '^', '~']) {
            ranges(text).map(Rule::Ranges)
        } else if text.contains(['*', '?', '[', '{']) {
            glob(text).map(Rule::Glob)
        } else {
            return None;
        };
        Some(rule.map(|rule| Self { text: text.to_owned(), rule }))
    }

    /// Returns whether it means this tag.
    pub fn is_match(&self, tag: &str) -> bool {
        match &self.rule {
            Rule::Glob(glob) => glob.is_match(tag),
            Rule::Regex(pattern) => pattern.is_match(tag),
            Rule::Ranges(ranges) => {
                Written::read(tag).is_some_and(|written| ranges.iter().any(|range| range.holds(&written)))
            }
        }
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for TagPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Returns the version of a tag, to tell newer ones from older ones; `None` if it is no version.
pub fn version(tag: &str) -> Option<Version> {
    Written::read(tag).map(|written| written.version())
}

fn regex(text: &str) -> Result<Pattern, String> {
    let inner = text.strip_prefix('/').and_then(|text| text.strip_suffix('/'));
    let inner = inner.ok_or_else(|| format!("`{text}` has no `/` at its end; write for example /^3\\.[0-9]+$/"))?;
    Pattern::try_from(inner.to_owned())
}

fn glob(text: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(text).literal_separator(false).backslash_escape(true).build();
    let glob = glob.map_err(|error| format!("`{text}` is no valid pattern: {}", error.kind()))?;
    Ok(glob.compile_matcher())
}

fn ranges(text: &str) -> Result<Vec<Range>, String> {
    text.split("||")
        .map(|alternative| range(alternative).map_err(|why| format!("`{text}` is no range: {why}")))
        .collect()
}

/// Reads bounds with commas or spaces between them: `>=16, <18` and `>=16 <18` are the same.
fn range(text: &str) -> Result<Range, String> {
    let is_operator = |c: char| matches!(c, '<' | '>' | '=' | '^' | '~');
    let mut comparators = Vec::new();
    let mut variant: Option<Option<String>> = None;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let behind = rest.trim_start_matches(is_operator);
        let operator = &rest[..rest.len() - behind.len()];
        let behind = behind.trim_start();
        let end = behind.find(|c: char| c == ',' || c.is_whitespace() || is_operator(c)).unwrap_or(behind.len());
        let (bound, behind) = behind.split_at(end);
        rest = behind.trim_start().trim_start_matches(',').trim_start();
        let op = match operator {
            "=" | "==" => Op::Exact,
            ">" => Op::Greater,
            ">=" => Op::GreaterEq,
            "<" => Op::Less,
            "<=" => Op::LessEq,
            "~" => Op::Tilde,
            "^" => Op::Caret,
            _ => return Err(format!("a bound begins with >=, >, <=, <, =, ~ or ^, and not with `{operator}{bound}`")),
        };
        let written = Written::read(bound).ok_or_else(|| format!("`{bound}` is no version such as 16 or 3.20.1"))?;
        let of = written.variant.map(str::to_owned);
        if *variant.get_or_insert_with(|| of.clone()) != of {
            return Err("all bounds need the same word behind the version, as in >=16-alpine, <18-alpine".to_owned());
        }
        comparators.push(written.bound(op));
    }
    let variant = variant.ok_or("it has no bound; write for example >=16, <18")?;
    Ok(Range { bounds: VersionReq { comparators }, variant })
}

impl Range {
    fn holds(&self, written: &Written<'_>) -> bool {
        // As Cargo, npm and Masterminds/semver do, an early version counts only where a bound names an early one of the
        // same version.
        self.variant.as_deref() == written.variant && self.bounds.matches(&written.version())
    }
}

impl<'a> Written<'a> {
    /// Reads `16`, `v3.20`, `1.2.3-rc.1`, `16.4-alpine`; `None` for `latest`, `17rc1`, `10.0.17763.2114`.
    fn read(tag: &'a str) -> Option<Self> {
        let plain = tag.strip_prefix(['v', 'V']).unwrap_or(tag);
        let (numbers, suffix) = match plain.split_once('-') {
            Some((numbers, suffix)) if !suffix.is_empty() => (numbers, Some(suffix)),
            Some(_) => return None,
            None => (plain, None),
        };
        let mut parts = numbers.split('.').map(|part| {
            let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u64>().ok().filter(|_| is_number)
        });
        let major = parts.next()??;
        let minor = parts.next().map_or(Some(None), |part| part.map(Some))?;
        let patch = parts.next().map_or(Some(None), |part| part.map(Some))?;
        if parts.next().is_some() {
            return None;
        }
        let (pre, variant) = match suffix {
            Some(suffix) if is_early(suffix) => (Prerelease::new(suffix).ok()?, None),
            variant => (Prerelease::EMPTY, variant),
        };
        Some(Self { major, minor, patch, pre, variant })
    }

    fn version(&self) -> Version {
        let (minor, patch) = (self.minor.unwrap_or(0), self.patch.unwrap_or(0));
        Version { pre: self.pre.clone(), ..Version::new(self.major, minor, patch) }
    }

    fn bound(&self, op: Op) -> Comparator {
        let (minor, patch) = match self.pre.is_empty() {
            true => (self.minor, self.patch),
            // Only of a whole version there are early ones.
            false => (Some(self.minor.unwrap_or(0)), Some(self.patch.unwrap_or(0))),
        };
        Comparator { op, major: self.major, minor, patch, pre: self.pre.clone() }
    }
}

/// Returns whether what stands behind a version says that it is an early one: `rc1`, `beta.2`, `rc1-alpine`.
fn is_early(suffix: &str) -> bool {
    let lower = suffix.to_ascii_lowercase();
    EARLY.contains(&lower.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> TagPattern {
        TagPattern::read(text).unwrap_or_else(|| panic!("{text} is a pattern")).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The table of docs/warming.md: what a pattern fits, and what it does not.
    #[test]
    fn patterns_fit_what_the_table_of_the_documentation_says() {
        let page = include_str!("../../docs/warming.md");
        let rows = page.lines().filter(|line| line.starts_with("| `") && line.matches('|').count() >= 4);
        let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let mut tried = 0;
        for row in rows {
            // `||` is a part of one pattern.
            let row = row.replace("\\|", "\u{1}");
            let cells: Vec<_> = row.trim_matches('|').split('|').map(|cell| cell.replace('\u{1}', "|")).collect();
            let [patterns, fit, unfit, ..] = &cells[..] else { panic!("{row}") };
            let Some(text) = words(patterns).first().cloned() else { continue };
            let Some(Ok(of)) = TagPattern::read(&text) else { continue };
            for tag in words(fit) {
                assert!(of.is_match(&tag), "{text} fits {tag}");
                tried += 1;
            }
            for tag in words(unfit) {
                assert!(!of.is_match(&tag), "{text} does not fit {tag}");
                tried += 1;
            }
        }
        assert!(tried >= 60, "{tried} tags");
    }

    #[test]
    fn what_is_no_pattern_is_a_tag() {
        for tag in ["3.20", "latest", "v1.2.3-rc.1", "1.x", "16-alpine"] {
            assert!(TagPattern::read(tag).is_none(), "{tag}");
        }
    }

    #[test]
    fn a_wrong_pattern_says_why() {
        for (text, why) in [
            ("/^3", "has no `/` at its end"),
            ("/", "has no `/` at its end"),
            ("//", "matches everything"),
            ("/(/", "no valid regular expression: unclosed group"),
            ("3.[", "is no valid pattern: unclosed character class"),
            ("{a,b", "is no valid pattern"),
            (">=", "`` is no version such as 16"),
            (">=latest", "`latest` is no version"),
            (">=1.2.3.4", "`1.2.3.4` is no version"),
            (">=16 || ", "has no bound"),
            ("=>16", "a bound begins with >="),
            (">=16, 18", "not with `18`"),
            (">=16-alpine <18", "the same word behind the version"),
        ] {
            let said = TagPattern::read(text).expect("a pattern").map(|_| ()).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn newer_versions_are_told_from_older_ones() {
        let mut tags = ["3.9", "v3.20", "3.20-rc1", "3.20.1", "4"].map(|tag| (version(tag), tag));
        tags.sort();
        assert_eq!(tags.map(|(_, tag)| tag), ["3.9", "3.20-rc1", "v3.20", "3.20.1", "4"]);
        assert_eq!(version("latest"), None);
        assert!(pattern(">=3.9").is_match("v3.20"));
    }
}
