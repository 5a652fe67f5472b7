//! Histories of real processes: clients that behave as installers, agents and operators do ask servers
//! that are killed, paused and cut off, everything that they ask and hear is written down, and
//! `iptunnel-checker` looks for an order that explains it.
//!
//! Here are the short runs. The long one is `scripts/failover`: see [`failover`].
//!
//! Codes and tokens live for a year in these runs, so that nothing expires or lapses and the checker
//! takes every such answer for a fault.

mod agents;
mod chaos;
mod failover;
mod figures;
mod fleet;
mod installer;
mod pair;
mod recorder;
mod wire;

use crate::crash::seed;
use crate::database::Database;
use chaos::{Chaos, Fault};
use fleet::Fleet;
use installer::{Plan, play};
use iptunnel_checker::{Rules, check};
use recorder::Recorder;
use std::path::PathBuf;
use std::time::Duration;

/// What the servers are set to, for the checker.
pub const RULES: Rules = Rules {
    max_activations: 255,
    lifetimes: None,
    // A server that cannot reach its database hears of no revocation until it can.
    revocation_reaches: 120_000_000,
    finished: true,
};

/// The settings that make [`RULES`] true, and clients that wait shorter than the faults last.
pub const SETTINGS: [&str; 7] = [
    "codes.max_activations_per_code=255",
    "codes.ttl_seconds=31536000",
    "codes.max_lifetime_seconds=31536000",
    "codes.restored_ttl_seconds=31536000",
    "codes.precheck_token_ttl_seconds=31536000",
    "codes.install_token_ttl_seconds=31536000",
    "server.request_timeout_ms=4000",
];

/// Where histories are written. One that is found wrong stays there.
pub fn place(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("histories");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{name}-{}.jsonl", std::process::id()))
}

/// Plays a short history over a fleet and fails where it has no order.
fn plays_well(name: &str, fleet: &Fleet, mut chaos: Chaos<'_>, redeems: u32) {
    let seed = seed();
    let recorder = Recorder::new(&place(name));
    let plan = Plan { redeems, clients: 8, seed, longest: Duration::from_secs(60) };
    let played = play(&plan, fleet, &recorder, &mut chaos);
    let violations = check(&recorder.operations(), &RULES);
    let all = violations.iter().map(ToString::to_string).chain(played.complaints);
    let all: String = all.collect();
    assert!(
        all.is_empty(),
        "{all}the history is in {}, seed {seed}\n{}",
        recorder.path().display(),
        fleet.logs()
    );
    assert!(!played.faults.is_empty(), "there were faults");
    recorder.forget();
}

#[test]
fn what_clients_hear_while_servers_are_killed_is_one_story() {
    let database = Database::where_wanted();
    let count = std::env::var("TEST_SERVERS").map_or(1, |count| count.parse().unwrap());
    let fleet = match &database {
        None => Fleet::start(1, &[]),
        Some(database) => {
            let url = format!("storage.url={}", database.url);
            // The cluster of the tests does not sync.
            let shared = ["storage.backend=postgres", &url, "storage.allow_async_failover=true"];
            Fleet::start(count, &shared)
        }
    };
    let faults = [Fault::KillServer, Fault::PauseServer, Fault::Storm];
    let chaos = Chaos::new(seed(), &fleet, None, &faults, Duration::from_secs(1));
    plays_well("servers", &fleet, chaos, 400);
}
