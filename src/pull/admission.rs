//! Who is let in: addresses, logins, certificates, and `allow` of each repository.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::error::{Challenge, Refusal, Wanted};
use super::routing::Repository;
use super::{AskedHost, Client, Live, Pull};
use crate::auth::{ClientAddress, Credential, Identity, Known, Logins, NotNow};
use crate::config::Allow;
use crate::failure::{Failure, FailureKind};
use crate::upstream::Who;

/// After this long a client may come back whose logins are being looked at.
const MOMENT: Duration = Duration::from_secs(1);

/// How a client of the admin door stands to `admin.allow`.
#[derive(Clone, Debug)]
pub enum Manager {
    /// It is named by its login.
    Known,
    /// It is named by its address alone.
    ByAddress,
    /// It could log in; with a challenge.
    Unknown(HeaderValue),
    Refused,
    /// Its login cannot be looked at now; why.
    NotNow(NotNow),
}

/// The configuration that a request came in by, and from where it came.
pub struct Door {
    pub live: Arc<Live>,
    client: Client,
    /// The name by which it was asked, if that is none of ours.
    strange_name: Option<AskedHost>,
}

impl Door {
    /// Turns away who comes from an address that is not to come in, or for no host that can be told.
    pub fn of(live: &Arc<Live>, request: &Parts) -> Result<Self, Refusal> {
        let host = AskedHost::of(request.version, &request.uri, &request.headers)?;
        let client = request.extensions.get::<Client>().ok_or(Refusal::Forbidden)?.clone();
        let strange_name = host.filter(|host| live.is_strange(host, &client));
        Ok(Self { strange_name, ..Self::for_client(live, client)? })
    }

    /// As [`Door::of`], for who is known already.
    pub fn for_client(live: &Arc<Live>, client: Client) -> Result<Self, Refusal> {
        let is_let_in =
            live.allow_cidrs.is_empty() || live.allow_cidrs.iter().any(|network| client.address.is_in(network));
        if !is_let_in {
            return Err(Refusal::Forbidden);
        }
        Ok(Self { live: live.clone(), client, strange_name: None })
    }

    /// Whether what is asked for is asked of this server. A page of anywhere can have its own name lead to this machine, and
    /// would be served as a client of this machine. So this is looked at when it is known that a client is served; who
    /// has to log in first is told that.
    pub fn is_meant(&self) -> Result<(), Refusal> {
        match &self.strange_name {
            Some(name) => Err(Refusal::StrangeName(name.to_string())),
            None => Ok(()),
        }
    }

    /// Whether clients can log in here, other than at an upstream.
    pub fn has_logins(&self) -> bool {
        self.live.logins.is_some()
    }

    /// Whether a client shows what says that it is a token of an issuer of ours.
    fn is_own_token(&self, who: &Who) -> bool {
        let token = match who {
            Who::Login(login) => Some(login.password.reveal()),
            Who::Header(value) => bearer(value),
            Who::Anonymous | Who::Larder => None,
        };
        let logins = self.live.logins.as_ref();
        token.zip(logins).is_some_and(|(token, logins)| logins.knows_issuer_of(token))
    }

    /// As who a client is that does not log in.
    pub fn stranger(&self) -> Identity {
        let certificate = self.client.certificate.clone();
        Identity { address: self.client.address, known: None, certificate }
    }

    /// Whether some are served without a login and others not, so that clients have to find out which
    /// they are: by way of tokens, which every client asks for, with a login or without.
    fn is_mixed(&self) -> bool {
        let stranger = self.stranger();
        let has_logins = self.has_logins();
        let mut repositories = self.live.routing.repositories().iter().map(|repository| &repository.config);
        repositories.any(|config| config.client_consent.is_some() || stranger.may_pull(&config.allow, has_logins))
    }

    /// What a client is told that should log in with a name and password; `None` where tokens are better.
    pub fn basic(&self) -> Option<HeaderValue> {
        basic(self.live.logins.as_deref().filter(|_| !self.is_mixed())?)
    }
}

impl Live {
    /// Whether a name may be somebody else's that was made to lead here. That matters on plain connections within this
    /// machine: only programs here can make them, a browser with a page of anywhere among them. TLS asks for a certificate of
    /// the name, and a reverse proxy passes on the name that it was asked by.
    fn is_strange(&self, host: &AskedHost, client: &Client) -> bool {
        let is_within = client.local.is_some_and(|local| local.is_loopback());
        is_within
            && !client.is_secure
            && !host.is_nobodys_name()
            && !self.forwarding.trusts(client.peer.ip())
            && !host.is_one_of(&self.hosts)
            && !self.routing.has_host(&host.to_string())
    }
}

impl Pull {
    /// Whether the admin door is asked by a name that it has.
    pub fn is_admin_host(&self, host: &AskedHost) -> bool {
        host.is_nobodys_name() || host.is_one_of(&self.live.load().admin_hosts)
    }

    /// Whether a client may manage the cache.
    pub async fn manager(&self, peer: SocketAddr, headers: &HeaderMap) -> Manager {
        let live = self.live.load_full();
        let client = live.forwarding.client(Client::connected(peer), headers);
        let stranger = Identity { address: client.address, known: None, certificate: None };
        let has_logins = live.logins.is_some();
        let challenge = || live.logins.as_deref().and_then(basic).map_or(Manager::Refused, Manager::Unknown);
        if let (Some(logins), true) = (&live.logins, headers.contains_key(AUTHORIZATION)) {
            // A token of this cache is for pulling alone.
            let is_token = headers.get(AUTHORIZATION).is_some_and(|value| bearer(value).is_some());
            if is_token && matches!(self.client(headers), Ok(Who::Login(_))) {
                return challenge();
            }
            let known = match self.login(logins, stranger.address, headers).await {
                Ok(known) => known,
                Err(Wrong::Invalid) => return challenge(),
                Err(Wrong::NotNow(why)) => return Manager::NotNow(why),
            };
            // By address alone would be no answer to a page that some browser has open.
            let is_by_name = |entry: &&Allow| !matches!(entry, Allow::Network(_) | Allow::Anonymous);
            let by_name: Vec<_> = live.managers.iter().filter(is_by_name).cloned().collect();
            let is_known = known.is_some();
            if is_known && (Identity { known, ..stranger.clone() }).may_pull(&by_name, has_logins) {
                return Manager::Known;
            }
            if is_known && !stranger.may_pull(&live.managers, has_logins) {
                return Manager::Refused;
            }
        }
        match stranger.may_pull(&live.managers, has_logins) {
            true => Manager::ByAddress,
            false => challenge(),
        }
    }

    /// Who a client is; wrong credentials are refused.
    pub(super) async fn identify(&self, request: &Parts, door: &Door, path: Option<&str>) -> Result<Identity, Refusal> {
        let stranger = door.stranger();
        let Some(logins) = door.live.logins.as_ref().filter(|_| request.headers.contains_key(AUTHORIZATION)) else {
            return Ok(stranger);
        };
        match self.login(logins, stranger.address, &request.headers).await {
            Ok(known) => Ok(Identity { known, ..stranger }),
            Err(Wrong::Invalid) => Err(self.challenge(request, door, Challenge::Invalid, path)),
            Err(Wrong::NotNow(why)) => Err(not_now(why)),
        }
    }

    /// As whom an upstream is asked where the client's own credentials decide. A token of an issuer of ours is
    /// for us; whoever else got it could come here with it.
    pub(super) fn upstream_sees(&self, request: &Parts, door: &Door) -> Result<Who, Challenge> {
        let who = self.client(&request.headers)?;
        Ok(if door.is_own_token(&who) { Who::Anonymous } else { who })
    }

    /// Whether what a client shows is for us to judge and nobody else: a token of an issuer of ours, or the name
    /// and password of a user.
    pub(super) async fn is_ours(&self, request: &Parts, door: &Door) -> bool {
        let (Some(logins), Ok(who)) = (&door.live.logins, self.client(&request.headers)) else {
            return false;
        };
        match &who {
            who if door.is_own_token(who) => true,
            // What cannot be looked at now may be right.
            Who::Login(login) if logins.has_user(&login.username) => {
                let known = self.login(logins, door.stranger().address, &request.headers).await;
                !matches!(known, Err(Wrong::Invalid))
            }
            _ => false,
        }
    }

    /// As whom a client is known by its `Authorization`; `None`: it says itself that it is nobody.
    pub(super) async fn login(
        &self,
        logins: &Logins,
        address: ClientAddress,
        headers: &HeaderMap,
    ) -> Result<Option<Known>, Wrong> {
        let who = self.client(headers).map_err(|_| Wrong::Invalid)?;
        let shown = match &who {
            Who::Anonymous | Who::Larder => return Ok(None),
            Who::Login(login) => Credential::Password { user: &login.username, password: login.password.reveal() },
            Who::Header(value) => Credential::Token(bearer(value).ok_or(Wrong::Invalid)?),
        };
        let known = logins.known(address, shown).await.map_err(Wrong::NotNow)?;
        known.map(Some).ok_or(Wrong::Invalid)
    }

    /// Lets a request into a repository, or says what is missing; returns as whom.
    pub(super) async fn admit(
        &self,
        request: &Parts,
        door: &Door,
        repository: &Repository,
        path: &str,
    ) -> Result<Identity, Refusal> {
        let has_logins = door.has_logins();
        // Where clients log in at the upstream, that is none of ours.
        let stranger = door.stranger();
        if repository.config.client_consent.is_some() {
            let may_pull = stranger.may_pull(&repository.config.allow, false);
            return may_pull.then_some(stranger).ok_or(Refusal::Forbidden);
        }
        // Who needs no login is not asked for one, whatever it brings: some clients send what they have for
        // Docker Hub to each of its mirrors.
        if stranger.may_pull(&repository.config.allow, has_logins) {
            return Ok(stranger);
        }
        let identity = self.identify(request, door, Some(path)).await?;
        if identity.may_pull(&repository.config.allow, has_logins) {
            return Ok(identity);
        }
        match identity.known.is_none() && has_logins {
            true => Err(self.challenge(request, door, Challenge::Missing, Some(path))),
            false => Err(Refusal::Forbidden),
        }
    }
}

/// Why a login is none.
pub(super) enum Wrong {
    Invalid,
    NotNow(NotNow),
}

fn basic(logins: &Logins) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("Basic realm=\"{}\"", logins.realm())).ok()
}

/// The token of `Bearer TOKEN`.
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

pub(super) fn not_now(why: NotNow) -> Refusal {
    let failure = match why {
        NotNow::Busy => Failure::new(FailureKind::Busy, why),
        NotNow::Crowded => Failure::new(FailureKind::RateLimited, why).with_retry_after(Some(MOMENT)),
        NotNow::Guessing(left) => Failure::new(FailureKind::RateLimited, why).with_retry_after(Some(left)),
        NotNow::Issuer(_) => Failure::new(FailureKind::Unavailable, why),
    };
    Refusal::of(Wanted::Name)(failure)
}
