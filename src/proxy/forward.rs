//! Requests that are forwarded unchanged, and answers that come back unchanged.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use url::Url;

use super::door::Proxy;
use super::headers;
use super::relay::{Held, Limited, broken, in_time, returned};
use super::rules::ProxyRules;
use super::secrets::Secrets;
use super::tunnel::{Kept, Tunnel};
use crate::auth::counted_client;
use crate::body::{self, Body};
use crate::failure::{Failure, FailureKind};
use crate::places::Party;
use crate::sent::Sent;
use crate::tunnel;
use crate::upstream::PassError;

/// How long such a request waits for a place.
const FOR_A_PLACE: Duration = Duration::from_secs(10);

impl Proxy {
    /// Forwards a request. `tunnel`: the client of the request, and where it goes.
    pub(super) async fn forward(
        self: &Arc<Self>,
        rules: &ProxyRules,
        mut request: Request<Sent>,
        tunnel: Tunnel,
        url: &Url,
        secrets: &Secrets,
    ) -> Result<Response<Body>, PassError> {
        let server = &tunnel.server;
        let version = request.version();
        let upgrade = headers::upgrade(request.headers());
        let own_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let kept = parts.extensions.remove::<Kept>();
        let party = Party { source: server.host.as_str().into(), client: counted_client(&parts), is_named: true };
        let held = self.place_to_forward(party).await?;
        headers::pass_on(&mut parts.headers, version);
        // The HTTP library writes the headers of the new connection.
        parts.headers.remove(HOST);
        secrets.add_to(&mut parts.headers);
        if let Some(protocol) = &upgrade {
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(UPGRADE, protocol.clone());
        }
        let moved = Arc::<AtomicU64>::default();
        let mut outgoing = reqwest::Request::new(parts.method, url.clone());
        *outgoing.headers_mut() = parts.headers;
        if body.is_end_stream() {
            // A body without bytes differs from no body.
            let is_stated = outgoing.headers().contains_key(CONTENT_LENGTH);
            *outgoing.body_mut() = is_stated.then(|| reqwest::Body::from(Bytes::new()));
        } else {
            let limited = Limited::new(body.map_err(|error| broken("the client", &error)), moved.clone());
            *outgoing.body_mut() = Some(reqwest::Body::wrap(limited));
        }

        let sending = rules.send(outgoing, server, upgrade.is_some());
        let response = in_time(sending, &moved, server).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return match own_side {
                Some(own_side) => {
                    let address = rules.anywhere.address_of(&response);
                    Ok(self.switched(response, own_side, Tunnel { address, ..tunnel }, (kept, held)))
                }
                None => {
                    Err(Failure::new(FailureKind::WrongContent, format!("{server}: changed the protocol unasked"))
                        .into())
                }
            };
        }
        Ok(returned(response, server, Some(held)))
    }

    /// Waits for a place for a forwarded request: HTTP/2 brings many requests on one connection, and each of them needs
    /// its own connection to its server.
    pub(super) async fn place_to_forward(&self, party: Party) -> Result<Held, Failure> {
        let held = self.forwards.take(Party { is_named: true, ..party }, FOR_A_PLACE).await;
        held.map(Arc::new)
            .map_err(|_| Failure::new(FailureKind::Busy, "too many requests are passed on at once; try again soon"))
    }

    /// Joins both sides of a connection that is no longer HTTP.
    fn switched(
        self: &Arc<Self>,
        response: reqwest::Response,
        own_side: hyper::upgrade::OnUpgrade,
        through: Tunnel,
        (kept, held): (Option<Kept>, Held),
    ) -> Response<Body> {
        let mut answer = Response::new(body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = response.headers().clone();
        let proxy = self.clone();
        tokio::spawn(async move {
            let _held = held;
            let server = &through.server;
            let (ours, theirs) = match tokio::join!(own_side, response.upgrade()) {
                (Ok(ours), Ok(theirs)) => (ours, theirs),
                _ => return tracing::debug!(%server, "a change of protocol did not come about"),
            };
            let ends = async {
                match kept.clone() {
                    Some(mut kept) => drop(kept.stop.wait_for(Option::is_some).await),
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                ended = tunnel::run(TokioIo::new(ours), theirs, || (), ends) => ended,
                () = proxy.until_turned_away(&through) => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%server, %error, "what followed a change of protocol ended with an error");
            }
        });
        answer
    }
}
