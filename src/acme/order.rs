//! One order: an account, the proof that the domains are ours, and a certificate.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, Error, ExternalAccountKey,
    HttpClient, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use serde::{Deserialize, Serialize};

use super::error::AcmeError;
use super::kept::{Files, Kept};
use super::proof::{self, Given};
use super::shown::Shown;
use crate::config::Acme;
use crate::web::WebClient;

/// How long a whole order may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long the server may take to check a proof, and to issue a certificate.
const POLLS: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(180));
/// The type of the error that says that the server does not know the account: no longer, or because it is another
/// server now.
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// An account as it is kept on disk.
#[derive(Serialize, Deserialize)]
struct KeptAccount {
    email: Option<String>,
    credentials: AccountCredentials,
}

/// The result of an order.
pub struct Obtained {
    /// The key and the certificate chain.
    pub pem: String,
    pub kept: Kept,
}

/// Obtains a certificate, unless it is `interrupted`. The proofs shown for it are withdrawn in any case.
pub async fn obtain(
    acme: &Acme,
    files: &Files,
    shown: &Shown,
    interrupted: impl Future<Output = ()>,
) -> Result<Obtained, AcmeError> {
    // ACME servers limit certificates and accounts. So none is asked for that could not be kept.
    let trying = files.clone();
    blocking(move || trying.can_keep()).await?;
    let mut given = Vec::new();
    let obtained = tokio::select! {
        obtained = tokio::time::timeout(PATIENCE, order(acme, files, shown, &mut given)) => obtained,
        () = interrupted => Ok(Err(AcmeError::Interrupted)),
    };
    shown.proofs().take_back(&acme.challenge, given).await;
    let pem = obtained.unwrap_or(Err(AcmeError::Late(PATIENCE)))?;
    let kept = Kept::read(pem.as_bytes()).map_err(AcmeError::Certificate)?;
    if !kept.is_for(&acme.domains) {
        return Err(AcmeError::Certificate("it is not for the domains that were ordered".to_owned()));
    }
    Ok(Obtained { pem, kept })
}

/// Places an order and proves the domains. Returns a key and a certificate chain in PEM form.
async fn order(acme: &Acme, files: &Files, shown: &Shown, given: &mut Vec<Given>) -> Result<String, AcmeError> {
    let client = WebClient::new(&acme.access)?;
    let server = |error| AcmeError::Server { directory: acme.directory.to_string(), error };
    let identifiers: Vec<_> = acme.domains.iter().map(|domain| Identifier::Dns(domain.clone())).collect();
    let (account, is_new) = account(acme, files, &client).await?;
    let mut order = match account.new_order(&NewOrder::new(&identifiers)).await {
        Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) && !is_new => {
            let forgotten = files.clone();
            blocking(move || forgotten.forget_account()).await?;
            let (account, _) = self::account(acme, files, &client).await?;
            account.new_order(&NewOrder::new(&identifiers)).await.map_err(server)?
        }
        ordered => ordered.map_err(server)?,
    };

    let (kind, name) = proof::kind(&acme.challenge);
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(server)?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let domain = authorization.identifier().to_string();
        let no_way = || AcmeError::Protocol(format!("the ACME server does not offer {name} for {domain}"));
        let mut challenge = authorization.challenge(kind.clone()).ok_or_else(no_way)?;
        shown.proofs().give(&acme.challenge, &challenge, given).await?;
        challenge.set_ready().await.map_err(server)?;
    }
    match order.poll_ready(&POLLS).await {
        Ok(OrderStatus::Ready | OrderStatus::Valid | OrderStatus::Processing) => {}
        outcome => {
            let told = refusals(&mut order).await;
            return Err(match (told.is_empty(), outcome) {
                (false, _) => AcmeError::Protocol(format!("the ACME server was not convinced: {told}")),
                (true, Err(error)) => server(error),
                (true, Ok(status)) => AcmeError::Protocol(format!("the ACME server's order is {status:?}")),
            });
        }
    }
    let key = order.finalize().await.map_err(server)?;
    let chain = order.poll_certificate(&POLLS).await.map_err(server)?;
    Ok(key + &chain)
}

/// Returns the account that is kept or a new one, and whether it is new.
async fn account(acme: &Acme, files: &Files, client: &WebClient) -> Result<(Account, bool), AcmeError> {
    let server = |error| AcmeError::Server { directory: acme.directory.to_string(), error };
    let builder = || Account::builder_with_http(Box::new(ByWeb(client.clone())));
    let contact = acme.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<_> = contact.iter().map(String::as_str).collect();
    let reading = files.clone();
    let kept = blocking(move || reading.account()).await?;
    let kept = kept.and_then(|json| match serde_json::from_slice::<KeptAccount>(&json) {
        Ok(kept) => Some(kept),
        Err(error) => {
            let file = files.account_file();
            tracing::warn!(%error, file = %file.display(), "the account on disk cannot be used; another one is made");
            None
        }
    });
    let (account, kept, is_new) = match kept {
        Some(KeptAccount { email, credentials }) => {
            // The account is written again only with another email address. For that a copy is needed: credentials
            // cannot be taken out of an account.
            let copy = serde_json::to_value(&credentials).and_then(serde_json::from_value);
            let copy = copy.map_err(|error| server(Error::Json(error)))?;
            let account = builder().from_credentials(credentials).await.map_err(server)?;
            if email == acme.email {
                return Ok((account, false));
            }
            match account.update_contacts(&contact).await {
                // The order will find this out, too.
                Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {
                    return Ok((account, false));
                }
                updated => updated.map_err(server)?,
            }
            (account, copy, false)
        }
        None => {
            let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
            let key = acme.external.as_ref().and_then(|external| Some((external, external.key()?)));
            let external = key.map(|(external, key)| ExternalAccountKey::new(external.key_id.clone(), &key));
            let created = builder().create(&new, acme.directory.to_string(), external.as_ref()).await;
            let (account, credentials) = created.map_err(server)?;
            tracing::info!(directory = %acme.directory, "made an account; its terms of service are agreed to");
            (account, credentials, true)
        }
    };
    let kept = KeptAccount { email: acme.email.clone(), credentials: kept };
    let json = serde_json::to_vec_pretty(&kept).map_err(std::io::Error::other)?;
    let keeping = files.clone();
    blocking(move || keeping.keep_account(&json)).await?;
    Ok((account, is_new))
}

/// Returns what the server found wrong with each domain.
async fn refusals(order: &mut Order) -> String {
    let mut told = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let domain = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        let details = errors.map(|problem| problem.detail.clone().unwrap_or_else(|| problem.to_string()));
        told.extend(details.map(|detail| format!("{domain}: {detail}")));
    }
    told.join("; ")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, AcmeError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.unwrap_or_else(|error| Err(std::io::Error::other(error)))?)
}

/// Sends the protocol's requests with Larder's own HTTP client.
struct ByWeb(WebClient);

impl HttpClient for ByWeb {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let answer = client.send(http::Request::from_parts(parts, body)).await;
            let (parts, body) = answer.map_err(|error| Error::Other(Box::new(error)))?.into_parts();
            // The protocol reports an error in a problem document. Any other error is no answer of the protocol.
            let kind = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            if !parts.status.is_success() && !kind.starts_with("application/problem+json") {
                return Err(Error::Other(format!("answered {}", parts.status).into()));
            }
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}
