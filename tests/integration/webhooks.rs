//! Webhooks: a small receiver is told what happens, whatever fails.

use crate::access::by_master;
use crate::console::Person;
use crate::database::Database;
use crate::harness::{TestApp, wait_until};
use crate::process::{Process, run, said, usual_flags};
use crate::readme::block_under;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use tempfile::TempDir;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

/// A message as the receiver got it, and how it answered.
#[derive(Clone, Debug)]
struct Got {
    id: String,
    timestamp: String,
    signatures: Vec<String>,
    body: String,
    answered: u16,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
    fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }
    fn number(&self) -> u64 {
        self.json()["data"]["number"].as_u64().unwrap()
    }
    /// Whether a signature was made with this secret, as docs/webhooks.md says to check it.
    fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        let content = format!("{}.{}.{}", self.id, self.timestamp, self.body);
        self.signatures.iter().any(|signature| {
            let signature = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
            ring::hmac::verify(&key, content.as_bytes(), &signature).is_ok()
        })
    }
}

/// Listens, and answers each message with the status that is set.
struct Receiver {
    url: String,
    status: Arc<Mutex<u16>>,
    got: Arc<Mutex<Vec<Got>>>,
}

fn receive(stream: TcpStream, status: &Mutex<u16>, got: &Mutex<Vec<Got>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut headers, mut line) = (Vec::new(), String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
            None if line.trim_end().is_empty() => break,
            None => {}
        }
    }
    let header = |name: &str| {
        let found = headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let mut body = vec![0; header("content-length").parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let answered = *status.lock().unwrap();
    got.lock().unwrap().push(Got {
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signatures: header("webhook-signature").split(' ').map(str::to_owned).collect(),
        body: String::from_utf8(body).unwrap(),
        answered,
    });
    let answer = format!(
        "HTTP/1.1 {answered} Told\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    reader.get_mut().write_all(answer.as_bytes()).ok()
}

impl Receiver {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook?key=of-the-url", listener.local_addr().unwrap());
        let receiver = Self { url, status: Arc::new(Mutex::new(status)), got: Arc::default() };
        let (status, got) = (Arc::clone(&receiver.status), Arc::clone(&receiver.got));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (status, got) = (Arc::clone(&status), Arc::clone(&got));
                std::thread::spawn(move || receive(stream, &status, &got));
            }
        });
        receiver
    }
    fn answer_with(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }
    fn got(&self) -> MutexGuard<'_, Vec<Got>> {
        self.got.lock().unwrap()
    }
    /// The types of the messages that it has accepted.
    fn accepted(&self) -> Vec<String> {
        self.got().iter().filter(|got| got.answered < 300).map(Got::kind).collect()
    }
    /// A section of the file for this receiver.
    fn section(&self, name: &str, rest: &str) -> String {
        let url = &self.url;
        format!("[{name}]\nurl = \"{url}\"\nallow_http = true\nsecrets = [\"{SECRET}\"]\n{rest}\n")
    }
}

/// Writes a file of webhooks that only its owner may read.
fn write(folder: &TempDir, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.path().join("webhooks.toml");
    let new = folder.path().join("new.toml");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, &path).unwrap();
    path.display().to_string()
}

const INSIDE: &str = "allow_private = true";

fn start(folder: &TempDir, text: &str) -> TestApp {
    let path = write(folder, text);
    let app = TestApp::start_with(|flags| flags.push(("webhooks.file", path)));
    // A new webhook hears of what happens once it is known.
    wait_until("each webhook has its place in the log", || {
        list(&app).iter().all(|one| one["known"] == true)
    });
    app
}

fn list(app: &TestApp) -> Vec<Value> {
    let answer = by_master(app, "GET", "/admin/webhooks", &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["data"]["webhooks"].as_array().unwrap().clone()
}

fn post(app: &TestApp, path: &str, body: &Value) -> (u16, String) {
    let answer = by_master(app, "POST", &format!("/admin/webhooks/{path}"), body);
    (answer.status, answer.text)
}

/// Registers a server, and returns its id.
fn register(app: &TestApp, number: u8) -> String {
    let body = json!({"token": app.master(), "ip": format!("9.9.9.{number}"), "hostname": "s9.example.com",
        "agent_token": format!("ipa_{}", number.to_string().repeat(48))});
    let answer = app.post("/api/v2/servers/register", &body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.data("server_id")
}

fn change(app: &TestApp, id: &str, verb: &str) {
    let answer = by_master(app, "POST", &format!("/admin/servers/{id}/{verb}"), &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[test]
fn events_arrive_signed_and_in_the_order_of_their_server_after_the_receiver_has_failed() {
    let (receiver, folder) = (Receiver::start(500), TempDir::new().unwrap());
    let rest = format!("{INSIDE}\nevents = [\"server.*\"]");
    let app = start(&folder, &receiver.section("office", &rest));
    let id = register(&app, 9);
    change(&app, &id, "revoke");
    change(&app, &id, "restore");
    wait_until("the first try fails", || list(&app)[0]["state"] == "failing");
    assert!(receiver.got().iter().all(|got| got.kind() == "server.registered"));
    receiver.answer_with(204);
    app.clock.advance(3600);
    wait_until("all have arrived", || receiver.accepted().len() >= 3);
    assert_eq!(receiver.accepted(), ["server.registered", "server.revoked", "server.restored"]);
    let all = receiver.got().clone();
    for got in &all {
        assert!(got.is_signed_with(SECRET) && !got.is_signed_with(OTHER_SECRET), "{got:?}");
        assert!(!got.body.contains(&app.master()) && !got.body.contains("ipa_"), "{got:?}");
    }
    assert_eq!(all[0].id, all[1].id, "an id stays");
    // While a secret is replaced both sign.
    let both =
        receiver.section("office", &rest).replace("\"]\na", &format!("\", \"{OTHER_SECRET}\"]\na"));
    write(&folder, &both);
    wait_until("both secrets sign", || {
        assert_eq!(post(&app, "office/test", &json!({})).0, 200);
        receiver.got().last().is_some_and(|got| got.signatures.len() == 2)
    });
    let last = receiver.got().last().unwrap().clone();
    assert!(last.is_signed_with(SECRET) && last.is_signed_with(OTHER_SECRET));
    assert_eq!(last.kind(), "webhook.test");
    wait_until("the list says so", || list(&app)[0]["state"] == "delivering");
    assert!(!list(&app)[0]["url"].as_str().unwrap().contains("of-the-url"));
}

#[test]
fn what_cannot_be_delivered_in_three_days_is_shown_and_is_sent_again_by_hand() {
    let (receiver, folder) = (Receiver::start(500), TempDir::new().unwrap());
    let app =
        start(&folder, &receiver.section("office", &format!("{INSIDE}\nevents = [\"server.*\"]")));
    register(&app, 9);
    wait_until("the first try fails", || list(&app)[0]["state"] == "failing");
    app.clock.advance(3 * 86_400 + 60);
    wait_until("a person is told", || app_now(&app).contains("The webhook office has failed"));
    let dead = || {
        by_master(&app, "GET", "/admin/webhooks/dead", &json!({})).json()["data"]["dead_letters"]
            .clone()
    };
    wait_until("it is given up", || dead().as_array().unwrap().len() == 1);
    assert_eq!(
        (&dead()[0]["type"], &dead()[0]["webhook"]),
        (&json!("server.registered"), &json!("office"))
    );
    assert_eq!(dead()[0]["why"], "it answered 500");
    receiver.answer_with(200);
    let number = dead()[0]["number"].as_u64().unwrap();
    let person = Person::logged_in(&app);
    let page = person.get("/console/webhooks").text;
    assert!(
        page.contains(&format!("Send {number} again")) && page.contains("it answered 500"),
        "{page}"
    );
    let fields = [("name", "office"), ("number", &number.to_string())];
    let sent = person.post("/console/webhooks/replay", &fields);
    assert!(sent.status == 303 && sent.header("location").ends_with("/webhooks?done=replay"));
    let refused = person.post("/console/webhooks/replay", &[("name", "nobody"), ("number", "1")]);
    assert!(refused.status == 404 && refused.text.contains("There is no such webhook."));
    wait_until("it has arrived", || receiver.accepted() == ["server.registered"]);
    wait_until("it is no dead letter", || dead().as_array().unwrap().is_empty());
    // Everything since a time, and what makes no sense.
    assert_eq!(post(&app, "office/replay", &json!({"since": "2000-01-01"})).0, 200);
    wait_until("it has arrived again", || receiver.accepted().len() == 2);
    for body in
        [json!({}), json!({"message": "x"}), json!({"since": "x"}), json!({"message": "99999999"})]
    {
        assert_eq!(post(&app, "office/replay", &body).0, 422, "{body}");
    }
    assert_eq!(post(&app, "nobody/replay", &json!({"dead": true})).0, 404);
    let log = by_master(&app, "GET", "/admin/audit?action=webhook_replayed", &json!({})).text;
    assert!(log.contains(&format!("message {number}")), "{log}");
}

fn app_now(app: &TestApp) -> String {
    by_master(app, "GET", "/admin/now", &json!({})).text
}

#[test]
fn a_receiver_that_is_gone_inside_or_elsewhere_gets_nothing() {
    let (gone, inside, moved) = (Receiver::start(410), Receiver::start(200), Receiver::start(302));
    let folder = TempDir::new().unwrap();
    let text = [
        gone.section("gone", &format!("{INSIDE}\nevents = [\"server.*\"]")),
        inside.section("inside", ""),
        moved.section("moved", &format!("{INSIDE}\nevents = [\"fleet.silent\"]")),
    ];
    let app = start(&folder, &text.concat());
    let (status, words) = post(&app, "inside/test", &json!({}));
    assert!(status == 502 && words.contains("not globally reachable"), "{status} {words}");
    let (status, words) = post(&app, "moved/test", &json!({}));
    assert!(status == 502 && words.contains("it answered 302"), "{status} {words}");
    register(&app, 9);
    wait_until("it is disabled", || list(&app)[0]["state"] == "disabled");
    register(&app, 8);
    wait_until("the other one is tried", || list(&app)[1]["state"] == "failing");
    assert!(inside.got().is_empty() && gone.got().len() == 1);
    // Over a database the log's order is settled a moment later.
    let registered = "/admin/audit?action=server_registered";
    wait_until("both are in the log", || {
        let log = by_master(&app, "GET", registered, &json!({})).json();
        log["data"]["entries"].as_array().unwrap().len() == 2
    });
    gone.answer_with(200);
    assert_eq!(post(&app, "gone/enable", &json!({})).0, 200);
    wait_until("it is enabled", || list(&app)[0]["state"] != "disabled");
    let before = gone.got().len();
    register(&app, 7);
    wait_until("it hears of what happens then", || gone.accepted().len() == 1);
    assert_eq!(gone.got().len(), before + 1);
}

fn register_at(server: &Process, number: u32) {
    let body = json!({"token": server.api.master, "ip": format!("9.9.9.{number}"),
        "hostname": "s.example.com", "agent_token": format!("ipa_{number:048}")});
    let answer = server.api.post("/api/v2/servers/register", &body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[test]
fn another_server_goes_on_when_the_one_that_delivers_is_killed() {
    let Some(database) = Database::where_wanted() else { return };
    let (receiver, folder) = (Receiver::start(200), TempDir::new().unwrap());
    let path =
        write(&folder, &receiver.section("office", &format!("{INSIDE}\nevents = [\"server.*\"]")));
    let set = [
        format!("webhooks.file={path}"),
        "storage.backend=postgres".to_owned(),
        format!("storage.url={}", database.url),
        "storage.allow_async_failover=true".to_owned(),
    ];
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let mut first = Process::start(&set);
    let says =
        |server: &Process, words: &str| wait_until(words, || server.output().contains(words));
    says(&first, "this server delivers the webhooks");
    let beside = Arc::new(TempDir::new().unwrap());
    fs::create_dir(beside.path().join("data")).unwrap();
    for name in ["data/lookup.key", "data/signing.keys", "data/master.token"] {
        fs::copy(first.folder.path().join(name), beside.path().join(name)).unwrap();
    }
    let mut arguments = usual_flags();
    arguments.extend(set.iter().flat_map(|pair| ["--set".to_owned(), (*pair).to_owned()]));
    let second = Process::start_in(beside, arguments);
    let arrived = || receiver.got().iter().map(Got::number).collect::<BTreeSet<_>>().len();
    // The first one tells also what happens at the second.
    register_at(&second, 1);
    wait_until("it has arrived", || arrived() == 1);
    first.kill();
    register_at(&second, 2);
    assert!(!second.output().contains("this server delivers"), "it waits for the end of the lease");
    database.end_webhook_lease();
    says(&second, "this server delivers the webhooks");
    wait_until("the second one has arrived too", || arrived() == 2);
}

#[test]
fn a_server_that_is_killed_tells_everything_after_its_start() {
    let (receiver, folder) = (Receiver::start(200), TempDir::new().unwrap());
    let path =
        write(&folder, &receiver.section("office", &format!("{INSIDE}\nevents = [\"server.*\"]")));
    let mut server = Process::start(&[&format!("webhooks.file={path}")]);
    let admin = |server: &Process, path: &str| {
        let request = server.api.client.get(format!("{}{path}", server.api.admin));
        crate::harness::send(request.bearer_auth(&server.api.master)).json()["data"].clone()
    };
    let is_known =
        |server: &Process| admin(server, "/admin/webhooks")["webhooks"][0]["known"] == true;
    wait_until("it has its place in the log", || is_known(&server));
    for round in 0..3 {
        (1..=20).for_each(|number| register_at(&server, round * 20 + number));
        server.kill();
        server = server.again();
    }
    let wanted: BTreeSet<u64> = {
        let log = admin(&server, "/admin/audit?action=server_registered");
        log["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["number"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(wanted.len(), 60);
    wait_until("all have arrived", || {
        let got: BTreeSet<u64> = receiver.got().iter().map(Got::number).collect();
        got == wanted
    });
    wait_until("the command shows it", || {
        said(&run(server.folder.path(), &["webhooks", "list"])).contains("delivering")
    });
    assert!(!server.output().contains("MfKQ9r8") && !server.output().contains("of-the-url"));
}

/// The vector of the libraries of Standard Webhooks.
#[test]
fn the_example_of_the_guide_tells_a_genuine_message_from_a_forged_one() {
    let guide = include_str!("../../docs/webhooks.md");
    let commands = block_under(guide, "## Verifying", "sh");
    let folder = TempDir::new().unwrap();
    let verdict = |body: &str| {
        fs::write(folder.path().join("body"), body).unwrap();
        let output = std::process::Command::new("sh")
            .args(["-c", commands])
            .current_dir(folder.path())
            .env("SECRET", SECRET)
            .env("ID", "msg_p5jXN8AQM9LWM0D4loKWxJek")
            .env("TIME", "1614265330")
            .env("SIGNATURE", "v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
            .output()
            .unwrap();
        said(&output)
    };
    assert_eq!(verdict(r#"{"test": 2432232314}"#), "genuine\n");
    assert_eq!(verdict(r#"{"test": 2432232315}"#), "forged\n");
}
