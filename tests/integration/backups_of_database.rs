//! What a backup can do for a database, and what its restore begins. Where tests have no database, there is
//! nothing to try.

use crate::database::Database;
use crate::harness::{Machine, START};
use crate::process::{Process, run, said, usual_flags};
use iptunnel_domain::Timestamp;
use iptunnel_server::config::Auth;
use iptunnel_server::secrets::Secret;
use nix::sys::signal::Signal;
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
