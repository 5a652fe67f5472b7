//! A real browser: headless Chromium, driven through WebDriver.

use crate::harness::PATIENCE;
use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const NEEDED: &str =
    "browser tests need chromium, chromedriver and axe-core: scripts/test installs them";

const TAB: &str = "\u{e004}";

/// A running browser.
pub struct Browser {
    runtime: Runtime,
    client: Client,
    driver: Child,
    /// The driver and its browser run as long as this is open. The end of this process closes it, however it
    /// ends.
    alive: Option<ChildStdin>,
}

/// The window of a browser that no other test uses meanwhile.
pub struct Window(Option<Browser>);

/// The browsers at once. A start of Chromium takes a second of both processors, so tests take turns.
const BROWSERS: usize = 3;

/// The browsers that wait for the next test, and how many more may be started.
static WAITING: Mutex<(Vec<Browser>, usize)> = Mutex::new((Vec::new(), BROWSERS));
/// Signals a browser, or the room for one, that was given back.
static GIVEN_BACK: Condvar = Condvar::new();

/// A command of Chromium's DevTools protocol.
#[derive(Debug)]
struct DevTools(&'static str, Value);

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }
    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        let body = json!({"cmd": self.0, "params": self.1});
        (http::Method::POST, Some(body.to_string()))
    }
}

/// Starts a driver on a port of its own choice; it says which. Where another one was faster with
/// that port it ends, and is started again.
fn start_driver() -> (Child, String) {
    for _ in 0..5 {
        // In a group of its own, all of which ends with the shell's input.
        let mut driver = Command::new("sh")
            .args(["-c", "chromedriver --port=0 & read -r _; kill 0"])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect(NEEDED);
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = said.find_map(|line| {
            let line = line.ok()?;
            let port = line.split("started successfully on port ").nth(1)?;
            Some(port.trim_end_matches('.').to_owned())
        });
        if let Some(port) = port {
            // Whatever else it says has to go somewhere.
            std::thread::spawn(move || said.for_each(drop));
            return (driver, format!("http://127.0.0.1:{port}"));
        }
        drop(driver.stdin.take());
        driver.wait().unwrap();
    }
    panic!("chromedriver never said on which port it listens");
}

impl Browser {
    fn start() -> Self {
        let (mut driver, url) = start_driver();
        let alive = driver.stdin.take();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = json!({"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-dev-shm-usage", "--window-size=1100,900", "--force-color-profile=srgb",
        ]});
        let mut capabilities = Capabilities::new();
        capabilities.insert("goog:chromeOptions".into(), options);
        let client = runtime
            .block_on(
                ClientBuilder::new(HttpConnector::new()).capabilities(capabilities).connect(&url),
            )
            .expect(NEEDED);
        Self { runtime, client, driver, alive }
    }

    /// Makes it as it was at its start, for the next test. Storage of a page is bound to the port of its server.
    fn forget(&self) {
        self.go("about:blank");
        self.dev_tools("Network.clearBrowserCookies", json!({}));
        self.dev_tools("Network.clearBrowserCache", json!({}));
        self.dev_tools("Emulation.clearDeviceMetricsOverride", json!({}));
        self.dev_tools("Emulation.setEmulatedMedia", json!({"features": []}));
        self.dev_tools("Emulation.setScriptExecutionDisabled", json!({"value": false}));
    }

    fn end(mut self) {
        // It may have ended already.
        let _ = self.runtime.block_on(self.client.clone().close());
        drop(self.alive.take());
        let _ = self.driver.wait();
    }

    pub fn go(&self, url: &str) {
        self.runtime.block_on(self.client.goto(url)).unwrap();
    }

    pub fn script(&self, script: &str) -> Value {
        self.runtime.block_on(self.client.execute(script, vec![])).unwrap()
    }

    fn dev_tools(&self, command: &'static str, parameters: Value) {
        self.runtime.block_on(self.client.issue_cmd(DevTools(command, parameters))).unwrap();
    }

    /// Makes the window as wide as a phone or a desk, in pixels of CSS.
    pub fn width(&self, width: u32) {
        self.size(width, 900);
    }

    fn size(&self, width: u32, height: u32) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.dev_tools("Emulation.setDeviceMetricsOverride", metrics);
    }

    pub fn theme(&self, theme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
        self.dev_tools("Emulation.setEmulatedMedia", features);
    }

    pub fn without_scripts(&self) {
        self.dev_tools("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    }

    /// The text of an element as a person sees it; an error where it is not there, or has just
    /// gone.
    fn try_text(&self, css: &str) -> Result<String, fantoccini::error::CmdError> {
        self.runtime.block_on(async { self.client.find(Locator::Css(css)).await?.text().await })
    }

    pub fn text(&self, css: &str) -> String {
        self.try_text(css).unwrap()
    }

    pub fn click(&self, css: &str) {
        self.runtime.block_on(async {
            self.client.find(Locator::Css(css)).await.unwrap().click().await.unwrap();
        });
    }

    pub fn fill(&self, css: &str, text: &str) {
        self.runtime.block_on(async {
            let field = self.client.find(Locator::Css(css)).await.unwrap();
            field.clear().await.unwrap();
            field.send_keys(text).await.unwrap();
        });
    }

    /// Presses keys, one after the other, wherever the focus is.
    fn press(&self, keys: &str) {
        let keys = keys.chars().fold(KeyActions::new("keys".into()), |keys, value| {
            keys.then(KeyAction::Down { value }).then(KeyAction::Up { value })
        });
        self.runtime.block_on(self.client.perform_actions(keys)).unwrap();
    }

    /// Brings the focus to an element by the Tab key alone: how many steps that takes.
    pub fn tab_to(&self, css: &str) -> usize {
        let reached = format!("return document.activeElement.matches({css:?})");
        let mut steps = 0;
        while self.script(&reached) != true {
            assert!(steps < 60, "{css} is not reached");
            self.press_surely(TAB);
            steps += 1;
        }
        steps
    }

    /// Presses a key, and again only where the page has not heard of it: a window that has only
    /// just opened may let one pass.
    fn press_surely(&self, key: &str) {
        self.script(
            "window.keysHeard = 0;
             window.onkeydown = () => { window.keysHeard += 1; };",
        );
        let begun = Instant::now();
        while self.script("return window.keysHeard") == 0 {
            assert!(begun.elapsed() < PATIENCE, "the page hears no key");
            self.press(key);
        }
    }

    /// Presses a key and waits for what comes of it.
    pub fn press_for(&self, key: &str, css: &str, what: impl Fn(&str) -> bool) -> String {
        self.press_surely(key);
        self.wait_for(css, what)
    }

    /// Waits, but not for ever, until the text of an element will do; returns it.
    pub fn wait_for(&self, css: &str, what: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            // While another page is on its way, the element may be missing.
            let text = self.try_text(css);
            if let Ok(text) = &text
                && what(text)
            {
                return text.clone();
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{css} stays at {text:?} on a page that says: {}",
                self.text("body")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What axe-core finds on the page, which must be nothing.
    pub fn check_accessibility(&self, what: &str) {
        let axe = std::env::var_os("AXE_CORE").expect(NEEDED);
        let axe = std::fs::read_to_string(axe).expect(NEEDED);
        self.script(&axe);
        let run = "const done = arguments[0]; axe.run().then((found) => done(found.violations), \
                   (error) => done(String(error)));";
        let found = self.runtime.block_on(self.client.execute_async(run, vec![])).unwrap();
        let found = found.as_array().unwrap_or_else(|| panic!("axe-core: {found}"));
        assert!(found.is_empty(), "{what}: {found:#?}");
    }

    /// In both themes, on a desk and on a phone, and keeps a picture of each, in `target/screenshots` or where
    /// `SCREENSHOTS` names a folder. The colours of a theme are the same in both sizes, so axe-core runs once
    /// for each theme and once for each size. The looks do not depend on the store: they are checked on the
    /// embedded one.
    pub fn check_looks(&self, what: &str) {
        if std::env::var_os("TEST_SERVERS").is_some() {
            return;
        }
        let folder = std::env::var_os("SCREENSHOTS").map_or_else(
            || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots"),
            PathBuf::from,
        );
        std::fs::create_dir_all(&folder).unwrap();
        for (size, width) in [("desk", 1280), ("phone", 320)] {
            self.size(width, 1400);
            assert!(!self.scrolls_sideways(), "{what}, {size}");
            for theme in ["dark", "light"] {
                self.theme(theme);
                if (size == "desk") == (theme == "light") {
                    self.check_accessibility(&format!("{what}, {theme}, {size}"));
                }
                let picture = self.runtime.block_on(self.client.screenshot()).unwrap();
                std::fs::write(folder.join(format!("{what}-{size}-{theme}.png")), picture).unwrap();
            }
        }
        self.width(1100);
    }

    /// Whether the page is wider than the window.
    pub fn scrolls_sideways(&self) -> bool {
        let wider = "return document.documentElement.scrollWidth > window.innerWidth";
        self.script(wider).as_bool().unwrap()
    }
}

fn waiting() -> MutexGuard<'static, (Vec<Browser>, usize)> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Window {
    /// Opens a window, once fewer than [`BROWSERS`] are open.
    pub fn open() -> Self {
        let none = |(browsers, room): &mut (Vec<Browser>, usize)| browsers.is_empty() && *room == 0;
        let mut waiting =
            GIVEN_BACK.wait_while(waiting(), none).unwrap_or_else(PoisonError::into_inner);
        if let Some(browser) = waiting.0.pop() {
            return Self(Some(browser));
        }
        waiting.1 -= 1;
        drop(waiting);
        Self(Some(Browser::start()))
    }
}

impl Deref for Window {
    type Target = Browser;

    fn deref(&self) -> &Browser {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let Some(browser) = self.0.take() else { return };
        // After a failure nobody knows what it does.
        let is_good = !std::thread::panicking()
            && catch_unwind(AssertUnwindSafe(|| browser.forget())).is_ok();
        if is_good {
            waiting().0.push(browser);
        } else {
            browser.end();
            waiting().1 += 1;
        }
        GIVEN_BACK.notify_one();
    }
}
