//! What a machine loads to install itself: the installer, its own address, and the payload of its product.

use crate::harness::{Activation, Answer, Machine, TestApp, send};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use tempfile::TempDir;

#[test]
fn each_product_has_an_installer_that_knows_its_server_and_its_name() {
    let app = TestApp::start_with(|c| {
        c.push(("server.public_url", "https://get.example.com:8443".into()));
        c.push(("products.slowdns", "SD".into()));
        c.push(("products.my-dns2", "MD".into()));
    });
    for product in ["slowdns", "my-dns2"] {
        let script = app.get(&format!("/{product}/install.sh"));
        assert_eq!(script.status, 200);
        assert_eq!(script.header("content-type"), "text/x-shellscript; charset=utf-8");
        let set = format!("\nSERVER='https://get.example.com:8443'\nPRODUCT='{product}'\n");
        assert!(script.text.starts_with("#!/bin/sh\n") && script.text.contains(&set), "{product}");
        // The shell reads it and runs nothing.
        let mut shell = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        shell.stdin.take().unwrap().write_all(script.text.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }
}

#[test]
fn an_installer_that_a_cache_has_is_not_sent_again() {
    let app = TestApp::start();
    let path = format!("{}/slowdns/install.sh", app.url);
    let first = app.get("/slowdns/install.sh");
    assert_eq!(first.header("cache-control"), "no-cache");
    let head = send(app.client.head(&path));
    assert_eq!((head.status, &*head.text), (200, ""));
    assert_eq!(head.header("etag"), first.header("etag"));
    let again = send(app.client.get(&path).header("if-none-match", first.header("etag")));
    assert_eq!((again.status, &*again.text), (304, ""));
    let post = send(app.client.post(&path));
    assert_eq!((post.status, post.header("allow")), (405, "GET, HEAD"));
    assert_eq!(app.get("/nothing/install.sh").status, 404);
}

#[test]
fn a_caller_is_told_the_address_that_the_server_sees() {
    let app = TestApp::start_with(|c| c.push(("server.trusted_proxies", "127.0.0.1".into())));
    let answer = app.get("/api/v2/address");
    assert_eq!(
        (answer.status, &*answer.text),
        (200, r#"{"data":{"ip":"127.0.0.1"},"meta":{"message":"Your address"}}"#)
    );
    assert_eq!(answer.header("cache-control"), "no-store");
    for (sent, seen) in [
        ("8.8.8.8", "8.8.8.8"),
        ("1.1.1.1, ::ffff:8.8.8.8", "8.8.8.8"),
        ("2606:4700:0::1111", "2606:4700::1111"),
        ("nonsense", "127.0.0.1"),
    ] {
        let request = app.client.get(format!("{}/api/v2/address", app.url));
        assert_eq!(send(request.header("x-forwarded-for", sent)).data("ip"), seen);
    }
}

/// A server with a folder of payloads, which has this text for the product.
fn with_payload(text: &str) -> (TestApp, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("slowdns.sh"), text).unwrap();
    let payloads = folder.path().display().to_string();
    let app = TestApp::start_with(|c| {
        c.push(("installer.payloads", payloads));
        c.push(("products.slowdns", "SD".into()));
        c.push(("products.other", "OT".into()));
    });
    (app, folder)
}

fn load(app: &TestApp, product: &str, token: &str) -> Answer {
    app.get_as(token, &format!("/api/v2/{product}/install/payload"))
}

fn digest(text: &str) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(text)))
}

fn installing(app: &TestApp, number: u32) -> Activation {
    Machine::new(number).install(app, &app.issue())
}

#[test]
fn a_machine_loads_the_payload_of_its_product_with_its_install_token() {
    let (app, folder) = with_payload("#!/bin/sh\necho one\n");
    let activation = installing(&app, 1);
    for text in ["#!/bin/sh\necho one\n", "#!/bin/sh\necho the second\n"] {
        // The operator replaces the file. No restart, no reload.
        fs::write(folder.path().join("slowdns.sh"), text).unwrap();
        let loaded = load(&app, "slowdns", &activation.token);
        assert_eq!((loaded.status, &*loaded.text), (200, text));
        assert_eq!(loaded.header("repr-digest"), digest(text));
        assert_eq!(loaded.header("content-type"), "text/x-shellscript; charset=utf-8");
        assert_eq!((loaded.header("cache-control"), loaded.header("etag")), ("no-store", ""));
        let url = format!("{}/api/v2/slowdns/install/payload", app.url);
        let head = send(app.client.head(url).bearer_auth(&activation.token));
        assert_eq!((head.status, head.header("repr-digest")), (200, &*digest(text)));
    }
}

#[test]
fn a_payload_is_for_open_activations_and_for_an_hour_after_the_confirm() {
    let (app, _folder) = with_payload("exit 0\n");
    let [open, released, confirmed] = [1, 2, 3].map(|number| installing(&app, number));
    assert_eq!(released.release(&app).status, 200);
    assert_eq!(load(&app, "slowdns", &released.token).told(), (404, "activation_not_found".into()));
    app.clock.advance(599);
    assert_eq!(load(&app, "slowdns", &open.token).status, 200);
    assert_eq!(confirmed.confirm(&app).status, 200);
    app.clock.advance(1);
    assert_eq!(load(&app, "slowdns", &open.token).told(), (403, "token_invalid".into()), "lapsed");
    app.clock.advance(3598);
    assert_eq!(load(&app, "slowdns", &confirmed.token).status, 200);
    app.clock.advance(1);
    let over = load(&app, "slowdns", &confirmed.token);
    assert_eq!(over.told(), (403, "token_invalid".into()));
}

#[test]
fn a_payload_is_refused_without_a_token_of_an_activation_of_its_product() {
    let (app, _folder) = with_payload("exit 0\n");
    let machine = Machine::new(1);
    let code = app.issue();
    let precheck = machine.precheck(&app, &code).data("precheck_token");
    let token = machine.install(&app, &code).token;
    let forged = format!("{token}x");
    for wrong in ["", "x", &*forged, &*precheck, &*app.master()] {
        let refused = load(&app, "slowdns", wrong);
        assert_eq!(refused.told(), (403, "token_invalid".into()), "{wrong}");
        assert_eq!(refused.header("cache-control"), "no-store");
    }
    assert_eq!(load(&app, "other", &token).told(), (403, "product_mismatch".into()));
    assert_eq!(load(&app, "nothing", &token).told(), (404, "not_found".into()));
    assert_eq!(app.post_as(&token, "/api/v2/slowdns/install/payload", &json!({})).status, 405);
}

#[test]
fn a_payload_that_cannot_be_sent_is_not_found_at_once() {
    let none = TestApp::start();
    let told = |app: &TestApp, token: &str| load(app, "slowdns", token).told();
    let missing = (404, "payload_not_found".to_owned());
    assert_eq!(told(&none, &installing(&none, 1).token), missing);
    let (app, folder) = with_payload("exit 0\n");
    let file = folder.path().join("slowdns.sh");
    let token = installing(&app, 1).token;
    fs::remove_file(&file).unwrap();
    assert_eq!(told(&app, &token), missing);
    // Nobody writes into this pipe.
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(told(&app, &token), missing);
    fs::remove_file(&file).unwrap();
    let (elsewhere, kept) = tempfile::NamedTempFile::new().unwrap().keep().unwrap();
    drop(elsewhere);
    fs::write(&kept, "exit 7\n").unwrap();
    std::os::unix::fs::symlink(&kept, &file).unwrap();
    assert_eq!(load(&app, "slowdns", &token).text, "exit 7\n", "a link is the operator's decision");
    fs::remove_file(kept).unwrap();
    assert_eq!(told(&app, &token), missing);
}

#[test]
fn a_payload_cannot_be_one_of_the_secrets() {
    use iptunnel_server::config::{Config, Sources};
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("lookup.key");
    fs::write(&secret, "secret\n").unwrap();
    std::os::unix::fs::symlink(&secret, folder.path().join("slowdns.sh")).unwrap();
    let flags = [
        ("installer.payloads", folder.path().display().to_string()),
        ("auth.lookup_key_file", secret.display().to_string()),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value)).to_vec();
    let error = Config::load(&Sources { file: None, env: vec![], flags }).unwrap_err().to_string();
    let names = ["installer.payloads", "auth.lookup_key_file"];
    assert!(names.iter().all(|name| error.contains(name)), "{error}");
}
