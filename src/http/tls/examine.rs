//! What can be said of certificates and of `server.public_url` before callers notice.

use super::files::{Certificate, Files};
use crate::config::Config;
use crate::http::respond::rfc3339;
use crate::private_file::loose_mode;
use iptunnel_domain::Timestamp;
use iptunnel_storage::{Finding, Grade};
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;

/// A certificate that is left with less time than this ends soon: 14 days. ACME clients renew 30 days before
/// the end of 90 (certbot, `renew_before_expiry`), so a renewal has failed for two weeks, and two more are left.
const SOON: u64 = 14 * 24 * 3600;
/// But one that lives for some days only ends soon with less than this part of its life left. ACME clients
/// renew such a certificate with a third or a half of it left (Let's Encrypt, Integration Guide).
const PART: u64 = 4;

/// Returns whether a certificate has ended or ends soon.
pub fn ends_soon(certificate: &Certificate, now: Timestamp) -> bool {
    is_soon(certificate.begins, certificate.ends, now)
}

fn is_soon(begins: Timestamp, ends: Timestamp, now: Timestamp) -> bool {
    let life = ends.0.saturating_sub(begins.0);
    ends.0.saturating_sub(now.0) < SOON.min(life / PART).max(1)
}

fn finding(grade: Grade, what: String, why: &'static str, mend: impl Into<String>) -> Finding {
    Finding { grade, what, why, mend: mend.into() }
}

/// Examines the files of all certificates, and `server.public_url`.
pub fn examine(config: &Config, now: Timestamp) -> Vec<Finding> {
    let files = Files::of_all(config).flat_map(|files| of_files(config, &files, now));
    files.chain(of_public_url(config)).collect()
}

/// Logs what [`examine`] finds beside the times of certificates, which [`Tls`](super::Tls) logs.
pub fn warn(config: &Config, now: Timestamp) {
    for Finding { grade, what, why, mend } in examine(config, now) {
        if grade == Grade::Warns && why != ENDS {
            tracing::warn!("{what}: {why}; {mend}");
        }
    }
}

const ENDS: &str = "callers refuse a certificate that has ended";

fn of_files(config: &Config, files: &Files, now: Timestamp) -> Vec<Finding> {
    let shown = files.cert.display();
    let certificate = match files.read() {
        Ok(certificate) => certificate,
        Err(error) => {
            let why = "a server does not start with these files; one that runs keeps its earlier certificate";
            let mend = "correct the files; a server that runs sees it within seconds";
            return vec![finding(Grade::Stops, error.to_string(), why, mend)];
        }
    };
    let (begins, ends) = (rfc3339(certificate.begins), rfc3339(certificate.ends));
    let renew = "renew it; a server that runs sees the new files within seconds";
    let time = if certificate.ends <= now {
        finding(
            Grade::Stops,
            format!("the certificate in {shown} has ended at {ends}"),
            ENDS,
            renew,
        )
    } else if certificate.begins > now {
        let mend = "check the clock of this machine";
        let what = format!("the certificate in {shown} is not valid before {begins}");
        finding(Grade::Warns, what, "callers refuse a certificate that is not valid yet", mend)
    } else if ends_soon(&certificate, now) {
        finding(Grade::Warns, format!("the certificate in {shown} ends at {ends}"), ENDS, renew)
    } else {
        finding(Grade::Good, format!("the certificate in {shown} ends at {ends}"), ENDS, "")
    };
    let name = (files.listener == "public").then(|| of_name(config, files, &certificate));
    [Some(time), name.flatten(), of_mode(files)].into_iter().flatten().collect()
}

/// Warns of a certificate that browsers refuse at `server.public_url`.
fn of_name(config: &Config, files: &Files, certificate: &Certificate) -> Option<Finding> {
    let url = &config.server.public_url;
    if !url.is_https() {
        return None;
    }
    let name = ServerName::try_from(url.host()).ok()?;
    let parsed = ParsedCertificate::try_from(&certificate.leaf).ok()?;
    verify_server_name(&parsed, &name).err()?;
    let shown = files.cert.display();
    let what = format!("the certificate in {shown} is not one of {}", url.host());
    let mend = "use a certificate for this name, or correct server.public_url";
    Some(finding(
        Grade::Warns,
        what,
        "browsers and installers at server.public_url refuse it",
        mend,
    ))
}

fn of_mode(files: &Files) -> Option<Finding> {
    let mode = loose_mode(&files.key).ok()??;
    let shown = files.key.display();
    let what = format!("{shown}, a private key, has the mode {mode}");
    let why = "whoever reads the key can pass for the server";
    Some(finding(Grade::Warns, what, why, format!("chmod o-rwx,g-w {shown}")))
}

/// Warns of a `server.public_url` that callers cannot use.
fn of_public_url(config: &Config) -> Vec<Finding> {
    let server = &config.server;
    let (url, bind) = (&server.public_url, server.bind);
    let mut findings = Vec::new();
    if url.is_loopback() && !bind.ip().is_loopback() {
        let what = format!(
            "server.public_url is {}, which is this machine alone, and server.bind, {bind}, is not",
            url.as_str()
        );
        let why = "pages and install commands send other machines to themselves";
        let mend = "set server.public_url to the address that browsers use";
        findings.push(finding(Grade::Warns, what, why, mend));
    }
    if !url.is_https() && Files::of_public(config).is_some() {
        let what = format!("server.public_url is {}, and the listener speaks HTTPS", url.as_str());
        let why = "install commands fail, pages refuse their own forms, and cookies are not kept to HTTPS";
        let mend = "let server.public_url begin with https";
        findings.push(finding(Grade::Warns, what, why, mend));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    #[test]
    fn a_certificate_ends_soon_in_its_last_two_weeks_or_in_the_last_quarter_of_a_short_life() {
        for (life, left, soon) in [
            (365, 15, false),
            (365, 13, true),
            (90, 15, false),
            (90, 13, true),
            (40, 11, false),
            (40, 9, true),
            (6, 2, false),
            (6, 1, true),
            (6, 0, true),
        ] {
            let (begins, ends) = (Timestamp(1000 * DAY), Timestamp((1000 + life) * DAY));
            let now = Timestamp(ends.0 - left * DAY);
            assert_eq!(is_soon(begins, ends, now), soon, "{left} of {life}");
            assert!(is_soon(begins, ends, Timestamp(ends.0 + DAY)));
        }
    }

    #[test]
    fn a_public_url_on_this_machine_is_named_where_others_can_connect() {
        let found = |bind: &str, url: &str| {
            let mut config = Config::default();
            config.server.bind = bind.parse().unwrap();
            config.server.public_url = crate::config::PublicUrl::parse(url).unwrap();
            !of_public_url(&config).is_empty()
        };
        assert!(found("0.0.0.0:80", "http://127.0.0.1:8080"));
        assert!(found("10.0.0.7:80", "http://localhost"));
        assert!(found("[::]:80", "http://[::1]"));
        assert!(!found("127.0.0.1:80", "http://127.0.0.1:8080"));
        assert!(!found("0.0.0.0:80", "https://get.example.com"));
    }
}
