//! What a backup can do for a database, and what its restore begins. Where tests have no database, there is
//! nothing to try.

use crate::cluster::Cluster;
use crate::database::Database;
use crate::faults::url;
use crate::harness::{Machine, START};
use crate::process::{Process, run, said, usual_flags};
use iptunnel_domain::Timestamp;
use iptunnel_server::config::Auth;
use iptunnel_server::secrets::Secret;
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A start makes them only where there is no store, and the database has the schema of one already.
fn make_secrets_in(folder: &Path) {
    let at = |name: &str| folder.join("data").join(name);
    let auth = Auth {
        signing_key_file: at("signing.keys"),
        lookup_key_file: at("lookup.key"),
        master_token_file: at("master.token"),
    };
    for secret in Secret::ALL {
        secret.make(&auth, Timestamp(START)).unwrap();
    }
}

#[test]
fn a_database_is_checked_for_its_backup_and_a_restore_begins_an_epoch() {
    let Some(database) = Database::where_wanted() else { return };
    let url = format!("storage.url={}", database.url);
    let set = ["storage.backend=postgres", &url, "storage.allow_async_failover=true"];
    let place = Arc::new(TempDir::new().unwrap());
    let folder = place.path().to_owned();
    make_secrets_in(&folder);
    let mut flags = usual_flags();
    flags.extend(set.iter().flat_map(|pair| ["--set".to_owned(), (*pair).to_owned()]));
    let mut server = Process::start_in(place, flags);
    let code = server.api.issue();
    fs::write(folder.join("words"), "correct horse battery\n").unwrap();
    let ask = |arguments: &[&str]| {
        let set = set.iter().flat_map(|pair| ["--set", pair]);
        run(&folder, &set.chain(arguments.iter().copied()).collect::<Vec<_>>())
    };
    let made = ask(&["backup", "monday", "--passphrase-file", "words"]);
    let told = said(&made);
    assert!(made.status.success(), "{told}");
    assert!(told.contains("wal_level") && told.contains("pg_basebackup --host="), "{told}");
    assert!(said(&ask(&["restore", "monday"])).contains("a server runs here"));
    server.signal(Signal::SIGTERM);
    assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    let told = said(&ask(&["restore", "monday", "--passphrase-file", "words"]));
    assert!(told.contains("1 servers run on this database"), "{told}");
    database.age_by_a_minute();
    let key = folder.join("data/lookup.key");
    fs::write(&key, fs::read_to_string(folder.join("data/signing.keys")).unwrap()).unwrap();
    let told = said(&ask(&["restore", "monday", "--passphrase-file", "words"]));
    assert!(told.contains("lookup.key is another one than"), "{told}");
    fs::remove_file(&key).unwrap();
    let restored = ask(&["restore", "monday", "--passphrase-file", "words"]);
    assert!(restored.status.success(), "{}", said(&restored));
    let server = server.again();
    let told = server.api.install("precheck", &Machine::new(1).precheck_body(&code)).unwrap();
    assert_eq!(told.told(), (403, "install_code_expired".into()));
    server.api.activate(&Machine::new(1), &server.api.issue());
}

#[test]
fn a_base_backup_is_restored_as_the_guide_says_and_makes_no_spent_code_good() {
    if Database::where_wanted().is_none() {
        return;
    }
    let cluster = Cluster::new();
    let set = |cluster: &Cluster| {
        let url = format!("storage.url={}", url(&[cluster.address()]));
        let set = ["storage.backend=postgres".to_owned(), url];
        set.into_iter().flat_map(|pair| ["--set".to_owned(), pair]).collect::<Vec<_>>()
    };
    let place = Arc::new(TempDir::new().unwrap());
    let start = |cluster: &Cluster| {
        Process::start_in(Arc::clone(&place), [usual_flags(), set(cluster)].concat())
    };
    let ask = |cluster: &Cluster, arguments: &[&str]| {
        let set = set(cluster);
        let all = set.iter().map(String::as_str).chain(arguments.iter().copied());
        run(place.path(), &all.collect::<Vec<_>>())
    };
    let mut server = start(&cluster);
    let [before, after, unspent] = [(); 3].map(|()| server.api.issue());
    let activated = server.api.activate(&Machine::new(1), &before);
    let body = ["activation_id", "install_token"].map(|name| (name, activated.data(name)));
    let body: HashMap<_, _> = body.into();
    assert_eq!(server.api.install("confirm", &json!(body)).unwrap().status, 200);
    let made = ask(&cluster, &["backup", "monday"]);
    assert!(made.status.success(), "{}", said(&made));
    // The command that it prints, here as the superuser.
    let copy = Cluster::empty();
    let from = format!("--port={}", cluster.port);
    let from = ["--host=127.0.0.1", &from, "--username=postgres"];
    copy.run("pg_basebackup", &[&from[..], &["--wal-method=stream", "--checkpoint=fast"]].concat());
    let verified = copy.command("pg_verifybackup").arg(copy.data()).output().unwrap();
    assert!(verified.status.success(), "{}", said(&verified));
    server.api.activate(&Machine::new(2), &after);
    server.signal(Signal::SIGTERM);
    assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    cluster.stop();

    copy.start();
    let told = said(&ask(&copy, &["restore", "monday"]));
    assert!(told.contains("did half a minute ago"), "{told}");
    copy.psql("UPDATE process SET seen_at = seen_at - interval '1 minute'");
    let restored = ask(&copy, &["restore", "monday"]);
    assert!(said(&restored).contains("epoch 2 has begun"), "{}", said(&restored));
    let server = start(&copy);
    let refused = |code: &str| {
        let body = Machine::new(3).precheck_body(code);
        server.api.install("precheck", &body).unwrap().code()
    };
    assert_eq!(refused(&before), "install_code_used");
    assert_eq!(refused(&after), "install_code_expired");
    assert_eq!(refused(&unspent), "install_code_expired");
    server.api.activate(&Machine::new(3), &server.api.issue());
}
