//! A login in a real browser.

use serde_json::Value;

use super::scene::Scene;
use crate::clients::Chromium;
use crate::dashboard::browser::{CHECK, axe, pictures};
use crate::support::eventually;

async fn says(browser: &Chromium, css: &str, what: &str) {
    eventually(&format!("{css} says {what}"), async || browser.text(css).await.contains(what)).await;
}

async fn click(browser: &Chromium, css: &str) {
    eventually(&format!("{css} can be clicked"), async || browser.try_click(css).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_logs_in_purges_an_image_and_logs_out_in_a_browser() {
    let scene = Scene::start().await;
    scene.issuer.provider(|provider| provider.ends_sessions = true);
    scene.person("olga", &["ops"]);
    let browser = Chromium::start().await;
    browser.load(&scene.page("/images?q=team")).await;
    says(&browser, "h1", "Log in").await;
    click(&browser, "a.button").await;
    says(&browser, ".account .name", "olga").await;
    assert_eq!(browser.address().await, scene.page("/images?q=team"), "the page that was wanted");

    click(&browser, "#images details.acts > summary").await;
    click(&browser, "#images details.acts[open] [data-action=purge]").await;
    says(&browser, "#confirm", "Purge this image?").await;
    click(&browser, "#confirm-yes").await;
    says(&browser, "#messages", "objects were removed").await;

    click(&browser, ".account button").await;
    says(&browser, "body", "You are logged out at the issuer.").await;
    let address = browser.address().await;
    assert!(address.starts_with(&format!("{}/logout?id_token_hint=", scene.issuer.url())), "{address}");
    browser.load(&scene.page("/images")).await;
    says(&browser, "h1", "Log in").await;
    // The page that is refused is an error to the console; a blocked form or script would be another.
    let is_odd = |line: &String| !line.contains("401 (Unauthorized)") && !line.contains(&scene.issuer.url());
    let odd: Vec<_> = browser.console().await.into_iter().filter(is_odd).collect();
    assert_eq!(odd, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_about_logins_are_for_all_people_in_both_themes_and_on_a_phone() {
    let scene = Scene::start().await;
    let browser = Chromium::start().await;
    let axe = axe();
    let check = async |name: &str, path: &str| {
        for (theme, width) in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)] {
            browser.show(theme, width).await;
            browser.load(&scene.page(path)).await;
            let form = if width < 600 { "phone" } else { "desktop" };
            browser.picture(&pictures().join(format!("{name}-{theme}-{form}.png"))).await;
            let wide = browser.run("return Math.max(document.documentElement.scrollWidth, innerWidth)").await;
            assert!(wide.as_u64() <= Some(u64::from(width)), "{name}: {wide} instead of {width}");
            let found = browser.run_async(&format!("{axe}; {CHECK}")).await;
            assert_eq!(found, Value::Array(Vec::new()), "{name}, {theme}, {form}: {found:#}");
        }
    };
    check("login", "/pulls").await;
    scene.person("eve", &["sales"]);
    check("login-refused", "/login/company").await;
    scene.person("somebody.with.a.long.name@corp.example", &["dev"]);
    browser.load(&scene.page("/login/company")).await;
    says(&browser, ".account .rights", "may only look").await;
    check("logged-in", "/images").await;
}
