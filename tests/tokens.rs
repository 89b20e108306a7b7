//! Promise: tokens of the issuers that are configured let in, and nothing that only looks like one.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::{Algorithm, Header};
use serde_json::json;

use crate::clients::{podman_pulls_as, skopeo_copies_as};
use crate::support::issuer::{Issuer, SigningKey, forged, now};
use crate::support::{Answer, Hub, Image, Larder, Options, RepositoryConfig, eventually, request};

async fn hub() -> Hub {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    hub
}

fn repository(name: &str, allow: &str, hub: &Hub) -> String {
    RepositoryConfig::new(name).set(&format!("allow = [{allow}]")).upstream(hub).to_string()
}

async fn bearer(url: &str, token: &str) -> Answer {
    request("GET", url).header("authorization", format!("Bearer {token}")).send().await
}

async fn password(url: &str, user: &str, token: &str) -> Answer {
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{token}")));
    request("GET", url).header("authorization", basic).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in_by_what_it_claims() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let (ci, company) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    let hub = hub().await;
    let config = ci.config("ci", "required_claims = { owner = [\"acme\", \"other\"], ok = true }")
        + &company.config("company", &format!("jwks_uri = \"{}/keys\"", company.url()))
        + &repository("all", "\"*\"", &hub)
        + &repository("ci", "\"oidc:ci\"", &hub)
        + &repository("app", "\"oidc:ci:sub=repo:acme/*\"", &hub)
        + &repository("ops", "\"oidc:company:groups=ops\", \"oidc:company:realm.roles=admin\"", &hub);
    let larder = Larder::start(config).await;
    let tag = |name: &str| larder.manifest_url(&format!("{name}/team/app"), "1");
    let of_ci = |more| key.sign(&ci.claims(more));
    let of_company = |more| key.sign(&company.claims(more));
    for (token, all, ci, app, ops) in [
        (of_ci(json!({"owner": "acme", "ok": true})), 200, 200, 200, 403),
        (of_ci(json!({"owner": "other", "ok": true, "sub": "repo:acme2/app"})), 200, 200, 403, 403),
        (of_ci(json!({"owner": "acme", "ok": true, "groups": ["ops"]})), 200, 200, 200, 403),
        (of_ci(json!({"owner": "nobody", "ok": true})), 401, 401, 401, 401),
        (of_ci(json!({"owner": "acme"})), 401, 401, 401, 401),
        (of_company(json!({"groups": ["dev", "ops"]})), 200, 403, 403, 200),
        (of_company(json!({"groups": ["dev"]})), 200, 403, 403, 403),
        (of_company(json!({"realm": {"roles": ["admin"]}})), 200, 403, 403, 200),
        (of_company(json!({"aud": ["x", "larder"]})), 200, 403, 403, 403),
    ] {
        for (name, status) in [("all", all), ("ci", ci), ("app", app), ("ops", ops)] {
            let answers = [bearer(&tag(name), &token).await, password(&tag(name), "anybody", &token).await];
            for answer in answers {
                assert_eq!(answer.status, status, "{name}: {}", answer.text());
                match status {
                    401 => assert_eq!(answer.header("www-authenticate"), "Basic realm=\"larder\""),
                    403 => assert_eq!(answer.error_code(), "DENIED"),
                    _ => {}
                }
            }
        }
    }
    assert_eq!(company.asked(), ["/keys"], "once for all, and not discovered");
    assert_eq!(ci.asked(), ["/.well-known/openid-configuration", "/keys"]);
    eventually("the log says so", async || larder.log().contains("\"user\":\"oidc:ci:sub=repo:acme/app\"")).await;
    assert!(!larder.log().contains("eyJ"), "no token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_a_token_lets_nobody_in() {
    let (key, rsa) = (SigningKey::new("one", Algorithm::ES256), SigningKey::new("rsa", Algorithm::RS256));
    let pss = SigningKey::new("pss", Algorithm::PS256);
    let edwards = SigningKey::new("ed", Algorithm::EdDSA);
    let issuer = Issuer::start(&[&key, &rsa, &pss, &edwards]).await;
    let stranger = SigningKey::new("one", Algorithm::ES256);
    let hub = hub().await;
    let config = issuer.config("ci", "") + &repository("hub", "\"*\"", &hub);
    let claims = |more| issuer.claims(more);
    let good = key.sign(&claims(json!({})));
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let other_signature = stranger.sign(&claims(json!({})));
    let public = key.public();
    let hmac = jsonwebtoken::EncodingKey::from_secret(public["x"].as_str().expect("a coordinate").as_bytes());
    let symmetric = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::HS256) };
    let header = |more: fn(&mut Header)| {
        let mut header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::ES256) };
        more(&mut header);
        header
    };
    for (what, token) in [
        ("no signature", forged(&json!({"alg": "none"}), &claims(json!({})), b"")),
        ("no signature in capitals", forged(&json!({"alg": "NONE", "kid": "one"}), &claims(json!({})), b"")),
        ("an empty signature", format!("{signed}.")),
        ("another algorithm's name", forged(&json!({"alg": "RS256", "kid": "one"}), &claims(json!({})), b"x")),
        ("a secret that all know", jsonwebtoken::encode(&symmetric, &claims(json!({})), &hmac).expect("signed")),
        ("a stranger's key of the same name", other_signature.clone()),
        ("a key that is not there", SigningKey::new("two", Algorithm::ES256).sign(&claims(json!({})))),
        ("a key it brings along", {
            let mut with_key = header(|_| {});
            with_key.jwk = serde_json::from_value(stranger.public()).ok();
            stranger.sign_with(with_key, &claims(json!({})))
        }),
        ("extensions", key.sign_with(header(|header| header.crit = Some(vec!["exp".to_owned()])), &claims(json!({})))),
        ("other claims under the same signature", {
            let other = key.sign(&claims(json!({"sub": "root"})));
            format!("{}.{signature}", other.rsplit_once('.').expect("three parts").0)
        }),
        ("another audience", key.sign(&claims(json!({"aud": "others"})))),
        ("many other audiences", key.sign(&claims(json!({"aud": ["others", "lard"]})))),
        ("no audience", key.sign(&claims(json!({"aud": null})))),
        ("no audience at all", key.sign(&claims(json!({"aud": []})))),
        ("another issuer", key.sign(&claims(json!({"iss": "https://evil.test"})))),
        ("some issuers", key.sign(&claims(json!({"iss": [issuer.url(), "https://evil.test"]})))),
        ("no issuer", key.sign(&claims(json!({"iss": null})))),
        ("expired", key.sign(&claims(json!({"exp": now() - 3600})))),
        ("without an end", key.sign(&claims(json!({"exp": null})))),
        ("an end that is no number", key.sign(&claims(json!({"exp": "tomorrow"})))),
        ("not good yet", key.sign(&claims(json!({"nbf": now() + 3600})))),
        ("made tomorrow", key.sign(&claims(json!({"iat": now() + 86_400, "nbf": null})))),
        ("no JSON", format!("{}.e30.x", BASE64_STANDARD.encode("nonsense"))),
        ("too long", key.sign(&claims(json!({"more": "x".repeat(20_000)})))),
        ("two parts", signed.to_owned()),
        ("four parts", format!("{good}.x")),
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
    ] {
        // One for each: who guesses has to wait.
        let larder = Larder::start(&config).await;
        let tag = larder.manifest_url("hub/team/app", "1");
        for answer in [bearer(&tag, &token).await, password(&tag, "ci", &token).await] {
            assert_eq!((answer.status, answer.error_code().as_str()), (401, "UNAUTHORIZED"), "{what}");
            assert!(answer.header("www-authenticate").starts_with("Basic "), "{what}");
        }
    }
    let larder = Larder::start(&config).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    for key in [&key, &rsa, &pss, &edwards] {
        assert_eq!(bearer(&tag, &key.sign(&claims(json!({})))).await.status, 200, "{:?}", key.algorithm);
        let unnamed = key.sign_with(Header::new(key.algorithm), &claims(json!({})));
        assert_eq!(bearer(&tag, &unnamed).await.status, 200, "{:?} without the key's name", key.algorithm);
    }
    // The name of a key does not change what it is for.
    let as_pss = Header { kid: Some("rsa".to_owned()), ..Header::new(Algorithm::PS256) };
    assert_eq!(bearer(&tag, &rsa.sign_with(as_pss, &claims(json!({})))).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_and_outlive_their_issuer() {
    let (old, new) = (SigningKey::new("old", Algorithm::ES256), SigningKey::new("new", Algorithm::ES256));
    let issuer = Issuer::start(&[&old]).await;
    issuer.set_down(true);
    let hub = hub().await;
    let config = issuer.config("ci", "") + &repository("hub", "\"*\"", &hub);
    let larder = Larder::start(&config).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    let token = |key: &SigningKey, name: &str| key.sign(&issuer.claims(json!({"sub": name})));
    // Without keys nobody can say, which is no fault of the client's.
    let unknown = bearer(&tag, &token(&old, "a")).await;
    assert_eq!((unknown.status, unknown.error_code().as_str()), (502, "UNAVAILABLE"), "{}", unknown.text());
    issuer.set_down(false);
    // It is not asked for each token.
    eventually("it is asked again", async || bearer(&tag, &token(&old, "a")).await.status == 200).await;
    assert_eq!(issuer.asked().len(), 3, "{:?}", issuer.asked());

    issuer.use_keys(&[&new]);
    eventually("the new key is known", async || bearer(&tag, &token(&new, "b")).await.status == 200).await;
    assert_eq!(bearer(&tag, &token(&old, "c")).await.status, 401, "the old one is none any more");
    issuer.set_down(true);
    assert_eq!(bearer(&tag, &token(&new, "d")).await.status, 200, "it is known still");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_key_does_not_spoil_the_others() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let issuer = Issuer::start(&[]).await;
    let (encrypts, other_algorithm) =
        (SigningKey::new("enc", Algorithm::ES256), SigningKey::new("rs", Algorithm::RS256));
    let (mut for_encryption, mut for_pss) = (encrypts.public(), other_algorithm.public());
    for_encryption["use"] = json!("enc");
    for_pss["alg"] = json!("PS256");
    issuer.use_documents(vec![
        json!("x"),
        json!({"kty": "new"}),
        json!({"kty": "oct", "k": "c2VjcmV0"}),
        for_encryption,
        for_pss,
        key.public(),
    ]);
    let hub = hub().await;
    let larder = Larder::start(issuer.config("ci", "") + &repository("hub", "\"*\"", &hub)).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    assert_eq!(bearer(&tag, &key.sign(&issuer.claims(json!({})))).await.status, 200);
    for key in [encrypts, other_algorithm] {
        assert_eq!(bearer(&tag, &key.sign(&issuer.claims(json!({})))).await.status, 401, "{}", key.id);
    }
    let hmac = jsonwebtoken::EncodingKey::from_secret(b"secret");
    let secret =
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &issuer.claims(json!({})), &hmac).expect("signed");
    assert_eq!(bearer(&tag, &secret).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_forges_tokens_has_to_wait_and_who_comes_late_does_not() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let hub = hub().await;
    let larder = Larder::start(issuer.config("ci", "") + &repository("hub", "\"*\"", &hub)).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    let good = key.sign(&issuer.claims(json!({})));
    assert_eq!(bearer(&tag, &good).await.status, 200);
    for _ in 0..40 {
        let late = key.sign(&issuer.claims(json!({"exp": now() - 3600})));
        assert_eq!(bearer(&tag, &late).await.status, 401);
    }
    let stranger = SigningKey::new("one", Algorithm::ES256);
    for number in 0..20 {
        assert_eq!(bearer(&tag, &stranger.sign(&issuer.claims(json!({"n": number})))).await.status, 401);
    }
    let told = bearer(&tag, &stranger.sign(&issuer.claims(json!({})))).await;
    assert_eq!((told.status, told.error_code().as_str()), (429, "TOOMANYREQUESTS"));
    assert_eq!(bearer(&tag, &good).await.status, 200, "who was let in before goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_log_in_with_a_token_as_the_password() {
    let key = SigningKey::new("one", Algorithm::RS256);
    let issuer = Issuer::start(&[&key]).await;
    let hub = hub().await;
    let only = issuer.config("ci", "") + &repository("hub", "\"oidc:ci:sub=repo:acme/app\"", &hub);
    let mixed = only.clone() + &repository("open", "\"anonymous\"", &hub);
    let good = format!("ci:{}", key.sign(&issuer.claims(json!({}))));
    let late = format!("ci:{}", key.sign(&issuer.claims(json!({"exp": now() - 3600}))));
    for config in [only, mixed] {
        let larder = Larder::start(&config).await;
        let reference = format!("{}/hub/team/app:1", larder.url().trim_start_matches("http://"));
        skopeo_copies_as(&reference, Some(&good)).await.unwrap();
        assert!(skopeo_copies_as(&reference, Some(&late)).await.is_err());
        let refused = format!("{:?}", podman_pulls_as(&reference, Some(&late)).await.expect_err("podman pulled it"));
        assert!(["unauthorized", "authentication", "denied"].iter().any(|word| refused.contains(word)), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_makes_no_sense_is_not_believed() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let hub = hub().await;
    let config = issuer.config("ci", "") + &repository("hub", "\"*\"", &hub);
    let token = key.sign(&issuer.claims(json!({})));
    let refused = async |why: &str| {
        let larder = Larder::start(&config).await;
        let answer = bearer(&larder.manifest_url("hub/team/app", "1"), &token).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (502, "UNAVAILABLE"), "{why}");
        assert!(answer.text().contains("the keys of `ci`"), "{}", answer.text());
        eventually(why, async || larder.log().contains(why)).await;
    };
    issuer.set_alias(Some("https://issuer.example"));
    refused("is that of another issuer").await;
    issuer.set_alias(None);
    issuer.use_documents(vec![key.public(), json!({"kty": "x".repeat(2 << 20)})]);
    refused("answered with more than").await;
    issuer.set_down(true);
    refused("503").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_taken_is_not_taken_past_its_end() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let hub = hub().await;
    let larder = Larder::start(issuer.config("ci", "") + &repository("hub", "\"*\"", &hub)).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    // It has ended for us, but clocks may differ by half a minute.
    let token = key.sign(&issuer.claims(json!({"exp": now() - 26})));
    assert_eq!(bearer(&tag, &token).await.status, 200);
    eventually("it is not taken any more", async || bearer(&tag, &token).await.status == 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_passwords_go_together_and_a_change_of_the_rules_counts_at_once() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let hub = hub().await;
    let dir = tempfile::TempDir::new().expect("a directory");
    let hash = |password: &str| bcrypt::hash_with_result(password, 4).expect("hashed").to_string();
    // A password that looks like a token, of somebody whom nobody knows.
    let dotted = forged(&json!({"alg": "ES256"}), &json!({"iss": "https://other.example"}), b"x")[..60].to_owned();
    let dotted = format!("{}.y.z", dotted.replace('.', "_"));
    let users = format!("bob:{}\neve:{}\n", hash("secret"), hash(&dotted));
    std::fs::write(dir.path().join("htpasswd"), users).expect("written");
    let htpasswd = format!("[auth.htpasswd]\npath = {:?}\n", dir.path().join("htpasswd"));
    let config = |required: &str, allow: &str, admin: &str| {
        let admin = format!("[admin]\nallow = [\"oidc:ci:sub=repo:acme/*\"{admin}]\n");
        format!("{admin}{htpasswd}{}{}", issuer.config("ci", required), repository("hub", allow, &hub))
    };
    let all = "\"user:bob\", \"user:eve\", \"oidc:ci\"";
    let mut larder = Larder::start(config("", all, "")).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    let token = key.sign(&issuer.claims(json!({})));
    assert_eq!(password(&tag, "bob", "secret").await.status, 200);
    assert_eq!(password(&tag, "eve", &dotted).await.status, 200);
    assert_eq!(password(&tag, "bob", &token).await.status, 200, "a token says itself who it is");
    // At the admin door, too. A page whose name leads here gets nothing by a login that nobody names.
    let stats = format!("{}/api/cache/stats", larder.admin_url());
    assert_eq!(bearer(&stats, &token).await.status, 200);
    assert_eq!(bearer(&stats, &key.sign(&issuer.claims(json!({"sub": "other"})))).await.status, 403);
    assert_eq!(bearer(&stats, "nonsense").await.status, 401);
    let from_a_page = |token: &str| {
        request("GET", &stats).header("host", "evil.example").header("authorization", format!("Bearer {token}"))
    };
    assert_eq!(from_a_page(&token).send().await.status, 200, "it is named");
    assert_eq!(from_a_page(&key.sign(&issuer.claims(json!({"sub": "other"})))).send().await.status, 403);
    assert_eq!(request("GET", &stats).send().await.status, 401);

    larder.write_config(config("required_claims = { sub = \"other\" }", "\"oidc:ci\"", ""));
    eventually("the token is not enough any more", async || bearer(&tag, &token).await.status == 401).await;
    assert_eq!(password(&tag, "bob", "secret").await.status, 403);
    larder.write_config(config("", "\"user:bob\"", ", \"loopback\""));
    eventually("nor is a token at all", async || bearer(&tag, &token).await.status == 403).await;
    let other = key.sign(&issuer.claims(json!({"sub": "other"})));
    assert_eq!(from_a_page(&other).send().await.status, 403, "its address is named, but not the page's");
    assert_eq!(bearer(&stats, &other).await.status, 200);
    assert_eq!(password(&tag, "bob", "secret").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_without_names_are_exchanged_too_and_nobody_is_locked_out() {
    let (old, new) = (SigningKey::new("old", Algorithm::ES256), SigningKey::new("new", Algorithm::ES256));
    let issuer = Issuer::start(&[]).await;
    let nameless = |key: &SigningKey| {
        let mut public = key.public();
        public.as_object_mut().expect("an object").remove("kid");
        public
    };
    issuer.use_documents(vec![nameless(&old)]);
    let hub = hub().await;
    let server = "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n".to_owned();
    let larder = Larder::start(server + &issuer.config("ci", "") + &repository("hub", "\"*\"", &hub)).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    let token = |key: &SigningKey| key.sign_with(Header::new(Algorithm::ES256), &issuer.claims(json!({})));
    assert_eq!(bearer(&tag, &token(&old)).await.status, 200);
    assert_eq!(bearer(&tag, &old.sign(&issuer.claims(json!({})))).await.status, 200, "its name is not compared");
    issuer.use_documents(vec![nameless(&new)]);
    let mut address = 0_u32;
    let status = async |token: &str| {
        // Each from an address of its own: some guess wrong before the keys are fetched again.
        address += 1;
        let from = std::net::Ipv4Addr::from(0x0a00_0000 + address).to_string();
        let asked = request("GET", &tag).header("authorization", format!("Bearer {token}"));
        asked.header("x-forwarded-for", from).send().await.status
    };
    let new_token = token(&new);
    let begun = std::time::Instant::now();
    let mut status = status;
    while status(&new_token).await != 200 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "the new key is not found");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ours_to_judge_goes_to_no_upstream() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let (theirs, hub) = (hub().await, hub().await);
    let dir = tempfile::TempDir::new().expect("a directory");
    let hash = bcrypt::hash_with_result("secret", 4).expect("hashed").to_string();
    std::fs::write(dir.path().join("htpasswd"), format!("bob:{hash}\n")).expect("written");
    let config =
        format!("[server]\ndefault_repository = \"up\"\n[auth.htpasswd]\npath = {:?}\n", dir.path().join("htpasswd"))
            + &issuer.config("ci", "")
            + &RepositoryConfig::new("up").set("client_credentials = \"pass\"").upstream(&theirs).to_string()
            + &repository("hub", "\"user:bob\", \"oidc:ci\"", &hub);
    let larder = Larder::start(config).await;
    let base = format!("{}/v2/", larder.url());
    let (good, late) = (key.sign(&issuer.claims(json!({}))), key.sign(&issuer.claims(json!({"exp": now() - 3600}))));
    for (user, secret, status) in [("ci", &*good, 200), ("ci", &late, 401), ("bob", "secret", 200)] {
        assert_eq!(password(&base, user, secret).await.status, status, "{user}");
    }
    assert_eq!(bearer(&base, &good).await.status, 200);
    assert_eq!(theirs.requests().len(), 0, "{:?}", theirs.requests());
    // Nor when it pulls from there: to the upstream it is nobody.
    let theirs_tag = larder.manifest_url("up/team/app", "1");
    assert_eq!(password(&theirs_tag, "ci", &good).await.status, 200);
    assert_eq!(bearer(&theirs_tag, &good).await.status, 200);
    let asked = theirs.requests();
    assert!(
        !asked.is_empty() && asked.iter().all(|request| !request.headers.contains_key("authorization")),
        "{asked:?}"
    );
    // Who has to wait for too many wrong passwords is still ours to tell.
    let before = theirs.requests().len();
    let mut told = 0;
    while told != 429 {
        told = password(&base, "eve", &forged(&json!({}), &json!({"iss": issuer.url(), "n": told}), b"x")).await.status;
        assert!(told == 401 || told == 429);
    }
    assert_eq!(password(&base, "bob", "secret").await.status, 200, "he is known");
    let reads = || larder.log().matches("the configuration was read again").count();
    let (hash, read) = (&hash, reads());
    std::fs::write(dir.path().join("htpasswd"), format!("bob:{hash}\nann:{hash}\n")).expect("written");
    eventually("ann is a user", async || reads() > read).await;
    assert_eq!(password(&base, "ann", "secret").await.status, 429);
    assert_eq!(theirs.requests().len(), before);
    // Who is not ours is the upstream's.
    assert_eq!(password(&base, "eve", "hers").await.status, 200);
    assert!(!theirs.requests().is_empty());
}
