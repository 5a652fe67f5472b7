//! Three servers over a primary and its synchronous standby, with everything that may happen to them.
//!
//! `scripts/failover` runs [`the_long_run`], a short run is among the tests. A run goes in rounds. At
//! the end of each all faults are healed, every code is brought to its end, and the history is checked;
//! then its file goes, unless something is wrong with it. Of each round some codes are kept in mind and
//! asked for once more at the very end, after all the failovers that came since.

use super::chaos::{Chaos, Fault};
use super::figures::Figures;
use super::fleet::Fleet;
use super::installer::{Asker, Code, Plan, play};
use super::pair::Pair;
use super::recorder::Recorder;
use super::{LONG, RULES, place};
use iptunnel_checker::{Operation, Violation, check, check_code};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many violations of a round are told in full; the history has all.
const SHOWN: usize = 8;
/// Codes of each round that are asked for once more at the end.
const KEPT: usize = 200;

/// What a run is to be.
struct Run {
    name: &'static str,
    redeems: u32,
    /// Activates in a round.
    round: u32,
    /// Faults in a round, at least.
    least_faults: usize,
    servers: usize,
    clients: u32,
    seed: u64,
    longest: Duration,
    /// How long nothing goes wrong between two faults, at most.
    calm: Duration,
    faults: Vec<Fault>,
}

/// A code that is asked for again later, with all that was asked about it so far.
struct Kept {
    code: Arc<Code>,
    operations: Vec<Operation>,
}

impl Run {
    /// Plays it; its figures, and what is wrong.
    fn play(&self) -> (Figures, String) {
        let mut pair = Pair::new();
        let url = format!("storage.url={}", pair.url());
        let shared = ["storage.backend=postgres", &url];
        let fleet = Fleet::start(self.servers, &[&LONG[..], &shared].concat());
        let begun = Instant::now();
        let (mut figures, mut wrong) = (Figures::default(), String::new());
        let mut recorder = Recorder::new(&self.place(1));
        let mut kept: Vec<Kept> = Vec::new();
        // Turns of faults go on over the rounds.
        let mut chaos = Chaos::new(self.seed, &fleet, Some(&mut pair), &self.faults, self.calm);
        while figures.redeems < self.redeems && begun.elapsed() < self.longest {
            let round = figures.rounds + 1;
            let plan = Plan {
                redeems: self.round.min(self.redeems - figures.redeems),
                faults: self.least_faults,
                clients: self.clients,
                seed: self.seed ^ u64::from(round) << 20,
                longest: self.longest.saturating_sub(begun.elapsed()),
                pace: Duration::ZERO,
            };
            let played_from = Instant::now();
            let epochs = fleet.epochs();
            let mut played = play(&plan, &fleet, &recorder, &mut chaos);
            // Every standby that was promoted was synchronous: then nothing that was acknowledged is lost.
            for _ in epochs..fleet.epochs() {
                played
                    .complaints
                    .push("the store lacked what had been acknowledged: a new epoch".into());
            }
            figures.played += played_from.elapsed();
            figures.redeems += played.redeems;
            let (history, operations) = recorder.turn_over(&self.place(round + 1));
            figures.add(&operations, &played.faults);
            let checked_from = Instant::now();
            let violations = check(&operations, &RULES);
            figures.checked += checked_from.elapsed();
            for violation in &violations {
                *figures.violations.entry(violation.kind()).or_default() += 1;
            }
            for complaint in &played.complaints {
                let kind = complaint.lines().next().unwrap_or_default().to_owned();
                *figures.violations.entry(kind).or_default() += 1;
            }
            if violations.is_empty() && played.complaints.is_empty() {
                std::fs::remove_file(&history).unwrap();
            } else {
                fleet.keep_logs(&history);
                let shown = violations.iter().take(SHOWN);
                shown.for_each(|violation| wrong += &format!("{violation}\n"));
                played.complaints.iter().for_each(|complaint| wrong += &format!("{complaint}\n"));
                wrong += &format!("round {round}, its history: {}\n", history.display());
                let faults: Vec<String> = played
                    .faults
                    .iter()
                    .map(|h| {
                        format!(
                            "  {:.3} - {:.3} s {}\n",
                            h.begun as f64 / 1e6,
                            h.healed as f64 / 1e6,
                            h.fault.name()
                        )
                    })
                    .collect();
                wrong += &format!("the faults of that round:\n{}\n", faults.concat());
            }
            // What is wrong already is not told twice.
            let told: HashSet<u32> = violations.iter().map(|violation| violation.about).collect();
            let codes = played.codes.iter().filter(|code| !told.contains(&code.number));
            kept.extend(keep(&codes.cloned().collect::<Vec<_>>(), &operations));
            println!(
                "round {round}: {} redeems, {} operations, {} faults, {} violations so far, {:.0} s",
                played.redeems,
                operations.len(),
                played.faults.len(),
                figures.wrong(),
                begun.elapsed().as_secs_f64()
            );
        }
        let again = ask_again(&fleet, &recorder, kept, self.seed);
        for violation in &again {
            *figures.violations.entry(violation.kind()).or_default() += 1;
        }
        again
            .iter()
            .take(SHOWN)
            .for_each(|violation| wrong += &format!("at the very end: {violation}\n"));
        figures.ended = fleet.ended();
        if again.is_empty() {
            recorder.forget();
        }
        (figures, wrong)
    }

    fn place(&self, round: u32) -> std::path::PathBuf {
        place(&format!("{}-seed-{}-round-{round}", self.name, self.seed))
    }
}

/// Some of the codes of a round, with what was asked about them.
fn keep(codes: &[Arc<Code>], operations: &[Operation]) -> Vec<Kept> {
    let every = codes.len().div_ceil(KEPT).max(1);
    let mut kept: HashMap<u32, Kept> = codes
        .iter()
        .step_by(every)
        .map(|code| (code.number, Kept { code: Arc::clone(code), operations: Vec::new() }))
        .collect();
    for operation in operations {
        if let Some(kept) = operation.call.code().and_then(|code| kept.get_mut(&code)) {
            kept.operations.push(operation.clone());
        }
    }
    kept.into_values().collect()
}

/// Asks for codes of earlier rounds; what is wrong with their whole histories.
fn ask_again(fleet: &Fleet, recorder: &Recorder, kept: Vec<Kept>, seed: u64) -> Vec<Violation> {
    let mut asker = Asker::new(0, fleet, recorder, seed ^ 2);
    kept.iter().for_each(|kept| asker.look_again(&kept.code));
    let mut of_code: HashMap<u32, Vec<Operation>> = HashMap::new();
    for operation in recorder.operations() {
        if let Some(code) = operation.call.code() {
            of_code.entry(code).or_default().push(operation);
        }
    }
    let mut wrong = Vec::new();
    for mut kept in kept {
        let number = kept.code.number;
        kept.operations.extend(of_code.remove(&number).unwrap_or_default());
        wrong.extend(check_code(number, &kept.operations, &RULES));
    }
    wrong
}

#[test]
fn what_clients_hear_while_a_standby_is_promoted_is_one_story() {
    let run = Run {
        name: "standby",
        redeems: 300,
        round: 300,
        least_faults: 2,
        servers: 2,
        clients: 8,
        seed: crate::crash::seed(),
        longest: Duration::from_secs(40),
        calm: Duration::from_secs(1),
        faults: vec![Fault::KillServer, Fault::Promote],
    };
    let (figures, wrong) = run.play();
    assert!(wrong.is_empty(), "{wrong}{figures}\nseed {}", run.seed);
}

/// What `scripts/failover` runs; it sets all of these.
#[test]
#[ignore = "scripts/failover runs it"]
fn the_long_run() {
    let given = |name: &str| std::env::var(format!("FAILOVER_{name}")).unwrap();
    let number =
        |name: &str| given(name).parse::<u32>().unwrap_or_else(|_| panic!("{name}: a number"));
    let named = |name: &str| {
        let fault = Fault::ALL.into_iter().find(|fault| fault.name() == name);
        fault.unwrap_or_else(|| {
            panic!("no fault {name}; there are {:?}", Fault::ALL.map(Fault::name))
        })
    };
    let without = given("WITHOUT");
    let without: Vec<Fault> =
        without.split(',').filter(|name| !name.is_empty()).map(named).collect();
    let only = given("ONLY");
    let only: Vec<Fault> = only.split(',').filter(|name| !name.is_empty()).map(named).collect();
    let wanted =
        |fault: &Fault| !without.contains(fault) && (only.is_empty() || only.contains(fault));
    let run = Run {
        name: "failover",
        redeems: number("REDEEMS"),
        round: number("ROUND"),
        least_faults: 0,
        servers: number("SERVERS") as usize,
        clients: number("CLIENTS"),
        seed: number("SEED").into(),
        longest: Duration::from_secs(60 * u64::from(number("MINUTES"))),
        calm: Duration::from_secs(number("CALM").into()),
        faults: Fault::ALL.into_iter().filter(wanted).collect(),
    };
    let (figures, wrong) = run.play();
    println!("{wrong}\n{figures}\nseed {}", run.seed);
    assert!(wrong.is_empty(), "the promise was broken");
    println!("every answer can be explained, and nothing was lost or burnt");
}
