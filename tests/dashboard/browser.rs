//! The pages in a browser.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::PAGES;
use super::scene::Scene;
use crate::clients::Chromium;
use crate::support::{Image, eventually, get, request};

/// The rules of `axe-core`, which `./test` installs.
pub fn axe() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/node/node_modules/axe-core/axe.min.js");
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}; ./test installs it", file.display()))
}

/// Where pictures go.
pub fn pictures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots")
}

impl Chromium {
    async fn says(&self, css: &str, what: &str) {
        eventually(&format!("{css} says {what}"), async || self.text(css).await.contains(what)).await;
    }

    async fn click(&self, css: &str) {
        eventually(&format!("{css} can be clicked"), async || self.try_click(css).await).await;
    }

    /// Opens the buttons of the first image in a part of the page, and presses one.
    async fn press(&self, within: &str, action: &str) {
        self.click(&format!("{within} details.acts > summary")).await;
        self.click(&format!("{within} details.acts[open] [data-action=\"{action}\"]")).await;
    }

    /// Nothing is wrong in the console, and nothing was asked of another place.
    async fn behaves(&self, scene: &Scene) {
        assert_eq!(self.console().await, [""; 0]);
        let requested = self.requested().await;
        assert!(!requested.is_empty());
        for url in requested {
            assert!(url.starts_with(&scene.page("/")) || url.starts_with("data:"), "the page asked for {url}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_button_does_what_it_says_and_asks_before_it_removes_something() {
    let scene = Scene::start("").await;
    let browser = Chromium::start().await;
    let pinned = async || get(scene.page("/api/pins")).await.json()["pins"].clone();

    // In the list of images.
    browser.load(&scene.page("/images?q=team/app")).await;
    browser.press("#images", "pin").await;
    browser.says("#messages", "is pinned now").await;
    assert_eq!(pinned().await, serde_json::json!(["hub/team/app:1"]));
    browser.says("#images", "pinned").await;
    browser.press("#images", "unpin").await;
    browser.says("#confirm", "Unpin this image?").await;
    browser.click("#confirm-yes").await;
    browser.says("#messages", "is no longer pinned").await;
    assert_eq!(pinned().await, serde_json::json!([]));

    // From a row of the log: the upstream has moved the tag.
    scene.hub.push_image("team/app", "1", &Image::new(7));
    browser.load(&scene.page("/pulls?q=team/app:1")).await;
    browser.press("#log > li", "refresh").await;
    browser.says("#messages", "there was something new").await;

    browser.load(&scene.page("/image?reference=hub/team/app:1")).await;
    browser.press("#image", "purge").await;
    browser.says("#confirm", "Purge this image?").await;
    browser.click("#confirm button[value=no]").await;
    let cached = async || get(scene.page("/api/images")).await.text().contains("hub/team/app:1");
    assert!(cached().await, "who cancels removes nothing");
    browser.click("#image details.acts[open] [data-action=purge]").await;
    browser.click("#confirm-yes").await;
    browser.says("#messages", "objects were removed").await;
    assert!(!cached().await);
    browser.says("#image", "Its manifest is not in the cache.").await;
    browser.behaves(&scene).await;

    // What the API refuses is told, and the page stays.
    browser.load(&scene.page("/explain?reference=hub/team/app:1")).await;
    browser.press("#explained", "purge").await;
    browser.click("#confirm-yes").await;
    browser.says("#messages.failed", "is cached").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_warmed_and_schedules_run_from_their_page() {
    let scene = Scene::start("").await;
    let browser = Chromium::start().await;
    scene.hub.push_image("team/news", "1", &Image::new(8));
    browser.load(&scene.page("/warm")).await;
    browser.type_into("#warm [name=images]", "hub/team/news:1\u{e007}").await;
    browser.says("#messages", "hub/team/news:1 is being warmed").await;
    browser.says("#warmed", "team/news:1").await;
    let runs = async || get(scene.page("/api/warm")).await.json()["schedules"][1]["last"]["job"]["id"].clone();
    let before = runs().await;
    browser.click("[data-action=run][data-reference=\"2\"]").await;
    browser.says("#messages", "schedule 2 runs now").await;
    eventually("it has run", async || runs().await != before).await;
    browser.type_into("#warm [name=images]", "nowhere.example/a:1\u{e007}").await;
    browser.says("#messages.failed", "nowhere.example").await;
    browser.console().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_pages_show_what_happens_now() {
    let scene = Scene::start("").await;
    let browser = Chromium::start().await;
    let news = async |tag: &str| {
        let image = Image::new(u64::from(tag.len() as u32) + 20);
        scene.hub.push_image("team/news", tag, &image);
        scene.pull("team/news", tag, &image).await;
    };
    browser.load(&scene.page("/pulls?q=team/news")).await;
    browser.says("#live", "live").await;
    browser.says("#log-panel", "No pull fits.").await;
    news("first").await;
    browser.says("#log", "team/news:first").await;
    let shown = browser.text("#log-panel").await;
    assert!(!shown.contains("No pull fits."), "{shown}");

    browser.click("#pause").await;
    news("second1").await;
    browser.says("#pause", "new").await;
    // The page adds pulls when it hears the figures, once a second: it has heard them by now.
    assert_eq!(browser.run_async(HEAR).await, "heard");
    assert!(!browser.text("#log").await.contains("team/news:second1"), "it is paused");
    browser.click("#pause").await;
    browser.says("#log", "team/news:second1").await;
    let twice = "const ids = [...document.querySelectorAll('#log > li')].map(li => li.id); return ids.length - new Set(ids).size";
    assert_eq!(browser.run(twice).await, 0, "each pull is there once");

    browser.load(&scene.page("/")).await;
    browser.says("#fills", "Nothing is on its way").await;
    let gate = scene.begin_large().await;
    browser.says("#fills", "1 client waits").await;
    gate.open();
    browser.says("#fills", "Nothing is on its way").await;
    browser.says("#last", "team/large").await;

    // The box that explains, from any page, by the keyboard.
    browser.type_into("#asked", "hub/team/news:first\u{e007}").await;
    browser.says("h1", "hub/team/news:first").await;
    assert!(browser.address().await.contains("/explain?reference="), "it is an address to share");
    browser.says("#explained", "served from the cache").await;
    browser.behaves(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_for_all_people_in_both_themes_and_on_a_phone() {
    let scene = Scene::start("").await;
    let browser = Chromium::start().await;
    let axe = axe();
    let gate = scene.begin_large().await;
    let list = r#"{"images": ["hub/team/large:1", "hub/team/app:1"]}"#;
    let warming = request("POST", scene.page("/api/warm")).header("content-type", "application/json").body(list);
    assert_eq!(warming.send().await.status, 200);
    for (name, path, _) in PAGES {
        for (theme, width) in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)] {
            browser.show(theme, width).await;
            browser.load(&scene.page(path)).await;
            let form = if width < 600 { "phone" } else { "desktop" };
            browser.picture(&pictures().join(format!("{name}-{theme}-{form}.png"))).await;
            // The width of the window itself grows with content that is too wide.
            let wide = browser.run("return Math.max(document.documentElement.scrollWidth, innerWidth)").await;
            assert!(wide.as_u64() <= Some(u64::from(width)), "{name}: {wide} instead of {width}");
            // What is behind a click is looked at, too.
            browser.run("for (const closed of document.querySelectorAll('details')) closed.open = true").await;
            let found = browser.run_async(&format!("{axe}; {CHECK}")).await;
            assert_eq!(found, Value::Array(Vec::new()), "{name}, {theme}, {form}: {found:#}");
        }
    }
    gate.open();
    browser.behaves(&scene).await;
}

/// Waits until the figures have been told three times.
const HEAR: &str = "const done = arguments[arguments.length - 1]; const source = new EventSource('/api/events'); \
    let times = 0; source.addEventListener('stats', () => { \
        times += 1; if (times === 3) { source.close(); done('heard') } })";

/// All findings but those that axe calls minor, each with the element.
pub const CHECK: &str = "const done = arguments[arguments.length - 1]; \
    axe.run(document).then(found => done(found.violations.filter(violation => violation.impact !== 'minor') \
        .map(violation => [violation.id, violation.help, violation.nodes.slice(0, 3).map(node => node.html)])), \
        error => done(String(error)))";
