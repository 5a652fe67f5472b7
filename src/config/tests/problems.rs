//! What is refused, and what is said then.

use proptest::prelude::*;

use super::*;

fn problems(text: &str) -> String {
    load(Some(text), &[], &[]).unwrap_err().to_string()
}

#[test]
fn products_need_a_free_name_and_letters_of_their_own() {
    for name in [
        "api",
        "readyz",
        "livez",
        "metrics",
        "assets",
        "docs",
        "console",
        "admin",
        "register",
        "checkin",
        "revoke",
        "status",
        "healthz",
        "authorize",
    ] {
        let error = set(&format!("products.{name}"), "AB").unwrap_err().to_string();
        assert!(error.contains(&format!("products.{name}: this name is a path")), "{error}");
    }
    for name in ["", "A", "1a", "-a", "a_b", "a.b", "ä", &"a".repeat(33)] {
        let error = set(&format!("products.{name}"), "AB").unwrap_err().to_string();
        assert!(error.contains("must be 1 to 32 of a-z"), "{error}");
    }
    assert!(set(&format!("products.{}", "a".repeat(32)), "AB").is_ok());
    for letters in ["", "A", "ABC", "A1"] {
        let error = set("products.vpn", letters).unwrap_err().to_string();
        assert!(error.contains("must be two letters from A to Z"), "{error}");
    }
    let error = set("products.vpn", "sd").unwrap_err().to_string();
    assert_eq!(
        error,
        "products.vpn = \"SD\": must be other letters than those of products.slowdns"
    );
}

#[test]
fn every_number_is_good_to_both_ends_of_its_range_and_no_further() {
    let wide = [("codes.max_lifetime_seconds", "31536000"), ("codes.ttl_seconds", "1")];
    for key in KEYS {
        let Kind::Whole { unit, min, max } = key.kind else { continue };
        for good in [min, max] {
            let flags = [wide[0], wide[1], (key.name, &good.to_string())];
            let config = load(None, &[], &flags).unwrap();
            let (_, value) =
                entries(&config).into_iter().find(|(name, _)| name == key.name).unwrap();
            let kept = value.as_integer().unwrap();
            assert!(kept == good || key.name == "server.workers", "{}: {kept}", key.name);
        }
        for bad in [min - 1, max + 1] {
            let name = key.name;
            let expected = format!("must be a whole number{unit} from {min} to {max}");
            let (section, last) = key::split(name);
            assert_eq!(
                problems(&format!("[{section}]\n{last} = {bad}")),
                format!("{name} = {bad}: {expected}")
            );
            assert_eq!(
                set(name, &bad.to_string()).unwrap_err().to_string(),
                format!("{name} = {bad}: {expected} (command line)")
            );
        }
    }
}

#[test]
fn a_value_of_a_wrong_type_is_named_with_what_is_allowed() {
    assert_eq!(
        problems("[codes]\nttl_seconds = \"300\""),
        "codes.ttl_seconds = \"300\": must be a whole number of seconds from 1 to 31536000"
    );
    assert_eq!(
        problems("[servers]\nrevoked_checkin_status = 404"),
        "servers.revoked_checkin_status = 404: must be 200 or 403"
    );
    assert_eq!(
        problems("[log]\nlevel = \"loud\""),
        "log.level = \"loud\": must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\""
    );
    assert_eq!(
        problems("[server]\nallow_private_ips = 1"),
        "server.allow_private_ips = 1: must be true or false"
    );
    assert_eq!(problems("storage = 1"), "storage = 1: must be a section, [storage]");
    for text in [
        "[server]\nbind = 80",
        "[server]\nbind = \"localhost:80\"",
        "[server]\nbind = 2020-01-01",
        "[server]\ntrusted_proxies = \"::1\"",
        "[server]\npublic_url = \"https://x/y\"",
        "[storage]\npath = \"\"",
        "[codes]\nttl_seconds = 1.5",
        "[[products]]\nx = \"SD\"",
    ] {
        assert!(problems(text).contains(": must be "), "{text}");
    }
}

#[test]
fn a_bad_variable_is_named_beside_its_key() {
    let error = load(None, &[("IPTUNNEL_CODES__TTL_SECONDS", "soon")], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "codes.ttl_seconds = \"soon\": must be a whole number of seconds from 1 to 31536000 \
         (IPTUNNEL_CODES__TTL_SECONDS)"
    );
}

#[test]
fn an_unknown_name_is_told_with_the_nearest_known_one() {
    for (text, told) in [
        ("[server]\nbnd = 1", "server.bnd: unknown key; did you mean server.bind?"),
        ("[sever]\nbind = 1", "sever.bind: unknown key; did you mean server.bind?"),
        (
            "[auth]\nmaster_token = \"s\"",
            "auth.master_token: unknown key; did you mean auth.master_token_file?",
        ),
        ("[sorage]", "sorage: unknown key; did you mean storage?"),
        ("[product]\nvpn = 1", "product.vpn: unknown key; did you mean [products]?"),
        (
            "[admin]\nfrobnicate = 1",
            "admin.frobnicate: unknown key; [admin] has admin.bind, admin.tls_cert, \
             admin.tls_key, admin.tls_client_ca, admin.socket, admin.url, admin.url_ca, admin.url_cert, \
             admin.url_key",
        ),
        ("[admin.bind]\nx = 1", "admin.bind.x: unknown key; did you mean admin.bind?"),
    ] {
        assert_eq!(problems(text), told);
    }
    assert!(problems("x = 1").starts_with("x: unknown key; the sections are server, admin, "));
    let error = load(None, &[("IPTUNNEL_SERVER_BIND", "::1")], &[]).unwrap_err().to_string();
    assert_eq!(error, "server_bind: unknown key; did you mean server.bind? (IPTUNNEL_SERVER_BIND)");
    assert!(set("verbose", "1").unwrap_err().to_string().ends_with("(command line)"));
}

#[test]
fn all_problems_are_told_at_once_one_a_line() {
    let error = load(
        Some("[codes]\nttl_seconds = 0\n[log]\nlevel = \"a\\nb\"\n\"x\\ny\" = 1"),
        &[("IPTUNNEL_X", "1")],
        &[("admin.bind", "x")],
    )
    .unwrap_err();
    assert_eq!(error.problems().len(), 5);
    assert_eq!(error.to_string().lines().count(), 5);
}

#[test]
fn half_a_setting_of_tls_is_told_with_the_other_half() {
    for (key, other) in [
        ("server.tls_cert", "server.tls_key"),
        ("server.tls_key", "server.tls_cert"),
        ("admin.tls_key", "admin.tls_cert"),
        ("admin.tls_client_ca", "admin.tls_cert"),
        ("admin.url_cert", "admin.url_key"),
    ] {
        let told = format!("{key} = \"file\": needs {other} beside it");
        assert_eq!(set(key, "file").unwrap_err().to_string(), told);
        let both = [(key, "file"), (other, "file")];
        let is_whole = load(None, &[], &both).is_ok();
        assert_eq!(is_whole, key != "admin.tls_client_ca", "{key}");
    }
    let both = [("server.tls_cert", "x"), ("server.tls_key", "x"), ("installer.script", "x")];
    let told = load(None, &[], &both).unwrap_err().to_string();
    assert!(told.contains("must be another file than server.tls_key"), "{told}");
}

#[test]
fn values_that_contradict_each_other_are_told() {
    assert_eq!(
        problems("[codes]\nttl_seconds = 3601"),
        "codes.ttl_seconds = 3601: must be at most codes.max_lifetime_seconds, which is 3600"
    );
    assert!(from_file("[codes]\nttl_seconds = 3600").lifetimes.code == 3600);
}

#[test]
fn trusting_every_address_as_a_proxy_is_refused() {
    for all in ["0.0.0.0/0", "::/0", "10.0.0.1\", \"0.0.0.0/0"] {
        let problem = problems(&format!("[server]\ntrusted_proxies = [\"{all}\"]"));
        assert!(problem.contains("must not be every address"), "{problem}");
    }
}

#[test]
fn listeners_that_cannot_exist_side_by_side_are_told() {
    let both = |server: &str, admin: &str| {
        load(None, &[], &[("server.bind", server), ("admin.bind", admin)])
            .map(drop)
            .map_err(|e| e.to_string())
    };
    for (server, admin) in [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("127.0.0.1:80", "[::]:80"),
        ("[::]:80", "[::1]:80"),
    ] {
        let problem = both(server, admin).unwrap_err();
        assert!(problem.contains("admin.bind") && problem.contains("server.bind"), "{problem}");
    }
    for (server, admin) in [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("0.0.0.0:80", "[::1]:80"),
        ("0.0.0.0:80", "127.0.0.1:81"),
    ] {
        assert_eq!(both(server, admin), Ok(()), "{server} {admin}");
    }
}

#[test]
fn two_settings_that_name_the_same_file_are_told() {
    let error = set("auth.lookup_key_file", "data/master.token").unwrap_err().to_string();
    assert_eq!(
        error,
        "auth.master_token_file = \"data/master.token\": must be another file than auth.lookup_key_file"
    );
    assert!(set("auth.lookup_key_file", "data/iptunnel.redb.mark").is_err());
}

#[test]
fn the_address_of_a_shared_engine_is_never_shown() {
    let error = set("storage.url", "postgres://me:hunter2@db").unwrap_err().to_string();
    assert_eq!(
        error,
        "storage.url = \"(hidden)\": must be empty where storage.backend is \"redb\""
    );
    assert!(!problems("[storage]\nurl = [\"hunter2\"]").contains("hunter2"));
    let mut config = Config::default();
    config.storage.url = "hunter2".into();
    assert!(!config.to_toml().contains("hunter2"));
    let [change] = Config::default().changes(&config).try_into().unwrap();
    assert!(!change.new.contains("hunter2"), "{change:?}");
}

#[test]
fn a_named_file_must_exist_and_be_toml() {
    let sources = Sources { file: Some("/no/such/file.toml".into()), ..Sources::default() };
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(error.starts_with("/no/such/file.toml: cannot be read: "), "{error}");
    let error = problems("[server]\n\nbind = = 1");
    assert!(error.contains(": line 3: ") && error.lines().count() == 1, "{error}");
    let error = problems("[log]\nlevel = 'info'\nlevel = 'warn'");
    assert!(error.contains(": line 3: "), "{error}");
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic_and_no_problem_breaks_its_line(
        place in 0..KEYS.len(), text: String, variable: String, file: String,
    ) {
        let variable = format!("IPTUNNEL_{variable}");
        let name = KEYS[place].name.replace('*', "vpn");
        for result in [load(None, &[(&variable, &text)], &[(&name, &text)]), load(Some(&file), &[], &[])] {
            if let Err(error) = result {
                prop_assert_eq!(error.to_string().lines().count(), error.problems().len());
            }
        }
    }
}
