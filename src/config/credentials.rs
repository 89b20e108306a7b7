//! Larder's own credentials for an upstream: a user name and password, wherever they are kept.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use url::Url;

use super::check::Check;
use super::raw;
use super::secret::Secret;

/// Where the credentials for an upstream come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    Login(Login),
    Helper(Helper),
}

/// A user name and password.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Login {
    pub username: String,
    pub password: Secret,
    /// Whether the password is a refresh token of the token service ("identity token"), which is not for Basic
    /// authentication.
    pub is_identity_token: bool,
}

/// A program that speaks the docker-credential-helpers protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Helper {
    pub program: PathBuf,
    /// The registry whose credentials the program is asked for.
    pub server: String,
}

/// The key that Docker and its tools use for the credentials of Docker Hub, instead of a host.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// The user name that stands for an identity token.
const IDENTITY_TOKEN: &str = "<token>";

impl Login {
    /// Creates a login. The user name `<token>` marks the password as an identity token.
    pub fn new(username: impl Into<String>, password: Secret) -> Self {
        let username = username.into();
        Self { is_identity_token: username == IDENTITY_TOKEN, username, password }
    }
}

type Mistake = (&'static str, String);

/// Returns the key of the configuration that gives the credentials of an upstream; `username` if there is none.
pub fn key_of(written: &raw::Upstream) -> &'static str {
    sources(written).into_iter().find(|(_, is_given)| *is_given).map_or("username", |(key, _)| key)
}

fn sources(written: &raw::Upstream) -> [(&'static str, bool); 4] {
    [
        ("password", !written.password.is_empty()),
        ("password_file", written.password_file.is_some()),
        ("credential_helper", !written.credential_helper.is_empty()),
        ("docker_config", written.docker_config.is_some()),
    ]
}

/// Checks the credentials of one upstream. An error comes with the key that is wrong.
pub fn check(check: &Check<'_>, origin: &Url, written: &raw::Upstream) -> Result<Option<Credentials>, Mistake> {
    let mut named = sources(written).into_iter().filter(|(_, is_given)| *is_given).map(|(key, _)| key);
    let (first, second) = (named.next(), named.next());
    if let (Some(first), Some(second)) = (first, second) {
        return Err((second, format!("`{first}` gives the credentials already; remove one of them")));
    }
    if written.username.contains(':') {
        let message = "a user name with a colon cannot be sent; the password has a key of its own";
        return Err(("username", message.to_owned()));
    }
    match (first, written.username.is_empty()) {
        (None, true) => Ok(None),
        (None, false) => Err(("username", "a `password` or `password_file` is needed with it".to_owned())),
        (Some(key @ ("password" | "password_file")), true) => Err((key, "a `username` is needed with it".to_owned())),
        (Some(key @ ("credential_helper" | "docker_config")), false) => {
            Err(("username", format!("`{key}` gives the user name too; remove one of them")))
        }
        (Some("password"), false) => {
            Ok(Some(Credentials::Login(Login::new(&written.username, written.password.clone()))))
        }
        (Some("password_file"), false) => {
            let path = written.password_file.as_deref().unwrap_or(Path::new(""));
            let password = read_password(check, path).map_err(|message| ("password_file", message))?;
            Ok(Some(Credentials::Login(Login::new(&written.username, password))))
        }
        (Some("credential_helper"), true) => {
            let program =
                helper_program(&written.credential_helper).map_err(|message| ("credential_helper", message))?;
            Ok(Some(Credentials::Helper(Helper { program, server: server_name(origin) })))
        }
        (Some(_), true) => {
            let path = written.docker_config.as_deref().unwrap_or(Path::new(""));
            let credentials = read_docker_config(check, path, origin).map_err(|message| ("docker_config", message))?;
            Ok(Some(credentials))
        }
        (Some(_), false) => Ok(None),
    }
}

/// Reads a password from a file, without the newline at its end, which editors and `echo` leave there.
pub fn read_password(check: &Check<'_>, path: &Path) -> Result<Secret, String> {
    check.depends_on(path);
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(format!("{} is empty; write the password into it", path.display()));
    }
    Ok(Secret::new(text))
}

/// Returns the program of a credential helper: `ecr-login` means `docker-credential-ecr-login`, which is looked up as
/// in a shell; a path means the program at that path.
fn helper_program(name: &str) -> Result<PathBuf, String> {
    match name.contains('/') {
        true => program(name),
        false => program(&format!("docker-credential-{name}")),
    }
}

/// Returns a program by its path, or by a name that is looked up as in a shell. Fails if there is no such program, or
/// if it may not be run.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let is_program = |path: &Path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0);
    let is_there = if name.contains('/') {
        Path::new(name).is_file().then(|| is_program(Path::new(name)))
    } else {
        let directories = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&directories).any(|directory| is_program(&directory.join(name))).then_some(true)
    };
    match is_there {
        Some(true) => Ok(PathBuf::from(name)),
        Some(false) => Err(format!("`{name}` may not be run; make it executable")),
        None => Err(format!("there is no program `{name}`; install it into the PATH or write its path")),
    }
}

/// Returns the name under which tools keep the credentials of a registry.
fn server_name(origin: &Url) -> String {
    let host = origin.host_str().unwrap_or_default();
    if super::built_in::DOCKER_HUB.contains(&host) {
        return DOCKER_HUB.to_owned();
    }
    origin.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The parts of Docker's `config.json` that hold credentials.
#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct DockerConfig {
    auths: HashMap<String, DockerAuth>,
    creds_store: String,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    /// Base64 of `name:password`.
    auth: Secret,
    username: String,
    password: Secret,
    identitytoken: Secret,
}

fn read_docker_config(check: &Check<'_>, path: &Path, origin: &Url) -> Result<Credentials, String> {
    check.depends_on(path);
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    // The library's message quotes the text that it cannot read, which may be a secret.
    let wrong = |error: serde_json::Error| {
        format!("{} is no Docker config.json (line {}, column {})", path.display(), error.line(), error.column())
    };
    let config: DockerConfig = serde_json::from_str(&text).map_err(wrong)?;
    let server = server_name(origin);
    let is_ours = |key: &str| host_of(key) == host_of(&server);

    if let Some((_, name)) = config.cred_helpers.iter().find(|(key, _)| is_ours(key)) {
        return Ok(Credentials::Helper(Helper { program: helper_program(name)?, server }));
    }
    let login = config.auths.iter().filter(|(key, _)| is_ours(key)).find_map(|(_, auth)| auth.login());
    if let Some(login) = login {
        return Ok(Credentials::Login(login));
    }
    if !config.creds_store.is_empty() {
        return Ok(Credentials::Helper(Helper { program: helper_program(&config.creds_store)?, server }));
    }
    Err(format!("{} has no credentials for {server}; run `docker login` for it", path.display()))
}

impl DockerAuth {
    fn login(&self) -> Option<Login> {
        let decoded = BASE64_STANDARD.decode(self.auth.reveal()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|pair| pair.split_once(':'));
        let (username, password) = pair.unwrap_or((&self.username, self.password.reveal()));
        if !self.identitytoken.is_empty() {
            let password = self.identitytoken.clone();
            return Some(Login { username: username.to_owned(), password, is_identity_token: true });
        }
        // Some tools end the password with NUL bytes.
        let password = password.trim_end_matches('\0');
        (!username.is_empty() && !password.is_empty()).then(|| Login::new(username, Secret::new(password)))
    }
}

/// Returns the host of a key of `auths`, which may be a URL with a path.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or_default()
}
