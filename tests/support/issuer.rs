//! An OpenID Connect issuer: keys that can be exchanged, tokens of any content.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::request::Parts;
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::provider::Provider;

/// A key to sign with.
#[derive(Clone)]
pub struct SigningKey {
    pub id: String,
    pub algorithm: Algorithm,
    key: EncodingKey,
}

impl SigningKey {
    pub fn new(id: &str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(&rcgen::KeyPair::generate().expect("a key").serialize_der()),
            Algorithm::RS256 | Algorithm::PS256 => {
                let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
                let pkcs8 = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&key).expect("encoded");
                // PKCS#1, which is at the end of PKCS#8.
                EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..])
            }
            Algorithm::EdDSA => {
                let key = aws_lc_rs::signature::Ed25519KeyPair::generate().expect("a key");
                EncodingKey::from_ed_der(key.to_pkcs8v1().expect("encoded").as_ref())
            }
            other => panic!("no keys for {other:?}"),
        };
        Self { id: id.to_owned(), algorithm, key }
    }

    /// A token signed with it.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(Header { kid: Some(self.id.clone()), ..Header::new(self.algorithm) }, claims)
    }

    pub fn sign_with(&self, header: Header, claims: &Value) -> String {
        jsonwebtoken::encode(&header, claims, &self.key).expect("signed")
    }

    pub fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("a public key");
        jwk.common.key_id = Some(self.id.clone());
        serde_json::to_value(jwk).expect("JSON")
    }
}

/// A token of any header and content, with these bytes as its signature.
pub fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}.{}", part(header.to_string().as_bytes()), part(claims.to_string().as_bytes()), part(signature))
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// The server of an issuer.
pub struct Issuer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    serving: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    keys: Vec<Value>,
    is_down: bool,
    /// Under which name it introduces itself, where that is not its own.
    alias: Option<String>,
    asked: Vec<String>,
    held: Option<Held>,
    /// `None`: nobody logs in here.
    provider: Option<Provider>,
}

/// Requests for one path that get no answer until they are let go.
#[derive(Clone)]
pub struct Held {
    path: &'static str,
    /// How many have come.
    count: watch::Sender<usize>,
    is_open: watch::Sender<bool>,
}

impl Held {
    async fn wait(&self) {
        self.count.send_modify(|count| *count += 1);
        self.is_open.subscribe().wait_for(|is_open| *is_open).await.expect("the sender is here");
    }

    /// Waits until so many requests have come.
    pub async fn wait_for(&self, wanted: usize) {
        self.count.subscribe().wait_for(|count| *count >= wanted).await.expect("the sender is here");
    }

    /// How many have come.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Answers them, and those that still come.
    pub fn let_go(&self) {
        self.is_open.send_replace(true);
    }
}

impl Issuer {
    pub async fn start(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                let service = service_fn(move |request: hyper::Request<Incoming>| {
                    let state = state.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
                        let held = state.lock().expect("not poisoned").held.clone();
                        if let Some(held) = held.filter(|held| head.uri.path() == held.path) {
                            held.wait().await;
                        }
                        Ok::<_, Infallible>(answer(address, &state, &head, &String::from_utf8_lossy(&body)))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let issuer = Self { address, state, serving };
        issuer.use_keys(keys);
        issuer
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// These are its keys from now on.
    pub fn use_keys(&self, keys: &[&SigningKey]) {
        self.use_documents(keys.iter().map(|key| key.public()).collect());
    }

    pub fn use_documents(&self, keys: Vec<Value>) {
        self.state.lock().expect("not poisoned").keys = keys;
    }

    /// It answers 503 from now on, or not any more.
    pub fn set_down(&self, is_down: bool) {
        self.state.lock().expect("not poisoned").is_down = is_down;
    }

    /// Its document says that it is somebody else.
    pub fn set_alias(&self, alias: Option<&str>) {
        self.state.lock().expect("not poisoned").alias = alias.map(str::to_owned);
    }

    /// It logs people in from now on.
    pub fn provide(&self, provider: Provider) {
        self.state.lock().expect("not poisoned").provider = Some(provider);
    }

    /// Looks at how it logs people in, or changes it.
    pub fn provider<T>(&self, with: impl FnOnce(&mut Provider) -> T) -> T {
        with(self.state.lock().expect("not poisoned").provider.as_mut().expect("it logs people in"))
    }

    /// Holds requests for a path back.
    pub fn hold(&self, path: &'static str) -> Held {
        let held = Held { path, count: watch::Sender::new(0), is_open: watch::Sender::new(false) };
        self.state.lock().expect("not poisoned").held = Some(held.clone());
        held
    }

    /// The paths that it was asked for.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().expect("not poisoned").asked.clone()
    }

    /// What a token of it claims.
    pub fn claims(&self, more: Value) -> Value {
        let mut claims = json!({
            "iss": self.url(), "aud": "larder", "sub": "repo:acme/app", "iat": now(), "nbf": now(), "exp": now() + 600,
        });
        let (Value::Object(all), Value::Object(more)) = (&mut claims, more) else {
            panic!("claims are an object");
        };
        for (name, value) in more {
            match value {
                Value::Null => drop(all.remove(&name)),
                value => drop(all.insert(name, value)),
            }
        }
        claims
    }

    /// `[auth.oidc."NAME"]`
    pub fn config(&self, name: &str, more: &str) -> String {
        format!("[auth.oidc.\"{name}\"]\nissuer = \"{}\"\naudience = \"larder\"\n{more}\n", self.url())
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn answer(address: SocketAddr, state: &Mutex<State>, head: &Parts, body: &str) -> hyper::Response<Full<Bytes>> {
    let mut state = state.lock().expect("not poisoned");
    let (path, url) = (head.uri.path(), format!("http://{address}"));
    state.asked.push(path.to_owned());
    let (status, location, document) = match (path, &mut state.provider) {
        ("/.well-known/openid-configuration", provider) => {
            let mut document = provider.as_ref().map_or_else(|| json!({}), |provider| provider.document(&url));
            document["issuer"] = state.alias.clone().unwrap_or_else(|| url.clone()).into();
            document["jwks_uri"] = format!("{url}/keys").into();
            (200, None, document)
        }
        ("/keys", _) => (200, None, json!({"keys": state.keys})),
        ("/authorize", Some(provider)) => provider.authorize(&url, head.uri.query().unwrap_or_default()),
        ("/token", Some(provider)) if head.method == hyper::Method::POST => provider.token(&url, &head.headers, body),
        ("/logout", Some(_)) => (200, None, json!("You are logged out at the issuer.")),
        _ => (404, None, Value::Null),
    };
    let (status, location) = if state.is_down { (503, None) } else { (status, location) };
    let mut response = hyper::Response::new(Full::from(document.to_string()));
    *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    if let Some(location) = location {
        response.headers_mut().insert("location", location.parse().expect("a URL"));
    }
    response
}
