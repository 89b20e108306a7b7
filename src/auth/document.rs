//! The JSON documents of an issuer.

use bytes::Bytes;
use http::Request;
use http::header::ACCEPT;
use serde::de::DeserializeOwned;
use url::Url;

use crate::web::WebClient;

/// Gets a document. Fails in words that name its address.
pub async fn get<T: DeserializeOwned>(client: &WebClient, url: &Url) -> Result<T, String> {
    let request = Request::get(url.as_str()).header(ACCEPT, "application/json");
    let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
    let answer = client.send(request).await.map_err(|error| format!("{url}: {error}"))?;
    if !answer.status().is_success() {
        return Err(format!("{url}: answered {}", answer.status()));
    }
    serde_json::from_slice(answer.body()).map_err(|error| format!("{url}: {error}"))
}

/// Reads the URL of an endpoint that a document names. `key`: its name there. Where the document came over TLS, the
/// endpoint has to be asked over TLS, too.
pub fn endpoint(document: &Url, key: &str, text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("its `{key}` is no URL: {error}"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if document.scheme() == "http" => Ok(url),
        _ => Err(format!("its `{key}` is not https")),
    }
}

/// Says that a document is not the one of the configured issuer.
pub fn of_another(document: &Url) -> String {
    format!("{document} is that of another issuer; write its `issuer` as it does itself")
}
