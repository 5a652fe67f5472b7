//! Layers: which value counts, and how it is read.

mod problems;
mod shown;

use ipnet::IpNet;
use iptunnel_domain::limit::Limits;
use iptunnel_domain::time::Lifetimes;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use iptunnel_domain::limit::Policy;
use tempfile::NamedTempFile;

use super::*;
use key::{KEYS, Kind};
use show::entries;

fn load(
    file: Option<&str>,
    env: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, ConfigError> {
    let owned = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    };
    let file = file.map(|text| {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    });
    let path = file.as_ref().map(|file| file.path().to_owned());
    Config::load(&Sources { file: path, env: owned(env), flags: owned(flags) })
}

fn from_file(text: &str) -> Config {
    load(Some(text), &[], &[]).unwrap()
}

fn set(key: &str, value: &str) -> Result<Config, ConfigError> {
    load(None, &[], &[(key, value)])
}

#[test]
fn without_any_source_the_defaults_stand() {
    assert_eq!(load(None, &[], &[]).unwrap(), Config::default());
    assert_eq!(from_file(""), Config::default());
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = Config::default();
    assert_eq!(config.server.bind.to_string(), "127.0.0.1:8080");
    assert_eq!(config.server.public_url.as_str(), "http://127.0.0.1:8080");
    assert_eq!(config.server.max_connections.get(), 25_000);
    assert_eq!(config.server.request_timeout, Duration::from_secs(10));
    assert_eq!(config.server.shutdown_grace, Duration::from_secs(30));
    assert_eq!(config.admin.bind.to_string(), "127.0.0.1:9090");
    assert_eq!(config.storage.retention_days, 90);
    assert_eq!(config.session_ttl_seconds, 1800);
    assert_eq!(config.lifetimes, Lifetimes::default());
    assert_eq!(config.limits, Limits::default());
    let [product] = config.products.as_slice() else { panic!("{:?}", config.products) };
    assert_eq!((product.name.as_str(), product.letters.to_string()), ("slowdns", "SD".into()));
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let file = Some("[log]\nlevel = \"warn\"\n[limits]\nissue_per_ip_day = 20");
    let env = [("IPTUNNEL_LOG__LEVEL", "debug"), ("IPTUNNEL_LIMITS__ISSUE_PER_IP_HOUR", "4")];
    let config = load(file, &env, &[("log.level", "trace")]).unwrap();
    assert_eq!(config.log.level, LogLevel::Trace);
    assert_eq!(config.limits.allowed(Policy::IssuePerIpHour), 4);
    assert_eq!(config.limits.allowed(Policy::IssuePerIpDay), 20);
    assert_eq!(config.limits.allowed(Policy::ActivatePerIpDay), 5);
    assert_eq!(load(file, &env, &[]).unwrap().log.level, LogLevel::Debug);
    assert_eq!(load(file, &[], &[]).unwrap().log.level, LogLevel::Warn);
}

#[test]
fn variables_are_read_as_what_their_key_needs() {
    let config = load(
        None,
        &[
            ("HOME", "/root"),
            ("IPTUNNEL_SERVER__BIND", "[::]:80"),
            ("IPTUNNEL_SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
            ("IPTUNNEL_SERVER__ALLOW_PRIVATE_IPS", "True"),
            ("IPTUNNEL_ACTORS__CODE_REGISTRY__QUEUE", "64"),
            ("IPTUNNEL_STORAGE__PATH", "12345"),
            ("IPTUNNEL_PAGES__INSTALL_COMMAND", "true"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(config.server.bind.to_string(), "[::]:80");
    let proxies: Vec<_> = config.server.trusted_proxies.iter().map(IpNet::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "::1/128"]);
    assert!(config.server.allow_private_ips);
    assert_eq!(config.actors.code_registry, ActorSize { queue: 64, batch: 512 });
    assert_eq!(config.storage.path, PathBuf::from("12345"));
    assert_eq!(config.pages.install_command, "true");
}

#[test]
fn lists_may_be_written_with_commas_or_as_toml() {
    for text in ["10.0.0.0/8,127.0.0.1", "10.0.0.0/8, 127.0.0.1,", "[\"10.0.0.0/8\", '127.0.0.1']"]
    {
        let config = set("server.trusted_proxies", text).unwrap();
        assert_eq!(config.server.trusted_proxies.len(), 2, "{text}");
    }
    assert!(set("server.trusted_proxies", "").unwrap().server.trusted_proxies.is_empty());
    for text in ["nowhere", "[", "10.0.0.0/33", "[1]", "[\"::1\"]\nx = 1"] {
        let error = set("server.trusted_proxies", text).unwrap_err().to_string();
        assert!(error.contains("must be a list of IP addresses and networks"), "{error}");
    }
}

#[test]
fn a_mapped_proxy_is_its_ipv4_network_and_host_bits_are_dropped() {
    let config = set("server.trusted_proxies", "::ffff:10.1.2.3, ::ffff:10.0.0.9/104, 10.9.9.9/16");
    let proxies: Vec<_> =
        config.unwrap().server.trusted_proxies.iter().map(IpNet::to_string).collect();
    assert_eq!(proxies, ["10.1.2.3/32", "10.0.0.0/8", "10.9.0.0/16"]);
}

#[test]
fn products_of_the_file_replace_the_default_ones_and_others_are_added() {
    let names = |config: Config| -> Vec<String> {
        config.products.iter().map(|p| format!("{}={}", p.name, p.letters)).collect()
    };
    assert_eq!(names(from_file("[products]\nvpn = \"vp\"")), ["vpn=VP"]);
    assert_eq!(names(from_file("[products]")), ["slowdns=SD"]);
    assert_eq!(names(set("products.vpn", "VP").unwrap()), ["slowdns=SD", "vpn=VP"]);
    let env = [("IPTUNNEL_PRODUCTS__SLOWDNS", "XX"), ("IPTUNNEL_PRODUCTS__MY_VPN", "VP")];
    assert_eq!(names(load(None, &env, &[]).unwrap()), ["my-vpn=VP", "slowdns=XX"]);
    let both = load(Some("[products]\nvpn = \"VP\""), &env[..1], &[]).unwrap();
    assert_eq!(names(both), ["slowdns=XX", "vpn=VP"]);
}

#[test]
fn zero_workers_are_as_many_as_processors() {
    let processors = std::thread::available_parallelism().unwrap();
    assert_eq!(Config::default().server.workers, processors.min(1024.try_into().unwrap()));
    assert_eq!(set("server.workers", "3").unwrap().server.workers.get(), 3);
}

#[test]
fn every_policy_has_its_key() {
    for policy in Policy::ALL {
        let key = format!("limits.{}", policy.name());
        assert_eq!(set(&key, "77").unwrap().limits.allowed(policy), 77);
    }
}

#[test]
fn names_in_the_file_are_those_that_as_str_gives() {
    for level in [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace]
    {
        assert_eq!(set("log.level", level.as_str()).unwrap().log.level, level);
    }
    for format in [LogFormat::Auto, LogFormat::Text, LogFormat::Json] {
        assert_eq!(set("log.format", format.as_str()).unwrap().log.format, format);
    }
    assert_eq!(Config::default().storage.backend.as_str(), "redb");
}

impl Default for Config {
    fn default() -> Self {
        Layers::default().with(&[]).unwrap().config
    }
}
