//! `[cluster]`, checked: how the replicas that share an index reach one another.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use url::Url;

use super::check::Check;
use super::credentials::read_password;
use super::error::ConfigError;
use super::secret::Secret;
use super::shapes::why_no_url;
use super::tls::{ClientRoots, ServerTls, certified};
use super::upstream::ClientTls;
use super::{pem, raw};

/// This Larder as one of several replicas.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub listen: Vec<SocketAddr>,
    /// How the other replicas reach `listen`: a scheme, a host and a port.
    pub advertise: Url,
    /// What all replicas know and nobody else. Empty only with `tls`.
    pub token: Secret,
    /// `None`: plain HTTP.
    pub tls: Option<ClusterTls>,
}

/// The TLS between replicas. Each shows the same kind of certificate, whether it asks or answers.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterTls {
    pub server: ServerTls,
    pub client: ClientTls,
}

const EXAMPLE: &str =
    "write for example advertise = \"http://10.0.0.7:17082\", what the other replicas reach this one by";
/// The shortest token: 32 letters and digits of hexadecimal have 128 bits.
const SHORTEST_TOKEN: usize = 32;

/// Checks `[cluster]`. Returns `None` if there is no such table. `has_index_server`: the index is kept by a server.
pub fn check(
    check: &Check<'_>,
    written: Option<raw::Cluster>,
    has_index_server: bool,
) -> Result<Option<Cluster>, ConfigError> {
    let Some(written) = written else {
        return Ok(None);
    };
    let invalid = |key: &str, message: String| check.invalid(&["cluster", key], message);
    if !has_index_server {
        let message = "replicas find one another by an index that all of them share; write index.url = \
                       \"postgres://…\", or take [cluster] out";
        return Err(check.invalid(&["cluster"], message));
    }
    let Some(listen) = &written.listen else {
        return Err(invalid("listen", "it is missing; write for example listen = \"0.0.0.0:17082\"".to_owned()));
    };
    let token = token(check, &written)?;
    let tls = tls(check, &written)?;
    // What is written and wrong is reported already.
    let is_written = |keys: &[&str]| keys.iter().any(|key| check.is_written(&["cluster", key]));
    let has_tls = is_written(&["certificate", "private_key", "ca_bundle"]);
    if !has_tls && token.is_empty() && !is_written(&["token", "token_file"]) {
        let message = "it is missing; write the path of a file with a secret that all replicas have, or certificates";
        return Err(invalid("token_file", message.to_owned()));
    }
    let advertise = advertise(&written.advertise, has_tls).map_err(|message| invalid("advertise", message))?;
    Ok(Some(Cluster { listen: listen.0.clone(), advertise, token, tls }))
}

/// Reads the URL by which the others reach this replica.
fn advertise(text: &str, has_tls: bool) -> Result<Url, String> {
    if text.is_empty() {
        return Err(format!("it is missing; {EXAMPLE}"));
    }
    let url = Url::parse(text).map_err(|error| format!("this is no URL ({}); {EXAMPLE}", why_no_url(error)))?;
    let (scheme, other) = if has_tls { ("https", "http") } else { ("http", "https") };
    match url.scheme() {
        found if found == scheme => {}
        found if found == other => {
            let why = if has_tls { "with a certificate" } else { "without a certificate" };
            return Err(format!("{why}, replicas are reached by {scheme}://"));
        }
        _ => return Err(format!("a URL that begins with {scheme}:// is needed; {EXAMPLE}")),
    }
    let is_origin = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if !is_origin || !url.username().is_empty() || url.password().is_some() || !url.has_host() {
        return Err(format!("only a host and a port may follow {scheme}://; {EXAMPLE}"));
    }
    if url.port() == Some(0) {
        return Err(format!("it has no port; {EXAMPLE}"));
    }
    Ok(url)
}

/// Reads the token.
fn token(check: &Check<'_>, written: &raw::Cluster) -> Result<Secret, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["cluster", key], message);
    let (key, token) = match (&written.token_file, written.token.is_empty()) {
        (Some(_), false) => {
            let message = "`token` gives the token already; remove one of them";
            return Err(invalid("token_file", message.to_owned()));
        }
        (Some(file), true) => {
            ("token_file", read_password(check, file).map_err(|message| invalid("token_file", message))?)
        }
        (None, _) => ("token", written.token.clone()),
    };
    let text = token.reveal();
    if !text.is_empty() && (text.len() < SHORTEST_TOKEN || !text.bytes().all(|b| b.is_ascii_graphic())) {
        let message = format!(
            "it needs {SHORTEST_TOKEN} letters and digits or more, as hard to guess as those of `openssl rand -hex 32`"
        );
        return Err(invalid(key, message));
    }
    Ok(token)
}

/// Reads the certificates.
fn tls(check: &Check<'_>, written: &raw::Cluster) -> Result<Option<ClusterTls>, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["cluster", key], message);
    let files: [(&str, &Option<PathBuf>); 3] = [
        ("certificate", &written.certificate),
        ("private_key", &written.private_key),
        ("ca_bundle", &written.ca_bundle),
    ];
    if files.iter().all(|(_, file)| file.is_none()) {
        return Ok(None);
    }
    let of = |at: usize| {
        let (key, file) = files[at];
        let message = "it is missing; certificate, private_key and ca_bundle belong together: what this replica \
                       shows, and the authority of all replicas' certificates";
        file.as_deref().ok_or_else(|| invalid(key, message.to_owned()))
    };
    let (chain, key, bundle) = (of(0)?, of(1)?, of(2)?);
    let own = certified(check, chain, key, &invalid)?;
    let read = |key: &'static str| move |message| (key, message);
    let files = || {
        let chain = pem::certificates(check, chain).map_err(read("certificate"))?;
        let private = pem::private_key(check, key).map_err(read("private_key"))?;
        let roots = pem::certificates(check, bundle).map_err(read("ca_bundle"))?;
        Ok((chain, private, roots))
    };
    let (chain, private, roots) = files().map_err(|(key, message)| invalid(key, message))?;
    let client =
        ClientTls { roots: Some(roots.clone()), identity: Some(Arc::new((chain, private))), ..ClientTls::default() };
    let clients = Some(ClientRoots { roots, is_required: true });
    Ok(Some(ClusterTls { server: ServerTls { certificates: vec![own], acme: None, clients }, client }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_a_replica_is_an_origin_of_the_scheme_that_its_door_speaks() {
        let read = |text, has_tls| advertise(text, has_tls).expect(text).to_string();
        assert_eq!(read("http://10.0.0.7:17082", false), "http://10.0.0.7:17082/");
        assert_eq!(read("https://larder-0.larder:17082/", true), "https://larder-0.larder:17082/");
        for (text, has_tls, part) in [
            ("", false, "it is missing"),
            ("10.0.0.7:17082", false, "no URL"),
            ("larder-0:17082", false, "begins with http://"),
            ("https://a:1", false, "without a certificate"),
            ("http://a:1", true, "with a certificate"),
            ("http://a:1/x", false, "only a host and a port"),
            ("http://me:secret@a:1", false, "only a host and a port"),
            ("http://a:0", false, "no port"),
        ] {
            let message = advertise(text, has_tls).expect_err(text);
            assert!(message.contains(part) && !message.contains("secret"), "{text}: {message}");
        }
    }
}
