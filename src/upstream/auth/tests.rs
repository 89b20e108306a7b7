use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::config::Secret;

fn auth(origin: &str, realms: &[&str]) -> Auth {
    let credentials = Credentials::Login(Login::new("u", Secret::new("p")));
    let origin = Url::parse(origin).expect("a URL");
    let realms = realms.iter().map(|&host| host.to_owned()).collect();
    Auth::new("upstream".into(), &origin, Some(credentials), realms)
}

#[test]
fn credentials_go_to_no_foreign_realm() {
    let hub = auth("https://registry-1.docker.io", &["other.example"]);
    let trusts = |auth: &Auth, realm: &str| auth.trusts(&Url::parse(realm).expect("a URL"));
    assert!(trusts(&hub, "https://auth.docker.io/token"));
    assert!(trusts(&hub, "https://registry-1.docker.io/token"));
    assert!(trusts(&hub, "https://other.example/token"));
    for foreign in [
        "https://evil.example/token",
        "https://docker.io.evil.example/",
        "https://io/",
        "http://auth.docker.io/token",
        "https://127.0.0.1/",
    ] {
        assert!(!trusts(&hub, foreign), "{foreign}");
    }
    let address = auth("http://127.0.0.1:5000", &[]);
    assert!(trusts(&address, "http://127.0.0.1:9/token"));
    assert!(!trusts(&address, "http://127.0.0.2/token"));
    let tls = auth("https://r.example", &[]);
    assert!(!trusts(&tls, "http://r.example/token"), "never from TLS to plain text");
    assert!(!trusts(&hub, "http://other.example/token"), "nor where it is named");
    let pages = auth("https://a.github.io", &[]);
    assert!(!trusts(&pages, "https://b.github.io/token"), "github.io is a public suffix");
}

#[test]
fn a_life_that_makes_no_sense_counts_as_not_stated() {
    let read = |text: &str| life(Some(&serde_json::from_str(text).expect("JSON")));
    assert_eq!(life(None), DEFAULT_LIFE);
    assert_eq!(read("300"), Duration::from_secs(300));
    assert_eq!(read("\"300\""), Duration::from_secs(300));
    assert_eq!(read("-5"), DEFAULT_LIFE);
    assert_eq!(read("{}"), DEFAULT_LIFE);
    assert_eq!(read("1e300"), MAX_LIFE);
}

#[test]
fn a_token_is_renewed_before_it_expires() {
    let now = Instant::now();
    let renewed_after = |seconds: u64| {
        let answer = TokenAnswer { access_token: None, token: Some("t".to_owned()), expires_in: Some(seconds.into()) };
        into_token(answer, now).expect("a token").renew_at - now
    };
    assert_eq!(renewed_after(300), Duration::from_secs(290));
    assert_eq!(renewed_after(10), Duration::from_secs(9));
    assert_eq!(renewed_after(0), Duration::ZERO);
}

struct Endpoint(AtomicUsize);

impl FetchToken for Endpoint {
    async fn fetch_token(&self, _: &TokenRequest, _: &Who) -> Result<TokenAnswer, Failure> {
        let number = self.0.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        Ok(TokenAnswer { access_token: None, token: Some(format!("t{number}")), expires_in: Some(300.into()) })
    }
}

fn answered(answer: Result<Option<Authorization>, Failure>) -> Authorization {
    answer.expect("an answer").expect("a token")
}

#[tokio::test]
async fn the_scope_that_a_challenge_names_is_asked_for_from_then_on() {
    let auth = auth("https://r.example", &[]);
    let endpoint = Endpoint(AtomicUsize::new(0));
    let bearer = |scope: &str| format!(r#"Bearer realm="https://r.example/token",service="s",scope="{scope}""#);
    for (name, scope) in
        [("a", "aws"), ("b", "*"), ("c", "repository:rewritten/c:pull"), ("d", "repository:d:pull,push")]
    {
        let (needed, challenges) = (format!("repository:{name}:pull"), crate::oci::challenge::parse(&bearer(scope)));
        let first = answered(auth.answer(&Who::Larder, &challenges, &needed, None, &endpoint).await);
        assert_eq!(first.token.as_ref().map(|token| token.scope.as_str()), Some(scope));
        let next = auth.prepare(&Who::Larder, &needed, &endpoint).await.expect("an answer").expect("a token");
        assert_eq!(next.header, first.header, "{scope}");
    }
    assert_eq!(endpoint.0.load(Ordering::SeqCst), 4);
    assert!(auth.prepare(&Who::Larder, "repository:e:pull", &endpoint).await.expect("an answer").is_none());
}

#[tokio::test]
async fn an_ended_token_for_which_another_realm_is_named_is_got_anew_from_the_start() {
    let auth = auth("https://r.example", &[]);
    let endpoint = Endpoint(AtomicUsize::new(0));
    let parse = crate::oci::challenge::parse;
    let (first, other) = (
        parse(r#"Bearer realm="https://r.example/proxy_auth""#),
        parse(r#"Bearer realm="https://r.example/authn/token""#),
    );
    let scope = "repository:x:pull";
    answered(auth.answer(&Who::Larder, &first, scope, None, &endpoint).await);
    let kept = auth.prepare(&Who::Larder, scope, &endpoint).await.expect("an answer").expect("a token");
    let answer = auth.answer(&Who::Larder, &other, scope, Some(&kept), &endpoint).await.expect("an answer");
    assert!(answer.is_none(), "to be challenged without a token");
    let new = answered(auth.answer(&Who::Larder, &first, scope, None, &endpoint).await);
    assert!(new.header != kept.header && endpoint.0.load(Ordering::SeqCst) == 2);
}

#[tokio::test]
async fn a_refusal_with_another_status_costs_one_new_token_a_minute() {
    let auth = auth("https://r.example", &[]);
    let endpoint = Endpoint(AtomicUsize::new(0));
    let challenges = crate::oci::challenge::parse(r#"Bearer realm="https://r.example/token""#);
    let scope = "repository:x:pull";
    let fresh = answered(auth.answer(&Who::Larder, &challenges, scope, None, &endpoint).await);
    assert!(!auth.ended_early(&Who::Larder, &fresh).await, "it was just given");
    let kept = auth.prepare(&Who::Larder, scope, &endpoint).await.expect("an answer").expect("a token");
    assert!(auth.ended_early(&Who::Larder, &kept).await);
    auth.prepare(&Who::Larder, scope, &endpoint).await.expect("an answer").expect("a token");
    let again = auth.prepare(&Who::Larder, scope, &endpoint).await.expect("an answer").expect("a token");
    assert!(again.header != kept.header);
    assert!(auth.ended_early(&Who::Larder, &kept).await, "there is a newer one");
    assert!(!auth.ended_early(&Who::Larder, &again).await, "so it is meant");
    assert_eq!(endpoint.0.load(Ordering::SeqCst), 2);
}

#[test]
fn an_empty_field_is_none() {
    let read = |access_token: Option<&str>, token: Option<&str>| {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let answer = TokenAnswer { access_token: own(access_token), token: own(token), expires_in: None };
        into_token(answer, Instant::now()).map(|token| token.header.to_str().expect("text").to_owned())
    };
    assert_eq!(read(Some(""), Some("t")).as_deref(), Some("Bearer t"));
    assert_eq!(read(Some("a"), Some("")).as_deref(), Some("Bearer a"));
    assert_eq!(read(Some("a"), Some("t")).as_deref(), Some("Bearer a"));
    assert_eq!((read(Some(""), Some("")), read(None, None)), (None, None));
}

#[tokio::test]
async fn many_waiters_cost_one_token_request() {
    let auth = auth("https://r.example", &[]);
    let endpoint = Endpoint(AtomicUsize::new(0));
    let challenges = crate::oci::challenge::parse(r#"Bearer realm="https://r.example/token",service="s""#);
    let ask = || auth.answer(&Who::Larder, &challenges, "repository:x:pull", None, &endpoint);
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    assert_eq!(endpoint.0.load(Ordering::SeqCst), 1);
    assert!(auth.prepare(&Who::Larder, "repository:x:pull", &endpoint).await.expect("a token").is_some());
    assert_eq!(endpoint.0.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_token_is_fetched_again_once_for_all_who_had_it() {
    let auth = auth("https://r.example", &[]);
    let endpoint = Endpoint(AtomicUsize::new(0));
    let challenges = crate::oci::challenge::parse(r#"Bearer realm="https://r.example/token",service="s""#);
    let scope = "repository:x:pull";
    let first = answered(auth.answer(&Who::Larder, &challenges, scope, None, &endpoint).await);
    let again = || auth.answer(&Who::Larder, &challenges, scope, Some(&first), &endpoint);
    let (one, two) = tokio::join!(again(), again());
    let (one, two, three) = (answered(one), answered(two), answered(again().await));
    assert_eq!(endpoint.0.load(Ordering::SeqCst), 2);
    assert!(one.header != first.header && two.header == three.header);
}

#[tokio::test]
async fn nobody_gets_a_token_of_somebody_else() {
    let auth = auth("https://r.example", &[]);
    let endpoint = Endpoint(AtomicUsize::new(0));
    let challenges = crate::oci::challenge::parse(r#"Bearer realm="https://r.example/token",service="s""#);
    let login = |name: &str| Who::Login(Arc::new(Login::new(name, Secret::new("p"))));
    let mut headers = Vec::new();
    for who in [Who::Larder, Who::Anonymous, login("a"), login("b")] {
        headers.push(answered(auth.answer(&who, &challenges, "repository:x:pull", None, &endpoint).await).header);
        let kept = auth.prepare(&who, "repository:x:pull", &endpoint).await.expect("kept").expect("a token");
        assert_eq!(Some(&kept.header), headers.last());
    }
    headers.dedup();
    assert_eq!((headers.len(), endpoint.0.load(Ordering::SeqCst)), (4, 4));
}

struct Refusing(AtomicUsize);

impl FetchToken for Refusing {
    async fn fetch_token(&self, _: &TokenRequest, _: &Who) -> Result<TokenAnswer, Failure> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(Failure::new(FailureKind::Denied, "wrong password"))
    }
}

#[tokio::test]
async fn a_wrong_password_is_not_tried_again_and_again() {
    let auth = auth("https://r.example", &[]);
    let service = Refusing(AtomicUsize::new(0));
    let challenges = crate::oci::challenge::parse(r#"Bearer realm="https://r.example/token",service="s""#);
    for _ in 0..5 {
        let answer = auth.answer(&Who::Larder, &challenges, "repository:x:pull", None, &service).await;
        assert_eq!(answer.err().map(|failure| failure.kind), Some(FailureKind::Denied));
    }
    assert_eq!(service.0.load(Ordering::SeqCst), 1);
}
