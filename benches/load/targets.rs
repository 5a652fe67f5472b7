//! The targets of all measurements, printed with the results.

use crate::figures::ranged;
use crate::statistics::Spread;
use crate::table;

/// Whether a higher or a lower figure is better.
#[derive(Clone, Copy)]
enum Better {
    Higher,
    Lower,
}

/// The bound that a figure must reach, and the aim. The two may be equal.
#[derive(Clone, Copy)]
pub struct Target {
    name: &'static str,
    at_least: f64,
    aim: f64,
    better: Better,
    show: fn(f64) -> String,
}

impl Target {
    /// Creates a target for a figure of which more is better.
    pub const fn higher(
        name: &'static str,
        at_least: f64,
        aim: f64,
        show: fn(f64) -> String,
    ) -> Self {
        Self { name, at_least, aim, better: Better::Higher, show }
    }

    /// Creates a target for a figure of which less is better.
    pub const fn lower(
        name: &'static str,
        at_most: f64,
        aim: f64,
        show: fn(f64) -> String,
    ) -> Self {
        Self { name, at_least: at_most, aim, better: Better::Lower, show }
    }

    /// Judges the median, because a single round on a shared machine means little.
    fn verdict(&self, reached: Option<Spread>) -> &'static str {
        match reached {
            Some(Spread { median, .. }) if self.is_met(median, self.aim) => "aim",
            Some(Spread { median, .. }) if self.is_met(median, self.at_least) => "ok",
            _ => "MISSED",
        }
    }

    fn is_met(&self, figure: f64, bound: f64) -> bool {
        match self.better {
            Better::Higher => figure >= bound,
            Better::Lower => figure <= bound,
        }
    }

    fn bound(&self, bound: f64) -> String {
        let sign = match self.better {
            Better::Higher => '\u{2265}',
            Better::Lower => '\u{2264}',
        };
        format!("{sign} {}", (self.show)(bound))
    }

    fn line(&self, reached: Option<Spread>) -> [String; 5] {
        [
            self.name.to_owned(),
            self.bound(self.at_least),
            self.bound(self.aim),
            reached.map_or_else(|| "no result".to_owned(), |spread| ranged(spread, self.show)),
            self.verdict(reached).to_owned(),
        ]
    }
}

/// Prints the targets with the results, if any.
pub fn print(reached: &[(Target, Option<Spread>)]) {
    let head = ["target", "at least", "aim", "reached", "verdict"].map(String::from);
    let lines = reached.iter().map(|(target, spread)| target.line(*spread));
    table::print(&[head].into_iter().chain(lines).collect::<Vec<_>>(), 0);
}
