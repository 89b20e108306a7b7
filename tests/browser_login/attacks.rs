//! What an attacker tries: RFC 9700, section 4, and OpenID Connect Core 1.0, section 3.1.3.7.

use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::scene::{ADMIN, Browser, IMAGE, SECRET, Scene, company, parameters, with_parameter};
use crate::support::issuer::{Issuer, SigningKey, now};
use crate::support::provider::Provider;
use crate::support::{Larder, eventually, get, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_login_counts_in_the_browser_that_began_it_and_once() {
    let scene = Scene::start().await;
    scene.person("olga", &["ops"]);
    let mut attacker = Browser::default();
    let back = attacker.way_back(&scene).await;
    // Login CSRF: the victim's browser is sent to the end of the attacker's login.
    let mut victim = Browser::default();
    assert_eq!(victim.get(&back).await.status, 400, "no login was begun here");
    let victims_own = victim.way_back(&scene).await;
    assert_eq!(victim.get(&back).await.status, 400, "another login was begun here");
    // Whoever got hold of the victim's code puts it into a login of their own: PKCE stops that.
    let code = &parameters(&victims_own)["code"];
    let injected = attacker.get(with_parameter(&back, "code", Some(code))).await;
    assert!(injected.status == 403 && injected.text().contains("did not take the code"), "{}", injected.text());
    assert_eq!((victim.session(), attacker.session()), (None, None));

    // A state that is changed, left out, or made up.
    let back = attacker.way_back(&scene).await;
    let state = &parameters(&back)["state"];
    let mut changed = state.clone().into_bytes();
    let middle = changed.len() / 2;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).expect("text");
    for state in [Some(changed.as_str()), Some(""), Some("AAAA"), None] {
        assert_eq!(attacker.get(with_parameter(&back, "state", state)).await.status, 400, "{state:?}");
    }
    for code in [None, Some("")] {
        assert_eq!(attacker.get(with_parameter(&back, "code", code)).await.status, 400);
    }
    assert_eq!(attacker.get(&back).await.status, 303);
    let again = attacker.get(&back).await;
    assert!(again.status == 403 && again.text().contains("did not take the code"), "a code is good once");
    let wrong = scene.logged(&["\"a login failed\"", "did not take the code"]).await;
    assert!(wrong.contains("\"client\":\"127.0.0.1\""), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_pages_of_one_browser_may_begin_a_login_at_once() {
    let scene = Scene::start().await;
    scene.person("olga", &["ops"]);
    let mut browser = Browser::default();
    let (one, two) = (browser.way_back(&scene).await, browser.way_back(&scene).await);
    assert_eq!(browser.cookies.len(), 1, "{browser:?}");
    for back in [one, two] {
        assert_eq!(browser.get(back).await.status, 303);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_of_one_issuer_is_not_taken_for_that_of_another() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let other = Issuer::start(&[&key]).await;
    other.provide(Provider::new(&key, "dash", Some(SECRET)));
    let config = company(&other, "").replace("\"company\"", "\"other\"").replace(".company.", ".other.");
    let scene = Scene::start_with(&format!("{ADMIN}{config}"), "").await;
    scene.person("olga", &["ops"]);
    other.provider(|provider| provider.redirect_uris.push(scene.page("/login/other/callback")));
    let mut browser = Browser::default();
    assert!(browser.get(scene.page("/")).await.text().contains("Log in with other"), "a button for each");

    // Mix-up: the code of one comes back where those of the other do, with the state of either.
    let back = browser.way_back(&scene).await;
    let elsewhere = back.replace("/login/company/", "/login/other/");
    assert_eq!(browser.get(&elsewhere).await.status, 403);
    assert!(!other.asked().iter().any(|path| path == "/token"), "it gets neither the code nor the secret of PKCE");
    let sent = browser.get(scene.page("/login/other")).await;
    let of_other = parameters(sent.header("location"))["state"].clone();
    assert_eq!(browser.get(with_parameter(&elsewhere, "state", Some(&of_other))).await.status, 403);
    let asked = other.asked();
    assert!(asked.iter().any(|path| path == "/token"), "{asked:?}: this code it cannot know, and PKCE binds it");

    // RFC 9207: an answer that names another issuer, or none where it has to name one.
    let named = with_parameter(&back, "iss", Some(&other.url()));
    let refused = browser.get(&named).await;
    assert!(refused.status == 403 && refused.text().contains("does not name the issuer"), "{}", refused.text());
    assert_eq!(browser.get(with_parameter(&back, "iss", Some(&scene.issuer.url()))).await.status, 303);

    let scene = Scene::start().await;
    scene.person("olga", &["ops"]);
    scene.issuer.provider(|provider| provider.names_itself = true);
    let back = browser.way_back(&scene).await;
    assert_eq!(browser.get(with_parameter(&back, "iss", None)).await.status, 403, "it promised to name itself");
    assert_eq!(browser.get(back).await.status, 303);
    assert!(browser.get(scene.page("/login/nobody")).await.status == 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_token_that_is_not_for_this_login_lets_nobody_in() {
    let scene = Scene::start().await;
    scene.person("olga", &["ops"]);
    for (twist, why) in [
        (json!({"nonce": "another"}), "that of another login"),
        (json!({"nonce": null}), "that of another login"),
        (json!({"aud": "larder"}), "another audience"),
        (json!({"aud": ["larder", "other"]}), "another audience"),
        (json!({"aud": ["dash", "other"]}), "azp"),
        (json!({"aud": ["dash", "other"], "azp": "other"}), "azp"),
        (json!({"azp": "other"}), "azp"),
        (json!({"azp": 7}), "azp"),
        (json!({"iss": "https://other.example"}), "signature is wrong"),
        (json!({"iss": [scene.issuer.url()]}), "another issuer"),
        (json!({"exp": now() - 60}), "expired"),
        (json!({"exp": null}), "no claim `exp`"),
        (json!({"iat": now() + 600}), "in the future"),
        (json!({"sub": null}), "no `sub`"),
        (json!({"sub": ""}), "no `sub`"),
        (json!({"groups": "x".repeat(40_000)}), "fewer groups"),
    ] {
        scene.issuer.provider(|provider| provider.twist = twist.clone());
        let mut browser = Browser::default();
        let refused = browser.log_in(&scene).await;
        assert_eq!((refused.status, browser.session()), (403, None), "{twist}");
        let text = refused.text().replace("<code>", "`").replace("</code>", "`");
        let is_signature = why == "signature is wrong" && text.contains("its signature is wrong");
        assert!(is_signature || text.contains(why), "{twist}: {text}");
    }
    for twist in [json!({"aud": ["dash"]}), json!({"aud": ["dash", "other"], "azp": "dash"}), json!({"azp": "dash"})] {
        scene.issuer.provider(|provider| provider.twist = twist.clone());
        assert_eq!(Browser::default().log_in(&scene).await.status, 303, "{twist}");
    }
    scene.issuer.provider(|provider| {
        provider.twist = json!({});
        provider.key = SigningKey::new("one", Algorithm::ES256);
    });
    assert_eq!(Browser::default().log_in(&scene).await.status, 403, "a key that is not the issuer's");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_are_required_are_required_in_a_browser_too() {
    let scene = Scene::start().await;
    let login = company(&scene.issuer, "").replacen("audience", "required_claims = { mfa = true }\naudience", 1);
    let scene = Scene { larder: Larder::start(format!("{ADMIN}{login}")).await, ..scene };
    scene.issuer.provider(|provider| provider.redirect_uris.push(scene.page("/login/company/callback")));
    scene.person("olga", &["ops"]);
    assert_eq!(Browser::default().log_in(&scene).await.status, 403);
    scene.issuer.provider(|provider| provider.twist = json!({"mfa": true}));
    assert_eq!(Browser::default().log_in(&scene).await.status, 303);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_changes_nothing_without_a_page_of_its_own() {
    let scene = Scene::start().await;
    let mut browser = scene.logged_in("olga", &["ops"]).await;
    let token = browser.csrf_token(&scene).await;
    let mut other = scene.logged_in("olga", &["ops"]).await;
    let of_other = other.csrf_token(&scene).await;
    assert_ne!(token, of_other);
    let own = scene.larder.admin_url();
    for headers in [
        &[][..],
        &[("x-csrf-token", "")],
        &[("x-csrf-token", of_other.as_str())],
        &[("x-csrf-token", browser.session().expect("a session"))],
        // A form of the same browser in the same place has no such header.
        &[("origin", own.as_str()), ("sec-fetch-site", "same-origin")],
        // A subdomain, another port, another place: whatever they know.
        &[("x-csrf-token", token.as_str()), ("sec-fetch-site", "same-site")],
        &[("x-csrf-token", token.as_str()), ("sec-fetch-site", "cross-site")],
        &[("x-csrf-token", token.as_str()), ("origin", "http://127.0.0.1:1")],
        &[("x-csrf-token", token.as_str()), ("origin", "null")],
    ] {
        let refused = browser.clone().ask("DELETE", scene.page(IMAGE), headers, "").await;
        assert_eq!(refused.status, 403, "{headers:?}: {}", refused.text());
    }
    let headers = [("x-csrf-token", token.as_str()), ("origin", &own), ("sec-fetch-site", "same-origin")];
    assert_eq!(browser.ask("DELETE", scene.page(IMAGE), &headers, "").await.status, 200);
    // A session is for the admin door.
    let cookie = format!("larder-session={}", browser.session().expect("a session"));
    let url = format!("{}/v2/_catalog", scene.larder.url());
    let answer = crate::support::request("GET", &url).header("cookie", cookie).send().await;
    assert_eq!(answer.text(), get(url).await.text(), "as without it");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_to_another_place_by_a_login() {
    let scene = Scene::start().await;
    scene.person("olga", &["ops"]);
    for (wanted, to) in [
        ("/image?reference=hub/team/app:1", "/image?reference=hub/team/app:1"),
        ("//evil.example/", "/"),
        ("/\\evil.example/", "/"),
        ("\\\\evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/login/company", "/"),
        ("/a\r\nx: y", "/"),
        ("", "/"),
    ] {
        let mut begin = url::Url::parse(&scene.page("/login/company")).expect("a URL");
        begin.query_pairs_mut().append_pair("wanted", wanted);
        let mut browser = Browser::default();
        let sent = browser.get(begin.as_str()).await;
        let back = get(sent.header("location")).await;
        assert_eq!(browser.get(back.header("location")).await.header("location"), to, "{wanted:?}");
    }
    // Where the way back leads is the issuer's to judge: it knows the addresses that are registered.
    let foreign = [("host", "evil.example")];
    let sent = Browser::default().ask("GET", scene.page("/login/company"), &foreign, "").await;
    assert_eq!(get(sent.header("location")).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_issuer_says_instead_of_a_code_is_told_and_never_trusted() {
    let scene = Scene::start().await;
    for (error, told) in [
        ("access_denied", "let nobody in (access_denied)"),
        ("<script>alert(1)</script>", "let nobody in (for a reason of its own)"),
        ("call 555-1234 now", "let nobody in (for a reason of its own)"),
    ] {
        scene.issuer.provider(|provider| provider.error = Some(error.to_owned()));
        let refused = Browser::default().log_in(&scene).await;
        assert!(refused.status == 403 && refused.text().contains(told), "{}", refused.text());
        assert!(!refused.text().contains("555") && refused.text().matches("<script").count() == 1);
        let policy = refused.header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'") && refused.header("referrer-policy") == "same-origin",
            "{policy}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tries_many_codes_has_to_wait() {
    let scene = Scene::start().await;
    let mut browser = Browser::default();
    let back = browser.way_back(&scene).await;
    let mut told = Vec::new();
    for number in 0..25 {
        told.push(browser.get(with_parameter(&back, "code", Some(&format!("guess-{number}")))).await.status);
    }
    assert_eq!((told[0], told[24]), (403, 429), "{told:?}");
    let asked = scene.issuer.asked().iter().filter(|path| *path == "/token").count();
    assert_eq!(asked, 20, "the issuer is not asked for more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_hangs_up_counts_as_one_that_stays() {
    let scene = Scene::start().await;
    let document = scene.issuer.hold("/.well-known/openid-configuration");
    let login = format!("{}/login/company", scene.larder.admin_url());
    let hangs_up = tokio::spawn(request("GET", &login).send());
    document.wait_for(1).await;
    hangs_up.abort();
    let stays = tokio::spawn(request("GET", &login).send());
    let asked_again = tokio::time::timeout(Duration::from_secs(2), document.wait_for(2)).await;
    assert!(asked_again.is_err(), "the document is asked for once");
    document.let_go();
    assert_eq!(stays.await.expect("an answer").status, 303);
    assert_eq!(document.count(), 1);

    let (mut first, token) = (Browser::default(), scene.issuer.hold("/token"));
    let back = first.way_back(&scene).await;
    let tries = (0..20).map(|number| {
        let (mut browser, url) = (first.clone(), with_parameter(&back, "code", Some(&format!("guess-{number}"))));
        tokio::spawn(async move { browser.get(url).await.status })
    });
    let tries: Vec<_> = tries.collect();
    token.wait_for(20).await;
    tries.iter().for_each(tokio::task::JoinHandle::abort);
    for tried in tries {
        assert!(tried.await.expect_err("it waits").is_cancelled());
    }
    // One more request: Larder gets to notice that they are gone.
    assert_eq!(get(format!("{}/healthz", scene.larder.admin_url())).await.status, 200);
    token.let_go();
    let exchanged = || scene.issuer.asked().iter().filter(|path| *path == "/token").count();
    eventually("the issuer has answered each", async || exchanged() == 20).await;
    let told = first.get(with_parameter(&back, "code", Some("guess"))).await;
    assert_eq!(told.status, 429, "{}", told.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_code_token_or_secret_of_a_login_is_told_anywhere() {
    let scene = Scene::start().await;
    scene.issuer.provider(|provider| provider.ends_sessions = true);
    let mut browser = scene.logged_in("olga", &["ops"]).await;
    let session = browser.session().expect("a session").to_owned();
    scene.issuer.provider(|provider| provider.twist = json!({"nonce": "another"}));
    assert_eq!(Browser::default().log_in(&scene).await.status, 403);
    let back = Browser::default().way_back(&scene).await;
    assert_eq!(Browser::default().get(back).await.status, 400);
    let mut told = String::new();
    for page in ["/", "/pulls", "/api/pulls", "/api/config", "/diagnosis", "/metrics"] {
        told += &browser.get(scene.page(page)).await.text();
    }
    let token = browser.csrf_token(&scene).await;
    browser.ask("POST", scene.page("/logout"), &[], &format!("csrf_token={token}")).await;
    scene.logged(&["\"request\"", "\"path\":\"/logout\""]).await;
    let mut secrets = scene.issuer.provider(|provider| provider.secrets.clone());
    assert!(secrets.len() > 10);
    secrets.extend([SECRET.to_owned(), session.clone()]);
    for secret in &secrets {
        assert!(!told.contains(secret.as_str()), "a page tells {secret}");
    }
    secrets.push(token);
    let encoded = |text: &String| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    secrets.extend(secrets.clone().iter().map(encoded));
    let log = scene.larder.log();
    for secret in &secrets {
        let line = log.lines().find(|line| line.contains(secret.as_str()));
        assert_eq!(line, None, "the log has {secret}");
    }
    assert!(log.contains("/login/company/callback") && !log.contains("code="), "the path alone");
}
