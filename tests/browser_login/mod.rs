//! Promise: people log in to the dashboard by an issuer, as whom its ID token names, in the browser in which they
//! began, and may do what their claims give; programs and passwords are treated as before.

mod attacks;
mod scene;
mod screen;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::support::issuer::SigningKey;
use crate::support::{Larder, eventually, get, request};
use scene::{ADMIN, Browser, IMAGE, SECRET, Scene, company, parameters};

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_in_in_a_browser_may_do_what_the_claims_give() {
    let scene = Scene::start().await;
    let mut stranger = Browser::default();
    let page = stranger.get(scene.page("/pulls?q=a")).await;
    assert_eq!((page.status, page.header("www-authenticate")), (401, "Bearer"), "no prompt for a password");
    assert!(page.text().contains("href=\"/login/company?wanted=%2Fpulls%3Fq%3Da\""), "{}", page.text());

    let mut dev = scene.logged_in("dana", &["dev"]).await;
    let page = dev.get(scene.page("/pulls?q=a")).await;
    assert_eq!(page.status, 200);
    for told in ["dana", "may only look", "action=\"/logout\""] {
        assert!(page.text().contains(told), "{told}: {}", page.text());
    }
    let token = dev.csrf_token(&scene).await;
    let refused = dev.ask("DELETE", scene.page(IMAGE), &[("x-csrf-token", &token)], "").await;
    assert_eq!(refused.status, 403, "{}", refused.text());

    let mut ops = scene.logged_in("olga", &["ops"]).await;
    let page = ops.get(scene.page("/images")).await.text();
    assert!(
        page.contains("olga") && !page.contains("may only look") && page.contains("data-action=\"purge\""),
        "{page}"
    );
    let token = ops.csrf_token(&scene).await;
    let done = ops.ask("DELETE", scene.page(IMAGE), &[("x-csrf-token", &token)], "").await;
    assert_eq!(done.status, 200, "{}", done.text());
    scene.logged(&["\"purged\"", "oidc:company:sub=olga-1 at 127.0.0.1"]).await;

    scene.person("eve", &["sales"]);
    let mut eve = Browser::default();
    let refused = eve.log_in(&scene).await;
    assert!(refused.status == 403 && refused.text().contains("neither admin.allow nor admin.read names eve"));
    assert!(refused.text().contains("again=1"), "she may be somebody else: {}", refused.text());
    assert_eq!(eve.session(), None);
    assert_eq!(eve.get(scene.page("/")).await.status, 401);

    scene
        .logged(&["\"logged in to the dashboard\"", "\"user\":\"oidc:company:sub=dana-1\"", "\"person\":\"dana\""])
        .await;
    scene.logged(&["\"a login failed\"", "\"name\":\"oidc:company:sub=eve-1\"", "\"issuer\":\"company\""]).await;
    scene
        .logged(&["\"request\"", "\"path\":\"/login/company/callback\"", "\"user\":\"oidc:company:sub=olga-1\""])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_issuer_is_asked_as_the_standards_want_and_the_page_that_was_wanted_follows() {
    let scene = Scene::start_with(ADMIN, "scopes = [\"groups\", \"email\"]\nsession_max_age = \"1h\"").await;
    scene.person("olga", &["ops"]);
    let mut browser = Browser::default();
    let answer = browser.log_in(&scene).await;
    assert_eq!((answer.status, answer.header("location")), (303, "/pulls?q=a"), "{}", answer.text());
    assert_eq!(answer.header("cache-control"), "no-store");
    let cookie = answer.header("set-cookie");
    let end = "; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax";
    assert!(cookie.starts_with("larder-session=") && cookie.ends_with(end) && cookie.len() < 200, "{cookie}");
    let asked = scene.issuer.provider(|provider| provider.asked.clone());
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "dash"),
        ("scope", "openid groups email"),
        ("code_challenge_method", "S256"),
        ("redirect_uri", &scene.page("/login/company/callback")),
    ] {
        assert_eq!(asked.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!asked.contains_key("prompt"));
    let state = &asked["state"];
    assert!(state.len() < 1000, "{} bytes", state.len());
    let again = browser.get(scene.page("/login/company?again=1")).await;
    assert_eq!(parameters(again.header("location")).get("prompt").map(String::as_str), Some("login"));
    let asked_for = |path: &str| scene.issuer.asked().iter().filter(|asked| *asked == path).count();
    assert_eq!(asked_for("/.well-known/openid-configuration"), 2, "once for the keys, once for the endpoints");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_login_in_the_configuration_nothing_changes() {
    let scene = Scene::start().await;
    let config = ADMIN.to_owned() + &scene.issuer.config("company", "");
    let larder = Larder::start(config).await;
    for path in ["/", "/login", "/login/company", "/login/company/callback?code=a&state=b", "/assets/x"] {
        let answer = Browser::default().get(format!("{}{path}", larder.admin_url())).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Basic realm=\"larder\""), "{path}");
        assert!(!answer.text().contains("Log in with"), "{path}");
    }
    // Whom the address lets in finds no such pages.
    let larder = Larder::start(scene.issuer.config("company", "")).await;
    for path in ["/login", "/login/company", "/login/company/callback"] {
        assert_eq!(get(format!("{}{path}", larder.admin_url())).await.status, 404, "{path}");
    }
    assert_eq!(request("POST", format!("{}/logout", larder.admin_url())).send().await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_and_passwords_are_treated_as_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let htpasswd = dir.path().join("htpasswd");
    std::fs::write(&htpasswd, format!("bob:{}\n", bcrypt::hash("secret", 4).expect("hashed"))).expect("written");
    let config = format!(
        "[admin]\nallow = [\"oidc:company:groups=ops\", \"user:bob\"]\n[auth.htpasswd]\npath = {:?}\n",
        htpasswd.display().to_string()
    );
    let scene = Scene::start_with(&config, "").await;
    for path in ["/", "/api/images", "/metrics"] {
        let answer = get(scene.page(path)).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Basic realm=\"larder\""), "{path}");
        assert!(answer.json()["error"].is_string());
    }
    let mut browser = Browser::default();
    let answer = browser.get(scene.page("/api/images")).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Basic realm=\"larder\""), "not for people");
    let page = browser.get(scene.page("/")).await;
    assert!(page.text().contains("href=\"/?login=password\""), "{}", page.text());
    assert_eq!(browser.get(scene.page("/?login=password")).await.header("www-authenticate"), "Basic realm=\"larder\"");
    let basic = format!("Basic {}", BASE64_STANDARD.encode("bob:secret"));
    let page = browser.ask("GET", scene.page("/?login=password"), &[("authorization", &basic)], "").await;
    assert!(page.status == 200 && !page.text().contains("csrf-token"), "{}", page.text());
    let pin = scene.page("/api/pins?reference=hub/team/app:1");
    assert_eq!(browser.ask("PUT", &pin, &[("authorization", &basic)], "").await.status, 200, "no token is needed");

    // A token of the issuer as `Bearer`, as programs send it.
    let token = scene.key.sign(&scene.issuer.claims(json!({"groups": ["ops"]})));
    let bearer = format!("Bearer {token}");
    assert_eq!(request("DELETE", &pin).header("authorization", &bearer).send().await.status, 200);

    // Credentials count before a session, also wrong ones.
    let mut ops = scene.logged_in("olga", &["ops"]).await;
    let wrong = format!("Basic {}", BASE64_STANDARD.encode("bob:wrong"));
    assert_eq!(ops.ask("GET", scene.page("/api/images"), &[("authorization", &wrong)], "").await.status, 401);
    assert_eq!(ops.get(scene.page("/api/images")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_login_begins_a_new_session_and_a_log_out_ends_it() {
    let scene = Scene::start().await;
    scene.issuer.provider(|provider| provider.ends_sessions = true);
    let mut browser = scene.logged_in("olga", &["ops"]).await;
    let before = browser.clone();
    assert_eq!(browser.log_in(&scene).await.status, 303);
    assert_ne!(browser.session(), before.session());
    assert_eq!(before.clone().get(scene.page("/")).await.status, 401, "the session of before is over");

    let token = browser.csrf_token(&scene).await;
    let mut listening = request("GET", scene.page("/api/events"))
        .header("cookie", format!("larder-session={}", browser.session().expect("a session")))
        .open()
        .await;
    assert!(listening.next_chunk().await.is_some());
    let url = scene.page("/logout");
    assert_eq!(browser.get(&url).await.status, 405, "a link logs nobody out");
    for body in ["", "csrf_token=", "csrf_token=wrong"] {
        assert_eq!(browser.ask("POST", &url, &[], body).await.status, 403, "{body}");
    }
    let form = format!("csrf_token={token}");
    let foreign = [("sec-fetch-site", "cross-site")];
    assert_eq!(browser.ask("POST", &url, &foreign, &form).await.status, 403);
    assert_eq!(browser.get(scene.page("/")).await.status, 200, "still logged in");

    let old = browser.clone();
    let out = browser.ask("POST", &url, &[("sec-fetch-site", "same-origin")], &form).await;
    assert_eq!((out.status, browser.session()), (200, None), "{}", out.text());
    let to = out.header("refresh").strip_prefix("0; url=").expect("on to the issuer").to_owned();
    let asked = parameters(&to);
    assert!(to.starts_with(&format!("{}/logout?", scene.issuer.url())));
    assert_eq!((asked["client_id"].as_str(), &asked["post_logout_redirect_uri"]), ("dash", &scene.page("/login")));
    assert!(asked["id_token_hint"].starts_with("eyJ"));
    assert_eq!(old.clone().get(scene.page("/")).await.status, 401, "the cookie alone is worth nothing");
    listening.read_to_end().await;
    scene.logged(&["\"logged out of the dashboard\"", "\"user\":\"oidc:company:sub=olga-1\""]).await;

    // A script of a page that is still open is not asked for a password by the browser.
    let pin = scene.page("/api/pins?reference=hub/team/app:1");
    let late = old.clone().ask("PUT", pin, &[("x-csrf-token", &token)], "").await;
    assert_eq!((late.status, late.header("www-authenticate")), (401, "Bearer"));
    assert!(late.json()["error"].as_str().is_some_and(|text| text.contains("load the page again")));
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_the_way_back_and_the_cookies_are_those_of_https() {
    let trusted = "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n".to_owned() + ADMIN;
    let scene = Scene::start_with(&trusted, "").await;
    scene.person("olga", &["ops"]);
    let https = [("x-forwarded-proto", "https"), ("x-forwarded-host", "larder.corp.example")];
    let mut browser = Browser::default();
    let sent = browser.ask("GET", scene.page("/login/company"), &https, "").await;
    let way_back = "https://larder.corp.example/login/company/callback";
    assert_eq!(parameters(sent.header("location"))["redirect_uri"], way_back);
    let line = sent.header("set-cookie");
    assert!(line.starts_with("__Host-larder-login=") && line.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{line}");

    scene.issuer.provider(|provider| provider.redirect_uris.push(way_back.to_owned()));
    let told = get(sent.header("location")).await;
    let back = told.header("location").replace("https://larder.corp.example", &scene.larder.admin_url());
    let answer = browser.ask("GET", back, &https, "").await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    let line = answer.header("set-cookie");
    assert!(line.starts_with("__Host-larder-session=") && line.ends_with("; Secure"), "{line}");
    assert!(browser.ask("GET", scene.page("/"), &https, "").await.text().contains("olga"));

    // The browser's origin is the proxy's name, whatever `Host` the proxy sets.
    let page = browser.ask("GET", scene.page("/"), &https, "").await.text();
    let token = page.split("csrf-token\" content=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a token");
    let own = [https[0], https[1], ("origin", "https://larder.corp.example"), ("x-csrf-token", token)];
    let pin = scene.page("/api/pins?reference=hub/team/app:1");
    assert_eq!(browser.ask("PUT", &pin, &own, "").await.status, 200);
    let foreign = [https[0], https[1], ("origin", "https://evil.example"), ("x-csrf-token", token)];
    assert_eq!(browser.ask("PUT", &pin, &foreign, "").await.status, 403);

    // Who is not trusted says nothing.
    let scene = Scene::start().await;
    let sent = Browser::default().ask("GET", scene.page("/login/company"), &https, "").await;
    assert_eq!(parameters(sent.header("location"))["redirect_uri"], scene.page("/login/company/callback"));
    assert!(!sent.header("set-cookie").contains("Secure"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_follow_the_configuration_that_is_in_force() {
    let mut scene = Scene::start().await;
    let mut browser = scene.logged_in("olga", &["ops"]).await;
    let login = company(&scene.issuer, "");
    let mut read_only = ADMIN.replace("groups=ops", "groups=chiefs").replace("groups=dev", "groups=ops");
    scene.larder.write_config(format!("{read_only}{login}"));
    let images = scene.page("/images");
    eventually("she may only look", async || browser.clone().get(&images).await.text().contains("may only look")).await;

    read_only = ADMIN.replace("groups=ops", "groups=chiefs");
    scene.larder.write_config(format!("{read_only}{login}"));
    eventually("she may not look", async || browser.clone().get(&images).await.status == 403).await;
    let page = browser.get(&images).await.text();
    assert!(page.contains("again=1") && page.contains("Log in with company"), "{page}");

    scene.larder.write_config(format!("{ADMIN}{login}"));
    eventually("she is back", async || browser.clone().get(&images).await.status == 200).await;
    let required = login.replacen("audience", "required_claims = { mfa = true }\naudience", 1);
    scene.larder.write_config(format!("{ADMIN}{required}"));
    eventually("the claims that are required count", async || browser.clone().get(&images).await.status == 401).await;
    scene.larder.write_config(format!("{ADMIN}{login}"));
    eventually("she is back", async || browser.clone().get(&images).await.status == 200).await;
    scene.larder.write_config(format!("{ADMIN}{}", login.replace("\"dash\"", "\"other\"")));
    eventually("a token of another client counts no more", async || browser.clone().get(&images).await.status == 401)
        .await;
    assert!(!browser.get(&images).await.text().contains("olga"));
    assert_eq!(browser.session(), None, "the browser forgets what is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn larder_proves_itself_to_the_issuer_as_the_issuer_wants() {
    let scene = Scene::start().await;
    scene.person("olga", &["ops"]);
    assert_eq!(Browser::default().log_in(&scene).await.status, 303, "in `Authorization`");
    let methods = |methods: &[&str]| {
        let methods = methods.iter().map(|method| (*method).to_owned()).collect();
        scene.issuer.provider(|provider| provider.methods = methods);
    };
    // A wrong secret is the administrator's to mend: the log says what, the browser that it does.
    scene.issuer.provider(|provider| provider.client_secret = Some("another".to_owned()));
    let refused = Browser::default().log_in(&scene).await;
    assert!(refused.status == 502 && refused.text().contains("the log of the cache"), "{}", refused.text());
    scene.logged(&["\"a login failed\"", "invalid_client", "check `client_id` and the secret in"]).await;
    scene.issuer.provider(|provider| provider.client_secret = Some(SECRET.to_owned()));

    methods(&["client_secret_post", "private_key_jwt"]);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("oidc.secret");
    std::fs::write(&file, "old\n").expect("written");
    let from_file = company(&scene.issuer, &format!("client_secret_file = {:?}", file.display().to_string()))
        .replace(&format!("client_secret = {SECRET:?}\n"), "");
    let larder = Larder::start(format!("{ADMIN}{from_file}")).await;
    let scene = Scene { larder, ..scene };
    scene.issuer.provider(|provider| provider.redirect_uris.push(scene.page("/login/company/callback")));
    assert_eq!(Browser::default().log_in(&scene).await.status, 502, "it has the old secret");
    std::fs::write(&file, format!("{SECRET}\n")).expect("written");
    let log_in = async || Browser::default().log_in(&scene).await.status == 303;
    eventually("a file that changed is read again, and the secret is in the body", log_in).await;

    scene.issuer.provider(|provider| provider.client_secret = None);
    let public = company(&scene.issuer, "").replace(&format!("client_secret = {SECRET:?}\n"), "");
    let larder = Larder::start(format!("{ADMIN}{public}")).await;
    let scene = Scene { larder, ..scene };
    scene.issuer.provider(|provider| provider.redirect_uris.push(scene.page("/login/company/callback")));
    assert_eq!(Browser::default().log_in(&scene).await.status, 303, "a public client has no secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_cannot_be_asked_is_told_and_nobody_waits_for_it_in_turn() {
    let scene = Scene::start().await;
    scene.issuer.set_down(true);
    let begin = scene.page("/login/company");
    let answers = futures_util::future::join_all((0..8).map(async |_| Browser::default().get(&begin).await)).await;
    for answer in answers {
        assert!(answer.status == 502 && answer.text().contains("Log in with company"), "{}", answer.text());
    }
    assert_eq!(scene.issuer.asked().len(), 1, "once for all");
    scene.logged(&["\"a login failed\"", "openid-configuration: answered 503"]).await;

    // Its document is that of another one: mostly a slash too much or too few.
    let scene = Scene::start().await;
    scene.issuer.set_alias(Some(&format!("{}/", scene.issuer.url())));
    assert_eq!(Browser::default().get(scene.page("/login/company")).await.status, 502);
    scene.logged(&["\"a login failed\"", "write its `issuer` as it does itself"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_address_lets_look_may_log_in_to_change_something() {
    let admin = "[admin]\nallow = [\"oidc:company:groups=ops\"]\nread = [\"loopback\"]\n";
    let scene = Scene::start_with(admin, "").await;
    let mut browser = Browser::default();
    let page = browser.get(scene.page("/")).await;
    assert!(page.status == 200 && page.text().contains("href=\"/login\""), "{}", page.text());
    assert!(browser.get(scene.page("/login")).await.text().contains("Log in with company"));
    let mut browser = scene.logged_in("olga", &["ops"]).await;
    let page = browser.get(scene.page("/images")).await.text();
    assert!(page.contains("olga") && page.contains("data-action=\"purge\""), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_of_the_issuer_are_fetched_for_a_login() {
    let scene = Scene::start().await;
    drop(scene.logged_in("olga", &["ops"]).await);
    let newer = SigningKey::new("two", jsonwebtoken::Algorithm::RS256);
    scene.issuer.use_keys(&[&newer]);
    scene.issuer.provider(|provider| provider.key = newer.clone());
    let log_in = async || Browser::default().log_in(&scene).await.status == 303;
    eventually("the new key counts", log_in).await;
}
