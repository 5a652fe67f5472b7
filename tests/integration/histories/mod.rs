//! Histories of real processes: clients that behave as installers, agents and operators do ask servers
//! that are killed, paused and cut off, everything that they ask and hear is written down, and
//! `iptunnel-checker` looks for an order that explains it.
//!
//! Here are the short runs. The long one is `scripts/failover`: see [`failover`].
//!
//! Codes and tokens live for a year in these runs, so that nothing expires or lapses and the checker
//! takes every such answer for a fault; but for one, in which they live for some seconds.

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
use iptunnel_checker::{Answer, Lifetimes, Operation, Rules, check};
use recorder::Recorder;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What the servers are set to, for the checker.
pub const RULES: Rules = Rules {
    max_activations: 255,
    lifetimes: None,
    // A server that cannot reach its database hears of no revocation until it can.
    revocation_reaches: 120_000_000,
    finished: true,
};

/// The same where what is handed out runs out soon. Nobody need be able to finish then.
const SHORT_RULES: Rules = Rules {
    lifetimes: Some(Lifetimes {
        code: 5_000_000,
        precheck_token: 3_000_000,
        install_token: 4_000_000,
        restored: 3_000_000,
        max_lifetime: 9_000_000,
        // Servers count whole seconds, and follow their database's clock.
        tolerance: 2_000_000,
    }),
    finished: false,
    ..RULES
};

/// What makes [`SHORT_RULES`] true.
const SHORT: [&str; 5] = [
    "codes.ttl_seconds=5",
    "codes.max_lifetime_seconds=9",
    "codes.restored_ttl_seconds=3",
    "codes.precheck_token_ttl_seconds=3",
    "codes.install_token_ttl_seconds=4",
];

/// The settings of all servers: as many activations as there can be, and clients that wait shorter than
/// the faults last.
pub const SETTINGS: [&str; 2] =
    ["codes.max_activations_per_code=255", "server.request_timeout_ms=4000"];

/// What makes [`RULES`] true.
pub const LONG: [&str; 5] = [
    "codes.ttl_seconds=31536000",
    "codes.max_lifetime_seconds=31536000",
    "codes.restored_ttl_seconds=31536000",
    "codes.precheck_token_ttl_seconds=31536000",
    "codes.install_token_ttl_seconds=31536000",
];

/// What goes wrong in the short runs.
const FAULTS: [Fault; 3] = [Fault::KillServer, Fault::PauseServer, Fault::Storm];

/// Where histories are written. One that is found wrong stays there.
pub fn place(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("histories");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{name}-{}.jsonl", std::process::id()))
}

/// Servers, as many as are wanted on whatever store is wanted, with codes and tokens that live so long.
fn fleet_of_test(lives: &[&str]) -> (Fleet, Option<Arc<Database>>) {
    let database = Database::where_wanted();
    let count = std::env::var("TEST_SERVERS").map_or(1, |count| count.parse().unwrap());
    let fleet = match &database {
        None => Fleet::start(1, lives),
        Some(database) => {
            let url = format!("storage.url={}", database.url);
            // The cluster of the tests does not sync.
            let shared = ["storage.backend=postgres", &url, "storage.allow_async_failover=true"];
            Fleet::start(count, &[lives, &shared[..]].concat())
        }
    };
    (fleet, database)
}

/// Plays a short history over a fleet and fails where it has no order; what was asked and answered.
fn plays_well(name: &str, fleet: &Fleet, plan: &Plan, rules: &Rules) -> Vec<Operation> {
    let seed = plan.seed;
    let recorder = Recorder::new(&place(name));
    let mut chaos = Chaos::new(seed, fleet, None, &FAULTS, Duration::from_secs(1));
    let played = play(plan, fleet, &recorder, &mut chaos);
    let operations = recorder.operations();
    let violations = check(&operations, rules);
    let all = violations.iter().map(ToString::to_string).chain(played.complaints);
    let all: String = all.collect();
    assert!(
        all.is_empty(),
        "{all}the history is in {}, seed {seed}\n{}",
        recorder.path().display(),
        fleet.logs()
    );
    for fault in FAULTS {
        let happened = played.faults.iter().any(|happened| happened.fault == fault);
        assert!(happened, "{fault:?} did not happen");
    }
    recorder.forget();
    operations
}

#[test]
fn what_clients_hear_while_servers_are_killed_is_one_story() {
    let (fleet, _database) = fleet_of_test(&LONG);
    let pace = Duration::ZERO;
    let longest = Duration::from_secs(60);
    let plan = Plan { redeems: 400, faults: FAULTS.len(), clients: 8, seed: seed(), longest, pace };
    plays_well("servers", &fleet, &plan, &RULES);
}

#[test]
fn what_clients_hear_while_codes_and_tokens_run_out_is_one_story() {
    let (fleet, _database) = fleet_of_test(&SHORT);
    // A code is wanted for longer than it lives.
    let pace = Duration::from_secs(3);
    let longest = Duration::from_secs(60);
    let plan =
        Plan { redeems: 300, faults: FAULTS.len(), clients: 32, seed: seed(), longest, pace };
    let operations = plays_well("lifetimes", &fleet, &plan, &SHORT_RULES);
    for ran_out in [Answer::Expired, Answer::PrecheckTokenInvalid, Answer::TokenInvalid] {
        let heard = operations.iter().any(|operation| operation.answer == ran_out);
        assert!(heard, "nobody heard {ran_out}");
    }
}
