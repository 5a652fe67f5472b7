//! The words of the console: times as people say them, names of actions, counts.

use crate::http::respond::{parse_time, rfc3339};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor};
use std::borrow::Borrow;
use std::sync::LazyLock;

/// The name of this machine, which the bar of each page shows.
pub static HOST: LazyLock<String> = LazyLock::new(|| {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "this server".to_owned())
});

/// Formats a span of seconds in its largest unit, rounded down: `59 s`, `3 min`, `5 h`, `12 d`. Templates pass it by
/// value or by reference.
pub fn span(seconds: impl Borrow<u64>) -> String {
    match *seconds.borrow() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Formats how far `at` is from `now`: `3 min ago`, `in 2 h`, `just now`.
fn distance(at: Timestamp, now: Timestamp) -> String {
    match (now.since(at), at.since(now)) {
        (0..5, 0) => "just now".to_owned(),
        (past, 0) => format!("{} ago", span(past)),
        (_, ahead) => format!("in {}", span(ahead)),
    }
}

/// Returns the HTML of a time, given by RFC 3339: how long ago it is, with the exact time and its zone on hover.
pub fn ago(at: &str, now: Timestamp) -> String {
    let Some(at) = parse_time(at) else { return "–".to_owned() };
    let exact = rfc3339(at);
    let shown = exact.trim_end_matches("+00:00").replace('T', " ");
    format!("<time datetime=\"{exact}\" title=\"{shown} UTC\">{}</time>", distance(at, now))
}

/// Returns an action of the audit log in words, by its name. An action that is not known keeps its name.
pub fn action(name: &str) -> &str {
    let Some(action) = Action::from_name(name) else { return name };
    match action {
        Action::Unknown => "Something that this version does not know",
        Action::CodeIssued => "Code issued",
        Action::Activated => "Code used",
        Action::Replaced => "Code used again by its machine",
        Action::Confirmed => "Installation confirmed",
        Action::Released => "Code given back",
        Action::ServerRegistered => "Server registered",
        Action::ServerRevoked => "Server revoked",
        Action::ServerRestored => "Server restored",
        Action::ServerNoted => "Note changed",
        Action::SettingChanged => "Setting changed",
        Action::StoreFenced => "New store epoch",
        Action::KeysChanged => "Keys changed",
        Action::LoggedIn => "Logged in",
        Action::TokensRefused => "Wrong tokens refused",
        Action::SessionEnded => "Session ended",
        Action::ServerDeleted => "Server deleted",
        Action::ServerImported => "Server imported",
        Action::CloneSeen => "Two machines as one server",
        Action::FleetSilent => "Many servers silent",
        Action::PrecheckPassed => "Code checked",
        Action::PrecheckRefused => "Check refused",
        Action::ActivateRefused => "Use refused",
        Action::ConfirmRefused => "Confirmation refused",
        Action::ReleaseRefused => "Giving back refused",
        Action::TokenCreated => "Token created",
        Action::TokenChanged => "Token changed",
        Action::TokenRotated => "Token given a new secret",
        Action::TokenRevoked => "Token revoked",
        Action::SpentCodeTried => "Used code tried by another machine",
        Action::ServerCheckedIn => "First check-in",
        Action::BackupMade => "Backup made",
        Action::BackupFailed => "Backup failed",
        Action::StoreRestored => "Store restored from a backup",
        Action::WebhookReplayed => "Webhook sent again",
        Action::WebhookEnabled => "Webhook enabled",
    }
}

/// Returns an actor in words, by its name.
pub fn actor(name: &str) -> &str {
    match Actor::from_name(name) {
        Some(Actor::Browser) => "a browser",
        Some(Actor::Installer) => "an installer",
        Some(Actor::Agent) => "a server",
        Some(Actor::Operator) => "an operator",
        Some(Actor::Administrator) => "the administrator",
        Some(Actor::Unidentified) => "somebody unknown",
        None => name,
    }
}

/// Returns the class of the pill of a server's or a code's state, as `docs/design.md` lists them.
pub fn pill(state: &str) -> &'static str {
    match state {
        "live" | "confirmed" | "registered" | "checked_in" | "good" | "delivering" => "pill good",
        "stale" | "activated" | "used" | "prechecked" => "pill warn",
        "revoked" | "failing" | "disabled" => "pill bad",
        _ => "pill",
    }
}

/// Returns the class of the pill of the last event of a code.
pub fn pill_of_action(name: &str) -> &'static str {
    match Action::from_name(name) {
        Some(Action::Confirmed | Action::ServerRegistered | Action::ServerCheckedIn) => "pill good",
        Some(Action::Activated | Action::Replaced) => "pill warn",
        Some(action) if action.is_attempt() && action != Action::PrecheckPassed => "pill bad",
        _ => "pill",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_says_how_long_ago_it_is_and_keeps_the_exact_one() {
        let now = Timestamp(1_900_000_000);
        let told = |at: u64| distance(Timestamp(at), now);
        assert_eq!(told(now.0), "just now");
        assert_eq!(told(now.0 - 59), "59 s ago");
        assert_eq!(told(now.0 - 3599), "59 min ago");
        assert_eq!(told(now.0 - 100_000), "27 h ago");
        assert_eq!(told(now.0 - 400_000), "4 d ago");
        assert_eq!(told(now.0 + 7200), "in 2 h");
        assert_eq!(
            ago("2030-03-17T17:46:40+00:00", now),
            "<time datetime=\"2030-03-17T17:46:40+00:00\" title=\"2030-03-17 17:46:40 UTC\">just now</time>"
        );
        assert_eq!(ago("<never>", now), "–");
    }

    #[test]
    fn every_action_and_actor_has_words() {
        for one in Action::ALL {
            assert!(!action(one.name()).contains('_'), "{}", one.name());
        }
        assert!(Actor::ALL.iter().all(|one| actor(one.name()).contains(' ')));
        assert_eq!(action("new_one"), "new_one");
    }
}
