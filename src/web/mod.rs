//! The HTTP client for small documents, such as keys and certificates, from servers that are no upstreams.

pub mod dial;
pub mod tls;
mod why;

use std::error::Error as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};

pub use why::Why;

use crate::config::{ClientTls, WebAccess};

/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a request may take to the end of its response.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of a response.
const MAX_ANSWER: usize = 1 << 20;

/// A client for small documents. It follows no redirects.
#[derive(Clone, Debug)]
pub struct WebClient(reqwest::Client);

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error("cannot be asked: {0}")]
    Unusable(String),
    #[error("{0}")]
    Network(Why),
    #[error("answered with more than {MAX_ANSWER} bytes")]
    TooLong,
}

impl WebClient {
    /// Builds a client. Fails if the TLS settings or the proxies cannot be used.
    pub fn new(access: &WebAccess) -> Result<Self, WebError> {
        let unusable = |error: &dyn std::fmt::Display| WebError::Unusable(error.to_string());
        let tls = ClientTls { roots: access.roots.clone(), ..ClientTls::default() };
        let tls = tls::client_config(&tls).map_err(|error| unusable(&error))?;
        let client = dial::client(tls, CONNECT)
            .timeout(PATIENCE)
            .pool_max_idle_per_host(1)
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")));
        let client = dial::through(client, &access.proxies);
        let client = client.map_err(|_| unusable(&"the proxy of the environment is none"))?;
        client.build().map(Self).map_err(|error| unusable(&error))
    }

    /// Sends a request and reads the response, of any status.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, WebError> {
        let request = reqwest::Request::try_from(request).map_err(|error| network(&error))?;
        let mut response = self.0.execute(request).await.map_err(|error| network(&error))?;
        let mut read = BytesMut::new();
        while let Some(part) = response.chunk().await.map_err(|error| network(&error))? {
            if read.len() + part.len() > MAX_ANSWER {
                return Err(WebError::TooLong);
            }
            read.extend_from_slice(&part);
        }
        let mut answer = Response::new(read.freeze());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }
}

fn network(error: &reqwest::Error) -> WebError {
    WebError::Network(match error.source() {
        _ if error.is_connect() && error.is_timeout() => Why::Late,
        Some(cause) => Why::of(cause),
        None => Why::Other("the request failed".to_owned()),
    })
}
