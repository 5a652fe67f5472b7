//! What is wrong at present, in sentences: with the store, its disk, its backups and the certificates.

use super::console::Console;
use super::words::span;
use crate::config::Config;
use crate::http::respond::rfc3339;
use crate::http::tls::examine::examine;
use crate::state::attention::Line;
use crate::store::examine::little_room;
use iptunnel_domain::Timestamp;
use iptunnel_storage::Grade;

/// What takes long to find out: it reads files.
pub struct OfFiles {
    disk: Option<String>,
    certificates: Vec<String>,
}

impl OfFiles {
    /// Looks at the disk and at the certificates. It may block.
    pub fn look(config: &Config, now: Timestamp) -> Self {
        let bad = examine(config, now).into_iter().filter(|found| found.grade != Grade::Good);
        let certificates =
            bad.map(|found| sentence(&format!("{}: {}; {}", found.what, found.why, found.mend)));
        let disk = little_room(config).map(|room| {
            let full = "a full disk takes no codes and no servers";
            sentence(&format!("{room}: {full}; remove something, or use a larger disk"))
        });
        Self { disk, certificates: certificates.collect() }
    }
}

/// Returns the present faults. `figure` returns the last value of a metric.
pub fn present(
    console: &Console,
    of_files: OfFiles,
    figure: impl Fn(&str) -> f64,
    now: Timestamp,
) -> Vec<Line> {
    let state = &console.state;
    let at = rfc3339(now);
    let line = |kind, text| Line { kind, at: at.clone(), text, see: "audit".into() };
    let failed = state.backups.progress().failure.map(|failed| Line {
        kind: "backup",
        at: failed.at,
        text: format!("The last backup could not be made: {}.", failed.why),
        see: "audit?action=backup_failed".into(),
    });
    let of_store = of_store(console, figure).into_iter().map(|text| line("store", text));
    let of_disk = of_files.disk.map(|text| Line { see: "now".into(), ..line("disk", text) });
    let certificates = of_files.certificates.into_iter().map(|text| line("store", text));
    failed.into_iter().chain(of_disk).chain(of_store).chain(certificates).collect()
}

/// Returns the faults of the store.
fn of_store(console: &Console, figure: impl Fn(&str) -> f64) -> Vec<String> {
    let (state, mut found) = (&console.state, Vec::new());
    let health = &state.health;
    for (since, words) in state.troubles.present() {
        found.push(sentence(&format!("{words} (for {})", span(since.as_secs()))));
    }
    if !health.store_works() {
        found.push("The store cannot be written: is its disk full or broken?".to_owned());
    } else if !health.commits_flow() {
        found.push("A commit to the store is stuck.".to_owned());
    }
    if found.is_empty() && !health.is_ready() {
        found.push("This server is not ready: its log and doctor say why.".to_owned());
    }
    for (name, least, words) in [
        ("store_primaries", 1.0, "More than one host of the database says that it is the primary."),
        (
            "servers_with_other_secrets",
            0.0,
            "Other servers on the database have other signing keys or another master token.",
        ),
    ] {
        if figure(name) > least {
            found.push(words.to_owned());
        }
    }
    found
}

/// Returns a text as a sentence: with a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(rest).chain(['.']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_has_a_capital_and_a_full_stop() {
        assert_eq!(sentence("a: b; c"), "A: b; c.");
        assert_eq!(sentence(""), ".");
    }
}
