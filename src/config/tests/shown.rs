//! The shipped file, the configuration as text, and what differs between two.

use std::collections::BTreeMap;

use super::*;
use key::ANY_PRODUCT;

const SHIPPED: &str = include_str!("../../../config.toml");

/// Another good value than the default.
fn another(key: &key::Key) -> String {
    match (&key.kind, key.name) {
        (_, "storage.backend") => "redb".into(),
        (_, "codes.ttl_seconds") => "3600".into(),
        (_, "codes.max_lifetime_seconds" | "server.max_connections") => "7200".into(),
        (Kind::Whole { min, .. }, _) => (min + 1).to_string(),
        (Kind::Number(_), _) => "200".into(),
        (Kind::Word(_), "log.level") => "debug".into(),
        (Kind::Word(_), _) => "json".into(),
        (Kind::Switch, _) => "true".into(),
        (Kind::Listener, _) => "0.0.0.0:80".into(),
        (Kind::Url, _) => "https://get.example.com".into(),
        (Kind::Networks, _) => "10.0.0.0/8".into(),
        (Kind::Letters, _) => "XY".into(),
        (
            Kind::File | Kind::Folder | Kind::OptionalFile | Kind::OptionalFolder | Kind::Socket,
            _,
        ) => "elsewhere".into(),
        (Kind::Recipient, _) => {
            "age1c7fskew0h8hw5sl3dqmrwled3qp08dse6mzdj2j5m0tflvnfd45shpy5yf".into()
        }
        (Kind::Origin, _) => "http://127.0.0.1:80".into(),
        (Kind::Text, _) => "run {code}".into(),
        (Kind::Secret, _) => String::new(),
    }
}

#[test]
fn the_shipped_file_shows_every_key_with_its_default() {
    let mut shipped = Vec::new();
    show::flatten("", toml::from_str(SHIPPED).unwrap(), &mut shipped);
    let shipped: BTreeMap<_, _> = shipped.into_iter().collect();
    let mut defaults: BTreeMap<_, _> = entries(&Config::default()).into_iter().collect();
    // The number of processors, of which the file knows nothing.
    defaults.insert("server.workers".into(), 0.into());
    assert_eq!(shipped, defaults);
    assert_eq!(shipped.len(), KEYS.len());
    assert_eq!(from_file(SHIPPED), Config::default());
}

#[test]
fn removing_any_key_from_the_shipped_file_changes_nothing() {
    let lines: Vec<&str> = SHIPPED.lines().collect();
    let is_key = |line: &str| line.contains(" = ") && !line.starts_with('#');
    let keys: Vec<usize> = (0..lines.len()).filter(|&place| is_key(lines[place])).collect();
    assert_eq!(keys.len(), KEYS.len());
    for key in keys {
        let mut rest = lines.clone();
        let removed = rest.remove(key);
        assert_eq!(from_file(&rest.join("\n")), Config::default(), "without {removed}");
    }
}

#[test]
fn the_comments_of_the_shipped_file_agree_with_the_table_of_keys() {
    let (mut section, mut comment, mut keys) = (String::new(), "", KEYS.iter());
    for line in SHIPPED.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if line.starts_with('#') {
            comment = line;
        } else if let Some((name, _)) = line.split_once(" = ") {
            let key = keys.next().unwrap();
            let name = format!("{section}.{name}");
            assert!(key.name == name || key.name == ANY_PRODUCT, "{name} is out of order");
            let reload = if key.at_run_time { "Reload: yes" } else { "Reload: no" };
            assert!(comment.contains(reload), "{name}: {comment}");
            match &key.kind {
                Kind::Whole { unit, min, max } => {
                    assert!(comment.contains(&format!("{min} to {max}")), "{name}: {comment}");
                    assert!(comment.contains(&unit.replace(" of", "in")), "{name}: {comment}");
                }
                Kind::Word(words) => {
                    for word in *words {
                        assert!(comment.contains(&format!("{word:?}")), "{name}: {comment}");
                    }
                }
                _ => {}
            }
        }
    }
    assert!(keys.next().is_none());
}

#[test]
fn what_print_config_shows_reads_back_as_the_same_configuration() {
    let shown = Config::default().to_toml();
    assert_eq!(from_file(&shown), Config::default());
    assert!(shown.starts_with("[server]\nbind = \"127.0.0.1:8080\"\npublic_url = "), "{shown}");
    let odd = "[products]\na-1 = \"AB\"\nb = \"CD\"\n[server]\ntrusted_proxies = ['::1', '10.1.2.3/8']\n\
               [pages]\ninstall_command = \"\"\"\nsay \\\"{code}\\\" \\\\ \u{7f}\n\t'\"\"\"";
    let odd = from_file(&odd.replace('\u{7f}', "\\u007F"));
    assert_eq!(from_file(&odd.to_toml()), odd);
}

#[test]
fn a_change_is_told_by_key_with_the_old_and_the_new_value() {
    let old = Config::default();
    assert_eq!(old.changes(&old), []);
    let new = from_file(
        "[limits]\nissue_per_ip_hour = 5\n[log]\nlevel = \"warn\"\n[server]\nbind = \"[::]:80\"\n\
         [products]\nvpn = \"VP\"",
    );
    let told: Vec<_> = old
        .changes(&new)
        .into_iter()
        .map(|c| format!("{} {} {} {}", c.key, c.old, c.new, c.at_run_time))
        .collect();
    assert_eq!(
        told,
        [
            "server.bind 127.0.0.1:8080 [::]:80 false",
            "products.slowdns SD  false",
            "products.vpn  VP false",
            "limits.issue_per_ip_hour 3 5 true",
            "log.level info warn true",
        ]
    );
}

#[test]
fn exactly_what_may_change_at_run_time_is_taken_over() {
    let old = Config::default();
    for key in KEYS {
        let name = key.name.replace('*', "slowdns");
        // These have one value that is allowed, or one beside another setting that has its own.
        let of_tls = [".tls_", ".url_"].iter().any(|part| name.contains(part));
        if ["storage.backend", "storage.url"].contains(&name.as_str()) || of_tls {
            continue;
        }
        let new = set(&name, &another(key)).unwrap();
        let [change] = old.changes(&new).try_into().unwrap_or_else(|all| panic!("{name}: {all:?}"));
        assert_eq!((&change.key, change.at_run_time), (&name, at_run_time(&name)));
        let swapped = old.with_run_time_values(&new);
        assert_eq!(swapped, if change.at_run_time { new } else { old.clone() }, "{name}");
    }
}

#[test]
fn what_may_change_at_run_time_is_what_the_contract_names() {
    for key in KEYS {
        let (section, last) = key::split(key.name);
        let expected = ["limits", "codes", "servers", "session"].contains(&section)
            || (section.starts_with("actors.") && last == "batch")
            || ["log.level", "storage.retention_days", "installer.version", "installer.notes"]
                .contains(&key.name)
            || ["backup.every_hours", "backup.keep"].contains(&key.name)
            || key.name.starts_with("pages.");
        assert_eq!(at_run_time(key.name), expected, "{}", key.name);
    }
    assert!(!at_run_time("no.such.key"));
}
