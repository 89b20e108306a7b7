//! The `larder.toml` that a conversion builds.

use toml::Value;
use url::Url;

use super::foreign::Foreign;
use super::kind::{ConvertError, Converted, Kind};
use super::values;
use crate::config::built_in::DOCKER_HUB;
use crate::config::document::Document;
use crate::config::origin::Provenance;
use crate::config::raw::Pattern;
use crate::config::repository::is_prefix;

/// A `larder.toml` that is being built: the lines of its tables, with the remarks and warnings at the top.
#[derive(Debug, Default)]
pub struct Draft {
    server: Vec<Line>,
    tls: Vec<Line>,
    acme: Vec<Line>,
    htpasswd: Vec<Line>,
    cache: Vec<Line>,
    pub repositories: Vec<Repository>,
    /// Headers by host and kind (`set` or `append`).
    headers: Vec<(String, &'static str, Vec<Line>)>,
    proxy: Vec<Line>,
    allowlist: Vec<Line>,
    admin: Vec<Line>,
    logging: Vec<Line>,
    /// Comments at the top.
    remarks: Vec<String>,
    warnings: Vec<String>,
}

/// A repository, with its lines and those of each upstream.
#[derive(Debug, Default)]
pub struct Repository {
    pub prefix: String,
    pub lines: Vec<Line>,
    pub upstreams: Vec<Vec<Line>>,
}

/// A key, its value, and a comment on them.
#[derive(Clone, Debug)]
pub struct Line {
    key: String,
    value: Value,
    comment: Option<&'static str>,
}

/// Returns a line without a comment.
pub fn line(key: &str, value: impl Into<Value>) -> Line {
    Line { key: key.to_owned(), value: value.into(), comment: None }
}

impl Line {
    /// Adds a comment to the line.
    pub fn why(self, comment: &'static str) -> Self {
        Self { comment: Some(comment), ..self }
    }
}

/// The comment on a password that is written into the file.
const PASSWORD: &str = "password_file = \"PATH\" keeps it out of this file";

impl Draft {
    /// Adds a line to `[server]`.
    pub fn server(&mut self, line: Line) {
        put(&mut self.server, line);
    }

    /// Turns off the built-in repositories, which the other program does not have.
    pub fn only_its_own_repositories(&mut self) {
        self.server(line("builtin_repositories", false).why("left out: ghcr.io, quay.io and the like are served too"));
    }

    /// Adds a line to `[server.tls]`.
    pub fn tls(&mut self, line: Line) {
        put(&mut self.tls, line);
    }

    /// Adds a line to `[server.tls.acme]`.
    pub fn acme(&mut self, line: Line) {
        put(&mut self.acme, line);
    }

    /// Adds a line to `[auth.htpasswd]`.
    pub fn htpasswd(&mut self, line: Line) {
        put(&mut self.htpasswd, line);
    }

    /// Adds a line to `[cache]`.
    pub fn cache(&mut self, line: Line) {
        put(&mut self.cache, line);
    }

    /// Adds a line to `[admin]`.
    pub fn admin(&mut self, line: Line) {
        put(&mut self.admin, line);
    }

    /// Adds a line to `[logging]`.
    pub fn logging(&mut self, line: Line) {
        put(&mut self.logging, line);
    }

    /// Adds headers for a host. `kind`: `set` or `append`.
    pub fn headers(&mut self, host: &str, kind: &'static str, lines: Vec<Line>) {
        self.headers.push((host.to_owned(), kind, lines));
    }

    /// Adds a line to `[proxy]`.
    pub fn proxy(&mut self, line: Line) {
        put(&mut self.proxy, line);
    }

    /// Adds a line to `[allowlist]`.
    pub fn allowlist(&mut self, line: Line) {
        put(&mut self.allowlist, line);
    }

    /// Adds a comment at the top of the file.
    pub fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    /// Adds a warning that something was not taken over.
    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Adds a warning with the place of what was not taken over.
    pub fn warn_at(&mut self, origin: &Provenance, warning: impl std::fmt::Display) {
        self.warn(format!("{origin}: {warning}"));
    }

    /// Adds several warnings.
    pub fn warn_all(&mut self, warnings: Vec<String>) {
        self.warnings.extend(warnings);
    }

    /// Moves a certificate and its key; warns if only one of them is there.
    pub fn certificate(&mut self, foreign: &mut Foreign, [certificate, key]: [&[&str]; 2]) -> Result<(), ConvertError> {
        match (foreign.text(certificate)?, foreign.text(key)?) {
            (Some((certificate, _)), Some((key, _))) => {
                self.tls(line("certificate", certificate));
                self.tls(line("private_key", key));
            }
            (Some((_, origin)), None) | (None, Some((_, origin))) => {
                self.warn_at(&origin, "a certificate and its key go together: there is no TLS");
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Moves the address at which the registry listened.
    pub fn listen(&mut self, foreign: &mut Foreign, path: &[&str]) -> Result<(), ConvertError> {
        if let Some((text, origin)) = foreign.text(path)? {
            match values::address(&text) {
                Some(address) => self.server(line("listen", address)),
                None => {
                    let key = foreign.called(path);
                    self.warn_at(&origin, format!("`{key}`: `{text}` is no address with a port; set `server.listen`"));
                }
            }
        }
        Ok(())
    }

    /// Sets `cache.dir` to a new folder within the one where the other program kept its content. In that folder itself,
    /// the files of simple-registry would be taken for objects of the cache, and evicted.
    pub fn dir(&mut self, foreign: &mut Foreign, path: &[&str]) -> Result<(), ConvertError> {
        if let Some((dir, _)) = foreign.text(path)? {
            let dir = format!("{}/larder", dir.trim_end_matches('/'));
            self.cache(line("dir", dir).why("what was stored before is left alone, and not used"));
        }
        Ok(())
    }

    /// Takes out a time and returns it in Larder's form. `None` if there is none, or if it is too long for Larder, with
    /// a warning.
    pub fn time(&mut self, foreign: &mut Foreign, path: &[&str]) -> Result<Option<String>, ConvertError> {
        let Some((text, origin)) = foreign.text(path)? else {
            return Ok(None);
        };
        let Some(time) = values::duration(&text) else {
            let message = format!("`{text}` is no length of time; write for example 60s or 30d");
            return Err(foreign.wrong(&origin, path, &message));
        };
        let span = values::span(time);
        if span.is_none() {
            let key = foreign.called(path);
            self.warn_at(&origin, format!("`{key}`: this is longer than Larder takes; the default applies"));
        }
        Ok(span)
    }

    /// Writes the `larder.toml`. `kind`: the program that the configuration was for.
    pub fn finish(self, kind: Kind) -> Converted {
        let mut document = Document::default();
        document.comment(&format!("A configuration of Larder, converted from one of {}.", kind.name()));
        for remark in &self.remarks {
            document.comment(remark);
        }
        if !self.warnings.is_empty() {
            document.comment("\nNot taken over:");
            self.warnings.iter().for_each(|warning| document.comment(&format!("- {warning}")));
        }
        section(&mut document, &["server"], &self.server);
        section(&mut document, &["server", "tls"], &self.tls);
        section(&mut document, &["server", "tls", "acme"], &self.acme);
        section(&mut document, &["auth", "htpasswd"], &self.htpasswd);
        section(&mut document, &["cache"], &self.cache);
        for Repository { prefix, lines, upstreams } in &self.repositories {
            document.table(&["repository", prefix]);
            write(&mut document, lines);
            for upstream in upstreams {
                document.table_of_list(&["repository", prefix, "upstream"]);
                write(&mut document, upstream);
            }
        }
        for (host, kind, lines) in &self.headers {
            section(&mut document, &["headers", host, kind], lines);
        }
        section(&mut document, &["proxy"], &self.proxy);
        section(&mut document, &["allowlist"], &self.allowlist);
        for (name, lines) in [("admin", &self.admin), ("logging", &self.logging)] {
            section(&mut document, &[name], lines);
        }
        Converted { toml: document.into_text(), warnings: self.warnings }
    }
}

/// Adds a line; it replaces an earlier line with the same key.
fn put(lines: &mut Vec<Line>, line: Line) {
    lines.retain(|other| other.key != line.key);
    lines.push(line);
}

fn section(document: &mut Document, path: &[&str], lines: &[Line]) {
    if !lines.is_empty() {
        document.table(path);
        write(document, lines);
    }
}

fn write(document: &mut Document, lines: &[Line]) {
    for Line { key, value, comment } in lines {
        document.value(key, value, *comment);
    }
}

/// Returns a list of regexes. Fails if one does not compile.
pub fn patterns(texts: Vec<(String, Provenance)>) -> Result<Value, ConvertError> {
    let checked = texts.into_iter().map(|(text, origin)| match Pattern::try_from(text.clone()) {
        Ok(_) => Ok(Value::String(text)),
        Err(message) => Err(ConvertError::at(&origin, message)),
    });
    checked.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// Takes out the user name and password of an upstream; warns if only one of them is there.
pub fn login(
    draft: &mut Draft,
    foreign: &mut Foreign,
    [username, password, password_file]: [&[&str]; 3],
) -> Result<Vec<Line>, ConvertError> {
    let name = foreign.text(username)?;
    let inline = foreign.text(password)?;
    let file = foreign.text(password_file)?;
    let (name, origin) = match (name, &inline, &file) {
        (None, None, None) => return Ok(Vec::new()),
        (None, Some((_, origin)), _) | (None, None, Some((_, origin))) => {
            draft.warn_at(origin, "a password without a user name is not used");
            return Ok(Vec::new());
        }
        (Some(name), ..) => name,
    };
    match (inline, file) {
        (inline, Some((path, _))) => {
            if let Some((_, origin)) = inline {
                let key = foreign.called(password);
                draft.warn_at(&origin, format!("`{key}`: the password's file goes before it"));
            }
            Ok(vec![line("username", name), line("password_file", path)])
        }
        (Some((password, _)), None) => Ok(vec![line("username", name), line("password", password).why(PASSWORD)]),
        (None, None) => {
            draft.warn_at(&origin, "a user name without a password is not used: the upstream is asked anonymously");
            Ok(Vec::new())
        }
    }
}

/// Returns the usual name of an upstream's host, if it can be a repository's key.
pub fn prefix_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    if DOCKER_HUB.contains(&host) {
        return Some("docker.io".to_owned());
    }
    let key = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    is_prefix(&key).then_some(key)
}
