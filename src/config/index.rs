//! `[index]`, checked: where the index is kept.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::Url;

use super::check::Check;
use super::credentials::read_password;
use super::error::ConfigError;
use super::proxy::is_loopback;
use super::secret::Secret;
use super::shapes::why_no_url;
use super::upstream::ClientTls;
use super::{pem, raw};

/// The PostgreSQL server that keeps the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexServer {
    /// A name, an address, or the folder of a Unix socket.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    /// `None`: without TLS.
    pub tls: Option<ClientTls>,
    /// Empty: the server asks for none.
    pub password: Secret,
    /// The file that the password is from. It is read again for each connection.
    pub password_file: Option<PathBuf>,
}

const EXAMPLE: &str = "write for example url = \"postgres://larder@db.example/larder\", or \"sqlite\"";

/// Checks `[index]`. Returns `None` if the index is kept in the cache's own directory.
pub fn check(check: &Check<'_>, written: &raw::Index) -> Result<Option<IndexServer>, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["index", key], message);
    if written.url == "sqlite" {
        let unused = [
            ("password", !written.password.is_empty()),
            ("password_file", written.password_file.is_some()),
            ("server_ca_bundle", written.server_ca_bundle.is_some()),
        ];
        return match unused.into_iter().find(|(_, is_written)| *is_written) {
            Some((key, _)) => Err(invalid(key, "it is for a server, which `index.url` has to name".to_owned())),
            None => Ok(None),
        };
    }
    let mut server = server(&written.url).map_err(|message| invalid("url", message))?;
    if let Some(bundle) = &written.server_ca_bundle {
        let Some(tls) = server.tls.as_mut().filter(|tls| !tls.insecure_skip_verify) else {
            let message = "the certificate of this server is not checked; write sslmode=verify-full in `index.url`";
            return Err(invalid("server_ca_bundle", message.to_owned()));
        };
        let roots = pem::certificates(check, bundle).map_err(|message| invalid("server_ca_bundle", message))?;
        tls.roots = Some(roots);
    }
    server.password = match (&written.password_file, written.password.is_empty()) {
        (Some(_), false) => {
            let message = "`password` gives the password already; remove one of them";
            return Err(invalid("password_file", message.to_owned()));
        }
        (Some(file), true) => read_password(check, file).map_err(|message| invalid("password_file", message))?,
        (None, _) => written.password.clone(),
    };
    server.password_file.clone_from(&written.password_file);
    Ok(Some(server))
}

/// Reads the URL of a server.
fn server(text: &str) -> Result<IndexServer, String> {
    let url = Url::parse(text).map_err(|error| format!("this is no URL ({}); {EXAMPLE}", why_no_url(error)))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(format!("a URL that begins with postgres:// is needed; {EXAMPLE}"));
    }
    if url.password().is_some() {
        return Err(
            "there is a password in it, which would be shown with it; write it into a file, and the file's path \
                    in `index.password_file`"
                .to_owned(),
        );
    }
    let database = decoded(url.path().trim_start_matches('/'))?;
    if database.is_empty() || database.contains('/') {
        return Err(format!("it names no database; {EXAMPLE}"));
    }
    if url.fragment().is_some() {
        return Err(format!("there is a `#` in it; {EXAMPLE}"));
    }
    let (mut socket, mut mode, mut user) = (None, None, decoded(url.username())?);
    for (key, value) in url.query_pairs() {
        match &*key {
            "sslmode" if mode.is_none() => mode = Some(value.into_owned()),
            "host" if socket.is_none() && value.starts_with('/') => socket = Some(value.into_owned()),
            "host" => {
                return Err("`host` is for the folder of a Unix socket; write the host before the path".to_owned());
            }
            "user" if user.is_empty() => user = value.into_owned(),
            key => {
                return Err(format!("`{key}` is not known there; there are `sslmode`, `host` and `user`, each once"));
            }
        }
    }
    if user.is_empty() {
        return Err(format!("it names no user; {EXAMPLE}"));
    }
    let host = match (socket, url.host_str().filter(|host| !host.is_empty())) {
        (Some(socket), None) => socket,
        (None, Some(host)) => decoded(host.trim_start_matches('[').trim_end_matches(']'))?,
        (Some(_), Some(_)) => return Err("it names a host and the folder of a Unix socket; remove one".to_owned()),
        (None, None) => {
            let socket = "for a Unix socket, postgres:///larder?host=/run/postgresql&user=larder";
            return Err(format!("it names no host; {EXAMPLE}; {socket}"));
        }
    };
    let is_here = host.starts_with('/') || is_loopback_host(&host);
    Ok(IndexServer {
        tls: tls(mode.as_deref(), is_here, host.starts_with('/'))?,
        host,
        port: url.port().unwrap_or(5432),
        user,
        database,
        password: Secret::default(),
        password_file: None,
    })
}

/// Reads the URL of a server, for tests.
#[cfg(test)]
pub fn test_server(url: &str, password: Secret) -> Result<IndexServer, String> {
    Ok(IndexServer { password, ..server(url)? })
}

fn is_loopback_host(host: &str) -> bool {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    Url::parse(&format!("http://{host}")).is_ok_and(|url| is_loopback(&url))
}

/// Returns how TLS is used. A mode that gives TLS up where the server, or anybody on the way, says so is refused.
fn tls(mode: Option<&str>, is_here: bool, is_socket: bool) -> Result<Option<ClientTls>, String> {
    let known = "there are `disable` (no TLS), `require` (the certificate is not checked) and `verify-full`";
    match mode {
        Some("disable") => Ok(None),
        None if is_here => Ok(None),
        Some("require" | "verify-full") if is_socket => {
            Err("there is no TLS on a Unix socket; take `sslmode` out".to_owned())
        }
        None | Some("verify-full") => Ok(Some(ClientTls::default())),
        Some("require") => Ok(Some(ClientTls { insecure_skip_verify: true, ..ClientTls::default() })),
        Some("verify-ca") => {
            Err("`verify-ca` would take the certificate of any host; write sslmode=verify-full".to_owned())
        }
        Some("prefer" | "allow") => Err(format!("with this `sslmode`, anybody on the way can turn TLS off; {known}")),
        Some(other) => Err(format!("`{other}` is no `sslmode`; {known}")),
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| format!("there are bytes in it that are no text; {EXAMPLE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_as_its_own_clients_name_it() {
        let read = |text| server(text).expect("a server");
        let found = read("postgres://larder@db.example/cache");
        let named = (found.host.as_str(), found.port, found.user.as_str(), found.database.as_str());
        assert_eq!(named, ("db.example", 5432, "larder", "cache"));
        assert_eq!(found.tls, Some(ClientTls::default()), "the certificate is checked");
        assert_eq!(read("postgresql://a%40b@[::1]:6432/x").user, "a@b");
        assert_eq!(read("postgres://a@[::1]:6432/x").host, "::1");
        let found = read("postgres:///cache?host=/run/postgresql&user=larder");
        assert_eq!((found.host.as_str(), found.tls), ("/run/postgresql", None));
        for (url, is_checked) in [
            ("postgres://a@127.0.0.1/b", None),
            ("postgres://a@localhost/b", None),
            ("postgres://a@db.example/b?sslmode=disable", None),
            ("postgres://a@db.example/b?sslmode=require", Some(false)),
            ("postgres://a@127.0.0.1/b?sslmode=verify-full", Some(true)),
        ] {
            assert_eq!(read(url).tls.map(|tls| !tls.insecure_skip_verify), is_checked, "{url}");
        }
    }

    #[test]
    fn what_names_no_server_or_gives_a_password_away_is_refused() {
        for (url, part) in [
            ("mysql://a@b/c", "postgres://"),
            ("postgres", "no URL"),
            ("postgres://a:secret@b/c", "index.password_file"),
            ("postgres://b/c", "no user"),
            ("postgres://a@b", "no database"),
            ("postgres:///c?user=a", "no host"),
            ("postgres://a@b/c?host=/run", "remove one"),
            ("postgres://a@b/c?sslmode=prefer", "anybody on the way"),
            ("postgres://a@b/c?sslmode=full", "`full` is no `sslmode`"),
            ("postgres://a@b/c?options=-c%20x", "`options` is not known"),
        ] {
            let message = server(url).expect_err(url);
            assert!(message.contains(part) && !message.contains("secret"), "{message}");
        }
    }
}
