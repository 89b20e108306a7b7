//! simple-registry's YAML manifests: `PullThroughCache` and `Configuration`.

use regex::Regex;
use toml::Value;
use url::Url;

use super::draft::{Draft, Repository, line, login, patterns};
use super::foreign::Foreign;
use super::kind::ConvertError;
use crate::config::origin::Provenance;
use crate::config::repository::is_prefix;

const NO_LOGIN: &str = "make an htpasswd file of the users for [auth.htpasswd], and say who may pull in `allow`";

/// Moves the values of `documents` into `draft`.
pub fn convert(documents: Vec<Foreign>, draft: &mut Draft) -> Result<(), ConvertError> {
    draft.only_its_own_repositories();
    draft.server(line("default_repository", "").why("names that match no scope have no upstream"));
    let mut caches = Vec::new();
    for mut document in documents {
        let kind = document.text(&["kind"])?.unwrap_or_else(|| (String::new(), document.node.origin.clone()));
        match kind.0.as_str() {
            "PullThroughCache" => caches.push(cache(document, draft)?),
            "Configuration" => configuration(document, draft)?,
            "User" | "Token" | "Role" | "RoleBinding" => draft.warn_at(&kind.1, format!("`{}`: {NO_LOGIN}", kind.0)),
            other => draft.warn_at(&kind.1, format!("`kind: {other}`: Larder has nothing like it")),
        }
    }
    if caches.is_empty() {
        return Err(ConvertError("there is no PullThroughCache in it, so there is nothing to convert".to_owned()));
    }
    draft.remark("Larder takes no pushes.");
    let scopes: Vec<String> = caches.iter().flat_map(|(_, _, scopes)| scopes.clone()).collect();
    for (mut repository, origin, _) in caches {
        let name = key(&repository.prefix, &scopes, draft);
        if name != repository.prefix {
            let was = &repository.prefix;
            draft
                .warn_at(&origin, format!("`metadata.name`: `{was}` became `{name}`, which begins no name in a scope"));
        }
        repository.prefix = name;
        draft.repositories.push(repository);
    }
    Ok(())
}

/// Returns a key for a repository that is valid, that no other repository has, and that begins no name in a scope: such
/// a name would lose the key as its prefix.
fn key(name: &str, scopes: &[String], draft: &Draft) -> String {
    let cleaned: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' })
        .collect();
    let cleaned = if is_prefix(&cleaned) { cleaned } else { "upstream".to_owned() };
    let is_in_use = |key: &str| draft.repositories.iter().any(|repository| repository.prefix == key);
    let begins_names = |key: &str| {
        scopes.iter().any(|scope| {
            let is_match = |text: String| Regex::new(scope).is_ok_and(|scope| scope.is_match(&text));
            let says_so = scope.replace('\\', "").contains(&format!("{key}/"));
            // A scope for all names does not mean this one.
            says_so || (is_match(format!("{key}/x")) && !is_match("another-name/x".to_owned()))
        })
    };
    let further = (1..).map(|number| match number {
        1 => format!("{cleaned}-cache"),
        number => format!("{cleaned}-cache-{number}"),
    });
    let mut candidates = std::iter::once(cleaned.clone()).chain(further);
    // There are finitely many scopes, so some candidate is free.
    candidates.find(|key| !is_in_use(key) && !begins_names(key)).unwrap_or(cleaned)
}

fn cache(mut document: Foreign, draft: &mut Draft) -> Result<(Repository, Provenance, Vec<String>), ConvertError> {
    let here = document.node.origin.clone();
    let (prefix, origin) =
        document.text(&["metadata", "name"])?.unwrap_or_else(|| ("upstream".to_owned(), here.clone()));
    let Some((url, at)) = document.text(&["spec", "upstream", "url"])? else {
        return Err(ConvertError::at(&here, "`spec.upstream.url` is missing; write for example https://ghcr.io"));
    };
    let parsed = Url::parse(&url).ok();
    if parsed.is_some_and(|url| !matches!(url.path(), "" | "/")) {
        draft.warn_at(&at, "`spec.upstream.url`: Larder puts the path between /v2/ and the names, not before /v2/");
    }
    let mut upstream = vec![line("url", url)];
    match draft.time(&mut document, &["spec", "upstream", "timeout"])? {
        Some(none) if none == "0s" => {
            draft.warn_at(&here, "`spec.upstream.timeout`: Larder always has one; the default of 20s applies");
        }
        timeout => upstream.extend(
            timeout.map(|timeout| line("timeout", timeout).why("without an answer, not for the whole of a blob")),
        ),
    }
    let keys = ["username", "password", "passwordFile"].map(|key| ["spec", "upstream", key]);
    upstream.extend(login(draft, &mut document, [&keys[0], &keys[1], &keys[2]])?);

    let mut lines = Vec::new();
    let scopes = patterns(document.texts(&["spec", "scopes"])?)?;
    let texts: Vec<String> =
        scopes.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if texts.is_empty() {
        draft.warn_at(&here, "without `spec.scopes` the cache served nothing; here its key selects it");
    } else {
        lines.push(line("scopes", scopes));
    }
    let ttl = draft.time(&mut document, &["spec", "upstream", "ttl"])?;
    lines.extend(ttl.map(|ttl| line("ttl", ttl).why("since somebody asked for it last")));
    draft.warn_all(document.left_over(&[("apiVersion", ""), ("metadata", "")]));
    Ok((Repository { prefix, lines, upstreams: vec![upstream] }, origin, texts))
}

fn configuration(mut document: Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    draft.dir(&mut document, &["spec", "dataDir"])?;
    draft.listen(&mut document, &["spec", "web", "addr"])?;
    draft.certificate(&mut document, [&["spec", "web", "certfile"], &["spec", "web", "keyfile"]])?;
    draft.warn_all(document.left_over(&[
        ("apiVersion", ""),
        ("metadata", ""),
        ("spec.web.tokenSecret", ""),
        ("spec.web.tokenTimeout", ""),
        ("spec.web.ui", "there is no page for browsers; see `larder ls`"),
    ]));
    Ok(())
}
