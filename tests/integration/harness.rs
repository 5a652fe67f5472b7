//! A server in the test's process, with its own folder and a clock that the test sets.

use crate::database::Database;
use iptunnel_client::{Binding, Code, Network, Patience};
use iptunnel_server::app::{self, Environment, Signal};
use iptunnel_server::config::{Config, Layers, Sources};
use iptunnel_server::os::{Clock, Reading, SetBacks, SystemClock, TimeSource};
use iptunnel_server::secrets::missing;
use iptunnel_server::store::files::files;
use iptunnel_server::store::first_start::make_secrets;
use iptunnel_storage::Disks;
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// 2030-03-17 17:46:40 UTC: in the middle of an hour and of a day.
pub const START: u64 = 1_900_000_000;

/// The server's own clock, on a machine clock that only the test moves.
pub struct ManualClock {
    clock: SystemClock<Clocks>,
    clocks: Clocks,
}

/// What the machine's clocks say.
#[derive(Clone)]
struct Clocks(Arc<Mutex<Reading>>);

impl TimeSource for Clocks {
    fn read(&self) -> Reading {
        *self.0.lock().unwrap()
    }
}

impl ManualClock {
    fn at(seconds: u64) -> Self {
        let reading = Reading { wall: seconds * 1000, monotonic: 0 };
        let clocks = Clocks(Arc::new(Mutex::new(reading)));
        Self { clock: SystemClock::new(clocks.clone()), clocks }
    }

    /// Lets time pass.
    pub fn advance(&self, seconds: u64) {
        let mut reading = self.clocks.0.lock().unwrap();
        reading.wall += seconds * 1000;
        reading.monotonic += seconds * 1000;
    }

    /// Sets the machine's wall clock and lets one second pass; then the server must follow it.
    pub fn set(&self, seconds: u64) {
        let mut reading = self.clocks.0.lock().unwrap();
        reading.wall = seconds * 1000;
        reading.monotonic += 1000;
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }
    /// The database's clock is the real machine's, which is not this one.
    fn correct(&self, _: i64) {}
    fn set_backs(&self) -> &SetBacks {
        self.clock.set_backs()
    }
}

/// Makes the disks for a server on `folder`.
pub type MakeDisk = Arc<dyn Fn(&TempDir) -> Disks + Send + Sync>;

/// A running server.
pub struct TestApp {
    pub url: String,
    pub admin: String,
    pub clock: Arc<ManualClock>,
    pub config: Config,
    pub folder: Arc<TempDir>,
    pub client: Client,
    make_disk: MakeDisk,
    database: Option<Arc<Database>>,
    servers: Vec<Running>,
}

/// One of the servers behind a [`TestApp`].
struct Running {
    url: String,
    admin: String,
    signals: mpsc::Sender<Signal>,
    thread: JoinHandle<Result<(), String>>,
}

/// A part of the error where the store is open already.
const LOCKED: &str = "another process has the store open";
/// How long a lock may outlive its server: see [`TestApp::start_again`].
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// The number of servers that share the database. Each connection goes to the next server.
fn servers() -> usize {
    std::env::var("TEST_SERVERS").map_or(1, |count| count.parse().unwrap())
}

/// Whether there is only one server, so that a test can check that server's cache.
pub fn alone() -> bool {
    servers() == 1
}

/// A reply with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }
    /// `error.code` of a v2 failure, or "" for a success.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
    /// Returns status and `error.code`, which most tests compare.
    pub fn told(&self) -> (u16, String) {
        (self.status, self.code())
    }
    pub fn data(&self, key: &str) -> String {
        let value = &self.json()["data"][key];
        value.as_str().unwrap_or_else(|| panic!("no data.{key} in {}", self.text)).to_owned()
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Sends a request and reads the reply.
pub fn send(request: RequestBuilder) -> Answer {
    try_send(request).expect("an answer")
}

/// Sends a request that may get no reply.
pub fn try_send(request: RequestBuilder) -> Option<Answer> {
    let response = request.send().ok()?;
    let status = response.status().as_u16();
    let mut headers: HashMap<String, String> = HashMap::new();
    for (name, value) in response.headers() {
        // Several cookies are several lines, the first one first.
        let all = headers.entry(name.as_str().to_owned()).or_default();
        if !all.is_empty() {
            all.push('\n');
        }
        all.push_str(value.to_str().unwrap_or(""));
    }
    Some(Answer { status, headers, text: response.text().ok()? })
}

/// The longest time to wait for a condition on a busy machine. Waiting ends as soon as it holds.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; panics after a deadline.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl TestApp {
    /// Starts a server with limits that no test reaches; tests of limits set their own.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a server with the settings that `change` adds: pairs of key and value.
    pub fn start_with(change: impl FnOnce(&mut Vec<(&'static str, String)>)) -> Self {
        Self::start_over(change, no_faults(), Database::with_schema())
    }

    /// Starts a server on a disk that the test made.
    pub fn start_on(
        change: impl FnOnce(&mut Vec<(&'static str, String)>),
        make_disk: MakeDisk,
    ) -> Self {
        Self::start_over(change, make_disk, None)
    }

    fn start_over(
        change: impl FnOnce(&mut Vec<(&'static str, String)>),
        make_disk: MakeDisk,
        database: Option<Arc<Database>>,
    ) -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        let file = |name: &str| folder.path().join(name).display().to_string();
        let mut flags = vec![
            ("server.bind", "127.0.0.1:0".to_owned()),
            ("admin.bind", "127.0.0.1:0".to_owned()),
            ("server.workers", "2".to_owned()),
            ("storage.path", file("iptunnel.redb")),
            ("auth.signing_key_file", file("signing.keys")),
            ("auth.lookup_key_file", file("lookup.key")),
            ("auth.master_token_file", file("master.token")),
        ];
        flags.extend(iptunnel_domain::limit::Policy::ALL.map(|policy| {
            let key: &'static str = format!("limits.{}", policy.name()).leak();
            (key, "1000000".to_owned())
        }));
        if let Some(database) = &database {
            flags.push(("storage.backend", "postgres".to_owned()));
            flags.push(("storage.url", database.url.clone()));
            // The cluster of the tests does not sync.
            flags.push(("storage.allow_async_failover", "true".to_owned()));
        }
        change(&mut flags);
        let flags = flags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let config = Config::load(&Sources { file: None, env: vec![], flags }).unwrap();
        let clock = Arc::new(ManualClock::at(START));
        if database.is_some() {
            // A start makes them only where there is no store, and the database has the schema of one already.
            for secret in missing(&config.auth).unwrap() {
                secret.make(&config.auth, clock.now()).unwrap();
            }
        }
        let app = Self::run_over(config, folder, clock, make_disk, database);
        app.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a server on a folder; the error says why it did not start.
    pub fn run(
        config: Config,
        folder: Arc<TempDir>,
        clock: Arc<ManualClock>,
        make_disk: MakeDisk,
    ) -> Result<Self, String> {
        Self::run_over(config, folder, clock, make_disk, None)
    }

    fn run_over(
        config: Config,
        folder: Arc<TempDir>,
        clock: Arc<ManualClock>,
        make_disk: MakeDisk,
        database: Option<Arc<Database>>,
    ) -> Result<Self, String> {
        let count = if database.is_some() { servers() } else { 1 };
        let (mut running, mut addresses) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (public, operators) = (listener(), listener());
            addresses.push(public.local_addr().unwrap());
            let mut of_server = config.clone();
            // One each: a server whose disk a test has let die goes on listening.
            static SOCKETS: AtomicU32 = AtomicU32::new(0);
            let socket = format!("{}.sock", SOCKETS.fetch_add(1, Ordering::SeqCst));
            of_server.admin.socket = folder.path().join(socket);
            if number > 0 {
                of_server.storage.path.set_extension(format!("{number}.redb"));
            }
            let disks = make_disk(&folder);
            let surroundings =
                Environment { clock: clock.clone(), disks, public, admin: operators };
            running.push(start_server(&of_server, surroundings)?);
        }
        let running_admin = running[0].admin.clone();
        let mut client = Client::builder().no_proxy();
        let mut url = format!("http://{}", addresses[0]);
        if count > 1 || config.server.idle_timeout < PATIENCE {
            // Each request has its own connection: it goes to the next server, and to none that the server
            // closes just then, because it was idle.
            client = client.pool_max_idle_per_host(0);
        }
        if count > 1 {
            url = format!("http://{}", spread(addresses));
        }
        let client = client.build().unwrap();
        let (servers, admin) = (running, running_admin);
        Ok(Self { url, admin, clock, config, folder, client, make_disk, database, servers })
    }

    /// Returns the number of servers behind it.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Shuts the server down cleanly and returns its result.
    pub fn stop(&mut self) -> Result<(), String> {
        for server in &self.servers {
            // A server that has exited by itself no longer listens.
            let _ = server.signals.blocking_send(Signal::Stop);
        }
        self.ended()
    }

    /// Waits for a server that exits by itself and returns its result.
    pub fn ended(&mut self) -> Result<(), String> {
        self.servers.drain(..).try_for_each(|server| server.thread.join().unwrap())
    }

    /// Stops the server and starts it again on the same folder, at other ports.
    pub fn restart(mut self) -> Self {
        self.stop().unwrap();
        self.start_again().unwrap()
    }

    /// Starts a stopped server's successor on the same folder.
    pub fn start_again(&self) -> Result<Self, String> {
        // A program that another test starts holds, until it runs, what was open here: also a store's lock.
        let begun = Instant::now();
        loop {
            match self.start_successor() {
                Err(error) if error.contains(LOCKED) && begun.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                outcome => return outcome,
            }
        }
    }

    fn start_successor(&self) -> Result<Self, String> {
        let (config, folder) = (self.config.clone(), self.folder.clone());
        let (clock, make_disk) = (self.clock.clone(), self.make_disk.clone());
        Self::run_over(config, folder, clock, make_disk, self.database.clone())
    }

    /// Makes the server read this configuration, as SIGHUP does.
    pub fn reload(&self, change: impl FnOnce(&mut Config)) {
        let mut config = self.config.clone();
        change(&mut config);
        for server in &self.servers {
            let (config, (done, wait)) = (config.clone(), std::sync::mpsc::channel());
            let read = move || {
                done.send(()).unwrap();
                Layers::of_text(&text_of(&config))
            };
            assert!(server.signals.blocking_send(Signal::Reload(Box::new(read))).is_ok());
            wait.recv().unwrap();
        }
    }

    pub fn master(&self) -> String {
        let path = &self.config.auth.master_token_file;
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    pub fn get(&self, path: &str) -> Answer {
        send(self.client.get(format!("{}{path}", self.url)))
    }
    pub fn get_admin(&self, path: &str) -> Answer {
        send(self.client.get(format!("{}{path}", self.admin)))
    }

    /// The sum of a metric over all servers, 0 where it has no value yet.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics(name).into_iter().sum()
    }

    /// A metric of each server.
    pub fn metrics(&self, name: &str) -> Vec<f64> {
        let of_server = |server: &Running| {
            let text = send(self.client.get(format!("{}/metrics", server.admin))).text;
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map_or(0.0, |value| value.parse::<f64>().unwrap())
        };
        self.servers.iter().map(of_server).collect()
    }

    /// Waits until all servers give the same answer, and one that satisfies `check`.
    fn agree(&self, ask: impl Fn(&Running) -> Value, check: impl Fn(&Value) -> bool) {
        if self.servers.len() < 2 {
            return;
        }
        wait_until("all servers know the same", || {
            let first = ask(&self.servers[0]);
            check(&first) && self.servers[1..].iter().all(|other| ask(other) == first)
        });
    }

    fn ask(&self, url: String) -> Value {
        send(self.client.get(url).bearer_auth(self.master())).json()
    }

    /// Waits until every server knows all registered servers, and which of them are revoked.
    pub fn settle(&self) {
        let Some(database) = self.database.as_ref().filter(|_| self.servers.len() > 1) else {
            return;
        };
        let registered = Value::from(database.registered().map(Value::from).to_vec());
        let known = |server: &Running| {
            let count = |filter| {
                self.ask(format!("{}/status?limit=1{filter}", server.url))["count"].clone()
            };
            Value::from(vec![count(""), count("&revoked=1")])
        };
        self.agree(known, |known| *known == registered);
    }

    /// Waits until every server has the same settings.
    pub fn settle_settings(&self) {
        let own =
            |setting: &Value| setting["key"] == "storage.path" || setting["key"] == "admin.socket";
        let settings = |server: &Running| {
            let mut answer = self.ask(format!("{}/admin/config", server.admin));
            let mut settings = answer["data"]["settings"].take();
            if let Some(settings) = settings.as_array_mut() {
                settings.retain(|setting| !own(setting));
            }
            settings
        };
        self.agree(settings, |_| true);
    }

    /// Waits until limits have counted so many activates of one caller, and no more: where servers
    /// share a database, another one may be about to give one back.
    pub fn wait_for_activates(&self, counted: i64) {
        if let Some(database) = &self.database {
            wait_until("charges are given back", || database.activates_counted() == counted);
        }
    }

    /// A POST with a JSON body and no headers of its own, as the installer sends it.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string())
    }
    pub fn post_text(&self, path: &str, body: &str) -> Answer {
        send(self.client.post(format!("{}{path}", self.url)).body(body.to_owned()))
    }
    /// A POST with `Authorization: Bearer {token}`.
    pub fn post_as(&self, token: &str, path: &str, body: &Value) -> Answer {
        let request = self.client.post(format!("{}{path}", self.url)).bearer_auth(token);
        send(request.body(body.to_string()))
    }
    pub fn get_as(&self, token: &str, path: &str) -> Answer {
        send(self.client.get(format!("{}{path}", self.url)).bearer_auth(token))
    }

    /// A browser that has opened the page of `product`.
    pub fn browser(&self, product: &str) -> Browser<'_> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let mut browser = Browser {
            app: self,
            product: product.to_owned(),
            user_agent: format!("Browser/{number}"),
            cookie: String::new(),
        };
        browser.open();
        browser
    }

    /// The client crate, for tests in which the bytes of an installer do not matter. It repeats nothing, so
    /// it hides no answer that a test should see.
    pub fn installer(&self) -> iptunnel_client::Client {
        let patience = Patience { per_try: PATIENCE, ..Patience::once() };
        let client = iptunnel_client::Client::new(&self.url, "slowdns").unwrap();
        let client = client.over(Network::direct(&self.url).unwrap()).with_patience(patience);
        client.with_installer("2026.03.31")
    }

    /// Issues a new code, as a person gets it.
    pub fn issue(&self) -> String {
        let answer = self.browser("slowdns").issue();
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.data("install_code")
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        if !self.servers.is_empty() {
            let _ = self.stop();
        }
    }
}

/// The disk as the operating system gives it.
fn no_faults() -> MakeDisk {
    Arc::new(|folder| files(&folder.path().join("iptunnel.redb")))
}

/// A configuration as a file, including the secrets that are never shown.
fn text_of(config: &Config) -> String {
    let url = format!("url = {:?}", config.storage.url);
    config.to_toml().replace("url = \"(hidden)\"", &url)
}

/// Starts a server and waits until it replies; the error says why it did not start.
fn start_server(config: &Config, surroundings: Environment) -> Result<Running, String> {
    let at = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let (url, admin) = (at(&surroundings.public), at(&surroundings.admin));
    let (signals, receive) = mpsc::channel(1);
    let layers = Layers::of_text(&text_of(config)).map_err(|error| error.to_string())?;
    make_secrets(config, surroundings.clock.now()).map_err(|error| error.to_string())?;
    let (started, wait) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        actix_web::rt::System::new()
            .block_on(app::run(layers, surroundings, receive, Box::new(|_| {}), move || {
                started.send(()).unwrap();
            }))
            .map_err(|error| error.to_string())
    });
    match wait.recv() {
        Ok(()) => Ok(Running { url, admin, signals, thread }),
        Err(_) => Err(thread.join().unwrap().unwrap_err()),
    }
}

/// Forwards each connection to the next of `servers`; returns the address on which it listens.
pub fn spread(servers: Vec<SocketAddr>) -> SocketAddr {
    let listener = listener();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, caller) in listener.incoming().enumerate() {
            let (Ok(caller), server) = (caller, servers[number % servers.len()]) else { return };
            let Ok(server) = TcpStream::connect(server) else { continue };
            let back = (server.try_clone().unwrap(), caller.try_clone().unwrap());
            std::thread::spawn(move || carry(caller, server));
            std::thread::spawn(move || carry(back.0, back.1));
        }
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A free address for another program. The kernel gives its port to nobody who asks for any, such as a client
/// that connects: those are from 32768 on.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(97);
        let number = number.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + number % 20_000).unwrap();
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}

/// A browser with its cookie.
pub struct Browser<'a> {
    pub app: &'a TestApp,
    pub product: String,
    pub user_agent: String,
    pub cookie: String,
}

impl Browser<'_> {
    /// Opens the page, keeping the cookie it sets.
    pub fn open(&mut self) -> Answer {
        let request = self.app.client.get(format!("{}/{}", self.app.url, self.product));
        let request = request.header("user-agent", &self.user_agent).header("cookie", &self.cookie);
        let answer = send(request);
        let set = answer.header("set-cookie").split(';').next().unwrap_or_default();
        if !set.is_empty() {
            self.cookie = set.to_owned();
        }
        answer
    }
    /// The request for a code, for tests to change.
    pub fn issue_request(&self) -> RequestBuilder {
        let path = format!("{}/api/v2/{}/code/issue", self.app.url, self.product);
        let request = self.app.client.post(path).header("user-agent", &self.user_agent);
        request.header("cookie", &self.cookie)
    }
    pub fn issue(&self) -> Answer {
        send(self.issue_request())
    }
}

/// A machine that installs the software.
#[derive(Clone)]
pub struct Machine {
    pub machine_id: String,
    pub fingerprint: String,
    pub hostname: String,
    pub public_ip: String,
}

impl Machine {
    /// The `number`th machine.
    pub fn new(number: u32) -> Self {
        Self {
            machine_id: format!("machine-{number}"),
            fingerprint: format!("SHA256:{number}"),
            hostname: format!("ns{number}.example.com"),
            public_ip: std::net::Ipv4Addr::from(0x0102_0000 + number).to_string(),
        }
    }
    /// The body of a precheck as the installer sends it.
    pub fn precheck_body(&self, code: &str) -> Value {
        json!({
            "install_code": code, "license_key": code, "machine_id": self.machine_id,
            "ssh_fingerprint": self.fingerprint, "product": "slowdns",
            "installer_version": "2026.03.31",
        })
    }
    /// The body of an activate as the installer sends it.
    pub fn activate_body(&self, code: &str, precheck_token: &str) -> Value {
        json!({
            "install_code": code, "license_key": code, "precheck_token": precheck_token,
            "hostname": self.hostname, "public_ip": self.public_ip,
            "machine_id": self.machine_id, "ssh_fingerprint": self.fingerprint,
            "requested_ref": "main", "product": "slowdns", "installer_version": "2026.03.31",
        })
    }
    pub fn precheck(&self, app: &TestApp, code: &str) -> Answer {
        app.post("/api/v2/slowdns/install/precheck", &self.precheck_body(code))
    }
    pub fn activate(&self, app: &TestApp, code: &str, precheck_token: &str) -> Answer {
        app.post("/api/v2/slowdns/install/activate", &self.activate_body(code, precheck_token))
    }
    /// Who the machine is, for the client crate.
    pub fn identity(&self) -> iptunnel_client::Machine {
        let (id, ssh_fingerprint) = (self.machine_id.clone(), self.fingerprint.clone());
        iptunnel_client::Machine { id, ssh_fingerprint }
    }
    /// Where the machine is reached, for the client crate.
    pub fn binding(&self) -> Binding {
        let (hostname, public_ip) = (self.hostname.clone(), self.public_ip.parse().unwrap());
        Binding { hostname, public_ip }
    }
    /// Prechecks, which must succeed; returns the token.
    pub fn prechecked(&self, app: &TestApp, code: &str) -> String {
        let token = app.installer().precheck(&Code::new(code), &self.identity());
        token.unwrap_or_else(|error| panic!("{error}")).reveal().to_owned()
    }
    /// Precheck and activate, both of which must succeed.
    pub fn install(&self, app: &TestApp, code: &str) -> Activation {
        let (client, code, machine) = (app.installer(), Code::new(code), self.identity());
        let activated = client
            .precheck(&code, &machine)
            .and_then(|token| client.activate(&code, &machine, &self.binding(), &token));
        let activated = activated.unwrap_or_else(|error| panic!("{error}"));
        let [id, token] = [activated.id.reveal(), activated.token.reveal()].map(str::to_owned);
        Activation { id, token }
    }
}

/// An activation as its installer knows it: id and token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    pub id: String,
    pub token: String,
}

impl Activation {
    pub fn confirm(&self, app: &TestApp) -> Answer {
        let body = json!({"activation_id": self.id, "install_token": self.token});
        app.post("/api/v2/slowdns/install/confirm", &body)
    }
    pub fn release(&self, app: &TestApp) -> Answer {
        let body = json!({"activation_id": self.id, "install_token": self.token});
        app.post("/api/v2/slowdns/install/release", &body)
    }
}

/// `body` with one field set.
pub fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

/// `body` without one of its fields.
pub fn without(mut body: Value, field: &str) -> Value {
    body.as_object_mut().unwrap().remove(field);
    body
}

/// Runs `work` on `count` threads at the same time; returns their results in order.
pub fn at_once<T: Send>(count: u32, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    let barrier = std::sync::Barrier::new(count as usize);
    let run = |number| {
        barrier.wait();
        work(number)
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..count).map(|n| scope.spawn(move || run(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

impl TestApp {
    /// A POST to one of the installer's four steps.
    pub fn step(&self, step: &str, body: &Value) -> Answer {
        self.post(&format!("/api/v2/slowdns/install/{step}"), body)
    }
    /// Reloads, and waits until what `change` has changed is in force.
    pub fn reload_now(&self, change: impl FnOnce(&mut Config)) {
        use iptunnel_domain::limit::{Limits, Policy};
        // A limit that no test reaches serves as the marker, since replies show it.
        static NEXT: AtomicU32 = AtomicU32::new(900_000);
        let flag = NEXT.fetch_add(1, Ordering::SeqCst);
        self.reload(|config| {
            change(config);
            let others = config.limits;
            let allowed = |policy| match policy {
                Policy::PrecheckPerIpDay => flag,
                other => others.allowed(other),
            };
            config.limits = Limits::new(allowed, others.max_tracked);
        });
        wait_until("the configuration is in force everywhere", || {
            self.servers.iter().all(|server| {
                let url = format!("{}/api/v2/slowdns/install/precheck", server.url);
                let answer = send(self.client.post(url).body(""));
                answer.header("ratelimit-policy").contains(&format!("q={flag};"))
            })
        });
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.machine_id)
    }
}
