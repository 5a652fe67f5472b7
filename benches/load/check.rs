//! Compares the ratios of one round with those written down in `benches/expected.toml`, so that a step that has
//! become slower is noticed. Ratios to the bare server depend little on the machine's speed, but rounds differ.
//! So a ratio fails only if it is too low in two rounds.

use serde::Deserialize;

use crate::failure::{Context, Failure, Result};
use crate::figures::ratio;
use crate::options::Options;
use crate::scenario::Round;
use crate::table;

/// The part of an expected ratio that a round must reach. Rounds on an idle machine differ by less.
const AT_LEAST: f64 = 0.9;
/// The rounds in which a ratio has to be reached once.
const TRIES: usize = 2;

/// The file with the expected ratios.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectations {
    ratio: Vec<Expected>,
}

/// The expected ratio of one step.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    step: String,
    connections: usize,
    /// Its rate divided by that of the bare server over as many connections.
    of_bare: f64,
}

impl Expected {
    fn reached(&self, round: &Round) -> Option<f64> {
        Some(round.row(&self.step, self.connections)?.of_bare)
    }

    fn is_reached(&self, round: &Round) -> bool {
        self.reached(round).is_some_and(|reached| reached >= self.of_bare * AT_LEAST)
    }
}

/// Checks one round, and another one if a ratio is too low.
pub async fn run(options: &Options) -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/expected.toml");
    let text = std::fs::read_to_string(path).context(format!("cannot read {path}"))?;
    let expected: Expectations = toml::from_str(&text).context(path)?;
    let mut rounds = Vec::new();
    while rounds.len() < TRIES {
        eprintln!("round {} of at most {TRIES}", rounds.len() + 1);
        rounds.push(crate::measure_round(options).await?);
        if expected.ratio.iter().all(|ratio| is_reached_in_any(ratio, &rounds)) {
            break;
        }
    }
    print(&expected.ratio, &rounds);
    let missed = expected.ratio.iter().filter(|ratio| !is_reached_in_any(ratio, &rounds)).count();
    if missed > 0 {
        return Err(Failure::new(format!(
            "{missed} ratios are more than 10 % below benches/expected.toml in {TRIES} rounds. Run it again on an \
             idle machine. If it fails there too, a step has become slower"
        )));
    }
    Ok(())
}

fn is_reached_in_any(expected: &Expected, rounds: &[Round]) -> bool {
    rounds.iter().any(|round| expected.is_reached(round))
}

fn print(expected: &[Expected], rounds: &[Round]) {
    let head = ["step", "connections", "expected", "reached", "verdict"].map(String::from);
    let lines = expected.iter().map(|expected| {
        let reached =
            rounds.iter().map(|round| expected.reached(round).map_or("none".into(), ratio));
        [
            expected.step.clone(),
            expected.connections.to_string(),
            ratio(expected.of_bare),
            reached.collect::<Vec<_>>().join(", "),
            if is_reached_in_any(expected, rounds) { "ok" } else { "SLOWER" }.to_owned(),
        ]
    });
    table::print(&[head].into_iter().chain(lines).collect::<Vec<_>>(), 0);
}
