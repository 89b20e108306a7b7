//! A browser: Debian's `chromium`, driven by its `chromedriver` as <https://www.w3.org/TR/webdriver2/> says, with
//! ChromeDriver's own commands for DevTools and logs (`goog/cdp/execute`, `se/log`).

use std::{fs, net::SocketAddr, path::Path};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{
    process::{Daemon, Failure, program},
    registry::free_port,
};
use crate::support::request;

/// The name under which an answer has an element (WebDriver, section 12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Chromium asks for nothing by itself, and finds nothing but this machine.
const ARGUMENTS: [&str; 12] = [
    "--headless=new",
    // The tests run as root.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1280,900",
];

/// A browser with one window; dropping it ends it and removes everything.
pub struct Chromium {
    session: String,
    _daemon: Daemon,
    _directory: TempDir,
}

impl Chromium {
    /// Starts one. Panics if the programs are not there.
    pub async fn start() -> Self {
        let mut failure = None;
        // The port is free when it is looked for, not necessarily when the driver binds it.
        for _ in 0..3 {
            match Self::try_start().await {
                Ok(chromium) => return chromium,
                Err(error) => failure = Some(error),
            }
        }
        panic!("{failure:?}");
    }

    async fn try_start() -> Result<Self, Failure> {
        let browser = program("chromium", "chromium");
        let directory = tempfile::Builder::new().prefix("larder-chromium-").tempdir().expect("a temporary directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let home = directory.path().to_str().expect("temporary paths are UTF-8");
        let mut daemon = Daemon::spawn(
            &program("chromedriver", "chromium-driver"),
            [format!("--port={}", address.port()).as_str()],
            &[("HOME", home)],
            &directory.path().join("log"),
        )
        .map_err(|error| Failure::new(format!("ChromeDriver does not start: {error}")))?;
        daemon.wait_until(|| async { TcpStream::connect(address).await.is_ok() }).await?;

        let mut arguments: Vec<_> = ARGUMENTS.map(str::to_owned).into();
        arguments.push(format!("--user-data-dir={home}/profile"));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": browser, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let answer = request("POST", format!("http://{address}/session")).body(wanted.to_string()).send().await.json();
        let session = answer["value"]["sessionId"].as_str();
        let session = session.ok_or_else(|| Failure::new(format!("no browser: {answer}")).with_log_of(&daemon))?;
        let session = format!("http://{address}/session/{session}");
        let chromium = Self { session, _daemon: daemon, _directory: directory };
        // What its own first page asked for.
        chromium.load("about:blank").await;
        chromium.requested().await;
        Ok(chromium)
    }

    async fn ask(&self, method: &str, command: &str, body: &Value) -> Result<Value, Value> {
        let asked = request(method, format!("{}/{command}", self.session));
        let asked = if method == "GET" { asked } else { asked.body(body.to_string()) };
        let answer = asked.send().await;
        let value = answer.json()["value"].take();
        if answer.status == 200 { Ok(value) } else { Err(value) }
    }

    async fn post(&self, command: &str, body: Value) -> Value {
        self.ask("POST", command, &body).await.unwrap_or_else(|error| panic!("{command} {body}: {error}"))
    }

    /// Loads a page.
    pub async fn load(&self, url: &str) {
        self.post("url", json!({"url": url})).await;
    }

    /// The address of the page.
    pub async fn address(&self) -> String {
        self.ask("GET", "url", &Value::Null).await.expect("an address").as_str().expect("text").to_owned()
    }

    /// Runs JavaScript and returns what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.post("execute/sync", json!({"script": script, "args": []})).await
    }

    /// Runs JavaScript that calls its last argument with the result.
    pub async fn run_async(&self, script: &str) -> Value {
        self.post("execute/async", json!({"script": script, "args": []})).await
    }

    /// Sends a command to DevTools.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", json!({"cmd": command, "params": parameters})).await
    }

    async fn find(&self, css: &str) -> Option<String> {
        let found = self.ask("POST", "element", &json!({"using": "css selector", "value": css})).await.ok()?;
        Some(found[ELEMENT].as_str().expect("an element").to_owned())
    }

    /// Clicks as a person would: where the element is. Whether that was possible.
    pub async fn try_click(&self, css: &str) -> bool {
        match self.find(css).await {
            Some(element) => self.ask("POST", &format!("element/{element}/click"), &json!({})).await.is_ok(),
            None => false,
        }
    }

    /// Types into an element.
    pub async fn type_into(&self, css: &str, text: &str) {
        let element = self.find(css).await.unwrap_or_else(|| panic!("no {css}"));
        self.post(&format!("element/{element}/value"), json!({"text": text})).await;
    }

    /// The text of the first element that fits, as it is seen; empty if there is none.
    pub async fn text(&self, css: &str) -> String {
        let Some(element) = self.find(css).await else { return String::new() };
        let text = self.ask("GET", &format!("element/{element}/text"), &Value::Null).await.unwrap_or_default();
        text.as_str().unwrap_or_default().to_owned()
    }

    /// What the console said since the last call.
    pub async fn console(&self) -> Vec<String> {
        let lines = self.post("se/log", json!({"type": "browser"})).await;
        lines.as_array().expect("lines").iter().map(ToString::to_string).collect()
    }

    /// The URLs that the browser asked for since the last call.
    pub async fn requested(&self) -> Vec<String> {
        let lines = self.post("se/log", json!({"type": "performance"})).await;
        let events = lines.as_array().expect("lines").iter();
        let events = events.filter_map(|line| serde_json::from_str::<Value>(line["message"].as_str()?).ok());
        let sent = events.filter(|event| event["message"]["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| Some(event["message"]["params"]["request"]["url"].as_str()?.to_owned())).collect()
    }

    /// With a theme (`light`, `dark`) and a width of the window.
    pub async fn show(&self, theme: &str, width: u32) {
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
        self.devtools("Emulation.setEmulatedMedia", scheme).await;
        let is_phone = width < 600;
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": is_phone});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Writes a picture of the whole page.
    pub async fn picture(&self, file: &Path) {
        let taken = self.devtools("Page.captureScreenshot", json!({"captureBeyondViewport": true})).await;
        let png = BASE64_STANDARD.decode(taken["data"].as_str().expect("a picture")).expect("base64");
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(file, png).expect("the picture is written");
    }
}
