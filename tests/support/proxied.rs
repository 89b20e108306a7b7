//! A client behind Larder's proxy door, which trusts its authority, and a registry behind TLS.

use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;

use super::client::Answer;
use super::hub::{Hub, Options};
use super::larder::{Larder, RepositoryConfig};
use super::origin::Origin;
use super::tls::{Authority, TlsFront, https_over};

/// A hub that is asked over TLS, as a repository `hub` of a Larder with a proxy door.
pub struct Proxied {
    pub hub: Hub,
    pub front: TlsFront,
    pub larder: Larder,
    pub authority: Authority,
    _dir: TempDir,
}

/// The configuration of a proxy door that keeps the archives of a server (`*.tgz`).
pub fn keeps_archives_of(origin: &Origin) -> String {
    let door = "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"";
    let patterns = "[cache]\npatterns = [\"\\\\.tgz$\"]";
    format!("{door}\n[allowlist]\ndomains = [\"{}\"]\n{patterns}", origin.address())
}

/// A client with the proxy door for its proxy.
#[derive(Clone)]
pub struct Browser(reqwest::Client);

impl Proxied {
    pub async fn start(options: Options) -> Self {
        Self::start_with(options, "", ["", ""], "").await
    }

    /// With more keys in `[proxy]`, in the repository and its upstream, and in the rest of the file.
    pub async fn start_with(options: Options, proxy: &str, [repository, upstream]: [&str; 2], rest: &str) -> Self {
        let dir = TempDir::new().expect("a directory");
        let authority = Authority::new(dir.path(), "upstream");
        let hub = Hub::start(options).await;
        let front = TlsFront::start(&hub, &authority.issue("127.0.0.1"), None).await;
        let bundle =
            format!("server_ca_bundle = \"{}\"\nconnect_timeout = \"2s\"\n{upstream}", authority.file().display());
        let repository = RepositoryConfig::new("hub").set(repository).upstream_url(&front.url(), &bundle);
        let door = format!("[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n{proxy}");
        let larder = Larder::builder().config(repository).config(door).config(rest).start().await;
        Self { hub, front, larder, authority, _dir: dir }
    }

    /// A client that trusts the door's authority.
    pub fn browser(&self) -> Browser {
        Browser::new(&self.larder, None)
    }

    /// `https://…/v2/NAME/manifests/REFERENCE` at the registry itself.
    pub fn manifest(&self, name: &str, reference: &str) -> String {
        format!("{}/v2/{name}/manifests/{reference}", self.front.url())
    }

    /// `https://…/v2/NAME/blobs/DIGEST` at the registry itself.
    pub fn blob(&self, name: &str, digest: &str) -> String {
        format!("{}/v2/{name}/blobs/{digest}", self.front.url())
    }
}

impl Browser {
    /// `login`: a name and password for the proxy.
    pub fn new(larder: &Larder, login: Option<(&str, &str)>) -> Self {
        Self::trusting(larder, &larder.home().join("ca/ca.crt"), login)
    }

    /// One that trusts others.
    pub fn trusting(larder: &Larder, roots: &Path, login: Option<(&str, &str)>) -> Self {
        Self::over(&[], larder, roots, login)
    }

    /// One that speaks HTTP/2 inside TLS.
    pub fn http2(larder: &Larder) -> Self {
        Self::over(&[b"h2"], larder, &larder.home().join("ca/ca.crt"), None)
    }

    fn over(protocols: &[&[u8]], larder: &Larder, roots: &Path, login: Option<(&str, &str)>) -> Self {
        let proxy = reqwest::Proxy::all(format!("http://{}", larder.door("proxy"))).expect("a proxy");
        let proxy = match login {
            Some((name, password)) => proxy.basic_auth(name, password),
            None => proxy,
        };
        let redirects = reqwest::redirect::Policy::none();
        Self(https_over(protocols, roots, None).proxy(proxy).redirect(redirects).build().expect("a client"))
    }

    pub async fn get(&self, url: impl AsRef<str>) -> Answer {
        self.send("GET", url, &[], "").await
    }

    /// With an `Authorization`, unless it is empty.
    pub async fn get_as(&self, authorization: &str, url: impl AsRef<str>) -> Answer {
        self.send("GET", url, &[("authorization", authorization)], "").await
    }

    pub async fn send(
        &self,
        method: &str,
        url: impl AsRef<str>,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let url = url.as_ref();
        self.try_send(method, url, headers, body).await.unwrap_or_else(|error| panic!("{method} {url}: {error}"))
    }

    pub async fn try_send(
        &self,
        method: &str,
        url: impl AsRef<str>,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let (method, body) = (method.parse().expect("a method"), body.into());
        let mut request = self.0.request(method, url.as_ref());
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let request = if body.is_empty() { request } else { request.body(body) };
        let mut answer = request.send().await.map_err(|error| format!("{error:?}"))?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let (mut body, mut error) = (Vec::new(), None);
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(why) => {
                    error = Some(format!("{why:?}"));
                    break;
                }
            }
        }
        Ok(Answer { status, headers, body: body.into(), error })
    }
}
